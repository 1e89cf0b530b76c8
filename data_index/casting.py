"""Source columns -> what a partition stores: numbers, text, fixed-size arrays, targets.

What does not fit is refused by the column's name and type, never with a value of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_index.errors import DataError
from data_index.schema import Columns, Feature, element_type


def cast_features(table: pa.Table, columns: Columns) -> pa.Table:
    """The feature columns of a table as a partition stores them.

    Raises:
        DataError: One is missing or does not fit.
    """
    missing = [f.name for f in columns.features if f.name not in table.column_names]
    if missing:
        raise DataError(f"The table lacks the column {missing[0]}.", "Add what is missing.")
    cast = {
        f.column: fitting(
            f"Column {f.name!r}", table[f.name].combine_chunks(), partial(cast_feature, feature=f)
        )
        for f in columns.features
    }
    return pa.table(list(cast.values()), names=list(cast))


def fitting(what: str, column: pa.Array, cast: Callable[[pa.Array], pa.Array]) -> pa.Array:
    try:
        return cast(column)
    except DataError as error:
        raise DataError(f"{what} {error.message}", error.remedy) from None
    except (pa.ArrowException, OverflowError):  # their texts quote the value
        raise DataError(
            f"{what} has {column.type} values that do not fit its declared type.",
            "Correct the source, or the recipe before the first ingest.",
        ) from None


def class_type(classes: tuple[str | int, ...]) -> pa.DataType:
    return pa.string() if any(isinstance(c, str) for c in classes) else pa.int64()


def target_index(column: pa.Array, columns: Columns) -> pa.Array:
    column = plain(column)
    if column.null_count:
        raise DataError(f"has {column.null_count} null targets.", "Leave these rows out.")
    if columns.classes is None:
        values = column.cast(pa.float64())
        if not pc.all(pc.is_finite(values)).as_py():
            raise DataError("has targets that are not finite.", "Leave these rows out.")
        return pc.add(values, 0.0)
    kind = class_type(columns.classes)
    if pa.types.is_boolean(column.type) and pa.types.is_integer(kind):
        column = column.cast(pa.int8())
    index = pc.index_in(column.cast(kind), value_set=pa.array(columns.classes, kind))
    if index.null_count:
        raise DataError(
            f"has {index.null_count} values that are not among the declared classes.",
            "Declare them in recipe.data.classes before the first ingest, or leave the rows out.",
        )
    return index


def cast_feature(column: pa.Array, feature: Feature) -> pa.Array:
    """Cast a feature column to how a partition stores it.

    NaN of a scalar becomes null; -0.0 becomes 0.0; NaN in an array gets one canonical payload.

    Raises:
        DataError: A value is infinite, an array is null or of another length.
        pyarrow.ArrowInvalid: A value does not fit the declared type.
    """
    column = plain(column)
    if feature.kind == "text":
        return column.cast(pa.string())
    if feature.kind == "array":
        return _cast_array(column, feature)
    if pa.types.is_null(column.type):
        return column.cast(feature.arrow)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    cast = column.cast(feature.arrow)
    counted = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    if feature.element == "bool" and counted:
        if pc.any(pc.not_equal(cast.cast(pa.int8()), column)).as_py():
            raise DataError("has numbers other than 0 and 1.", "Declare it as a number.")
        return cast
    if not pa.types.is_floating(feature.arrow):
        return cast
    if not pc.all(pc.is_finite(cast)).as_py() and cast.null_count < len(cast):
        raise DataError("has infinite values.", "Replace them in the source, by null if unknown.")
    return pc.add(cast, pa.scalar(0.0, feature.arrow))


def _cast_array(column: pa.Array, feature: Feature) -> pa.Array:
    if column.null_count:
        raise DataError(f"has {column.null_count} null arrays.", "Leave these rows out.")
    if pa.types.is_fixed_size_binary(column.type):
        if column.type.byte_width != feature.arrow.byte_width:
            raise DataError(f"has arrays of another size than {feature.element}[{feature.size}].")
        values = np.frombuffer(b"".join(column.to_pylist()), dtype=feature.dtype)
    else:
        values = _elements(column, feature)
    if np.issubdtype(feature.dtype, np.floating):
        values = np.where(np.isnan(values), np.array(np.nan, feature.dtype), values + 0)
    flat = np.ascontiguousarray(values, dtype=feature.dtype)
    return pa.FixedSizeBinaryArray.from_buffers(
        feature.arrow, len(column), [None, pa.py_buffer(flat)]
    )


def _elements(column: pa.Array, feature: Feature) -> Any:
    kind = column.type
    if not (
        pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    ):
        raise DataError(f"holds {kind} values, not arrays of {feature.element}.")
    lengths = pc.list_value_length(column)
    if not pc.all(pc.equal(lengths, feature.size)).as_py():
        raise DataError(f"has arrays of another length than {feature.size}.")
    flat = column.flatten()
    if flat.null_count:
        raise DataError(f"has {flat.null_count} null elements in arrays.")
    return flat.cast(element_type(feature.element)).to_numpy(zero_copy_only=False)


def plain(column: pa.Array) -> pa.Array:
    """Dictionary-encoded columns as plain ones: a dictionary keeps values of rows that are gone."""
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    return column
