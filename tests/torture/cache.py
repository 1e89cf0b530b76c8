"""A model of lost writes: what a power cut leaves of what was not made durable.

A file's bytes are safe once it was fsynced, a folder's entries once the folder was. What was not
may be lost in any combination: a file is empty, half or zeros, a name is missing or the old one, a
deleted file is back. SQLite's own files are taken as they are: its commits are durable, unless a
connection was told otherwise; then the ledger is as it was.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .points import At, Point, die
from .seam import Op, Watch


@dataclass
class Entry:
    """A change of a folder that is not durable: a name that was added, replaced or removed."""

    kind: str
    path: str
    source: str = ""
    saved: str = ""

    @property
    def folder(self) -> str:
        """The folder."""
        return os.path.dirname(self.path)


@dataclass
class Cache(Watch):
    """Follows what is not durable yet, across the processes of one workspace.

    Attributes:
        folder: The workspace.
        shadow: Where copies lie of what a cut could bring back.
        torn: Files whose bytes are not durable, by inode.
        entries: Changes of folders that are not, in order.
        ledger_synced: Whether the ledger's commits are durable.
    """

    folder: Path
    shadow: Path
    torn: dict[int, str] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    ledger_synced: bool = True
    _next: Entry | None = None

    @classmethod
    def of(cls, folder: Path) -> Cache:
        """What an earlier process left, or nothing."""
        shadow = folder.with_name(f"{folder.name}-shadow")
        made = cls(folder, shadow)
        if shadow.exists():
            found = json.loads((shadow / "state.json").read_text())
            made.torn = {int(inode): path for inode, path in found["torn"].items()}
            made.entries = [Entry(**e) for e in found["entries"]]
        else:
            shadow.mkdir()
            for file in folder.glob("ledger.db*"):
                shutil.copyfile(file, shadow / file.name)
        return made

    def save(self) -> None:
        """For the next process; nothing is lost yet."""
        state = {"torn": self.torn, "entries": [asdict(e) for e in self.entries]}
        (self.shadow / "state.json").write_text(json.dumps(state))

    def before(self, op: Op) -> int | None:
        """See `Watch`."""
        there = bool(op.path) and os.path.exists(op.path)
        self._next = None
        if op.what == "unlink" and there:
            self._next = Entry("removed", op.path, saved=self._keep(op.path))
        elif op.what == "rename":
            saved = self._keep(op.path) if there else ""
            self._next = Entry("renamed", op.path, op.source, saved)
        elif op.what in ("link", "mkdir") or (
            op.what == "open" and op.place == "tmp" and not there
        ):
            self._next = Entry("added", op.path)
        elif op.what == "rmdir":
            self._next = Entry("removed folder", op.path)
        elif op.what == "execute" and "synchronous" in op.source:
            self.ledger_synced &= "FULL" in op.source
        return None

    def after(self, op: Op) -> None:
        """See `Watch`."""
        if self._next is not None and self._next.path == op.path:
            self.entries.append(self._next)
            self._next = None
        if op.what == "open" and os.path.isfile(op.path) and os.path.getsize(op.path) == 0:
            self.torn[os.stat(op.path).st_ino] = op.path
        elif op.what == "rename" and (inode := os.stat(op.path).st_ino) in self.torn:
            self.torn[inode] = op.path
        elif op.what == "fsync":
            self._durable(op.path)

    def _keep(self, path: str) -> str:
        saved = str(self.shadow / f"{len(os.listdir(self.shadow)):06d}")
        shutil.copyfile(path, saved)
        return saved

    def _durable(self, path: str) -> None:
        if os.path.isdir(path):
            gone = {e.path for e in self.entries if e.kind == "removed folder" and e.folder == path}
            self.entries = [
                e
                for e in self.entries
                if e.folder != path and not any(e.path.startswith(f"{g}/") for g in gone)
            ]
        else:
            self.torn.pop(os.stat(path).st_ino, None)

    def cut(self, seed: str, share: float, names: bool = True) -> None:
        """Lose things, as a power cut does.

        Args:
            seed: Of the draw.
            share: Of what is not durable, how much is lost.
            names: Whether names can be lost; if not, only bytes are.
        """
        draw = random.Random(seed)
        paths = dict(self.torn)
        for entry in reversed(self.entries):
            if names and draw.random() < share:
                self._undo(entry, paths)
        for path in paths.values():
            if os.path.isfile(path) and draw.random() < share:
                _tear(path, draw.choice(("empty", "half", "zeros")))
        if not self.ledger_synced:
            for file in self.folder.glob("ledger.db*"):
                os.unlink(file)
            for file in self.shadow.glob("ledger.db*"):
                shutil.copyfile(file, self.folder / file.name)
        shutil.rmtree(self.shadow)

    def _undo(self, entry: Entry, paths: dict[int, str]) -> None:
        path = entry.path
        if entry.kind == "added":
            if os.path.isdir(path):
                shutil.rmtree(path)
            else:
                with suppress(FileNotFoundError):
                    os.unlink(path)
        elif entry.kind == "renamed" and os.path.exists(path):
            inode = os.stat(path).st_ino
            if os.path.isdir(os.path.dirname(entry.source)):
                os.rename(path, entry.source)
                if inode in paths:
                    paths[inode] = entry.source
            else:
                os.unlink(path)
            if entry.saved:
                shutil.copyfile(entry.saved, path)
        elif entry.kind == "removed" and not os.path.exists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            shutil.copyfile(entry.saved, path)


def _tear(path: str, how: str) -> None:
    size = os.path.getsize(path)
    if how == "zeros":
        with open(path, "r+b") as file:
            file.write(bytes(size))
    else:
        os.truncate(path, 0 if how == "empty" else size // 2)


@dataclass
class Cut(Watch):
    """A power cut at the nth time that a point is reached, or at the end if that never comes."""

    cache: Cache
    point: Point | None
    hit: int
    seed: str
    share: float
    names: bool = True

    def __post_init__(self) -> None:
        self._at = At(self.point, self.hit, self.end) if self.point else Watch()

    def before(self, op: Op) -> int | None:
        """See `Watch`."""
        return self._at.before(op)

    def after(self, op: Op) -> None:
        """See `Watch`."""
        self._at.after(op)

    def end(self) -> None:
        """The cut."""
        self.cache.cut(self.seed, self.share, self.names)
        die()


@dataclass
class Kill(Cut):
    """A kill in the place of a cut: what the process wrote stays in the cache of the machine."""

    def end(self) -> None:
        """The kill."""
        self.cache.save()
        die()
