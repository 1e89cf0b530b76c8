"""Column names, Arrow schemas and feature types of what is stored; the format's version."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa

from data_index.errors import ConfigurationError
from data_index.keys import KEY_BYTES

FORMAT = 1
"""Version of everything in the store; a store of another version is refused."""

RECORD_KEY = "record_key"
SUBJECT_KEY = "subject_key"
TARGET = "target"
PREFIX = "x_"
"""Feature columns carry it, so that no feature name meets one of ours."""

KEY = pa.binary(KEY_BYTES)

NUMBERS = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float32",
    "float64",
)
ARRAY = re.compile(r"^(\w+)\[(\d+)\]$")

LINEAGE = pa.schema(
    [
        pa.field(RECORD_KEY, KEY, nullable=False),
        pa.field(SUBJECT_KEY, KEY, nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("slice", pa.int32(), nullable=False),
        pa.field("row_digest", KEY, nullable=False),
    ]
)
"""Both lineage indexes: where each record sits and the keyed digest of its row."""

JOURNAL = pa.schema(
    [
        pa.field(RECORD_KEY, KEY, nullable=False),
        pa.field(SUBJECT_KEY, KEY, nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
    ]
)
"""The ingest journal of one call: which row of which source file a record came from."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature column.

    Attributes:
        name: Its name in the sources.
        kind: A scalar number (booleans included), text, or a fixed-size array of numbers.
        element: Type of a number or of an array's elements, one of `NUMBERS`.
        size: Number of elements of an array, else 1.
    """

    name: str
    kind: Literal["number", "text", "array"]
    element: str = ""
    size: int = 1

    @property
    def column(self) -> str:
        """Its column in a partition."""
        return PREFIX + self.name

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Little-endian NumPy type of a number or of an array's elements."""
        return np.dtype(self.element).newbyteorder("<")

    @property
    def arrow(self) -> pa.DataType:
        """Type of its column in a partition."""
        if self.kind == "text":
            return pa.string()
        if self.kind == "array":
            return pa.binary(self.size * self.dtype.itemsize)
        return element_type(self.element)


def element_type(name: str) -> pa.DataType:
    """Arrow's type for one of `NUMBERS`."""
    return {"bool": pa.bool_(), "float32": pa.float32(), "float64": pa.float64()}.get(
        name
    ) or getattr(pa, name)()


def feature(name: str, declared: str) -> Feature:
    """Read a declared feature type: `int64`, `float32`, `bool`, `text`, `uint8[784]`, ...

    Raises:
        ConfigurationError: The type is not one of these.
    """
    if declared == "text":
        return Feature(name, "text")
    if declared in NUMBERS:
        return Feature(name, "number", declared)
    match = ARRAY.match(declared)
    if match and match[1] in NUMBERS and match[1] != "bool" and int(match[2]) > 0:
        return Feature(name, "array", match[1], int(match[2]))
    raise ConfigurationError(
        f"Feature {name!r} has the unknown type {declared!r}.",
        f"Use text, {', '.join(NUMBERS)}, or a fixed-size array such as uint8[784].",
    )


@dataclass(frozen=True)
class Columns:
    """What a recipe declares about its source tables.

    Attributes:
        record_id: Column of record ids.
        subject_id: Column of data subjects, or None if each record is its own subject.
        target: Column to predict.
        classes: Target values of a classification in their declared order, or None.
        features: Feature columns in the order of their names.
    """

    record_id: str
    subject_id: str | None
    target: str
    classes: tuple[str | int, ...] | None
    features: tuple[Feature, ...]

    @classmethod
    def of(
        cls,
        record_id: str,
        subject_id: str | None,
        target: str,
        classes: tuple[str | int, ...] | None,
        features: Mapping[str, str],
    ) -> Columns:
        """Build from declared feature types; features are put in the order of their names."""
        listed = tuple(feature(name, features[name]) for name in sorted(features))
        return cls(record_id, subject_id, target, classes, listed)

    @cached_property
    def schema(self) -> pa.Schema:
        """The canonical schema of a partition."""
        target = pa.int32() if self.classes is not None else pa.float64()
        return pa.schema(
            [
                pa.field(RECORD_KEY, KEY, nullable=False),
                pa.field(SUBJECT_KEY, KEY, nullable=False),
                pa.field(TARGET, target, nullable=False),
                *(pa.field(f.column, f.arrow, nullable=f.kind != "array") for f in self.features),
            ]
        )
