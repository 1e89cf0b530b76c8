"""The code broken once for each campaign, which must report it: a harness that can fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import crowd, faults, histories, mutations, removals, rules, trial
from .children import Tell
from .log import Log
from .points import BY_NAME, At
from .scenario import STORIES, Scene
from .seam import Watch


@contextmanager
def broken(holder: Any, name: str, value: Any) -> Iterator[None]:
    """Replace something in this process, which its forked children inherit."""
    whole = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, whole)


def acknowledged_early(scene: Scene) -> list[str]:
    """Kills: a request is acknowledged before it is committed."""

    def disturb(tell: Tell, folder: Path) -> list[Watch]:
        removals.acknowledged_early()
        return [At(BY_NAME["before commit accept"], 1)]

    story = next(s for s in STORIES if s.name == "forget")
    return trial.run(scene, story, [disturb]).broken


def late_request_published(scene: Scene) -> list[str]:
    """Rules: a build is published although a request came in since it began."""
    rule = next(r for r in rules.RULES if r.intrusion is rules.LATE)
    return rules.intruded(scene, rule, rules.LATE).broken


def fsync_taken_lightly(scene: Scene) -> list[str]:
    """Faults: writing goes on after a failed fsync."""
    from data_index.storage import Store

    real = Store._sync

    def careless(self: Store, paths: Any) -> None:
        try:
            real(self, paths)
        except OSError:
            self._suspect = False

    story = next(s for s in STORIES if s.name == "ingest")
    calls = scene.rehearsed(story).counts
    first = 1 + sum(n for (what, _), n in calls.items() if what in faults.CALLS)
    with broken(Store, "_sync", careless), broken(faults, "FAULTS", {"EIO": ("fsync",)}):
        line = faults.inject(scene, story, "EIO", False, min(3, first))
    return list(line["broken"]) if line else []


def digests_unchecked(scene: Scene) -> list[str]:
    """Bad bytes: files are read without their sha256."""
    from data_index.storage import Store

    log = Log(None)
    with broken(Store, "read", lambda self, ref: self.read_unchecked(ref.path)):
        mutations.campaign(scene, log, 0, 30)
    return [b for line in log.lines for b in line["broken"]]


def external_ids_forgotten(scene: Scene) -> list[str]:
    """Concurrency: the same external id makes a request each time."""
    from data_index import requests

    log = Log(None)
    with broken(requests, "of_external", lambda *_: {}):
        crowd.campaign(scene, log, 0, 2, 10)
    return list(log.lines[0]["broken"])


def rows_left(scene: Scene) -> list[str]:
    """Histories: an erasure is certified and its rows stay."""
    from sisa import forget

    def careless(context: Any, lease: Any, taken: Any) -> Any:
        return tuple(taken.requests)

    log = Log(None)
    with broken(forget, "_rewrite", careless):
        histories.campaign(scene, log, 0, 4, 4)
    return list(log.lines[0]["broken"])


CONTROLS: dict[str, Callable[[Scene], list[str]]] = {
    "kills": acknowledged_early,
    "rules": late_request_published,
    "faults": fsync_taken_lightly,
    "mutations": digests_unchecked,
    "crowd": external_ids_forgotten,
    "histories": rows_left,
}
"""One line a campaign."""
