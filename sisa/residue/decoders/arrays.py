"""Arrays: safetensors and NumPy files. Tensors lie open in the file, headers may be escaped."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator

import numpy as np

from sisa.residue.decoders.protocol import Content, Decoder, Piece, Undecodable, starts
from sisa.residue.decoders.text import escape, strings


def _is_safetensors(data: memoryview) -> bool:
    return bytes(data[8:9]) == b"{" and 2 <= int.from_bytes(data[:8], "little") <= len(data) - 8


def _of_safetensors(content: Content) -> Iterator[Piece]:
    end = 8 + int.from_bytes(content.data[:8], "little")
    header = json.loads(bytes(content.data[8:end]))
    yield Piece("header", "\n".join(strings(header)).encode("utf-8", "surrogatepass"))
    for name, tensor in header.items():
        if name != "__metadata__":
            first, last = tensor["data_offsets"]
            if not 0 <= first <= last <= len(content.data) - end:
                raise Undecodable("a tensor lies outside of the file")


def _conceal_in_header(canary: bytes) -> bytes:
    header = b'{"__metadata__":{"note":"%s"}}' % escape(canary)
    return len(header).to_bytes(8, "little") + header


def _of_npy(content: Content) -> Iterator[Piece]:
    head = io.BytesIO(bytes(content.data[:65_536]))
    version = np.lib.format.read_magic(head)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(head)
    if dtype.hasobject:
        raise Undecodable("pickled objects")
    count = math.prod(shape)
    flat = np.frombuffer(content.data, dtype, count, head.tell())
    little = dtype.newbyteorder("<")
    if fortran or little != dtype:
        content.budget.take(flat.nbytes)
        array = flat.reshape(shape, order="F" if fortran else "C")
        yield Piece("array", np.ascontiguousarray(array, dtype=little).reshape(-1).view(np.uint8))


def _conceal_in_array(canary: bytes) -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.frombuffer(canary, dtype="<u2").astype(">u2"))
    return sink.getvalue()


DECODERS = (
    Decoder("safetensors", _is_safetensors, _of_safetensors, _conceal_in_header),
    Decoder("npy", starts(b"\x93NUMPY"), _of_npy, _conceal_in_array),
)
