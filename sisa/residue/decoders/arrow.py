"""Arrow IPC, files and streams: batches whose buffers may be compressed, and dictionaries."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pyarrow as pa

from sisa.residue.decoders.columns import leaves
from sisa.residue.decoders.protocol import Content, Decoder, Piece, halves

FILE, STREAM = b"ARROW1\0\0", b"\xff\xff\xff\xff"


def _recognises(data: memoryview) -> bool:
    if data[:8] == FILE:
        return True
    size = int.from_bytes(data[4:8], "little")
    return data[:4] == STREAM and 8 < size < len(data) - 8 and size % 8 == 0


def _pieces(content: Content) -> Iterator[Piece]:
    source = pa.py_buffer(content.data)
    if content.data[:8] == FILE:
        file = pa.ipc.open_file(source)
        schema = file.schema
        batches = (file.get_batch(i) for i in range(file.num_record_batches))
    else:
        stream = pa.ipc.open_stream(source)
        schema, batches = stream.schema, iter(stream)
    yield Piece("schema", schema.serialize())
    for batch in batches:
        content.budget.take(batch.nbytes)
        for name, values in zip(schema.names, batch.columns, strict=True):
            yield from (Piece(f"column {name}", leaf) for leaf in leaves(values))
            hidden = (b for b in values.buffers() if b is not None)  # what masked texts cover
            yield from (Piece(f"column {name}", buffer) for buffer in hidden)


def _conceal(canary: bytes) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"value": pa.array([halves(canary).decode()])})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


DECODER = Decoder("arrow", _recognises, _pieces, _conceal)
