"""Figures of a classifier: accuracy, and how far it is from an exact retrain."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sisa.approximate.metrics.scores import Figure, mean_of
from sisa.approximate.metrics.statistics import RowStatistics
from sisa.errors import SisaError, UsageError


@dataclass(frozen=True)
class Accuracies:
    """Share of records whose class is the argmax.

    Attributes:
        forget: On what is to be forgotten.
        retain: On what stays.
        test: On what was never trained on.
    """

    forget: Figure
    retain: Figure
    test: Figure


def accuracies(forget: RowStatistics, retain: RowStatistics, test: RowStatistics) -> Accuracies:
    """Accuracy on the three sets; a good forget accuracy is that of the exact retrain, not 0."""
    return Accuracies(accuracy(forget), accuracy(retain), accuracy(test))


def accuracy(statistics: RowStatistics) -> Figure:
    """Share of the records whose class is the argmax."""
    return mean_of(statistics.greedy_hit, statistics.items)


@dataclass(frozen=True)
class ParameterDistance:
    """How far parameters are from those of the exact retrain.

    Attributes:
        l2: Euclidean distance of all parameters together.
        relative: It, divided by the norm of the retrain; None where that is 0.
        largest: Largest absolute difference of one number.
    """

    l2: float
    relative: float | None
    largest: float


def parameter_distance(
    parameters: Mapping[str, Tensor], retrained: Mapping[str, Tensor]
) -> ParameterDistance:
    """Distance of two sets of parameters, in float64.

    Two retrains that differ in nothing but their seed are far apart by this measure: it says little
    unless both start from the same weights and see the same order.

    Raises:
        UsageError: They differ in names or shapes.
    """
    shapes = [{name: p.shape for name, p in m.items()} for m in (parameters, retrained)]
    if shapes[0] != shapes[1]:
        raise UsageError(
            "The retrained model has other parameters than the unlearned one.",
            "Retrain a model of the same architecture.",
        )
    squares = norm = largest = 0.0
    for name, p in parameters.items():
        exact = retrained[name].detach().to("cpu", torch.float64)
        difference = p.detach().to("cpu", torch.float64) - exact
        squares += float(difference.square().sum())
        norm += float(exact.square().sum())
        largest = max(largest, float(difference.abs().max()) if difference.numel() else 0.0)
    if not math.isfinite(squares):
        raise _not_finite("parameters")
    l2 = math.sqrt(squares)
    return ParameterDistance(l2, l2 / math.sqrt(norm) if norm else None, largest)


@dataclass(frozen=True)
class PredictionDistance:
    """How far predictions are from those of the exact retrain, mean over records.

    Attributes:
        kl: KL(retrained || unlearned), nats.
        total_variation: Half the sum of absolute differences of probabilities, in [0, 1].
        agreement: Share of records of which both say the same class.
    """

    kl: Figure
    total_variation: Figure
    agreement: Figure


def prediction_distance(chunks: Iterable[tuple[Tensor, Tensor]]) -> PredictionDistance:
    """Compare predictions on the same records, a chunk at a time, in float64.

    Args:
        chunks: Logits [n, C] of the unlearned model and of the exact retrain.

    Raises:
        ValueError: Their shapes differ.
        SisaError: A distance is not finite.
    """
    found = [_distances(unlearned, retrained) for unlearned, retrained in chunks]
    table = torch.cat(found, dim=1) if found else torch.zeros(3, 0)
    if not table.isfinite().all():
        raise _not_finite("predictions")
    return PredictionDistance(*(mean_of(values, len(values)) for values in table))


def _distances(unlearned: Tensor, retrained: Tensor) -> Tensor:
    """KL, total variation and agreement of each record, float64 [3, n]."""
    if unlearned.shape != retrained.shape:
        raise ValueError("both models must predict the same records and classes")
    with torch.no_grad():
        log_p = torch.log_softmax(unlearned.to("cpu", torch.float64), dim=1)
        log_q = torch.log_softmax(retrained.to("cpu", torch.float64), dim=1)
        q = log_q.exp()
        kl = torch.where(q > 0, q * (log_q - log_p), 0.0).sum(1)
        total_variation = (q - log_p.exp()).abs().sum(1) / 2
        return torch.stack([kl, total_variation, log_p.argmax(1) == log_q.argmax(1)])


def _not_finite(what: str) -> SisaError:
    return SisaError(
        f"The {what} of one of the two models are not finite.",
        "Its weights are damaged, or it collapsed: take an earlier checkpoint.",
    )
