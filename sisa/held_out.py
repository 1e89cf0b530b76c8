"""How well does one column predict the target, on rows that the answer was not learned from?

The most frequent class (or the mean) of each value, or of each quantile bin of a number, in one
half of a sample predicts the other half, and the other way round. A nearly unique column so
predicts no better than the baseline, which is the most frequent class (the mean) of the half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

BINS = (256, 1024)
PER_BIN = (16, 4)
"""Rows of a bin at least. Wide bins stand for a proxy, narrow ones find a sharp threshold."""

FEWEST = 40
"""Rows under which nothing can be said."""

Codes = npt.NDArray[np.int64]
Half = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Coded:
    """A column as n codes from 0; `ordered` if neighbouring codes are neighbouring numbers."""

    codes: Codes
    size: int
    ordered: bool


@dataclass(frozen=True)
class Error:
    """Share of wrong predictions (or mean squared error) on held-out rows, and the baseline's."""

    wrong: float
    baseline: float

    def under(self, share: float) -> bool:
        """Whether at most a share of the baseline's error is left."""
        return self.wrong <= share * self.baseline


def numbers(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """A column of numbers, float64 [n]; NaN where null."""
    values = column.cast(pa.float64(), safe=False)
    found: npt.NDArray[np.float64] = pc.fill_null(values, float("nan")).to_numpy()
    return found


def of_number(values: npt.NDArray[np.float64]) -> list[Coded]:
    """Codes of numbers: their values where each is frequent, else quantile bins of two widths.

    The edges are quantiles of all rows, which tell nothing of the target; null is a code of its
    own.
    """
    null = np.isnan(values)
    known = np.sort(values[~null])
    distinct = known[np.r_[True, known[1:] != known[:-1]]] if len(known) else known
    if len(distinct) <= len(values) // 8:
        return [_cut(values, null, distinct)]
    bins = (min(n, len(values) // rows) for n, rows in zip(BINS, PER_BIN, strict=True))
    edges = (np.unique(known[np.arange(1, n) * len(known) // n]) for n in bins)
    return [_cut(values, null, at) for at in edges]


def _cut(values: npt.NDArray[np.float64], null: Half, edges: npt.NDArray[np.float64]) -> Coded:
    codes = np.searchsorted(edges, values, side="right").astype(np.int64)
    codes[null] = len(edges) + 1
    return Coded(codes, len(edges) + 2, ordered=True)


def of_text(column: pa.ChunkedArray) -> Coded:
    """Codes of distinct texts; null is one of them."""
    coded = column.combine_chunks().dictionary_encode()
    codes = pc.fill_null(coded.indices, len(coded.dictionary)).to_numpy(zero_copy_only=False)
    return Coded(codes.astype(np.int64), len(coded.dictionary) + 1, ordered=False)


def held_out(coded: Coded, target: npt.NDArray[Any], half: Half) -> Error:
    """What is wrong when each half is predicted from the other."""
    wrong = baseline = 0.0
    for known in (half, ~half):
        if known.all() or not known.any():
            return Error(1.0, 0.0)
        guess, default = _learn(coded, target, known)
        truth = target[~known]
        wrong += _loss(guess[coded.codes[~known]], truth)
        baseline += _loss(np.full(len(truth), default), truth)
    return Error(wrong / len(target), baseline / len(target))


def _loss(guess: npt.NDArray[Any], truth: npt.NDArray[Any]) -> float:
    return float(
        np.square(guess - truth).sum() if truth.dtype.kind == "f" else (guess != truth).sum()
    )


def _learn(
    coded: Coded, target: npt.NDArray[Any], known: Half
) -> tuple[npt.NDArray[Any], float | int]:
    """The prediction for each code, and the one for what was not seen."""
    codes, truth = coded.codes[known], target[known]
    seen = np.bincount(codes, minlength=coded.size)
    if truth.dtype.kind == "f":
        default: float | int = float(truth.mean())
        guess = np.bincount(codes, truth, coded.size) / np.maximum(seen, 1)
    else:
        classes = int(target.max()) + 1
        default = int(np.bincount(truth).argmax())
        pairs, counts = np.unique(codes * classes + truth, return_counts=True)
        pairs = pairs[np.argsort(counts, kind="stable")]
        guess = np.zeros(coded.size, dtype=np.int64)
        guess[pairs // classes] = pairs % classes  # the last, most frequent one stays
    if coded.ordered:
        return guess[_nearest(np.flatnonzero(seen), coded.size)], default
    guess[seen == 0] = default
    return guess, default


def _nearest(seen: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """For each code the nearest one that was seen."""
    every = np.arange(size)
    right = np.clip(np.searchsorted(seen, every), 0, len(seen) - 1)
    left = np.maximum(right - 1, 0)
    nearer_left = np.abs(seen[left] - every) < np.abs(seen[right] - every)
    return np.where(nearer_left, seen[left], seen[right])


def correlation(number: npt.NDArray[Any], target: npt.NDArray[Any]) -> float:
    """|Pearson's r| over the rows that are not null, of the values or of their ranks."""
    there = ~np.isnan(number)
    x, y = number[there], target[there]
    if len(x) < FEWEST or len(x) < len(number) / 2 or x.std() == 0 or y.std() == 0:
        return 0.0
    ranks = (np.unique(v, return_inverse=True)[1] for v in (x, y))
    return max(abs(float(np.corrcoef(*pair)[0, 1])) for pair in ((x, y), tuple(ranks)))
