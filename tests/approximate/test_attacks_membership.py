"""Every membership score against loops over positions and plain `math`, in float64."""

from __future__ import annotations

import math
import random as python_random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sisa.approximate.attacks import membership
from sisa.errors import DataError, IncompleteError, UsageError


@dataclass(frozen=True)
class Rows:
    nll: Any
    mean_log_p: Any
    var_log_p: Any
    item: Any
    items: int


LENGTHS = (1, 4, 11, 2)
VOCABULARY = 6


def made(seed: int) -> tuple[list[list[list[float]]], list[list[int]], Rows]:
    """Log-probabilities [item][row][token], labels, and their statistics by loops."""
    random = python_random.Random(seed)
    log_ps: list[list[list[float]]] = []
    labels: list[list[int]] = []
    nll, mean, var, item = [], [], [], []
    for number, length in enumerate(LENGTHS):
        log_ps.append([])
        labels.append([])
        for _ in range(length):
            weights = [math.exp(random.gauss(0, 2)) for _ in range(VOCABULARY)]
            log_p = [math.log(w / sum(weights)) for w in weights]
            label = random.randrange(VOCABULARY)
            mu = sum(math.exp(x) * x for x in log_p)
            log_ps[-1].append(log_p)
            labels[-1].append(label)
            nll.append(-log_p[label])
            mean.append(mu)
            var.append(sum(math.exp(x) * (x - mu) ** 2 for x in log_p))
            item.append(number)
    return log_ps, labels, Rows(*map(np.array, (nll, mean, var, item)), len(LENGTHS))


def lowest(values: list[float], share: float) -> float:
    kept = sorted(values)[: max(1, int(share * len(values)))]
    return sum(kept) / len(kept)


def test_loss_zlib_and_reference() -> None:
    log_ps, labels, rows = made(0)
    other_ps, other_labels, other = made(1)
    texts = ["a", "the same the same the same", "\u00e9tranger", "1234567890"]
    losses, others = [], []
    for ps, ys, qs, zs in zip(log_ps, labels, other_ps, other_labels, strict=True):
        losses.append(-sum(p[y] for p, y in zip(ps, ys, strict=True)) / len(ys))
        others.append(-sum(q[z] for q, z in zip(qs, zs, strict=True)) / len(zs))
    assert membership.score_loss(rows) == pytest.approx([-x for x in losses], rel=1e-12)
    sizes = membership.zlib_sizes(texts)
    assert sizes.tolist() == [len(zlib.compress(t.encode("utf-8"))) for t in texts]
    expected = [-x / size for x, size in zip(losses, sizes, strict=True)]
    assert membership.score_zlib(rows, sizes) == pytest.approx(expected, rel=1e-12)
    expected = [o - x for x, o in zip(losses, others, strict=True)]
    assert membership.score_reference(rows, other) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.4, 0.5, 1.0])
def test_min_k_and_min_k_plus_plus(share: float) -> None:
    log_ps, labels, rows = made(2)
    plain, normal = [], []
    for ps, ys in zip(log_ps, labels, strict=True):
        plain.append(lowest([p[y] for p, y in zip(ps, ys, strict=True)], share))
        zs = []
        for p, y in zip(ps, ys, strict=True):
            mean = sum(math.exp(x) * x for x in p)
            square = sum(math.exp(x) * x * x for x in p)
            zs.append((p[y] - mean) / math.sqrt(square - mean**2))
        normal.append(lowest(zs, share))
    assert membership.score_min_k(rows, share) == pytest.approx(plain, rel=1e-12)
    assert membership.score_min_k_plus_plus(rows, share) == pytest.approx(normal, rel=1e-9)


def test_rows_may_be_torch_and_in_any_order() -> None:
    _, _, rows = made(3)
    order = np.random.default_rng(0).permutation(len(rows.nll))
    mixed = Rows(
        *(torch.from_numpy(np.asarray(a)[order]) for a in (rows.nll, rows.mean_log_p)),
        torch.from_numpy(rows.var_log_p[order]),
        torch.from_numpy(rows.item[order]),
        rows.items,
    )
    for score in (
        membership.score_loss,
        membership.score_min_k,
        membership.score_min_k_plus_plus,
    ):
        assert score(mixed) == pytest.approx(score(rows), rel=1e-12)


def test_a_certain_model_does_not_divide_by_zero() -> None:
    rows = Rows(np.zeros(2), np.zeros(2), np.array([0.0, -1e-18]), np.array([0, 1]), 2)
    assert membership.score_min_k_plus_plus(rows).tolist() == [0, 0]


def test_higher_means_more_likely_a_member() -> None:
    """What the model knows better must score higher under every attack."""
    _, _, rows = made(4)
    known = replace(rows, nll=rows.nll / 10)
    norms = np.arange(4) + 1.0

    def seen(of: Rows, gradients: Any) -> dict[str, Any]:
        reference = replace(rows, nll=rows.nll * 1.5)
        return membership.scores(membership.Observed(of, [9, 9, 9, 9], reference, gradients))

    better, worse = seen(known, norms / 10), seen(rows, norms)
    assert set(better) == set(membership.ATTACKS)
    for name in membership.ATTACKS:
        assert (better[name] > worse[name]).all(), name


def test_attacks_run_where_what_they_need_is_there() -> None:
    _, _, rows = made(5)
    found = membership.scores(membership.Observed(rows))
    assert set(found) == {"loss", "min_k", "min_k_plus_plus"}
    assert all(attack.needs and attack.source for attack in membership.ATTACKS.values())


def test_gradient_norms_are_those_of_a_worked_model() -> None:
    """y = w x + b, loss (y - t)^2: dw = 2 (y - t) x, db = 2 (y - t), c unused."""
    w, b, c = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (2.0, 1.0, 5.0))
    points = [(3.0, 1.0), (0.5, 4.0)]

    def losses() -> Iterator[Tensor]:
        for x, t in points:
            yield (w * x + b - t) ** 2

    expected = [(abs(2 * (2 * x + 1 - t) * x) + abs(2 * (2 * x + 1 - t))) / 2 for x, t in points]
    norms = membership.gradient_norms(losses(), [w, b, c])
    assert norms == pytest.approx(expected, rel=1e-12)
    assert membership.score_gradient_norm(norms) == pytest.approx([-e for e in expected])
    assert w.grad is None


def test_a_gradient_norm_falls_as_a_model_learns() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 2), torch.randn(1, 3), torch.tensor([1])
    optimizer = torch.optim.SGD(model.parameters(), 0.5)

    def norm() -> float:
        loss = nn.functional.cross_entropy(model(x), y)
        return float(membership.gradient_norms([loss], list(model.parameters()))[0])

    before = norm()
    for _ in range(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert norm() < before / 5


def test_empty_sets_are_refused() -> None:
    none = Rows(*(np.zeros(0) for _ in range(3)), np.zeros(0, dtype=np.int64), 0)
    for score in (membership.score_loss, membership.score_min_k):
        with pytest.raises(IncompleteError, match="no item"):
            score(none)
    with pytest.raises(IncompleteError, match="no item"):
        membership.score_gradient_norm([])


def test_items_without_a_row_are_refused_and_not_nan() -> None:
    _, _, rows = made(6)
    for score in (membership.score_loss, membership.score_min_k):
        with pytest.raises(IncompleteError, match="1 of 5 items"):
            score(replace(rows, items=5))


def test_bad_statistics_are_refused() -> None:
    _, _, rows = made(7)
    broken = rows.nll.copy()
    broken[3] = math.nan
    with pytest.raises(DataError, match="1 values of nll"):
        membership.score_loss(replace(rows, nll=broken))
    with pytest.raises(DataError, match="same rows"):
        membership.score_reference(rows, replace(rows, item=rows.item[:-1]))
    with pytest.raises(DataError, match="3 sizes for 4 items"):
        membership.score_zlib(rows, [1, 2, 3])
    with pytest.raises(DataError, match="no size"):
        membership.score_zlib(rows, [1, 2, 3, 0])
    with pytest.raises(UsageError, match="no share"):
        membership.score_min_k(rows, 0)
    with pytest.raises(DataError, match="no gradient"):
        membership.gradient_norms([torch.tensor(1.0)], [])
    w, v = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    with pytest.raises(DataError, match="depends on none"):
        membership.gradient_norms([w.sum()], [v])
