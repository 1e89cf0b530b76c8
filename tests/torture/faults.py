"""The nth call fails: EIO, ENOSPC, EMFILE, short write, the ledger's disk; every n until clean."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import trial
from .children import Report, Tell
from .log import Line, Log
from .scenario import STORIES, Scene, Story
from .seam import Op, Watch

CALLS = ("open", "read", "write", "fsync", "rename", "link", "unlink", "mkdir", "rmdir")
LEDGER = ("begin", "execute", "commit")

FAULTS: dict[str, tuple[str, ...]] = {
    "EIO": CALLS,
    "ENOSPC": ("open", "write", "fsync", "rename", "link", "mkdir"),
    "EMFILE": ("open", "read"),
    "short write": ("write",),
    "disk I/O error": LEDGER,
    "database or disk is full": ("execute", "commit"),
    "error after the commit": ("commit",),
}
"""What can fail how; one line each."""

ACTED = (
    *("first", "ingest", "train", "forget", "submit", "work", "search", "hold", "cancel"),
    *("append", "correct", "accept"),
)
"""Stories whose every call fails once."""

ERRNO = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EMFILE": errno.EMFILE}
MUTATING = ("write", "rename", "link", "mkdir")


@dataclass
class Failing(Watch):
    """Lets the nth call of those that can fail this way fail, and all later ones if it persists.

    Attributes:
        fault: One of `FAULTS`.
        nth: From 1.
        persistent: Whether later calls fail too.
        tell: Reports when it struck, and what was written after a failed fsync.
    """

    fault: str
    nth: int
    persistent: bool
    tell: Tell
    count: int = 0
    distrusted: bool = False

    def begin(self) -> None:
        """See `Watch`."""
        self.distrusted = False

    def before(self, op: Op) -> int | None:
        """See `Watch`."""
        if self.distrusted and op.what in MUTATING:
            self.tell({"written": f"{op.what} {op.place}"})
        if self.fault == "error after the commit" or not self._strikes(op):
            return None
        if self.fault == "short write":
            return max(1, len(op.source) // 2) if op.source else 1
        if op.what == "fsync":
            self.distrusted = True
        if self.fault in ERRNO:
            code = ERRNO[self.fault]
            raise OSError(code, os.strerror(code), op.path)
        raise sqlite3.OperationalError(self.fault)

    def after(self, op: Op) -> None:
        """See `Watch`."""
        if self.fault == "error after the commit" and self._strikes(op):
            raise sqlite3.OperationalError("disk I/O error")

    def _strikes(self, op: Op) -> bool:
        if op.what not in FAULTS[self.fault] or op.source.startswith("PRAGMA"):
            return False
        self.count += 1
        hit = self.count == self.nth or (self.persistent and self.count > self.nth)
        if hit and self.count == self.nth:
            self.tell({"struck": f"{op.what} {op.place}"})
        return hit


def injections(only: str | None = None) -> Iterator[tuple[Story, str, bool]]:
    """What is walked through: a story, a fault, and whether it persists."""
    stories = {story.name: story for story in STORIES}
    for name in ACTED:
        for fault in FAULTS:
            for persistent in (False, True):
                if only is None or only in f"{name} {fault}":
                    yield stories[name], fault, persistent


def inject(scene: Scene, story: Story, fault: str, persistent: bool, nth: int) -> Line | None:
    """One injection. Returns None if there is no nth call."""

    def disturb(tell: Tell, folder: Path) -> list[Watch]:
        return [Failing(fault, nth, persistent, tell)]

    done = trial.run(scene, story, [disturb])
    acted = done.outcomes[0]
    struck = acted.of("struck")
    if not struck:
        return None
    broken = [*done.broken, *_answered(acted.of("command"), fault)]
    if acted.of("written"):
        broken.append("it writes after a failed fsync")
    return {
        "story": story.name,
        "fault": fault,
        "persistent": persistent,
        "nth": nth,
        "at": struck[0],
        "codes": [c["code"] for c in acted.of("command")],
        "broken": broken,
        **({"detail": {**done.detail, "commands": acted.of("command")}} if broken else {}),
    }


def _answered(commands: list[Report], fault: str) -> list[str]:
    """What is wrong with how commands answered."""
    wrong = []
    for command in commands:
        code, answer = command["code"], command["answer"]
        if "Traceback" in command["err"]:
            wrong.append("a traceback is shown")
        if code == 0:
            continue
        error = (answer or {}).get("error")
        if code == 75 and answer and (answer.get("status") == "blocked" or answer.get("blocked")):
            continue
        if not isinstance(code, int) or not error:
            wrong.append("no error document")
        elif not error["message"].endswith(".") or "\n" in error["message"]:
            wrong.append("no sentence")
    if fault == "short write" and any(c["code"] for c in commands):
        wrong.append("a short write is no error")
    return wrong


def campaign(
    scene: Scene,
    log: Log,
    limit: int,
    only: str | None = None,
    stories: Collection[str] | None = None,
) -> None:
    """Every nth call of every kind in every story, until one run is clean.

    Args:
        scene: The states.
        log: Takes the results.
        limit: About so many injections, spread over all calls.
        only: Only stories and faults whose names hold it.
        stories: Only these.
    """
    walks = [w for w in injections(only) if stories is None or w[0].name in stories]
    total = sum(_calls(scene, s, f) for s, f, _ in walks)
    step = max(1, total // limit)
    if limit < len(walks):
        for number, walk in enumerate(walks[:: len(walks) // limit]):
            _clean(scene, log, *walk, 1 + 7 * number)
        return
    at = {walk: 1 + number % step for number, walk in enumerate(walks)}
    while at:  # one of each in turn, so that a part of the campaign is a part of each
        for walk in list(at):
            if _clean(scene, log, *walk, at[walk]):
                del at[walk]
            else:
                at[walk] += step


def _clean(scene: Scene, log: Log, story: Story, fault: str, persistent: bool, nth: int) -> bool:
    """One injection that is not in the log yet. Returns whether there was no nth call."""
    name = f"{story.name}/{fault}/{'on' if persistent else 'once'}/{nth}"
    if log.holds(name):
        return bool(next(x for x in log.lines if x["trial"] == name).get("clean"))
    started = time.monotonic()
    line = inject(scene, story, fault, persistent, nth)
    spent = {"trial": name, "seconds": round(time.monotonic() - started, 3)}
    log.add({**spent, **(line or {"clean": True, "broken": []})})
    return line is None


def _calls(scene: Scene, story: Story, fault: str) -> int:
    counts = scene.rehearsed(story).counts
    return sum(n for (what, _), n in counts.items() if what in FAULTS[fault])


def summary(lines: list[Line]) -> dict[str, Any]:
    """Figures of a campaign."""
    made = [x for x in lines if not x.get("clean")]
    return {
        "injections": len(made),
        "clean runs": len(lines) - len(made),
        "by fault": dict(Counter(x["fault"] for x in made)),
        "after a failed fsync": sum(x["at"].startswith("fsync") for x in made),
        "broken": sum(bool(x["broken"]) for x in made),
    }
