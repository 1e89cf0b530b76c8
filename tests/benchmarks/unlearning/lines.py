"""What a method came to: its trials, the one that is chosen of them, and the evidence of that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unlearning.trials import Asking

FLOOR = 0.9
"""Least utility, as a share of the base's, of a trial that is chosen for its forgetting."""

BASELINES = ("nothing", "retrain")
"""Lines that are of no method."""

SMALLEST = 1e-300
"""In the place of a probability that a float cannot hold."""


@dataclass(frozen=True)
class Line:
    """A model in the table.

    Attributes:
        name: Of the method.
        trials: All trials of it.
        chosen: One of them, or None where all failed.
        evidence: Of the chosen one, and of it alone.
    """

    name: str
    trials: tuple[dict[str, Any], ...]
    chosen: dict[str, Any] | None
    evidence: dict[str, Any]

    @property
    def said(self) -> Asking | None:
        """What the chosen model says."""
        return None if self.chosen is None else Asking(**self.chosen["said"])

    @property
    def relearned(self) -> float | None:
        """Probability of one half of the forget items after relearning the other half."""
        part = self.evidence.get("relearning", "")
        return None if isinstance(part, str) else float(part["recovery"]["attacked"])


def best(
    trials: Sequence[dict[str, Any]], base: float, never: Sequence[float]
) -> dict[str, Any] | None:
    """The trial nearest to the retrain at a utility of `FLOOR` of the base, else the most useful.

    Args:
        trials: Of one method.
        base: Utility of the model before.
        never: Probability of each item to forget under the exact retrain.

    Returns:
        None where no trial has a number.
    """
    whole = [trial for trial in trials if trial["said"]]
    useful = [trial for trial in whole if trial["said"]["utility"] >= FLOOR * base]

    def apart(trial: dict[str, Any]) -> tuple[float, float]:
        said = trial["said"]
        return said["distance"], abs(geometric(said["each"]) - geometric(never))

    if useful:
        return min(useful, key=apart)
    return max(whole, key=lambda trial: trial["said"]["utility"], default=None)


def geometric(probabilities: Sequence[float]) -> float:
    """log10 of their geometric mean."""
    return float(np.log10(np.maximum(probabilities, SMALLEST)).mean())


def log_p(value: float) -> float:
    """log10 of a p-value."""
    return math.log10(max(value, SMALLEST))


def told(trials: Sequence[dict[str, Any]]) -> str:
    """One line about the trials of a method, for who waits."""
    return "; ".join(
        f"{trial['seconds']:.0f} s, KS {trial['said']['distance']:.2f}, utility "
        f"{trial['said']['utility']:.3f}"
        if trial["said"]
        else trial["failed"]
        for trial in trials
    )
