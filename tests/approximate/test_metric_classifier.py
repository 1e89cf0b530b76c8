"""Accuracy and distances to the exact retrain, against loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sisa.approximate.metrics import statistics
from sisa.approximate.metrics.classifier import (
    accuracies,
    parameter_distance,
    prediction_distance,
)
from sisa.approximate.metrics.statistics import RowStatistics
from sisa.errors import SisaError, UsageError


def logits_of(seed: int, records: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(records, 4, dtype=torch.float64, generator=generator)


def statistics_of(logits: Tensor, labels: list[int]) -> RowStatistics:
    return statistics.of_rows(
        logits, torch.tensor(labels, dtype=torch.int64), torch.arange(len(labels)), len(labels)
    )


def test_accuracy_of_each_set() -> None:
    logits = torch.eye(4, dtype=torch.float64)
    found = accuracies(
        statistics_of(logits, [0, 1, 2, 0]),
        statistics_of(logits[:2], [0, 1]),
        statistics_of(logits[:0], []),
    )
    assert (found.forget.value, found.retain.value) == (0.75, 1.0)
    assert found.test.value is None and found.test.reason == "there are no items"


def test_prediction_distance_is_that_of_a_loop() -> None:
    unlearned, retrained = logits_of(0), logits_of(1)
    kl = variation = same = 0.0
    for a, b in zip(unlearned.tolist(), retrained.tolist(), strict=True):
        p = [math.exp(z) / sum(map(math.exp, a)) for z in a]
        q = [math.exp(z) / sum(map(math.exp, b)) for z in b]
        kl += sum(y * math.log(y / x) for x, y in zip(p, q, strict=True)) / 9
        variation += sum(max(0.0, y - x) for x, y in zip(p, q, strict=True)) / 9
        same += (p.index(max(p)) == q.index(max(q))) / 9
    found = prediction_distance(
        (unlearned[i : i + 4], retrained[i : i + 4]) for i in range(0, 9, 4)
    )
    assert found.kl.value == pytest.approx(kl, rel=1e-12)
    assert found.total_variation.value == pytest.approx(variation, rel=1e-12)
    assert found.agreement.value == pytest.approx(same) and 0 < same < 1
    assert found.kl.counted == 9
    other_way = prediction_distance([(retrained, unlearned)]).kl.value
    assert other_way != pytest.approx(kl, rel=1e-3)


def test_equal_predictions_have_no_distance() -> None:
    found = prediction_distance([(logits_of(0), logits_of(0) + 5)])
    assert found.kl.value == pytest.approx(0, abs=1e-14)
    assert found.total_variation.value == pytest.approx(0, abs=1e-14)
    assert found.agreement.value == 1


def test_no_records_have_a_reason_and_no_nan() -> None:
    found = prediction_distance([])
    assert found.kl.value is None and found.kl.reason
    logits = torch.tensor([[0.0, 1.0, -torch.inf]])
    assert prediction_distance([(logits, logits)]).kl.value == 0


def test_a_collapsed_model_has_no_distance() -> None:
    logits = logits_of(0)
    for bad in (torch.full_like(logits, torch.nan), logits.index_fill(0, torch.tensor(1), -1e400)):
        with pytest.raises(SisaError, match="not finite"):
            prediction_distance([(bad, logits)])
    with pytest.raises(SisaError, match="not finite"):
        parameter_distance({"w": torch.tensor([torch.nan])}, {"w": torch.ones(1)})
    with pytest.raises(ValueError, match="same records"):
        prediction_distance([(logits, logits[:3])])


def test_parameter_distance_by_hand() -> None:
    ours = {"w": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([3.0])}
    exact = {"w": torch.tensor([[1.0, -1.0]]), "b": torch.tensor([-1.0])}
    found = parameter_distance(ours, exact)
    assert (found.l2, found.largest) == (5.0, 4.0)
    assert found.relative == pytest.approx(5 / math.sqrt(3))
    assert parameter_distance(exact, exact).l2 == 0
    zeros = {"w": torch.zeros(2)}
    assert parameter_distance(zeros, zeros).relative is None


@pytest.mark.parametrize("other", [{"w": torch.ones(3)}, {"v": torch.ones(2)}, {}])
def test_other_architectures_are_refused(other: dict[str, Tensor]) -> None:
    with pytest.raises(UsageError, match="other parameters"):
        parameter_distance({"w": torch.ones(2)}, other)
