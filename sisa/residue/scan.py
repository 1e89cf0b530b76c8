"""The scan itself: every file of every place, as it lies there and decoded.

Each scan proves itself. A canary is hidden in a file of each format, in a temporary folder of the
store, so that only decoding shows it; a scan that misses one is not valid, whatever else it found.
"""

from __future__ import annotations

import errno
import mmap
import os
import secrets
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_index.storage import Store, canonical_json, sha256
from sisa.residue.decoders import DECODERS
from sisa.residue.decoders.protocol import Budget, Content, Decoder, Refused
from sisa.residue.needles import Kind, Needle
from sisa.residue.places import Found, Place, walk
from sisa.residue.search import CHUNK, Finder

DEPTH = 6
"""How deep files are nested that are still decoded."""

INFLATED = 4 << 30
"""Bytes that may come out of one file; more is taken for a bomb."""

MAPPED = 64 << 20
"""Bytes from which on a file is mapped instead of read."""

SMALL = CHUNK // 8
"""Bytes below which buffers are searched together: a search has a price of its own."""

SYSTEM = {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Errors that are the system's, whatever file it was about: the search cannot go on."""

PLAIN = ("name", "raw")
"""Controls that need no decoder: a file's name, and bytes as they lie there."""

WITHHELD = "(withheld)"
"""Stands for a name that holds something that is looked for."""


@dataclass(frozen=True, order=True, slots=True)
class Hit:
    """Something was found: where, and a form of what. Never what."""

    where: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Scan:
    """The outcome of a scan.

    Attributes:
        files: How many files were searched.
        bytes: Their size.
        decoded: How many contents were decoded, by format, nested ones included.
        opaque: How many contents are of no format that is known; they were searched as they are.
        undecodable: Names of what could not be read or decoded to its end.
        refused: Names of what came to too many bytes, or was nested too deep.
        hits: What was found in places of the system.
        elsewhere: What was found in other files of the workspace.
        expected: In how many places of the ledger keys of open requests are, as they must be.
        controls: Whether each positive control was found.
        sought: How many forms were looked for, by kind.
        short: How many ids and texts were too short to be looked for.
        legitimate: How many items were not looked for because they occur in what stays.
    """

    files: int
    bytes: int
    decoded: dict[str, int]
    opaque: int
    undecodable: tuple[str, ...]
    refused: tuple[str, ...]
    hits: tuple[Hit, ...]
    elsewhere: tuple[Hit, ...]
    expected: int
    controls: dict[str, bool]
    sought: dict[str, int]
    short: int
    legitimate: int

    @property
    def valid(self) -> bool:
        """Whether every control was found: otherwise nothing follows from finding nothing."""
        return all(self.controls.values())

    @property
    def complete(self) -> bool:
        """Whether everything could be read and decoded."""
        return not self.undecodable and not self.refused

    @property
    def clean(self) -> bool:
        """Whether the scan is valid and found nothing in places of the system."""
        return self.valid and not self.hits

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @property
    def digest(self) -> str:
        """sha256 of its canonical JSON, hex."""
        return sha256(canonical_json(self.to_json()))


@dataclass
class _Tally:
    """What is counted on the way."""

    files: int = 0
    bytes: int = 0
    opaque: int = 0
    expected: int = 0
    decoded: Counter[str] = field(default_factory=Counter)
    undecodable: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    hits: set[Hit] = field(default_factory=set)
    elsewhere: set[Hit] = field(default_factory=set)
    controls: set[str] = field(default_factory=set)


def scan(
    store: Store,
    places: tuple[Place, ...],
    needles: Sequence[Needle],
    decoders: Sequence[Decoder] = DECODERS,
    inflated: int = INFLATED,
    short: int = 0,
    legitimate: int = 0,
) -> Scan:
    """Search places for needles.

    Args:
        store: Holds the controls and temporary files meanwhile; one of the places is in it.
        places: Where to look.
        needles: What to look for.
        decoders: Formats to decode. Controls are planted for all that there are.
        inflated: Bytes that may come out of one file.
        short: For the report.
        legitimate: For the report.

    Raises:
        OSError: The system failed, not a file: the disk for temporary files is full, say.
    """
    with _planted(store) as (folder, canaries):
        control = [Needle(c, "control") for c in canaries.values()]
        finder = Finder((*control, *needles))
        searcher = _Searcher(finder, decoders, folder, canaries, inflated)
        for found in walk(places, skip=folder / "work"):
            searcher.file(found)
        searcher.settle()
    tally = searcher.tally
    return Scan(
        files=tally.files,
        bytes=tally.bytes,
        decoded=dict(sorted(tally.decoded.items())),
        opaque=tally.opaque,
        undecodable=tuple(sorted(tally.undecodable)),
        refused=tuple(sorted(tally.refused)),
        hits=tuple(sorted(tally.hits)),
        elsewhere=tuple(sorted(tally.elsewhere)),
        expected=tally.expected,
        controls={name: name in tally.controls for name in sorted(canaries)},
        sought=dict(sorted(Counter(n.kind for n in needles).items())),
        short=short,
        legitimate=legitimate,
    )


@contextmanager
def _planted(store: Store) -> Iterator[tuple[Path, dict[str, bytes]]]:
    """Files with a canary each, and a folder for temporary files; removed at the end.

    Yields:
        Their folder, and the canary of each control by its name.
    """
    folder = store.scratch()
    try:
        (folder / "work").mkdir()
        canaries = {d.name: secrets.token_hex(20).encode() for d in DECODERS}
        for decoder in DECODERS:
            (folder / f"control.{decoder.name}").write_bytes(
                decoder.conceal(canaries[decoder.name])
            )
        canaries |= {name: secrets.token_hex(20).encode() for name in PLAIN}
        (folder / "control.raw").write_bytes(b"\0\xff\0" + canaries["raw"] + b"\0\xff")
        (folder / canaries["name"].decode()).touch()
        yield folder, canaries
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Searcher:
    """One pass over all files."""

    def __init__(
        self,
        finder: Finder,
        decoders: Sequence[Decoder],
        folder: Path,
        canaries: dict[str, bytes],
        inflated: int,
    ) -> None:
        self.tally = _Tally()
        self._finder, self._decoders, self._inflated = finder, decoders, inflated
        self._folder = folder
        self._controls = {canary: name for name, canary in canaries.items()}
        self._waiting: list[tuple[Found, str, memoryview]] = []
        self._size = 0

    def file(self, found: Found) -> None:
        """Search a file and its name."""
        self._look(found, found.name, os.fsencode(found.name))
        try:
            data = (_read_apart if found.place.database else _read)(found.path)
        except FileNotFoundError:  # gone since it was listed
            return
        except OSError:
            self.tally.undecodable.add(self._shown(found.name))
            return
        if not self._planted(found):
            self.tally.files += 1
            self.tally.bytes += len(data)
        if len(data):
            budget = Budget(self._inflated)
            content = Content(data, self._folder / "work", budget, Path(found.path))
            self._search(found, found.name, content, 0)

    def _search(self, found: Found, name: str, content: Content, depth: int) -> None:
        self._look(found, name, content.data)
        decoder = next((d for d in self._decoders if d.recognises(content.data)), None)
        control = self._planted(found)
        if decoder is None:
            self.tally.opaque += not control
            return
        if depth > DEPTH:
            self.tally.refused.add(self._shown(name))
            return
        try:
            for piece in decoder.pieces(content):
                inner = f"{name}!{piece.name}" if piece.name else name
                if piece.nested:
                    data = memoryview(piece.data)
                    nested = Content(data, content.work, content.budget)
                    if len(data):
                        self._search(found, inner, nested, depth + 1)
                else:
                    self._look(found, inner, piece.data)
            self.tally.decoded[decoder.name] += not control
        except Refused:
            self.tally.refused.add(self._shown(name))
        except Exception as error:  # whatever a library makes of bytes that anybody wrote
            if getattr(error, "errno", None) in SYSTEM:
                raise  # a full disk says nothing about the file
            self.tally.undecodable.add(self._shown(name))

    def _planted(self, found: Found) -> bool:
        return found.path.startswith(f"{self._folder}{os.sep}")

    def _look(self, found: Found, name: str, data: Any) -> None:
        """Search a buffer; a small one waits for others."""
        view = memoryview(data).cast("B")
        if len(view) >= SMALL:
            self._report(found, name, self._finder.find(view))
            return
        self._waiting.append((found, name, view))
        self._size += len(view)
        if self._size >= CHUNK:
            self.settle()

    def settle(self) -> None:
        """Search the buffers that wait: all in one, and each by itself if anything is found."""
        waiting, self._waiting, self._size = self._waiting, [], 0
        if self._finder.find(b"\n".join(view for _, _, view in waiting)):
            for found, name, view in waiting:
                self._report(found, name, self._finder.find(view))

    def _report(self, found: Found, name: str, numbers: Iterable[int]) -> None:
        for number in numbers:
            needle = self._finder.needles[number]
            if needle.kind == "control":
                self._control(found, self._controls[needle.pattern])
            elif found.place.ledger and needle.kind == "open key":
                self.tally.expected += 1
            else:
                hits = self.tally.hits if found.place.own else self.tally.elsewhere
                hits.add(Hit(self._shown(name), needle.kind))

    def _control(self, found: Found, name: str) -> None:
        if found.path.endswith(f"/control.{name}") or name == "name":
            self.tally.controls.add(name)

    def _shown(self, name: str) -> str:
        """A name for the report; the parts that hold what is looked for are withheld."""
        if not self._finder.find(os.fsencode(name)):
            return name
        parts = name.split("/")
        held = [WITHHELD if self._finder.find(os.fsencode(p)) else p for p in parts]
        shown = "/".join(held)
        return f"{parts[0]}/{WITHHELD}" if self._finder.find(os.fsencode(shown)) else shown


def _read_apart(path: str) -> memoryview:
    """The bytes of a file that SQLite may have open in this process, read by another one.

    Who closes a file gives up all locks of the process on it (POSIX), SQLite's among them. Then
    the next one to close the database would take itself for the last, and delete the write-ahead
    log that this process goes on to write: https://sqlite.org/howtocorrupt.html, section 2.2.
    """
    done = subprocess.run(["cat", "--", path], capture_output=True, check=False)  # noqa: S607
    if done.returncode:
        raise FileNotFoundError if not os.path.exists(path) else OSError(errno.EACCES, "unreadable")
    return memoryview(done.stdout)


def _read(path: str) -> memoryview:
    """A file's bytes; a large one is mapped, small ones may be cut by others meanwhile."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size <= MAPPED:
            return memoryview(file.read())
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
