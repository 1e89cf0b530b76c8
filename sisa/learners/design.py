"""The design matrix: what a learner with numeric inputs sees of records.

Columns, in this order:

1. scalar numbers, standardised, in name order;
2. their null indicators, 1 where null;
3. text features in name order, each one-hot over its buckets (null, declared values, hashed ones);
4. arrays in name order: `uint8` as x / 255, every other type standardised element by element.

What is estimated from data is estimated by each stage over its own records and lives in the state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from sisa.learners.records import Encoding, Records, Standardiser

MEAN = "standardiser.mean"
DEVIATION = "standardiser.deviation"
TARGET = "standardiser.target"

UINT8_SCALE = 1 / 255
"""A public constant, so that images need no estimate."""

CHUNK = 8192
"""Rows predicted at once."""

Block = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


def inputs(encoding: Encoding) -> int:
    """Number of columns of the design matrix."""
    numbers = len(encoding.features("number"))
    return 2 * numbers + sum(encoding.text_widths) + sum(f.size for f in encoding.features("array"))


@dataclass(frozen=True)
class Scales:
    """What one stage estimated.

    Attributes:
        columns: Of scalar numbers, then of the elements of arrays other than uint8; [k].
        target: Of the target of a regression, [1]; None for a classification.
    """

    columns: Standardiser
    target: Standardiser | None

    @classmethod
    def unit(cls, encoding: Encoding) -> Scales:
        """Before any stage: nothing is moved or scaled."""
        arrays = encoding.features("array")
        estimated = sum(f.size for f in arrays if f.dtype != np.uint8)
        columns = _unit(len(encoding.features("number")) + estimated)
        return cls(columns, _unit(1) if encoding.classes is None else None)

    @classmethod
    def fit(cls, encoding: Encoding, records: Records) -> Scales:
        """Estimate over the records of a stage, targets included.

        A regression's target is standardised too: otherwise a learning rate would have to fit the
        unit in which it is measured.
        """
        estimated = [records.numbers, *(a for a in records.arrays if a.dtype != np.uint8)]
        columns = Standardiser.fit(np.concatenate(estimated, axis=1, dtype=np.float64))
        if encoding.classes is not None:
            return cls(columns, None)
        return cls(columns, Standardiser.fit(np.array([records.target]).T))

    @classmethod
    def of(cls, state: Mapping[str, npt.NDArray[Any]]) -> Scales:
        """Read back from a state."""
        columns = Standardiser(state[MEAN], state[DEVIATION])
        if TARGET not in state:
            return cls(columns, None)
        target = state[TARGET]
        return cls(columns, Standardiser(target[:1], target[1:]))

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Named arrays for the state: mean and deviation [k], of the target together [2]."""
        found = {MEAN: self.columns.mean, DEVIATION: self.columns.deviation}
        if self.target is not None:
            found[TARGET] = np.concatenate([self.target.mean, self.target.deviation])
        return found

    def learned(self, target: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The target as it is trained on: class indices as they are, values standardised; [n]."""
        return target if self.target is None else self.target.apply(target)

    def restored(self, values: Floats) -> Floats:
        """Predicted values of a regression in the target's own unit, float64 [n]."""
        if self.target is None:
            return values
        restored: Floats = values * self.target.deviation + self.target.mean
        return restored


def blocks(
    encoding: Encoding, records: Records, scales: Scales, dtype: npt.DTypeLike
) -> tuple[Block, ...]:
    """The design matrix of n records, cut into as few blocks of columns as its types allow.

    Args:
        encoding: What the recipe declares.
        records: n records.
        scales: As estimated by the stage that they are for.
        dtype: Of the blocks that are not uint8.

    Returns:
        Writable C-ordered arrays [n, width], in column order: uint8 values not yet scaled, so that
        they take a byte each until a batch is cast, all others final.
    """
    parts = [_scaled(records.numbers, scales, 0), np.isnan(records.numbers)]
    parts += [
        _one_hot(records.codes[:, i], width, dtype) for i, width in enumerate(encoding.text_widths)
    ]
    at = records.numbers.shape[1]
    for array in records.arrays:
        if array.dtype == np.uint8:
            parts.append(array)
        else:
            parts.append(_scaled(array, scales, at))
            at += array.shape[1]
    parts = [part for part in parts if part.shape[1]]
    return tuple(
        _joined(list(group), np.uint8 if raw else dtype)
        for raw, group in groupby(parts, lambda part: part.dtype == np.uint8)
    )


def predicted(encoding: Encoding, records: Records, predict: Callable[[Records], Floats]) -> Floats:
    """Predict in chunks of rows, so that memory does not grow with the table.

    Args:
        encoding: What the recipe declares.
        records: n records, or none.
        predict: Class probabilities [b, classes], or values [b], of b records.

    Returns:
        The same of all n.
    """
    if len(records) == 0:
        return np.zeros((0, encoding.classes) if encoding.classes else 0)
    starts = range(0, len(records), CHUNK)
    rows = (np.arange(at, min(at + CHUNK, len(records))) for at in starts)
    return np.concatenate([predict(records.take(chunk)) for chunk in rows])


def _unit(size: int) -> Standardiser:
    return Standardiser(np.zeros(size), np.ones(size))


def _scaled(values: Block, scales: Scales, at: int) -> Block:
    own = slice(at, at + values.shape[1])
    return Standardiser(scales.columns.mean[own], scales.columns.deviation[own]).apply(values)


def _one_hot(codes: npt.NDArray[np.int64], width: int, dtype: npt.DTypeLike) -> Block:
    hot = np.zeros((len(codes), width), dtype=dtype)
    hot[np.arange(len(codes)), codes] = 1
    return hot


def _joined(parts: list[Block], dtype: npt.DTypeLike) -> Block:
    if len(parts) == 1:
        return np.require(parts[0], dtype=dtype, requirements=["C", "W"])
    return np.concatenate(parts, axis=1, dtype=dtype, casting="same_kind")
