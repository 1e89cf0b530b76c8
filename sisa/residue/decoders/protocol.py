"""What a decoder is: it knows a format, opens it, and can hide a canary in it."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any


class Refused(Exception):
    """Too much comes out of a file: it is not decoded to its end."""


class Undecodable(Exception):
    """A file of a known format cannot be decoded."""


class Budget:
    """How many bytes may still come out of one file.

    Args:
        limit: Bytes, over all that is nested in it.
    """

    def __init__(self, limit: int) -> None:
        self._left = limit

    def take(self, size: int) -> None:
        """Count bytes before they are searched.

        Raises:
            Refused: There are too many.
        """
        self._left -= size
        if self._left < 0:
            raise Refused


@dataclass(frozen=True, slots=True)
class Content:
    """What is decoded.

    Attributes:
        data: Its bytes.
        work: Folder for temporary files.
        budget: What may come out of it.
        path: The file that it is, None for what is nested in another.
    """

    data: memoryview
    work: Path
    budget: Budget
    path: Path | None = None

    def spool(self, chunks: Iterable[bytes]) -> memoryview:
        """Put what is inflated into a file without a name, so that memory is bounded.

        Raises:
            Refused: It is too much.
        """
        found = iter(chunks)
        first = next(found, b"")
        second = next(found, b"")
        self.budget.take(len(first) + len(second))
        if not second:
            return memoryview(first)
        with tempfile.TemporaryFile(dir=self.work) as file:
            file.write(first + second)
            for part in found:
                self.budget.take(len(part))
                file.write(part)
            file.flush()
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


@dataclass(frozen=True, slots=True)
class Piece:
    """Something that a format holds.

    Attributes:
        name: Where in it; empty if it is all of it.
        data: A buffer.
        nested: Whether it is a file of its own, whose format is to be found out.
    """

    name: str
    data: Any
    nested: bool = False


@dataclass(frozen=True, slots=True)
class Decoder:
    """A format.

    Attributes:
        name: Its name in the report.
        recognises: Whether bytes are of this format.
        pieces: What they hold. Raises anything if they are damaged.
        conceal: A file that holds a text of ASCII letters and digits in such a way that only
            decoding shows it: the positive control.
    """

    name: str
    recognises: Callable[[memoryview], bool]
    pieces: Callable[[Content], Iterator[Piece]]
    conceal: Callable[[bytes], bytes]


def starts(*magics: bytes) -> Callable[[memoryview], bool]:
    """Recognises a format by its first bytes."""
    return lambda data: any(data[: len(magic)] == magic for magic in magics)


def chunks(source: Any, size: int = 1 << 20) -> Iterator[bytes]:
    """What a readable object gives, in parts."""
    while part := source.read(size):
        yield bytes(part)


def halves(canary: bytes) -> bytes:
    """A text that a compressor writes as its two halves and references to them."""
    cut = len(canary) // 2
    parts = (canary[:cut], b"-" * 40, canary[cut:], b"+" * 40, canary, b"." * 40)
    return b"".join(chain(parts))
