"""Reductions in float64 against loops over items and rows, and the identities between them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sisa.approximate.objectives.sequences import (
    Reduction,
    by_confidence,
    by_saturation_and_importance,
    everywhere,
    preferred,
    smallest,
    squashed,
    token_mean,
    weighted,
)

ITEM = torch.tensor([0, 0, 0, 1, 3, 3, 3, 3])
ITEMS = 4  # item 2 has no rows
VALUES = torch.tensor([0.3, 2.1, 0.05, 1.7, 0.9, 0.2, 4.0, 0.6], dtype=torch.float64)
REFERENCE = torch.tensor([2.0, 2.5, 7.0, 4.4], dtype=torch.float64)
GROUPS = {0: [0.3, 2.1, 0.05], 1: [1.7], 3: [0.9, 0.2, 4.0, 0.6]}


def gradient(reduce: Reduction, reference: Tensor | None = None) -> list[float]:
    values = VALUES.clone().requires_grad_()
    (found,) = torch.autograd.grad(reduce(values, ITEM, ITEMS, reference), values)
    return list(found.tolist())


def loss(reduce: Reduction, reference: Tensor | None = None) -> float:
    return reduce(VALUES, ITEM, ITEMS, reference).item()


def log_sigmoid(value: float) -> float:
    return -math.log(1 + math.exp(-value))


def test_token_mean() -> None:
    assert loss(token_mean()) == pytest.approx(sum(VALUES.tolist()) / 8, rel=1e-14)
    assert gradient(token_mean()) == pytest.approx([1 / 8] * 8)


def test_first_rows_are_skipped_but_never_all() -> None:
    kept = [2.1, 0.05, 1.7, 0.2, 4.0, 0.6]
    assert loss(token_mean(1)) == pytest.approx(sum(kept) / 6, rel=1e-14)
    kept = [0.05, 1.7, 0.6]
    assert loss(token_mean(9)) == pytest.approx((0.05 + 1.7 + 0.6) / 3, rel=1e-14)


@pytest.mark.parametrize(
    ("reduce", "weight"),
    [
        (weighted(everywhere), lambda p: 1.0),
        (weighted(by_confidence(0.5)), lambda p: p**0.5),
        (weighted(by_saturation_and_importance(5, 1)), lambda p: p**5 * (1 - p)),
    ],
)
def test_weights_get_no_gradient(reduce: Reduction, weight) -> None:  # type: ignore[no-untyped-def]
    weights = [weight(math.exp(-value)) for value in VALUES.tolist()]
    expected = -sum(w * v for w, v in zip(weights, VALUES.tolist(), strict=True)) / 8
    assert loss(reduce) == pytest.approx(expected, rel=1e-13)
    assert gradient(reduce) == pytest.approx([-w / 8 for w in weights], rel=1e-13)


def test_without_weights_all_is_gradient_ascent() -> None:
    ascent = loss(weighted(everywhere))
    assert ascent == -loss(token_mean())
    for same in (
        weighted(by_confidence(0)),
        weighted(by_saturation_and_importance(0, 0)),
        smallest(1.0),
    ):
        assert loss(same) == pytest.approx(ascent, rel=1e-15)
    assert loss(weighted(by_saturation_and_importance(0.7, 0))) == loss(
        weighted(by_confidence(0.7))
    )


def test_the_smallest_of_each_item_are_selected() -> None:
    expected = []
    for group in GROUPS.values():
        expected += sorted(group)[: max(1, math.floor(0.8 * len(group)))]
    assert len(expected) == 2 + 1 + 3
    assert loss(smallest(0.8)) == pytest.approx(-sum(expected) / 6, rel=1e-14)
    assert gradient(smallest(0.8)) == pytest.approx([-(v in expected) / 6 for v in VALUES.tolist()])


def test_npo() -> None:
    beta = 0.4
    terms = [
        -2 / beta * log_sigmoid(beta * (sum(group) - REFERENCE[b].item()))
        for b, group in GROUPS.items()
    ]
    assert loss(squashed(beta), REFERENCE) == pytest.approx(sum(terms) / 3, rel=1e-13)


def test_simnpo() -> None:
    beta, delta = 2.5, 0.3
    terms = [
        -2 / beta * log_sigmoid(beta * (sum(group) / len(group) - delta))
        for group in GROUPS.values()
    ]
    found = loss(squashed(beta, mean=True, delta=delta))
    assert found == pytest.approx(sum(terms) / 3, rel=1e-13)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0, 4.5])
def test_npo_at_the_reference_is_summed_ascent(beta: float) -> None:
    own = torch.tensor([sum(GROUPS.get(b, [])) for b in range(4)], dtype=torch.float64)
    assert loss(squashed(beta), own) == pytest.approx(2 / beta * math.log(2), rel=1e-13)
    values = VALUES.clone().requires_grad_()
    per_item = torch.stack([values[b == ITEM].sum() for b in GROUPS])
    (ascent,) = torch.autograd.grad(-per_item.mean(), values)
    assert gradient(squashed(beta), own) == pytest.approx(ascent.tolist(), rel=1e-12)


def test_npo_with_a_vanishing_beta_is_summed_ascent() -> None:
    found = gradient(squashed(1e-9), REFERENCE)
    assert found == pytest.approx([-1 / 3] * 8, rel=1e-7)


def test_simnpo_of_single_rows_is_npo_with_a_certain_reference() -> None:
    item = torch.arange(8)
    simnpo = squashed(2.5, mean=True)(VALUES, item, 8, None)
    npo = squashed(2.5)(VALUES, item, 8, torch.zeros(8, dtype=torch.float64))
    assert simnpo == npo


def test_dpo() -> None:
    # items 0 and 1 are the alternatives to items 2 and 3; item 2 has no rows
    beta = 0.4
    scores = {b: sum(group) - REFERENCE[b].item() for b, group in GROUPS.items()}
    expected = -2 / beta * log_sigmoid(beta * (scores[3] - scores[1]))
    unknown = REFERENCE.clone()
    unknown[2] = torch.nan
    for reference in (REFERENCE, unknown):
        assert loss(preferred(beta), reference) == pytest.approx(expected, rel=1e-13)
        assert gradient(preferred(beta), reference)[:3] == [0, 0, 0]


def test_dpo_is_npo_where_alternatives_rest_at_the_reference() -> None:
    values = VALUES[:6]
    item = torch.tensor([0, 0, 1, 2, 3, 3])
    reference = torch.tensor([0.3 + 2.1, 0.05, 1.1, 2.2], dtype=torch.float64)
    dpo = preferred(0.3)(values, item, 4, reference)
    npo = squashed(0.3)(values[3:], item[3:] - 2, 2, reference[2:])
    torch.testing.assert_close(dpo, npo)


REDUCTIONS = {
    "mean": token_mean(),
    "skip": token_mean(1),
    "ascent": weighted(everywhere),
    "wga": weighted(by_confidence(1)),
    "satimp": weighted(by_saturation_and_importance(5, 1)),
    "selection": smallest(0.8),
    "npo": squashed(0.1),
    "simnpo": squashed(4.5, mean=True),
    "dpo": preferred(0.1),
}


@pytest.mark.parametrize("name", ["mean", "skip", "ascent", "selection", "npo", "simnpo", "dpo"])
@pytest.mark.parametrize("reference", [None, REFERENCE], ids=["alone", "reference"])
def test_gradients(name: str, reference: Tensor | None) -> None:
    values = VALUES.clone().requires_grad_()
    reduce = REDUCTIONS[name]
    assert torch.autograd.gradcheck(lambda v: reduce(v, ITEM, ITEMS, reference), (values,))


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("items", [0, 2])
def test_no_rows_give_zero_with_zero_gradient(name: str, items: int) -> None:
    source = torch.ones(3, dtype=torch.float64, requires_grad=True)
    values, item = source[:0], torch.zeros(0, dtype=torch.int64)
    unknown = torch.full((items,), torch.nan, dtype=torch.float64)
    found = REDUCTIONS[name](values, item, items, unknown)
    found.backward()
    assert found.item() == 0
    assert source.grad is not None
    assert source.grad.tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", sorted(REDUCTIONS.keys() - {"dpo"}))
def test_an_item_without_rows_is_not_counted(name: str) -> None:
    known = REFERENCE.clone()
    known[2] = torch.nan
    values = VALUES.clone().requires_grad_()
    found = REDUCTIONS[name](values, ITEM, ITEMS, known)
    (with_it,) = torch.autograd.grad(found, values)
    closer = ITEM - (ITEM > 2).long()
    fewer = REDUCTIONS[name](values, closer, 3, known[[0, 1, 3]])
    (without,) = torch.autograd.grad(fewer, values)
    assert found == fewer
    assert torch.equal(with_it, without)
