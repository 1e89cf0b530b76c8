"""Parquet: pages as they are, then values as they are read.

Reading alone does not show a value that only a dictionary page holds still; pages alone do not show
what an encoding cuts up. Of values of a fixed width that lie side by side in their pages, reading
shows nothing more. Statistics, indexes and bloom filters lie open in the file.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sisa.residue.decoders.columns import leaves
from sisa.residue.decoders.protocol import Content, Decoder, Piece, Undecodable, halves
from sisa.residue.decoders.thrift import read_struct

SIDE_BY_SIDE = {"PLAIN", "PLAIN_DICTIONARY", "RLE_DICTIONARY", "RLE", "BIT_PACKED"}
"""Encodings that leave a value whole, in a page of its own or a dictionary page; the last two are
of levels and of references into a dictionary."""

HADOOP = "LZ4"
"""A codec with a framing of its own, which Arrow reads but does not offer by itself."""


def _recognises(data: memoryview) -> bool:
    return bytes(data[:4]) in (b"PAR1", b"PARE") and len(data) >= 12


def _pieces(content: Content) -> Iterator[Piece]:
    if bytes(content.data[:4]) == b"PARE":
        raise Undecodable("encrypted")
    file = pq.ParquetFile(pa.py_buffer(content.data))
    yield from _labels(file)
    for group in range(file.metadata.num_row_groups):
        for column in range(file.metadata.num_columns):
            yield from _pages(content, file.metadata.row_group(group).column(column))
    columns = _to_read(file)
    if columns == []:
        return
    for batch in file.iter_batches(batch_size=65_536, use_threads=False, columns=columns):
        content.budget.take(batch.nbytes)
        for name, values in zip(batch.schema.names, batch.columns, strict=True):
            yield from (Piece(f"column {name}", leaf) for leaf in leaves(values))


def _labels(file: pq.ParquetFile) -> Iterator[Piece]:
    """Names and key-value metadata, also as the schema that Arrow stores in base64."""
    schema = file.schema_arrow
    stored = file.metadata.metadata or {}
    labels = [*stored.keys(), *stored.values(), *(schema.metadata or {}).values()]
    yield Piece("metadata", b"\n".join(labels))
    yield Piece("schema", schema.serialize())


def _to_read(file: pq.ParquetFile) -> list[str] | None:
    """Names of the columns whose pages do not show all; None for all columns."""
    schema = file.schema_arrow
    if len(set(schema.names)) < len(schema) or any("." in name for name in schema.names):
        return None
    fixed = {field.name for field in schema if pa.types.is_fixed_size_binary(field.type)}
    groups = [file.metadata.row_group(g) for g in range(file.metadata.num_row_groups)]
    for chunk in (group.column(c) for group in groups for c in range(group.num_columns)):
        if chunk.compression == HADOOP or not SIDE_BY_SIDE.issuperset(chunk.encodings):
            fixed.discard(chunk.path_in_schema)
    return [name for name in schema.names if name not in fixed]


def _pages(content: Content, column: Any) -> Iterator[Piece]:
    """Each page of a column chunk, inflated."""
    starts = [column.data_page_offset, column.dictionary_page_offset]
    at = min(s for s in starts if s is not None)
    end = at + column.total_compressed_size
    name = f"page of {column.path_in_schema}"
    while at < end:
        header, at = read_struct(content.data, at)
        size, packed = header[2], header[3]
        page = content.data[at : at + packed]
        at += packed
        content.budget.take(size)
        levels = 0
        if 8 in header:  # version 2: levels come first, and are not compressed
            levels = header[8].get(5, 0) + header[8].get(6, 0)
            yield Piece(name, page[:levels])
        plain = column.compression == "UNCOMPRESSED" or not header.get(8, {}).get(7, True)
        if plain:
            yield Piece(name, page)
        elif column.compression != HADOOP and size > levels:
            codec = pa.Codec(column.compression.lower())
            yield Piece(name, codec.decompress(pa.py_buffer(page[levels:]), size - levels))


def _conceal(canary: bytes) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"value": pa.array([halves(canary).decode()])})
    pq.write_table(table, sink, compression="zstd", write_statistics=False)
    return sink.getvalue()


DECODER = Decoder("parquet", _recognises, _pieces, _conceal)
