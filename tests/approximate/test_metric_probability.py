"""Probability, truth ratio, utility and forget quality, against plain arithmetic."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from sisa.approximate.metrics.probability import (
    choice_probability,
    log_truth_ratio,
    model_utility,
    probability,
    truth_ratio_of_forgotten,
    truth_ratio_of_retained,
    truth_share,
)
from sisa.approximate.metrics.quality import forget_quality
from sisa.approximate.metrics.scores import Figure, Scores
from sisa.approximate.metrics.statistics import RowStatistics


def statistics_of(nll: list[list[float]]) -> RowStatistics:
    """Items with these nll of their labels."""
    flat = torch.tensor([x for item in nll for x in item], dtype=torch.float64)
    item = torch.tensor([i for i, rows in enumerate(nll) for _ in rows], dtype=torch.int64)
    return RowStatistics(flat, flat < 0, flat, flat, item, len(nll))


def scores_of(values: list[float]) -> Scores:
    return Scores(torch.tensor(values, dtype=torch.float64), torch.arange(len(values)), len(values))


def test_probability_is_normalised_by_length() -> None:
    nll = [[0.5, 1.5, 0.1], [], [2.0]]
    found = probability(statistics_of(nll))
    assert found.item.tolist() == [0, 2]
    wanted = [math.exp(-(0.5 + 1.5 + 0.1) / 3), math.exp(-2)]
    assert found.values.tolist() == pytest.approx(wanted, rel=1e-14)
    assert found.mean().left_out == 1


def test_choice_probability_is_a_share() -> None:
    right, wrong = [[0.2, 0.4], [3.0]], [[[1.0], [1.0, 1.0]], [[2.0, 4.0], [0.5]]]
    found = choice_probability(statistics_of(right), [statistics_of(w) for w in wrong])
    for i in range(2):
        p = [math.exp(-sum(x[i]) / len(x[i])) for x in (right, *wrong)]
        assert float(found.values[i]) == pytest.approx(p[0] / sum(p), rel=1e-14)


def test_truth_ratio_and_its_means_are_those_of_a_loop() -> None:
    right = [[0.2, 0.4], [3.0], [1.0]]
    wrong = [[[1.0], [1.0, 1.0], [1.0]], [[2.0, 4.0], [0.5], [1.0, 1.0]]]
    logs = log_truth_ratio(statistics_of(right), [statistics_of(w) for w in wrong])
    ratios, shares = [], []
    for i in range(3):
        true = math.exp(-sum(right[i]) / len(right[i]))
        false = math.prod(math.exp(-sum(w[i]) / len(w[i])) for w in wrong) ** (1 / len(wrong))
        ratios.append(false / true)
        shares.append(true / (true + false))
    assert logs.values.exp().tolist() == pytest.approx(ratios, rel=1e-13)
    assert min(ratios) < 1 < max(ratios)  # both sides of each aggregation are met
    forgotten = sum(min(r, 1 / r) for r in ratios) / 3
    retained = sum(max(0, 1 - r) for r in ratios) / 3
    assert truth_ratio_of_forgotten(logs).value == pytest.approx(forgotten, rel=1e-13)
    assert truth_ratio_of_retained(logs).value == pytest.approx(retained, rel=1e-13)
    assert truth_share(logs).value == pytest.approx(sum(shares) / 3, rel=1e-13)


def test_truth_ratio_does_not_overflow() -> None:
    logs = log_truth_ratio(statistics_of([[5000.0]]), [statistics_of([[1.0]])])
    assert truth_ratio_of_forgotten(logs).value == 0
    assert truth_ratio_of_retained(logs).value == 0
    assert truth_share(logs).value == 0


def test_truth_ratio_pairs_the_answers_of_one_item() -> None:
    """A toolkit zips filtered values with unfiltered indices: items get another's ratio."""
    right = [[1.0], [], [2.0], [3.0]]
    wrong = [[0.5], [0.25], [], [7.0]]
    logs = log_truth_ratio(statistics_of(right), [statistics_of(wrong)])
    assert logs.item.tolist() == [0, 3]
    assert logs.values.tolist() == pytest.approx([1.0 - 0.5, 3.0 - 7.0])
    assert truth_ratio_of_forgotten(logs).left_out == 2


def test_nothing_to_compare_gives_a_reason() -> None:
    logs = log_truth_ratio(statistics_of([[], []]), [statistics_of([[1.0], [2.0]])])
    for figure in (truth_ratio_of_forgotten(logs), truth_ratio_of_retained(logs)):
        assert figure == Figure(None, 0, 2, "no item has a score")
    with pytest.raises(ValueError, match="wrong answer"):
        log_truth_ratio(statistics_of([[1.0]]), [])


def test_utility_is_the_harmonic_mean() -> None:
    values = [0.9, 0.4, 0.6, 0.25]
    found = model_utility({str(i): Figure(v, 10) for i, v in enumerate(values)})
    product = math.prod(values)
    assert found.value == pytest.approx(4 * product / sum(product / v for v in values), rel=1e-14)
    assert model_utility({"a": Figure(0.0, 1), "b": Figure(1.0, 1)}).value == 0
    lacking = model_utility({"a": Figure(1.0, 1), "ROUGE": Figure(None, 0, 3, "why")})
    assert lacking.value is None and lacking.reason == "no figure for ROUGE"
    assert model_utility({}).value is None
    with pytest.raises(ValueError, match="negative"):
        model_utility({"a": Figure(-0.1, 1)})


def distance_of(a: list[float], b: list[float]) -> float:
    """Largest distance of the two empirical distribution functions."""
    return max(
        abs(sum(x <= t for x in a) / len(a) - sum(x <= t for x in b) / len(b)) for t in a + b
    )


def test_forget_quality_is_the_exact_test_by_counting_all_splits() -> None:
    a, b = [0.1, 0.7, 0.2, 0.4], [0.3, 1.4, 0.9, 1.1, 1.2]
    found = forget_quality(scores_of(a), scores_of(b))
    observed = distance_of(a, b)
    every = a + b
    splits = list(combinations(range(9), 4))
    as_far = sum(
        distance_of([every[i] for i in s], [every[i] for i in range(9) if i not in s])
        >= observed - 1e-12
        for s in splits
    )
    assert found.distance == pytest.approx(observed)
    assert found.p_value == pytest.approx(as_far / len(splits), rel=1e-12)
    assert (
        found.p_value is not None and found.p_value < 0.2
    )  # the samples differ, so that a constant 1 would not pass
    assert (found.unlearned, found.retrained) == (4, 5)


def test_forget_quality_does_not_change_with_the_logarithm() -> None:
    a, b = scores_of([0.1, 0.2, 0.4]), scores_of([0.3, 0.9, 1.1])
    logs = [scores_of(s.values.log().tolist()) for s in (a, b)]
    assert forget_quality(a, b) == forget_quality(*logs)
    same = forget_quality(a, a)
    assert same.p_value == 1 and same.distance == 0


def test_forget_quality_of_nothing_says_so() -> None:
    none = forget_quality(scores_of([]), scores_of([1.0]))
    assert none.p_value is None and none.reason == "the unlearned model has no score"
    none = forget_quality(scores_of([1.0]), scores_of([]))
    assert none.distance is None and none.reason == "the retrained model has no score"
