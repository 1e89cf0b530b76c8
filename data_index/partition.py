"""One (shard, slice): canonical rows, canonical file, row digests, logical digest.

A partition file written without a record is byte-equal to one that never held it (same pyarrow).
The logical digest is over our own layout of the rows, so a new pyarrow changes nothing.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_index import keys
from data_index.errors import ExactnessError
from data_index.keys import KEY_BYTES, Keyring, Keys
from data_index.schema import RECORD_KEY, SUBJECT_KEY, TARGET, Columns, Feature

ROW_GROUP = 65_536
"""Rows a row group: fixed, because bytes depend on it."""


def writer(sink: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """The one Parquet writer: every option that decides bytes is fixed here."""
    return pq.ParquetWriter(
        sink,
        schema,
        version="2.6",
        data_page_version="1.0",
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        write_page_checksum=True,
        store_schema=False,
    )


@contextmanager
def streaming(sink: Any, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Write sorted tables to one file, in row groups of a fixed size.

    However the rows are cut into tables, the bytes are the same.

    Yields:
        A function that takes the next rows.
    """
    waiting = schema.empty_table()
    with writer(sink, schema) as out:

        def put(table: pa.Table) -> None:
            nonlocal waiting
            waiting = pa.concat_tables([waiting, canonical(table, schema)])
            while waiting.num_rows >= ROW_GROUP:
                out.write_table(canonical(waiting.slice(0, ROW_GROUP), schema), ROW_GROUP)
                waiting = waiting.slice(ROW_GROUP)

        yield put
        if waiting.num_rows:
            out.write_table(canonical(waiting, schema), ROW_GROUP)


def canonical(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same rows in the one schema, in one chunk, without metadata."""
    return table.select(schema.names).cast(schema).combine_chunks().replace_schema_metadata(None)


def write(table: pa.Table, columns: Columns) -> bytes:
    """The bytes of a partition whose rows are sorted by record key already."""
    sink = io.BytesIO()
    with streaming(sink, columns.schema) as put:
        put(table)
    return sink.getvalue()


def read(data: bytes, names: list[str] | None = None) -> pa.Table:
    """Read a partition or a lineage file from its bytes.

    Raises:
        ExactnessError: The bytes are no intact Parquet file.
    """
    try:
        # a quarter of what `read_table` takes for the small files that slices are
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        return file.read(columns=names, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise ExactnessError(f"A stored Parquet file cannot be read: {reason(error)}.") from None


def read_groups(file: pq.ParquetFile, groups: Iterable[int]) -> Iterator[pa.Table]:
    """The named row groups of an open file, one table each.

    Raises:
        ExactnessError: A page is damaged.
    """
    for group in groups:
        try:
            yield file.read_row_group(group, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise ExactnessError(
                f"A stored Parquet file cannot be read: {reason(error)}."
            ) from None


def reason(error: Exception) -> str:
    """What Arrow says, in one line and without a full stop."""
    return " ".join(str(error).split()).rstrip(".")


def sort(table: pa.Table) -> pa.Table:
    """The rows in the order of their record keys."""
    return table.take(pa.array(keys.sort_order(keys.from_arrow(table[RECORD_KEY]))))


def row_digests(table: pa.Table, columns: Columns, ring: Keyring) -> Keys:
    """Keyed digest of each canonical row: BLAKE2b-128 over its bytes in our layout; uint8 [n, 16].

    The layout is record key, subject key, target, then per feature in name order: a validity byte
    and the little-endian value (zero where null), the array's bytes, or the text's digest.
    """
    matrix = np.concatenate(
        [
            keys.from_arrow(table[RECORD_KEY]),
            keys.from_arrow(table[SUBJECT_KEY]),
            _bytes_of(table[TARGET].to_numpy()),
            *(_feature_bytes(table[f.column], f) for f in columns.features),
        ],
        axis=1,
    )
    flat, width = matrix.tobytes(), matrix.shape[1]
    digest, key = hashlib.blake2b, ring.digest
    joined = b"".join(
        [
            digest(flat[i : i + width], key=key, person=b"sisa.row", digest_size=KEY_BYTES).digest()
            for i in range(0, len(flat), width)
        ]
    )
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, KEY_BYTES)


def logical_digest(records: Keys, rows: Keys, ring: Keyring) -> str:
    """Keyed digest of a partition's rows: BLAKE2b-256 in hex over sorted keys and row digests.

    Args:
        records: Record keys in their order, uint8 [n, 16].
        rows: Row digests in the same order, uint8 [n, 16].
        ring: Subkeys; a job never sees them.
    """
    state = hashlib.blake2b(key=ring.digest, person=b"sisa.logical", digest_size=32)
    state.update(len(records).to_bytes(8, "little"))
    state.update(np.concatenate([records, rows], axis=1).tobytes())
    return state.hexdigest()


def digest_of(table: pa.Table, columns: Columns, ring: Keyring) -> str:
    """The logical digest of a partition's table."""
    records = keys.from_arrow(table[RECORD_KEY])
    return logical_digest(records, row_digests(table, columns, ring), ring)


def _bytes_of(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return little.view(np.uint8).reshape(len(values), values.dtype.itemsize)


def _feature_bytes(column: pa.ChunkedArray, feature: Feature) -> npt.NDArray[np.uint8]:
    if feature.kind == "array":
        return array_values(column, np.dtype(np.uint8), feature.arrow.byte_width)
    valid = _bytes_of(column.is_valid().to_numpy().astype(np.uint8))
    if feature.kind == "number":
        zero = pa.scalar(False if feature.element == "bool" else 0, column.type)
        values = pc.fill_null(column, zero).to_numpy().astype(feature.dtype)
        return np.concatenate([valid, _bytes_of(values)], axis=1)
    coded = column.combine_chunks().dictionary_encode()
    texts = coded.dictionary.cast(pa.binary()).to_pylist()
    table = np.frombuffer(
        b"".join([b"\0" * 16, *(hashlib.blake2b(t, digest_size=16).digest() for t in texts)]),
        dtype=np.uint8,
    ).reshape(-1, 16)
    index = pc.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False)
    return np.concatenate([valid, table[index + 1]], axis=1)


def array_values(column: pa.ChunkedArray, dtype: np.dtype[Any], size: int) -> npt.NDArray[Any]:
    """Values of a fixed-size array column, [n, size] of its element type; a view if possible."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray) or len(array) == 0:
        return np.zeros((0, size), dtype=dtype)
    width = size * dtype.itemsize
    data = np.frombuffer(array.buffers()[1], dtype=np.uint8)
    start = array.offset * width
    return data[start : start + len(array) * width].view(dtype).reshape(-1, size)
