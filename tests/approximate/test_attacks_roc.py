"""ROC, AUC and TPR at an FPR against explicit loops; intervals; what is too little."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from sisa.approximate.attacks import roc
from sisa.errors import DataError, IncompleteError, UsageError


def pairs(members: list[float], others: list[float]) -> float:
    wins = sum((m > o) + (m == o) / 2 for m in members for o in others)
    return wins / (len(members) * len(others))


def best(members: list[float], others: list[float], fpr: float) -> float:
    found = 0.0
    for threshold in [*members, *others, math.inf]:
        false = sum(o >= threshold for o in others)
        if false <= fpr * len(others) + 1e-9:
            found = max(found, sum(m >= threshold for m in members) / len(members))
    return found


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_auc_and_tpr_are_those_of_loops(levels: int) -> None:
    random = np.random.default_rng(levels)
    members = (random.integers(0, levels, 61) + random.integers(0, 2, 61)).tolist()
    others = random.integers(0, levels, 47).tolist()
    assert roc.auc(members, others) == pytest.approx(pairs(members, others), abs=1e-15)
    for fpr in (0.0, 0.001, 0.02, 1 / 47, 0.1, 0.5, 1.0):
        assert roc.tpr_at(members, others, fpr) == pytest.approx(best(members, others, fpr))


def test_a_worked_curve_with_ties() -> None:
    found = roc.roc([3, 2, 2], [2, 1])
    assert found.thresholds.tolist() == [math.inf, 3, 2, 1]
    assert found.tpr.tolist() == pytest.approx([0, 1 / 3, 1, 1])
    assert found.fpr.tolist() == [0, 0, 0.5, 1]
    assert roc.auc([3, 2, 2], [2, 1]) == pytest.approx((2 + 1.5 + 1.5) / 6)


def test_equal_scores_tell_nothing_in_either_order() -> None:
    """A sort that keeps members before others would call this a perfect attack."""
    assert roc.auc([0.0] * 5, [0.0] * 7) == 0.5
    assert roc.tpr_at([0.0] * 5, [0.0] * 7, 0.5) == 0


def test_rates_that_binary_fractions_miss_are_met() -> None:
    """0.29 of 100 is 28.999... as a float; 29 false positives are allowed."""
    members, others = [70.5, 1000.0], list(range(100))
    assert int(0.29 * 100) == 28
    assert roc.tpr_at(members, others, 0.29) == 1


def test_infinite_scores_are_the_highest_and_lowest() -> None:
    assert roc.auc([math.inf, 1], [0, -math.inf]) == 1


def test_too_few_others_are_told() -> None:
    random = np.random.default_rng(0)
    found = roc.measure(random.normal(1, 1, 300), random.normal(0, 1, 200), "population")
    strict, loose = found.rates
    assert (strict.fpr, strict.smallest_fpr, strict.resolvable) == (0.001, 1 / 200, False)
    assert (strict.achieved_fpr, loose.resolvable) == (0, True)
    assert loose.achieved_fpr <= 0.01
    exactly = roc.measure(random.normal(1, 1, 9), random.normal(0, 1, 1000), "population")
    assert exactly.rates[0].resolvable


def test_population_attacks_carry_their_caveat() -> None:
    population = roc.measure([1, 2, 3], [0, 1, 2], "population")
    assert "overestimates protection" in population.caveat
    assert roc.measure([1, 2, 3], [0, 1, 2], "per-example").caveat == ""


def test_over_unlearning_is_seen_in_the_reverse() -> None:
    found = roc.measure(np.arange(100) - 1000, np.arange(100), "population")
    assert found.auc == 0
    assert [rate.tpr for rate in found.rates] == [0, 0]
    assert [rate.tpr for rate in found.reversed_rates] == [1, 1]


def test_intervals_hold_the_truth_and_depend_on_the_seed_alone() -> None:
    """Two Gaussians one deviation apart: AUC = Phi(1 / sqrt 2); 40 draws at 90%."""
    truth, inside = NormalDist().cdf(1 / math.sqrt(2)), 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        scores = random.normal(1, 1, 150), random.normal(0, 1, 150)
        found = roc.measure(*scores, "population", level=0.9, resamples=200)
        inside += found.auc_low <= truth <= found.auc_high
        if not seed:
            assert found == roc.measure(*scores, "population", level=0.9, resamples=200)
            other = roc.measure(*scores, "population", level=0.9, resamples=200, seed=1)
            assert (found.auc, found.auc_low) != (other.auc, other.auc_low)
            assert found.auc == other.auc
    assert 30 <= inside <= 40


def test_the_deviation_of_the_bootstrap_is_hanley_and_mcneils() -> None:
    random = np.random.default_rng(5)
    members, others = random.normal(0, 1, 400), random.normal(0, 1, 400)
    found = roc.measure(members, others, "population", level=0.95, resamples=500)
    a, m, n = found.auc, 400, 400
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    deviation = math.sqrt((a * (1 - a) + (m - 1) * (q1 - a * a) + (n - 1) * (q2 - a * a)) / (m * n))
    assert found.auc_high - found.auc_low == pytest.approx(2 * 1.96 * deviation, rel=0.15)


def test_same_distribution_is_not_told_apart() -> None:
    """Negative control: of 20 draws about one misses 0.5 at 95%, and their mean is 0.5."""
    found = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        scores = random.normal(size=1000), random.normal(size=1000)
        found.append(roc.measure(*scores, "population", resamples=200))
    assert sum(f.auc_low < 0.5 < f.auc_high for f in found) >= 16
    deviation = math.sqrt(2001 / (12 * 1000 * 1000))  # of Mann and Whitney's U where both are equal
    assert abs(sum(f.auc for f in found) / 20 - 0.5) < 4 * deviation / math.sqrt(20)
    for at, fpr in enumerate(roc.FPRS):
        assert sum(f.rates[at].tpr for f in found) / 20 == pytest.approx(fpr, abs=0.005)


@pytest.mark.parametrize("members, others", [([], [1, 2]), ([1], [1, 2]), ([1, 2], [1]), ([], [])])
def test_empty_and_single_sets_are_refused(members: list[float], others: list[float]) -> None:
    with pytest.raises(IncompleteError, match="scores of 2"):
        roc.measure(members, others, "population")
    with pytest.raises(IncompleteError, match="scores of 2"):
        roc.auc(members, others)


def test_bad_scores_and_rates_are_refused() -> None:
    with pytest.raises(DataError, match="1 scores of non-members"):
        roc.auc([1, 2], [math.nan, 1])
    with pytest.raises(UsageError, match="no rate"):
        roc.tpr_at([1, 2], [1, 2], 1.5)
    with pytest.raises(UsageError, match="resamples"):
        roc.measure([1, 2], [1, 2], "population", resamples=0)
