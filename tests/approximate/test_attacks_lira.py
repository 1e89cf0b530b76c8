"""LiRA and U-LiRA: closed forms by loops, and ROCs of Gaussians whose best attack is known."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch

from sisa.approximate.attacks import lira, roc
from sisa.errors import DataError, IncompleteError

NORMAL = NormalDist()


def test_log_odds_are_log_p_over_one_minus_p() -> None:
    for p in (1e-12, 0.001, 0.3, 0.5, 0.7, 0.999, 1 - 1e-9):
        expected = math.log(p) - math.log1p(-p)
        assert float(lira.log_odds(-math.log(p))) == pytest.approx(expected, rel=1e-6)


def test_log_odds_stay_finite_and_ordered_at_both_ends() -> None:
    """By way of p: exp(-800) is 0 and 1 - exp(-1e-20) is 0, and both ends would be infinite."""
    nll = np.array([0.0, 1e-15, 1e-9, 0.1, 1, 40, 800, 1e5])
    phi = lira.log_odds(nll)
    assert np.isfinite(phi).all()
    assert (np.diff(phi) < 0).all()
    assert phi[2] == pytest.approx(9 * math.log(10), rel=1e-9)
    assert phi[-2:] == pytest.approx([-800, -1e5])
    naive = np.exp(-nll)
    with np.errstate(divide="ignore"):
        assert not np.isfinite(np.log(naive) - np.log(1 - naive)).all()


def test_log_odds_know_how_fine_their_type_is() -> None:
    assert lira.log_odds(np.zeros(1, np.float32)) == pytest.approx(24 * math.log(2), rel=1e-6)
    assert lira.log_odds(np.zeros(1)) == pytest.approx(53 * math.log(2), rel=1e-6)
    with pytest.raises(DataError, match="negative"):
        lira.log_odds([-0.1])
    with pytest.raises(DataError, match="finite"):
        lira.log_odds([math.inf])


def test_log_odds_of_logits_are_the_same_and_finer() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(7, 4, dtype=torch.float64), torch.randint(4, (7,))
    nll = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    expected = lira.log_odds(nll.numpy())
    assert lira.log_odds_of_logits(logits, labels).numpy() == pytest.approx(expected, rel=1e-9)
    sure = torch.tensor([[200.0, 0.0]])
    assert lira.log_odds_of_logits(sure, torch.tensor([0])).item() == 200


def gaussian(values: list[float], x: float, variance: float | None = None) -> float:
    mean = sum(values) / len(values)
    if variance is None:
        variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return -((x - mean) ** 2) / (2 * variance) - math.log(2 * math.pi * variance) / 2


def pooled(sides: list[list[float]]) -> float:
    squares = sum((v - sum(s) / len(s)) ** 2 for s in sides for v in s)
    return squares / sum(len(s) - 1 for s in sides)


def drawn(models: int, examples: int, seed: int) -> tuple[Any, Any, Any]:
    random = np.random.default_rng(seed)
    members = random.permuted(np.tile(np.arange(models)[:, None] % 2 == 0, examples), axis=0)
    scores = random.normal(members * 2.0, 1 + members) + random.normal(size=examples) * 3
    return scores, members, random.normal(size=examples)


@pytest.mark.parametrize("variance", ["example", "shared", "auto"])
def test_lira_is_that_of_loops(variance: Any) -> None:
    scores, members, target = drawn(10, 6, 0)
    inside = [[float(scores[s, e]) for s in range(10) if members[s, e]] for e in range(6)]
    outside = [[float(scores[s, e]) for s in range(10) if not members[s, e]] for e in range(6)]
    fixed = (None, None) if variance == "example" else (pooled(inside), pooled(outside))
    expected = [
        gaussian(inside[e], target[e], fixed[0]) - gaussian(outside[e], target[e], fixed[1])
        for e in range(6)
    ]
    found = lira.lira(target, scores, members, variance=variance)
    assert found == pytest.approx(expected, rel=1e-10)
    offline = lira.lira(target, scores, members, variance=variance, offline=True)
    for e in range(6):
        mean = sum(outside[e]) / len(outside[e])
        deviation = math.sqrt(fixed[1] or pooled([outside[e]]))
        assert offline[e] == pytest.approx((target[e] - mean) / deviation, rel=1e-10)


def test_a_shared_variance_is_around_each_examples_own_mean() -> None:
    """Over all scores at once it would be that of the examples' difficulty: here 100 times."""
    random = np.random.default_rng(0)
    scores = random.normal(size=(8, 50)) + random.normal(size=50) * 100
    members = np.arange(8)[:, None] % 2 == np.zeros((8, 50))
    near = lira.lira(scores.mean(0) + 3, scores, members, offline=True, variance="shared")
    assert 2 < np.median(near) < 4


def test_u_lira_looks_at_what_was_unlearned() -> None:
    scores, members, target = drawn(12, 5, 1)
    random = np.random.default_rng(1)
    unlearned = scores - 1 + random.normal(size=scores.shape) / 10
    forgotten = members & (np.cumsum(members, axis=0) <= 3)
    found = lira.u_lira(target, unlearned, forgotten, scores, ~members, variance="example")
    for e in range(5):
        inside = [float(unlearned[s, e]) for s in range(12) if forgotten[s, e]]
        outside = [float(scores[s, e]) for s in range(12) if not members[s, e]]
        expected = gaussian(inside, target[e]) - gaussian(outside, target[e])
        assert found[e] == pytest.approx(expected, rel=1e-10)


def test_auto_estimates_each_variance_where_scores_are_enough() -> None:
    scores, members, target = drawn(2 * lira.ENOUGH, 4, 2)
    many = lira.lira(target, scores, members)
    assert (many == lira.lira(target, scores, members, variance="example")).all()
    few = lira.lira(target, scores[:-2], members[:-2])
    assert (few == lira.lira(target, scores[:-2], members[:-2], variance="shared")).all()


def world(
    shift: float, inner: float, models: int, examples: int, seed: int
) -> tuple[lira.Side, lira.Side]:
    """phi is N(m + shift, inner^2) in and N(m, 1) out, with a mean m of each example's own."""
    random = np.random.default_rng(seed)
    members = random.permuted(np.tile(np.arange(models)[:, None] % 2 == 0, examples), axis=0)
    noise = random.normal(size=(models, examples))
    scores = random.normal(size=examples) * 20 + np.where(members, shift + inner * noise, noise)
    return lira.sides(scores, members, scores, ~members)


def test_the_roc_of_shifted_gaussians_is_the_best_there_is() -> None:
    """Neyman and Pearson: AUC = Phi(d / sqrt 2), TPR = Phi(d - z(1 - FPR))."""
    sides = world(1.5, 1, 128, 400, 0)
    results = lira.leave_one_out(*sides, variance="shared")
    found = roc.measure(*results, "per-example", resamples=20)
    assert found.auc == pytest.approx(NORMAL.cdf(1.5 / math.sqrt(2)), abs=0.01)
    for rate in found.rates:
        best = NORMAL.cdf(1.5 - NORMAL.inv_cdf(1 - rate.fpr))
        assert rate.tpr == pytest.approx(best, abs=0.03)
    offline = lira.leave_one_out(*sides, offline=True)
    assert roc.auc(*offline) == pytest.approx(found.auc, abs=0.01)
    # One threshold for all examples sees their means above all.
    inside, outside = sides
    population = roc.measure(
        inside.scores[inside.use], outside.scores[outside.use], "population", resamples=20
    )
    assert population.auc < 0.55
    assert population.rates[1].tpr < found.rates[1].tpr / 3


def test_the_roc_of_widened_gaussians_is_the_best_there_is() -> None:
    """No shift, three times the deviation: AUC = 2/pi atan 3; looking at "out" alone sees none."""
    sides = world(0, 3, 128, 400, 1)
    online = roc.auc(*lira.leave_one_out(*sides))
    assert online == pytest.approx(2 / math.pi * math.atan(3), abs=0.01)
    assert roc.auc(*lira.leave_one_out(*sides, offline=True)) == pytest.approx(0.5, abs=0.02)


def test_few_models_do_better_with_a_shared_variance() -> None:
    sides = world(2, 1, 8, 2000, 2)
    shared = roc.tpr_at(*lira.leave_one_out(*sides, variance="shared"), 0.01)
    own = roc.tpr_at(*lira.leave_one_out(*sides, variance="example"), 0.01)
    assert shared > own + 0.1


@pytest.mark.parametrize("models", [6, 64])
@pytest.mark.parametrize("offline", [False, True])
def test_same_distribution_is_not_told_apart(models: int, offline: bool) -> None:
    """Negative control."""
    sides = world(0, 1, models, 60000 // models, 3)
    found = roc.auc(*lira.leave_one_out(*sides, offline=offline))
    assert found == pytest.approx(0.5, abs=0.01)


def test_a_target_among_its_own_shadow_models_would_flatter_the_attack() -> None:
    inside, outside = world(0, 1, 6, 2000, 3)
    found = [
        lira.likelihood(inside.scores[s], inside, outside, offline=False, variance="shared")
        for s in range(6)
    ]
    results = np.stack(found)
    assert roc.auc(results[inside.use], results[outside.use]) > 0.6


def test_equal_scores_of_an_example_stay_finite() -> None:
    scores, members, target = drawn(8, 4, 4)
    scores[:, 0] = 16.6
    target[0] = 16.6
    found = lira.lira(target, scores, members, variance="example")
    assert np.isfinite(found).all()
    assert found[0] == pytest.approx(0, abs=1e-6)


def test_what_is_too_little_is_refused() -> None:
    scores, members, target = drawn(8, 4, 5)
    with pytest.raises(IncompleteError, match="two examples"):
        lira.lira(target[:1], scores[:, :1], members[:, :1])
    with pytest.raises(IncompleteError, match="two examples"):
        lira.lira(target[:0], scores[:, :0], members[:, :0])
    lonely = members.copy()
    lonely[:, 2] = False
    lonely[0, 2] = True
    with pytest.raises(IncompleteError, match="1 of 4 examples have under 2"):
        lira.lira(target, scores, lonely, variance="example")
    assert np.isfinite(lira.lira(target, scores, lonely, variance="shared")).all()
    lonely[0, 2] = False
    with pytest.raises(IncompleteError, match="1 of 4 examples have under 1"):
        lira.lira(target, scores, lonely, variance="shared")
    single = np.array([[True] * 4, [False] * 4])
    with pytest.raises(IncompleteError, match="too few"):
        lira.lira(target, scores[:2], single, variance="shared")


def test_shapes_that_differ_and_bad_scores_are_refused() -> None:
    scores, members, target = drawn(8, 4, 6)
    with pytest.raises(DataError, match="one finite score"):
        lira.lira(target[:3], scores, members)
    with pytest.raises(DataError, match="mask"):
        lira.lira(target, scores, members[:7])
    with pytest.raises(DataError, match="same examples"):
        lira.u_lira(target, scores, members, scores[:, :3], ~members[:, :3])
    broken = scores.copy()
    broken[0, 0] = math.nan
    with pytest.raises(DataError, match="not a finite"):
        lira.lira(target, broken, members)
