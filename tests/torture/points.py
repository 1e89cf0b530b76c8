"""Where a process is killed: before and after each durable step, by the folder or transaction.

One line a step. `uncovered` says which steps of an undisturbed run no line names, and a test wants
none: a new folder of the store or a new transaction of the ledger needs its line here.
"""

from __future__ import annotations

import importlib
import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .seam import Op, Watch

CONTENT_NAMED = ("partitions", "lineage", "journal", "datasets", "checkpoints", "generations")
"""Written under the name of their content: renamed first, made durable before the commit."""

NAMED = ("certificates", "stages", "stages rewritten")
"""Written under a name of their own: durable before they are renamed."""

SWEPT = (*CONTENT_NAMED, "stages")
"""What a purge deletes."""

TRANSACTIONS = (
    "accept",
    "publish",
    "commit_dataset",
    "set_status",
    "certify",
    "purge",
    "take",
    "release",
    "delivered",
    "__init__",
    "note_rows",
    "block",
    "change",
    "_changed",
    "add_signer",
    "open_epoch",
    "destroy_epochs",
)
"""Functions that write the ledger."""

STEPS: tuple[tuple[str, str], ...] = (
    *(("rename", folder) for folder in (*CONTENT_NAMED, *NAMED)),
    *(("fsync", folder) for folder in CONTENT_NAMED),
    *(("fsync", f"folder {folder}") for folder in (*CONTENT_NAMED, "certificates", "stages", "")),
    ("fsync", "folder workspace"),
    *(("fsync", folder) for folder in ("certificates", "stages", "stages rewritten")),
    *(("unlink", folder) for folder in (*SWEPT, "tmp")),
    *(("commit", transaction) for transaction in TRANSACTIONS),
    ("link", "epochs"),
    ("fsync", "epochs"),
    ("fsync", "folder epochs"),
    ("link", "log"),
    ("fsync", "log"),
    ("fsync", "folder log"),
    ("link", "certificates"),
    ("unlink", "epochs"),
    ("write", "tmp"),
    ("fsync", "tmp"),
    ("rmdir", "folder tmp"),
)
"""Calls of the store and the ledger that a crash can come before or after."""

CALLS = (
    "sisa.forget:_published",
    "sisa.forget:_rewrite",
    "sisa.purge:purge",
    "sisa.purge:_sweep_stage_log",
    "sisa.certificate:issue",
    "sisa.closing:note_rows",
    "sisa.closing:close",
    "sisa.closing:_searched",
    "sisa.residue:seal",
    "data_index.log:Log.write",
    "data_index.storage:Store.put_new",
    "data_index.database:_vacuumed",
    "sisa.rotation:rotate",
    "sisa.publish:_publish",
    "sisa.shard:_stage",
    "sisa.stage_log:Writer.flush",
    "data_index.ingest:_write_partitions",
    "data_index.storage:Store.flush",
    "data_index.storage:Store.remove_scratch",
    "data_index.database:Database.compact",
)
"""Functions that a crash can come before or after."""

IGNORED = ("open", "read", "mkdir", "begin", "execute", "rmdir", "unlink", "link")
"""Steps that need no line each: nothing durable comes of them alone, or another names them."""


@dataclass(frozen=True, slots=True)
class Point:
    """A place in the code, before or after a step."""

    when: str
    what: str
    place: str

    @property
    def name(self) -> str:
        """As it is shown and named on the command line."""
        return f"{self.when} {self.what} {self.place}".strip()


POINTS = tuple(
    Point(when, what, place)
    for what, place in (
        *STEPS,
        *(("begin", t) for t in TRANSACTIONS),
        *(("call", c) for c in CALLS),
    )
    for when in (("after",) if what == "begin" else ("before", "after"))
)

BY_NAME = {point.name: point for point in POINTS}


def die() -> None:
    """As SIGKILL does it: nothing is finished, flushed or closed."""
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class At(Watch):
    """Does something at the nth time that a point is reached."""

    point: Point
    hit: int
    do: Callable[[], None] = die
    reached: int = 0

    def before(self, op: Op) -> int | None:
        """See `Watch`."""
        self._see("before", op)
        return None

    def after(self, op: Op) -> None:
        """See `Watch`."""
        self._see("after", op)

    def _see(self, when: str, op: Op) -> None:
        if (when, op.what, op.place) == (self.point.when, self.point.what, self.point.place):
            self.reached += 1
            if self.reached == self.hit:
                self.do()


@dataclass
class Counting(Watch):
    """Counts how often each step is reached."""

    seen: Counter[tuple[str, str]] = field(default_factory=Counter)

    def after(self, op: Op) -> None:
        """See `Watch`."""
        self.seen[op.what, op.place] += 1


def watch_calls(*watches: Watch) -> None:
    """Let watches see the calls of `CALLS` too; patches this process for good."""
    for name in CALLS:
        module, _, path = name.partition(":")
        holder: Any = importlib.import_module(module)
        *outer, last = path.split(".")
        for part in outer:
            holder = getattr(holder, part)
        setattr(holder, last, _watched(getattr(holder, last), Op("call", name), watches))


def _watched(real: Any, op: Op, watches: tuple[Watch, ...]) -> Any:
    def call(*args: Any, **more: Any) -> Any:
        for watch in watches:
            watch.before(op)
        done = real(*args, **more)
        for watch in watches:
            watch.after(op)
        return done

    return call


def uncovered(seen: Counter[tuple[str, str]]) -> set[tuple[str, str]]:
    """Steps that were reached and that no line names."""
    return {s for s in seen if s[0] not in IGNORED} - {(p.what, p.place) for p in POINTS}
