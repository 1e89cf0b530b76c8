"""How well scores tell members from others: ROC, AUC, TPR at a low FPR, and how sure that is.

A member is a record that the model was trained on; its score should be the higher one. All curves
are exact: one point for each distinct score, ties taken together, nothing interpolated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from sisa.errors import DataError, IncompleteError, UsageError

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Kind = Literal["population", "per-example"]

FPRS = (0.001, 0.01)
"""What is reported: an attack that is sure of a few is worse than one that is vague about all."""

POPULATION_CAVEAT = (
    "A population attack puts one threshold to all records. It overestimates protection: attacks "
    "with shadow models for each record find more."
)
"""Stands beside every AUC of such an attack (Hayes et al., arXiv:2403.01218)."""


@dataclass(frozen=True)
class Roc:
    """A curve from (0, 0) to (1, 1); call a record a member if its score is at least a threshold.

    Attributes:
        thresholds: Descending, the first is infinite, float64 [K + 1] for K distinct scores.
        fpr: Share of non-members at or above a threshold, float64 [K + 1].
        tpr: Share of members at or above it, float64 [K + 1].
    """

    thresholds: Array
    fpr: Array
    tpr: Array


@dataclass(frozen=True)
class Rate:
    """The true positive rate at a given false positive rate.

    Attributes:
        fpr: The rate that was asked for: no more false positives than that.
        tpr: Share of members found.
        low: Lower end of its bootstrap interval.
        high: Upper end.
        achieved_fpr: Share of non-members at or above the threshold that was used.
        smallest_fpr: 1 / number of non-members; there is nothing between 0 and this.
    """

    fpr: float
    tpr: float
    low: float
    high: float
    achieved_fpr: float
    smallest_fpr: float

    @property
    def resolvable(self) -> bool:
        """Whether there are enough non-members; if not, `tpr` is the rate without any mistake."""
        return self.smallest_fpr <= self.fpr * (1 + _ROUNDING)


@dataclass(frozen=True)
class Measured:
    """What an attack found.

    Attributes:
        kind: Whether one threshold was put to all records, or each had an attack of its own.
        members: Number of members.
        others: Number of non-members.
        auc: Area under the ROC curve: the probability that a member scores above a non-member,
            ties half. Far under 0.5 tells members too: what was unlearned stands out.
        auc_low: Lower end of its bootstrap interval.
        auc_high: Upper end.
        rates: At each false positive rate, a high score meaning member.
        reversed_rates: The same for a low score meaning member.
        level: Coverage of the intervals.
        resamples: Number of bootstrap resamples.
        seed: Theirs.
    """

    kind: Kind
    members: int
    others: int
    auc: float
    auc_low: float
    auc_high: float
    rates: tuple[Rate, ...]
    reversed_rates: tuple[Rate, ...]
    level: float
    resamples: int
    seed: int

    @property
    def caveat(self) -> str:
        """What must be read with the figures, or empty."""
        return POPULATION_CAVEAT if self.kind == "population" else ""


def roc(members: npt.ArrayLike, others: npt.ArrayLike) -> Roc:
    """The whole curve.

    Args:
        members: Scores of records that the model was trained on, [M].
        others: Scores of records that it never saw, [N].

    Raises:
        IncompleteError: There are fewer than two of either.
        DataError: A score is not a number.
    """
    scores = _Scores.of(members, others)
    inside, outside = scores.counts()
    return Roc(
        thresholds=np.concatenate([[np.inf], scores.values]),
        fpr=_above(outside) / len(scores.others),
        tpr=_above(inside) / len(scores.members),
    )


def auc(members: npt.ArrayLike, others: npt.ArrayLike, least: int = 2) -> float:
    """P(member > other) + P(member = other) / 2: Mann and Whitney's U over M N.

    A population attack's AUC overestimates protection: see `POPULATION_CAVEAT`.

    Args:
        members: Scores of records that the model was trained on, [M].
        others: Scores of records that it never saw, [N].
        least: Of either that are enough; an attack needs two.

    Raises:
        IncompleteError: There are fewer of either.
        DataError: A score is not a number.
    """
    return _auc(*_Scores.of(members, others, least).counts())


def tpr_at(members: npt.ArrayLike, others: npt.ArrayLike, fpr: float) -> float:
    """Largest share of members found with at most a share `fpr` of non-members among them.

    Raises:
        IncompleteError: There are fewer than two of either.
        DataError: A score is not a number.
        UsageError: `fpr` is not between 0 and 1.
    """
    _require_rate(fpr)
    return _tpr(*_Scores.of(members, others).counts(), fpr)[0]


def measure(
    members: npt.ArrayLike,
    others: npt.ArrayLike,
    kind: Kind,
    *,
    fprs: tuple[float, ...] = FPRS,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Measured:
    """All figures, with percentile intervals of a bootstrap over members and over non-members.

    Scores are resampled as if they were independent. Those of one record under several shadow
    models are not, and then the intervals are too narrow.

    Args:
        members: Scores of records that the model was trained on, [M].
        others: Scores of records that it never saw, [N].
        kind: Of the attack that gave the scores.
        fprs: False positive rates to report.
        level: Coverage of the intervals.
        resamples: Number of bootstrap resamples.
        seed: Theirs; equal seeds give equal intervals.

    Raises:
        IncompleteError: There are fewer than two of either.
        DataError: A score is not a number.
        UsageError: A rate or the level is not between 0 and 1, or there is no resample.
    """
    for rate in (*fprs, level):
        _require_rate(rate)
    if resamples < 1:
        raise UsageError("An interval needs resamples.", "Ask for 1000.")
    scores = _Scores.of(members, others)
    drawn = np.array([_figures(*counts, fprs) for counts in scores.resampled(resamples, seed)])
    ends = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    inside, outside = scores.counts()
    ahead, behind = ends[:, 1 : 1 + len(fprs)], ends[:, 1 + len(fprs) :]
    return Measured(
        kind=kind,
        members=len(scores.members),
        others=len(scores.others),
        auc=_auc(inside, outside),
        auc_low=float(ends[0, 0]),
        auc_high=float(ends[1, 0]),
        rates=_rates(inside, outside, fprs, ahead),
        reversed_rates=_rates(inside[::-1], outside[::-1], fprs, behind),
        level=level,
        resamples=resamples,
        seed=seed,
    )


_ROUNDING = 1e-9
"""So that 0.29 of 100 are 29."""


@dataclass(frozen=True)
class _Scores:
    """Scores as places among their distinct values.

    Attributes:
        values: Descending, float64 [K].
        members: Place of each member's score, int64 [M].
        others: Place of each non-member's, int64 [N].
    """

    values: Array
    members: Counts
    others: Counts

    @classmethod
    def of(cls, members: npt.ArrayLike, others: npt.ArrayLike, least: int = 2) -> _Scores:
        inside, outside = (
            _checked(members, "members", least),
            _checked(others, "non-members", least),
        )
        values, places = np.unique(np.concatenate([inside, outside]), return_inverse=True)
        places = len(values) - 1 - places
        return cls(values[::-1], places[: len(inside)], places[len(inside) :])

    def counts(self) -> tuple[Counts, Counts]:
        """How often each value occurs among members and others, int64 [K] each."""
        return self._count(self.members), self._count(self.others)

    def resampled(self, times: int, seed: int) -> Iterator[tuple[Counts, Counts]]:
        random = np.random.default_rng(seed)

        def drawn(places: Counts) -> Counts:
            return self._count(places[random.integers(0, len(places), len(places))])

        for _ in range(times):
            yield drawn(self.members), drawn(self.others)

    def _count(self, places: Counts) -> Counts:
        return np.bincount(places, minlength=len(self.values))


def _checked(scores: npt.ArrayLike, whose: str, least: int) -> Array:
    found = np.asarray(scores, dtype=np.float64).ravel()
    if len(found) < least:
        raise IncompleteError(
            f"An attack needs scores of {least} {whose} or more and has {len(found)}.",
            "Give it larger sets.",
        )
    if np.isnan(found).any():
        raise DataError(
            f"{int(np.isnan(found).sum())} scores of {whose} are not numbers.",
            "Leave out records that cannot be scored.",
        )
    return found


def _require_rate(rate: float) -> None:
    if not 0 <= rate <= 1:
        raise UsageError(f"{rate} is no rate.", "Write a number between 0 and 1.")


def _above(counts: Counts) -> Counts:
    """How many are at or above each threshold, from an infinite one on; int64 [K + 1]."""
    return np.concatenate([[0], np.cumsum(counts)])


def _auc(inside: Counts, outside: Counts) -> float:
    """In whole numbers up to the division: trapezoids are twice their area."""
    above = _above(inside)
    twice = int((outside * (above[1:] + above[:-1])).sum())
    return twice / (2 * int(inside.sum()) * int(outside.sum()))


def _tpr(inside: Counts, outside: Counts, fpr: float) -> tuple[float, float]:
    """TPR and the FPR that goes with it."""
    false = _above(outside)
    allowed = int(fpr * int(false[-1]) * (1 + _ROUNDING))
    at = int(np.searchsorted(false, allowed, side="right")) - 1
    return float(_above(inside)[at] / inside.sum()), float(false[at] / false[-1])


def _figures(inside: Counts, outside: Counts, fprs: tuple[float, ...]) -> list[float]:
    return [
        _auc(inside, outside),
        *(_tpr(inside, outside, fpr)[0] for fpr in fprs),
        *(_tpr(inside[::-1], outside[::-1], fpr)[0] for fpr in fprs),
    ]


def _rates(
    inside: Counts, outside: Counts, fprs: tuple[float, ...], ends: Array
) -> tuple[Rate, ...]:
    found = []
    for number, fpr in enumerate(fprs):
        tpr, achieved = _tpr(inside, outside, fpr)
        low, high = (float(end) for end in ends[:, number])
        found.append(Rate(fpr, tpr, low, high, achieved, 1 / int(outside.sum())))
    return tuple(found)
