"""Steps of workers, told through a file while they are taken: the first worker adds, we follow."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from sisa.approximate.loop import Report

PAUSE = 0.5
"""Seconds between two looks at the file."""


def tell(file: Path, metrics: Mapping[str, float], step: int) -> None:
    """Add a step.

    Args:
        file: Of those who follow.
        metrics: What the step was, by name.
        step: Its number.
    """
    with file.open("a") as lines:  # whoever wrote before may have died within a line
        lines.write("\n" + json.dumps([dict(metrics), step]) + "\n")


@contextmanager
def followed(file: Path, report: Report) -> Iterator[None]:
    """Report each step as it is added meanwhile, in a thread of its own; all of them by the end.

    Args:
        file: Where they are told, made anew with its folder, and removed at the end.
        report: What it raises is raised at the end.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    file.touch(0o600)
    ended, reader = threading.Event(), _Reader(file)

    def follow() -> None:
        over = False
        while not over:
            over = ended.wait(PAUSE)  # what was added before the end is read after it
            for metrics, step in reader.new():
                report(metrics, step)

    with ThreadPoolExecutor(1) as thread:
        try:
            following = thread.submit(follow)
            yield
        finally:
            ended.set()
        following.result()
    file.unlink(missing_ok=True)


@dataclass
class _Reader:
    """Reads whole lines, each once."""

    file: Path
    _at: int = field(default=0, init=False)

    def new(self) -> Iterator[tuple[Mapping[str, float], int]]:
        """Steps that were added since."""
        try:
            with self.file.open("rb") as lines:
                lines.seek(self._at)
                added = lines.read()
        except FileNotFoundError:
            return
        whole = added[: added.rfind(b"\n") + 1]
        self._at += len(whole)
        for line in whole.splitlines():
            with suppress(ValueError):
                metrics, step = json.loads(line)
                yield metrics, step
