"""Every declared method on a small batch: losses against their formulas, and batches of nothing."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from sisa.approximate import rows
from sisa.approximate.controllers import Alternating, Controller, Dual, PerItemStop
from sisa.approximate.declaration import HiddenTerm, Method, Term
from sisa.approximate.methods import METHODS, NEEDS, OBJECTIVES
from sisa.approximate.rows import RowReference, Rows
from sisa.errors import UsageError

B, T, V, D = 4, 6, 11, 5
DRAW = torch.Generator().manual_seed(11)
LOGITS = 2 * torch.randn(B, T, V, generator=DRAW, dtype=torch.float64)
OTHER = LOGITS + torch.randn(B, T, V, generator=DRAW, dtype=torch.float64)
LABELS = torch.randint(V, (B, T), generator=DRAW)
LABELS[0, :3] = LABELS[1, :2] = LABELS[3, :4] = rows.IGNORED
LABELS[2] = rows.IGNORED
HIDDEN = torch.randn(9, D, generator=DRAW, dtype=torch.float64)
HIDDEN_ITEM = torch.tensor([0, 0, 0, 1, 1, 1, 1, 3, 3])
NAMES = [method.name for method in OBJECTIVES]


def scores_of(found: Rows) -> Tensor:
    nll = -torch.log_softmax(found.logits, -1).gather(-1, found.labels[:, None])[:, 0]
    return rows.item_sums(nll, found.item, found.items)


def total(terms: tuple[Term | HiddenTerm, ...], logits: Tensor, labels: Tensor) -> Tensor:
    """Add up terms, with the logits of `OTHER` as the reference."""
    found, other = rows.of_sequences(logits, labels), rows.of_sequences(OTHER, labels)
    summed = logits.new_zeros(())
    for term in terms:
        if isinstance(term, HiddenTerm):
            kept = HIDDEN_ITEM[: len(found.item) and len(HIDDEN)]
            hidden = HIDDEN[: len(kept)] + 0 * logits.sum()
            target = torch.ones(D) if term.target == "control" else torch.ones(len(kept), D)
            summed = summed + term.loss(hidden, kept, B, target)
        else:
            reference = RowReference.of_logits(other.logits)
            summed = summed + term.loss(found, scores_of(other), reference)
    return summed


def loss(method: Method, labels: Tensor = LABELS) -> tuple[Tensor, Tensor]:
    logits = LOGITS.clone().requires_grad_()
    retained = torch.where(labels == rows.IGNORED, labels, (labels + 3) % V)
    forget, retain = total(method.forget, logits, labels), total(method.retain, logits, retained)
    both = method.gamma * forget + method.alpha * retain
    (gradient,) = torch.autograd.grad(both, logits)
    return both.detach(), gradient


@pytest.mark.parametrize("name", NAMES)
def test_every_method_gives_a_loss_and_a_gradient(name: str) -> None:
    value, gradient = loss(METHODS[name])
    assert value.dtype == torch.float64
    assert value.isfinite()
    assert gradient.isfinite().all()
    learned = torch.zeros(B, T, dtype=torch.bool)
    learned[:, :-1] = LABELS[:, 1:] != rows.IGNORED
    assert not gradient[~learned].any()
    if name != "rmu":  # hidden states here do not hang on the logits
        assert gradient[learned].abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_ignored_labels_gives_zero_and_no_gradient(name: str) -> None:
    value, gradient = loss(METHODS[name], torch.full_like(LABELS, rows.IGNORED))
    assert value.item() == 0
    assert not gradient.any()


def test_gradient_difference_ascends_and_descends() -> None:
    method = METHODS["gradient-difference"]
    assert total(method.forget, LOGITS, LABELS).item() == pytest.approx(-ce(), rel=1e-13)
    assert total(method.retain, LOGITS, LABELS).item() == pytest.approx(ce(), rel=1e-13)


def test_satimp_weighs_forgetting_ten_times_as_much_as_retaining() -> None:
    assert (METHODS["satimp"].gamma, METHODS["satimp"].alpha) == (1.0, 0.1)


def kl(degree: float) -> float:
    found, other = rows.of_sequences(LOGITS, LABELS), rows.of_sequences(OTHER, LABELS)
    means = []
    for z, o in zip(found.logits.tolist(), other.logits.tolist(), strict=True):
        log_p = [s / degree - math.log(sum(math.exp(x / degree) for x in z)) for s in z]
        log_q = [s / degree - math.log(sum(math.exp(x / degree) for x in o)) for s in o]
        means.append(sum(math.exp(b) * (b - a) for a, b in zip(log_p, log_q, strict=True)))
    return sum(means) / len(means)


def ce() -> float:
    places = [(b, t) for b in range(B) for t in range(T - 1) if LABELS[b, t + 1] != rows.IGNORED]
    each = []
    for b, t in places:
        z = LOGITS[b, t].tolist()
        each.append(math.log(sum(map(math.exp, z))) - z[int(LABELS[b, t + 1])])
    return sum(each) / len(each)


def test_scrub_has_two_phases() -> None:
    method = METHODS["scrub"]
    assert total(method.forget, LOGITS, LABELS).item() == pytest.approx(-4 * kl(2), rel=1e-12)
    retained = 1.0 * ce() + 0.5 * 4 * kl(2)
    assert total(method.retain, LOGITS, LABELS).item() == pytest.approx(retained, rel=1e-12)
    assert method.controller == Alternating(3)


def test_icu_ascends_and_learns_from_neighbours() -> None:
    method = METHODS["icu"]
    assert total(method.forget, LOGITS, LABELS).item() == pytest.approx(-ce(), rel=1e-12)
    retained = 0.5 * ce() + kl(1)
    assert total(method.retain, LOGITS, LABELS).item() == pytest.approx(retained, rel=1e-12)
    assert {term.data for term in method.retain} == {"neighbours"}
    assert isinstance(method.controller, PerItemStop)


def test_eul_leaves_its_teacher_only_where_it_forgets() -> None:
    method = METHODS["eul"].configured(kl=0.8, ce=0.7, language=0.2)
    forgotten = -kl(1) - 0.2 * ce()
    assert total(method.forget, LOGITS, LABELS).item() == pytest.approx(forgotten, rel=1e-12)
    retained = 0.8 * kl(1) + 0.7 * ce()
    assert total(method.retain, LOGITS, LABELS).item() == pytest.approx(retained, rel=1e-12)
    assert method.controller == Alternating(None, "retain")


def test_label_flip_and_idk_learn_other_labels() -> None:
    for name in ("label-flip", "idk"):
        assert [term.data for term in METHODS[name].forget] == ["alternatives"]
        other = (LABELS + 1) % V
        other[LABELS == rows.IGNORED] = rows.IGNORED
        found = rows.of_sequences(LOGITS, other)
        assert total(METHODS[name].forget, LOGITS, other).item() == pytest.approx(
            scores_of(found).sum().item() / len(found.item), rel=1e-13
        )


@pytest.mark.parametrize(
    ("name", "needs", "references"),
    [
        ("gradient-ascent", (), set()),
        ("gradient-difference", ("retain",), set()),
        ("dpo", ("alternatives", "retain"), {"scores"}),
        ("npo", ("retain",), {"scores"}),
        ("simnpo", ("retain",), set()),
        ("wga", ("retain",), set()),
        ("satimp", ("retain",), set()),
        ("undial", (), {"distribution"}),
        ("ce-u", (), set()),
        ("rmu", ("retain",), {"hidden"}),
        ("scrub", ("retain",), {"distribution"}),
        ("icu", ("retain", "similarity"), {"distribution"}),
        ("eul", ("adapter", "retain"), {"distribution"}),
    ],
)
def test_what_a_method_needs(name: str, needs: tuple[str, ...], references: set[str]) -> None:
    assert METHODS[name].needs == needs
    assert METHODS[name].references == references


def test_every_method_is_described() -> None:
    assert len(METHODS) == len(NAMES) + sum(m.kind == "edit" for m in METHODS.values())
    for name, method in METHODS.items():
        assert method.name == name
        assert method.cost
        assert method.source
        assert set(method.needs) <= NEEDS.keys()


def test_settings_rebuild_the_parts() -> None:
    found = METHODS["npo"].configured(retain="kl", beta=2.0, gamma=0.5)
    assert found.references == {"scores", "distribution"}
    assert (found.gamma, found.defaults["beta"], found.defaults["lr"]) == (0.5, 2.0, 1e-5)
    assert total(found.forget, LOGITS, LABELS) != total(METHODS["npo"].forget, LOGITS, LABELS)
    assert total(found.retain, LOGITS, LABELS).item() == pytest.approx(kl(1), rel=1e-12)
    assert METHODS["npo"].defaults["beta"] == 0.1
    undial = METHODS["undial"].configured(alpha=1.0)
    assert undial.needs == ("retain",)
    pdu = METHODS["pdu"].configured(epsilon=1.25).controller
    assert isinstance(pdu, Dual)
    assert pdu.epsilon == 1.25


def test_wrong_settings_are_named() -> None:
    with pytest.raises(UsageError, match=r"npo has no setting 'betta'"):
        METHODS["npo"].configured(betta=1.0)
    with pytest.raises(UsageError, match="no retain term"):
        METHODS["npo"].configured(retain="kld")
    with pytest.raises(UsageError, match=r"gamma of npo is 'much'"):
        _ = METHODS["npo"].configured(gamma="much").gamma


def test_a_method_is_frozen_and_most_have_a_constant_controller() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        METHODS["npo"].name = "other"  # type: ignore[misc]
    assert METHODS["npo"].controller == Controller()
