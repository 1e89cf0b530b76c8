"""Weights between and beyond two models: task vector, mixing, and mixing to a target utility."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sisa.approximate.edits.mappings import Parameters, changed, check, wide
from sisa.errors import ConfigurationError, DataError


@dataclass(frozen=True)
class Mixed:
    """What a search found.

    Attributes:
        params: The mixture.
        share: That of the original model in it.
        utility: Of the mixture; at least the target.
        evaluations: Models that were evaluated.
    """

    params: dict[str, Tensor]
    share: float
    utility: float
    evaluations: int


def task_vector(
    params: Parameters, overfitted: Parameters, alpha: float = 1.0
) -> dict[str, Tensor]:
    """theta - alpha (theta_F - theta), Ilharco et al., "Editing Models with Task Arithmetic", 2023.

    Give parameters alone: a running variance that something is subtracted from can turn negative.

    Args:
        params: theta, the model; whole numbers are copied.
        overfitted: theta_F, the same model trained further on the forget set alone.
        alpha: How far to go.

    Raises:
        ConfigurationError: The two have different parameters.
    """

    def away(old: Tensor, further: Tensor) -> Tensor:
        return wide(old) - alpha * (wide(further) - wide(old))

    return _combined(params, overfitted, away)


def mix(original: Parameters, unlearned: Parameters, share: float) -> dict[str, Tensor]:
    """share theta_original + (1 - share) theta_unlearned; at 1 and 0 one of both, bit for bit.

    Wang et al., "Towards Effective Evaluations and Comparisons for LLM Unlearning Methods", ICLR
    2025 (model mixing).

    Args:
        original: The model before unlearning; whole numbers are copied from it.
        unlearned: The model after it.
        share: Of the original, 0 to 1.

    Raises:
        ConfigurationError: The share is out of range, or the two have different parameters.
    """
    if not 0 <= share <= 1:
        raise ConfigurationError(f"The share {share} is not in [0, 1].", "Correct the setting.")

    def between(old: Tensor, new: Tensor) -> Tensor:
        if share in (0, 1):
            return (old if share else new).detach().clone()
        return torch.lerp(wide(new), wide(old), share)

    return _combined(original, unlearned, between)


def mix_to(
    original: Parameters,
    unlearned: Parameters,
    utility: Callable[[Parameters], float],
    target: float,
    tolerance: float = 1 / 64,
) -> Mixed:
    """The mixture with the smallest share of the original whose utility reaches a target.

    Bisection: what is returned was evaluated and reaches the target. It is the smallest such share,
    up to the tolerance, if utility rises with the share.

    Args:
        original: The model before unlearning.
        unlearned: The model after it.
        utility: Of a model; larger is better.
        target: What it must reach.
        tolerance: Width of the interval of shares at which to stop.

    Raises:
        ConfigurationError: The original itself does not reach the target, or a setting is wrong.
        DataError: A utility is not finite.
    """
    if not tolerance > 0 or not math.isfinite(target):
        raise ConfigurationError("Target and tolerance must be finite, the latter positive.")
    evaluations = 0

    def evaluate(share: float) -> Mixed:
        nonlocal evaluations
        evaluations += 1
        params = mix(original, unlearned, share)
        value = float(utility(params))
        if not math.isfinite(value):
            raise DataError(f"The utility at a share of {share:g} is not finite.")
        return Mixed(params, share, value, evaluations)

    low, best = evaluate(0.0), evaluate(1.0)
    if best.utility < target:
        raise ConfigurationError(
            f"The original model has a utility of {best.utility:.4g}, under the target.",
            "Lower the target.",
        )
    if low.utility >= target:
        best = low
    floor = low.share
    while best.share - floor > tolerance:
        middle = evaluate((floor + best.share) / 2)
        if middle.utility >= target:
            best = middle
        else:
            floor = middle.share
    return Mixed(best.params, best.share, best.utility, evaluations)


def _combined(
    first: Parameters, second: Parameters, rule: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    check(first, second)
    check(second, first)
    floating = (name for name, value in first.items() if value.is_floating_point())
    return changed(first, {name: rule(first[name].detach(), second[name]) for name in floating})
