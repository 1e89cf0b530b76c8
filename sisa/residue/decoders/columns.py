"""The values of Arrow columns as bytes that can be searched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa


def leaves(column: pa.ChunkedArray | pa.Array) -> Iterator[Any]:
    """Buffers with all values of a column, dictionaries and nested columns included.

    Texts are separated by line feeds, each once a chunk; all else is as it lies in memory, so that
    what a null covers is seen too.
    """
    for array in column.chunks if isinstance(column, pa.ChunkedArray) else (column,):
        yield from _of_array(array)


def _of_array(array: pa.Array) -> Iterator[Any]:
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        yield from _of_array(array.storage)
    elif pa.types.is_dictionary(kind):
        yield from _of_array(array.dictionary)
    elif pa.types.is_struct(kind) or pa.types.is_union(kind):
        for i in range(kind.num_fields):
            yield from _of_array(array.field(i))
    elif pa.types.is_map(kind):
        yield from _of_array(array.keys)
        yield from _of_array(array.items)
    elif pa.types.is_nested(kind):
        yield from _of_array(array.values)
    elif _is_text(kind):
        yield b"\n".join(array.unique().cast(pa.large_binary()).drop_null().to_pylist())
    elif len(array) and (values := array.buffers()[-1]) is not None:
        width = getattr(kind, "byte_width", 0) if pa.types.is_fixed_size_binary(kind) else 0
        start = array.offset * width
        yield memoryview(values)[start : start + len(array) * width if width else None]


def _is_text(kind: pa.DataType) -> bool:
    of = pa.types
    binary = (of.is_binary, of.is_large_binary, of.is_binary_view)
    text = (of.is_string, of.is_large_string, of.is_string_view)
    return any(check(kind) for check in (*binary, *text))
