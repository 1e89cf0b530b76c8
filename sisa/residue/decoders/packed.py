"""Zip archives (so also .npz and torch's .pt) and compressed streams."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable, Iterator

import pyarrow as pa

from sisa.residue.decoders.protocol import Content, Decoder, Piece, chunks, halves, starts


def _of_zip(content: Content) -> Iterator[Piece]:
    with zipfile.ZipFile(pa.BufferReader(pa.py_buffer(content.data))) as archive:
        yield Piece("names", "\n".join(archive.namelist()).encode("utf-8", "surrogatepass"))
        for member in archive.infolist():
            if not member.is_dir():
                with archive.open(member) as file:
                    yield Piece(member.filename, content.spool(chunks(file)), nested=True)


def _conceal_in_zip(canary: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("note", halves(canary))
    return sink.getvalue()


def _stream(codec: str) -> Callable[[Content], Iterator[Piece]]:
    def pieces(content: Content) -> Iterator[Piece]:
        source = pa.BufferReader(pa.py_buffer(content.data))
        with pa.CompressedInputStream(source, codec) as stream:
            yield Piece("", content.spool(chunks(stream)), nested=True)

    return pieces


def _conceal(codec: str) -> Callable[[bytes], bytes]:
    def conceal(canary: bytes) -> bytes:
        if codec == "gzip":
            return gzip.compress(halves(canary))
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, codec) as stream:
            stream.write(halves(canary))
        return bytes(sink.getvalue())

    return conceal


MAGICS = {
    "gzip": b"\x1f\x8b\x08",
    "zstd": b"\x28\xb5\x2f\xfd",
    "bz2": b"BZh",
    "lz4": b"\x04\x22\x4d\x18",
}

DECODERS = (
    Decoder("zip", starts(b"PK\x03\x04", b"PK\x05\x06"), _of_zip, _conceal_in_zip),
    *(Decoder(c, starts(m), _stream(c), _conceal(c)) for c, m in MAGICS.items()),
)
