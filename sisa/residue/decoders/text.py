"""Text, JSON among it: what escapes and UTF-16 hide."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sisa.residue.decoders.protocol import Content, Decoder, Piece

ESCAPES = re.compile(rb"(?:\\u[0-9a-fA-F]{4})+|\\.", re.DOTALL)
SIMPLE = {b"\\n": b"\n", b"\\t": b"\t", b"\\r": b"\r", b"\\b": b"\b", b"\\f": b"\f"}
MARKS = (b"\xff\xfe", b"\xfe\xff")
PART, OVERLAP = 8 << 20, 4096
ROUNDS = 4
"""How often a text may have been escaped: JSON within JSON within a log line."""


def _is_text(data: memoryview) -> bool:
    head = bytes(data[:4096])
    if head[:2] in MARKS:
        return True
    try:
        head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3 or len(data) <= len(head):
            return False
    return b"\0" not in head


def _pieces(content: Content) -> Iterator[Piece]:
    data = content.data
    if bytes(data[:2]) in MARKS:
        data = memoryview(bytes(data).decode("utf-16").encode())
        content.budget.take(len(data))
        yield Piece("", data)
    for start in range(0, len(data), PART):
        part = bytes(data[max(0, start - OVERLAP) : start + PART])
        for _ in range(ROUNDS):
            if b"\\" not in part:
                break
            part = _unescaped(part)
            content.budget.take(len(part))
            yield Piece("", part)


def _unescaped(part: bytes) -> bytes:
    """Bytes without one level of escapes."""
    if b"\\u" in part:
        return ESCAPES.sub(_plain, part)
    runs = part.split(b"\\\\")
    for escaped, plain in SIMPLE.items():
        runs = [run.replace(escaped, plain) for run in runs]
    return b"\\".join(run.replace(b"\\", b"") for run in runs)


def _plain(found: re.Match[bytes]) -> bytes:
    escaped = found[0]
    if escaped[1:2] != b"u" or len(escaped) < 6:
        return SIMPLE.get(escaped, escaped[1:])
    units = bytes.fromhex(escaped.replace(b"\\u", b"").decode())
    return units.decode("utf-16-be", "replace").encode()


def escape(text: bytes) -> bytes:
    """ASCII with each character as JSON may escape it."""
    return b"".join(b"\\u%04x" % character for character in text)


def strings(value: Any) -> Iterator[str]:
    """All texts in a value that was read from JSON, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def _conceal(canary: bytes) -> bytes:
    return f'{{"note": "{escape(canary).decode()}"}}'.encode("utf-16")


DECODER = Decoder("text", _is_text, _pieces, _conceal)
