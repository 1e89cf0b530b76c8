"""The seam: every file call of the store and every transaction of the ledger, before and after.

Patches this process for good, so it is installed in forked children only.
"""

from __future__ import annotations

import io
import os
import sqlite3.dbapi2
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import data_index.storage

SOURCES = tuple(
    str(Path(data_index.storage.__file__).parents[1] / p) for p in ("data_index", "sisa")
)
WRITES = ("BEGIN IMMEDIATE", "INSERT", "UPDATE", "DELETE", "CREATE")

FOLDER, NOWHERE = "folder ", ""


@dataclass(frozen=True, slots=True)
class Op:
    """One call.

    Attributes:
        what: `open`, `write`, `read`, `fsync`, `rename`, `link`, `unlink`, `mkdir`, `rmdir` of the
            store; `begin`, `execute`, `commit` of the ledger.
        place: The folder of the store, `folder X` for the folder itself; of the ledger the function
            whose transaction it is.
        path: The file, absolute; empty for the ledger.
        source: What is renamed or linked.
    """

    what: str
    place: str
    path: str = ""
    source: str = ""


class Watch:
    """Sees every call. `before` may raise, or say how many bytes of a write are written."""

    def begin(self) -> None:
        """Called before each command, which could be a process of its own."""

    def before(self, op: Op) -> int | None:
        """Called before the call."""
        return None

    def after(self, op: Op) -> None:
        """Called after the call, if it did not raise."""

    def end(self) -> None:
        """Called when the commands are done."""


class Serial(AbstractContextManager["Serial"]):
    """In place of a pool of threads: the order of calls is the same every time."""

    def __init__(self, max_workers: int = 1) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, call: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """One after the other, at once."""
        return iter([call(item) for item in items])


def install(store: Path, *watches: Watch) -> None:
    """Let watches see all that this process does to a store and its ledger."""
    Seam(str(store), watches).install()


class Seam:
    """The patches, over one store."""

    def __init__(self, store: str, watches: tuple[Watch, ...]) -> None:
        self._store, self._watches = store, watches

    def install(self) -> None:
        """Patch."""
        for name, what in (
            ("mkdir", "mkdir"),
            ("rmdir", "rmdir"),
            ("unlink", "unlink"),
            ("open", "open"),
            ("replace", "rename"),
            ("link", "link"),
            ("fsync", "fsync"),
        ):
            setattr(os, name, self._patched(what, getattr(os, name)))
        opened: Any = self._opened(io.open)
        io.open = opened  # what pathlib calls
        data_index.storage.open = opened  # type: ignore[attr-defined]
        data_index.storage.ThreadPoolExecutor = Serial  # type: ignore[assignment,misc]
        self._ledger()

    def before(self, op: Op) -> int | None:
        """Tell all watches."""
        found = [watch.before(op) for watch in self._watches]
        return next((f for f in found if f is not None), None)

    def after(self, op: Op) -> None:
        """Tell all watches."""
        for watch in self._watches:
            watch.after(op)

    def _within(self, path: Any, dir_fd: int | None = None, above: bool = False) -> str | None:
        """A path if it is in the store, or the store itself, or what that lies in."""
        if isinstance(path, int):
            text = os.readlink(f"/proc/self/fd/{path}")
        else:
            text = os.fsdecode(path)
            if dir_fd is not None:
                text = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), text)
        inside = text == self._store or text.startswith(f"{self._store}/")
        return text if inside or (above and text == os.path.dirname(self._store)) else None

    def place(self, path: str, folder: bool = False) -> str:
        """The folder of the store that a path lies in."""
        top = path[len(self._store) + 1 :].partition("/")[0]
        if len(path) < len(self._store):
            top = "workspace"
        if path.endswith("p.json") and top == "stages":
            top = "stages rewritten"
        return f"{FOLDER}{top}" if folder else top

    def _patched(self, what: str, real: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            last = args[1] if what in ("rename", "link") else args[0]
            path = self._within(last, more.get("dir_fd"), above=what == "fsync")
            if path is None:
                return real(*args, **more)
            source = os.fspath(args[0]) if what in ("rename", "link") else ""
            folder = what in ("mkdir", "rmdir") or (what == "fsync" and os.path.isdir(path))
            op = Op(what, self.place(path, folder), path, source)
            self.before(op)
            done = real(*args, **more)
            self.after(op)
            return done

        return call

    def _opened(self, real: Any) -> Any:
        seam = self

        class Raw(io.FileIO):
            """A file whose writes are seen."""

            def write(self, data: Any) -> int:
                op = Op("write", seam.place(str(self.name)), str(self.name))
                short = seam.before(op)
                count = super().write(data if short is None else memoryview(data)[:short])
                seam.after(op)
                return count

        def call(file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
            path = None if isinstance(file, int) else self._within(file)
            if path is None:
                return real(file, mode, *args, **more)
            op = Op("open" if mode == "wb" else "read", self.place(path), path)
            self.before(op)
            done = (
                io.BufferedWriter(Raw(path, "w"))
                if mode == "wb"
                else real(file, mode, *args, **more)
            )
            self.after(op)
            return done

        return call

    def _ledger(self) -> None:
        seam, real = self, sqlite3.dbapi2.connect

        class Cursor(sqlite3.Cursor):
            """Statements, seen."""

            def execute(self, statement: str, *args: Any) -> Any:
                verb = statement.lstrip().upper()
                self.connection.writes |= verb.startswith(WRITES)
                what = "begin" if verb.startswith("BEGIN") else "execute"
                with seam.around(what, self.connection.writes, statement):
                    return super().execute(statement, *args)

        class Connection(sqlite3.Connection):
            """Transactions, seen."""

            writes = False

            def cursor(self, factory: Any = Cursor) -> Any:
                return super().cursor(factory)

            def commit(self) -> None:
                with seam.around("commit", self.writes):
                    super().commit()
                self.writes = False

            def rollback(self) -> None:
                super().rollback()
                self.writes = False

        def connect(*args: Any, **more: Any) -> Any:
            return real(*args, **{**more, "factory": Connection})

        sqlite3.dbapi2.connect = connect  # type: ignore[assignment]

    def around(self, what: str, writes: bool, statement: str = "") -> AbstractContextManager[None]:
        """Tell watches of a statement of a write transaction, or of a pragma."""
        if not writes and not statement.startswith("PRAGMA"):
            return nullcontext()
        return _Around(self, Op(what, _transaction(), source=statement))


@dataclass
class _Around(AbstractContextManager[None]):
    seam: Seam
    op: Op

    def __enter__(self) -> None:
        self.seam.before(self.op)

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if kind is None:
            self.seam.after(self.op)


def _transaction() -> str:
    """The function whose transaction this is."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(SOURCES) and not _carries(code):
            if code.co_name == "holding":
                return "release" if "stop" in frame.f_locals else "take"
            return str(code.co_name)
        frame = frame.f_back
    return NOWHERE


def _carries(code: Any) -> bool:
    """Whether this only carries a transaction for others."""
    file, name = code.co_filename, code.co_name
    return file.endswith("database.py") or (file.endswith("ledger.py") and name == "write")
