"""Records as a learner sees them: typed blocks of numbers, made from partitions.

Encoding is a pure function of a row and of declared constants. What must be estimated from data,
the standardiser, is estimated by each stage over its own records and lives in the state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_index import keys
from data_index.partition import array_values
from data_index.schema import RECORD_KEY, TARGET, Columns, Feature
from sisa.config import Data

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Records:
    """n records.

    Attributes:
        words: First word of each record key, uint64 [n]; empty when predicting.
        target: Class index int64 [n], or value float64 [n]; None when there is none.
        numbers: Scalar numbers in name order, float64 [n, k]; NaN where null.
        codes: Bucket of each text feature in name order, int64 [n, t].
        arrays: Array features in name order, each [n, size] of its element type.
    """

    words: npt.NDArray[np.uint64]
    target: npt.NDArray[Any] | None
    numbers: Floats
    codes: npt.NDArray[np.int64]
    arrays: tuple[npt.NDArray[Any], ...]

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, rows: npt.NDArray[Any]) -> Records:
        """The records at row indices or under a mask, in that order."""
        return Records(
            self.words[rows] if len(self.words) else self.words,
            None if self.target is None else self.target[rows],
            self.numbers[rows],
            self.codes[rows],
            tuple(a[rows] for a in self.arrays),
        )


@dataclass(frozen=True)
class Encoding:
    """How declared features become blocks of numbers.

    Attributes:
        columns: What the recipe declares.
        categories: Declared values of text features by name, in their order.
        buckets: Buckets for text that is not declared.
        scales: Declared mean and deviation of array features by name.
    """

    columns: Columns
    categories: Mapping[str, tuple[str, ...]]
    buckets: int
    scales: Mapping[str, tuple[float, float]]

    @classmethod
    def of(cls, data: Data) -> Encoding:
        """From the recipe's section."""
        return cls(data.columns(), data.categories, data.hash_buckets, data.scales)

    @property
    def classes(self) -> int | None:
        """Number of classes, None for a regression."""
        return None if self.columns.classes is None else len(self.columns.classes)

    @property
    def outputs(self) -> int:
        """Width of a model's output: the classes, or 1."""
        return self.classes or 1

    def features(self, kind: str) -> tuple[Feature, ...]:
        """Features of one kind in name order."""
        return tuple(f for f in self.columns.features if f.kind == kind)

    @property
    def text_widths(self) -> tuple[int, ...]:
        """Buckets of each text feature: null, the declared values, then the hashed ones."""
        return tuple(
            1 + len(self.categories.get(f.name, ())) + self.buckets for f in self.features("text")
        )

    def encode(self, table: pa.Table) -> Records:
        """Turn partition columns into blocks; keys and target are taken where they are there."""
        count = table.num_rows
        numbers = [_numbers(table[f.column]) for f in self.features("number")]
        codes = [self._codes(table[f.column], f) for f in self.features("text")]
        arrays = [array_values(table[f.column], f.dtype, f.size) for f in self.features("array")]
        words = np.zeros(0, dtype=np.uint64)
        if RECORD_KEY in table.column_names:
            words = keys.words(keys.from_arrow(table[RECORD_KEY]))[:, 0]
        target = None
        if TARGET in table.column_names:
            kind = np.float64 if self.classes is None else np.int64
            target = table[TARGET].to_numpy().astype(kind)
        return Records(
            words,
            target,
            np.stack(numbers, axis=1) if numbers else np.zeros((count, 0)),
            np.stack(codes, axis=1) if codes else np.zeros((count, 0), dtype=np.int64),
            tuple(arrays),
        )

    def _codes(self, column: pa.ChunkedArray, feature: Feature) -> npt.NDArray[np.int64]:
        """0 for null, 1.. for declared values, then a hash bucket of the text."""
        declared = self.categories.get(feature.name, ())
        known = {text: 1 + i for i, text in enumerate(declared)}
        coded = column.combine_chunks().dictionary_encode()
        first = 1 + len(declared)
        table = [
            known[text] if text in known else first + _bucket(feature.name, text) % self.buckets
            for text in coded.dictionary.to_pylist()
        ]
        index = pc.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False)
        codes: npt.NDArray[np.int64] = np.array([0, *table], dtype=np.int64)[index + 1]
        return codes


def _bucket(name: str, text: str) -> int:
    """A public hash, so that a prediction needs no key."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, salt=_salt(name)).digest()
    return int.from_bytes(digest, "big")


def _salt(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def _numbers(column: pa.ChunkedArray) -> Floats:
    values = column.cast(pa.float64(), safe=False)
    numbers: Floats = pc.fill_null(values, float("nan")).to_numpy()
    return numbers


@dataclass(frozen=True)
class Standardiser:
    """Mean and deviation per column, float64 [k], estimated over records in key order."""

    mean: Floats
    deviation: Floats

    @classmethod
    def fit(cls, values: npt.NDArray[Any]) -> Standardiser:
        """Estimate over n rows of k columns in float64; NaN is left out.

        The deviation is max(sd, 1e-6 max|x|), and 1 where that is 0: a column that is constant up
        to rounding is not blown up.

        Args:
            values: Numbers [n, k], NaN where null.
        """
        values = np.array(values, dtype=np.float64, order="C")  # sums depend on the layout
        null = np.isnan(values)
        count = np.maximum(len(values) - null.sum(axis=0), 1)
        values[null] = 0.0
        with np.errstate(invalid="ignore", over="ignore"):
            mean = values.sum(axis=0) / count
            largest = np.abs(values).max(axis=0, initial=0.0)
            values -= mean
            values[null] = 0.0
            deviation = np.sqrt(np.square(values, out=values).sum(axis=0) / count)
        deviation = np.maximum(deviation, 1e-6 * largest)
        return cls(mean, np.where(deviation == 0, 1.0, deviation))

    def apply(self, values: npt.NDArray[Any]) -> Floats:
        """Standardised values, float64 [n, k]; 0 where null."""
        with np.errstate(invalid="ignore", over="ignore"):
            scaled: Floats = np.subtract(values, self.mean, dtype=np.float64, order="C")
            scaled /= self.deviation
        scaled[np.isnan(values)] = 0.0
        return scaled
