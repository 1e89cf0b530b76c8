"""The design matrix: what a learner with numeric inputs sees of records.

Columns, in this order:

1. scalar numbers, standardised, in name order;
2. their null indicators, 1 where null;
3. text features in name order, each one-hot over its buckets (null, declared values, hashed ones);
4. arrays in name order: (x - mean) / deviation where the recipe declares these two constants, else
   `uint8` as x / 255, else standardised element by element.

What is estimated from data is estimated by each stage over its own records and lives in the state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from data_index.schema import Feature
from sisa.learners.records import Encoding, Records, Standardiser

MEAN = "standardiser.mean"
DEVIATION = "standardiser.deviation"
TARGET = "standardiser.target"

UINT8 = (0.0, 255.0)
"""Mean and deviation of bytes without declared ones: public constants, so that images need no
estimate."""

CHUNK = 8192
"""Rows predicted at once."""

Values = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Block:
    """Adjacent columns of the design matrix of n records.

    Attributes:
        values: C-ordered and writable, [n, width].
        scale: None where the values are final. Else they are uint8, which take a byte each until a
            batch is cast, and become (x - mean) * factor.
    """

    values: Values
    scale: tuple[float, float] | None = None


def inputs(encoding: Encoding) -> int:
    """Number of columns of the design matrix."""
    numbers = len(encoding.features("number"))
    return 2 * numbers + sum(encoding.text_widths) + sum(f.size for f in encoding.features("array"))


@dataclass(frozen=True)
class Scales:
    """What one stage estimated.

    Attributes:
        columns: Of scalar numbers, then of the elements of arrays that are estimated; [k].
        target: Of the target of a regression, [1]; None for a classification.
    """

    columns: Standardiser
    target: Standardiser | None

    @classmethod
    def unit(cls, encoding: Encoding) -> Scales:
        """Before any stage: nothing is moved or scaled."""
        arrays = encoding.features("array")
        estimated = sum(f.size for f in arrays if _constants(encoding, f) is None)
        columns = _unit(len(encoding.features("number")) + estimated)
        return cls(columns, _unit(1) if encoding.classes is None else None)

    @classmethod
    def fit(cls, encoding: Encoding, records: Records) -> Scales:
        """Estimate over the records of a stage, targets included.

        A regression's target is standardised too: otherwise a learning rate would have to fit the
        unit in which it is measured.
        """
        features = zip(encoding.features("array"), records.arrays, strict=True)
        arrays = [array for feature, array in features if _constants(encoding, feature) is None]
        estimated = np.concatenate([records.numbers, *arrays], axis=1, dtype=np.float64)
        columns = Standardiser.fit(estimated)
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
        Blocks in column order.
    """
    parts = [Block(_scaled(records.numbers, scales, 0)), Block(np.isnan(records.numbers))]
    parts += [
        Block(_one_hot(records.codes[:, i], width, dtype))
        for i, width in enumerate(encoding.text_widths)
    ]
    at = records.numbers.shape[1]
    for feature, array in zip(encoding.features("array"), records.arrays, strict=True):
        constants = _constants(encoding, feature)
        if constants is None:
            parts.append(Block(_scaled(array, scales, at)))
            at += feature.size
        elif feature.dtype == np.uint8:
            parts.append(Block(array, (constants[0], 1 / constants[1])))
        else:
            mean, deviation = np.array([constants]).T
            parts.append(Block(Standardiser(mean, deviation).apply(array)))
    parts = [part for part in parts if part.values.shape[1]]
    return tuple(
        Block(_joined([part.values for part in group], np.uint8 if scale else dtype), scale)
        for scale, group in groupby(parts, lambda part: part.scale)
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


def _constants(encoding: Encoding, feature: Feature) -> tuple[float, float] | None:
    """Mean and deviation of an array feature that are not estimated; None where they are."""
    return encoding.scales.get(feature.name, UINT8 if feature.dtype == np.uint8 else None)


def _unit(size: int) -> Standardiser:
    return Standardiser(np.zeros(size), np.ones(size))


def _scaled(values: Values, scales: Scales, at: int) -> Values:
    own = slice(at, at + values.shape[1])
    return Standardiser(scales.columns.mean[own], scales.columns.deviation[own]).apply(values)


def _one_hot(codes: npt.NDArray[np.int64], width: int, dtype: npt.DTypeLike) -> Values:
    hot = np.zeros((len(codes), width), dtype=dtype)
    hot[np.arange(len(codes)), codes] = 1
    return hot


def _joined(parts: list[Values], dtype: npt.DTypeLike) -> Values:
    if len(parts) == 1:
        return np.require(parts[0], dtype=dtype, requirements=["C", "W"])
    return np.concatenate(parts, axis=1, dtype=dtype, casting="same_kind")
