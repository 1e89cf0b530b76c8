"""Each fsync and each rule of order removed once, under a model of lost writes.

The code as it is must survive every cut of the schedule. Without a rule, some cut must be noticed
by an invariant; a rule whose removal nothing notices is a hint, and says why.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import removals, trial
from .cache import Cache, Cut, Kill
from .children import Tell
from .log import Line, Log
from .points import BY_NAME, CONTENT_NAMED, POINTS, At, Point
from .removals import skip_flush, skip_fsync
from .scenario import ACCEPT, APPEND, STORIES, TRAIN, WORK, Scene, Story, Words
from .seam import Watch

Patch = Callable[[], None]


@dataclass(frozen=True)
class Intrusion:
    """Another process comes in between.

    Attributes:
        story: What it amounts to, one after the other.
        act: The commands that are disturbed.
        point: Where the other process comes in.
        words: What it does.
        steal: Whether the lease of the disturbed process has run out by then.
    """

    story: Story
    act: tuple[Words, ...]
    point: Point
    words: Words
    steal: bool = False


LATE = Intrusion(
    Story("late request", "ingested", (ACCEPT, TRAIN), (WORK, TRAIN), "without", True),
    (TRAIN,),
    Point("before", "begin", "publish"),
    ACCEPT,
)
OVERTAKEN = Intrusion(
    Story("overtaken", "accepted", (APPEND,), (WORK, TRAIN)),
    (WORK,),
    Point("before", "begin", "commit_dataset"),
    APPEND,
    steal=True,
)


@dataclass(frozen=True)
class Rule:
    """A rule that can be taken away.

    Attributes:
        name: What is no longer done.
        remove: Takes it away in this process.
        hint: Why nothing notices, if nothing does.
        intrusion: What another process does in between, if it takes that to notice.
    """

    name: str
    remove: Patch
    hint: str = ""
    intrusion: Intrusion | None = None


KEPT = Rule("nothing is removed", lambda: None)

RULES = (
    *(Rule(f"fsync of files in {f}", skip_fsync("flush", f, "file")) for f in CONTENT_NAMED),
    *(
        Rule(f"fsync of the folders of {f}", skip_fsync("flush", f, "folder"))
        for f in (*CONTENT_NAMED, "certificates", "stages")
    ),
    Rule(
        "fsync of a segment before its rename", skip_fsync("_place", "tmp", caller="write_segment")
    ),
    Rule("fsync of a certificate before its link", skip_fsync("_link", "tmp", caller="issue")),
    Rule("fsync of an epoch's key before its link", skip_fsync("_link", "tmp", caller="make")),
    Rule("fsync of the folder of epochs", skip_fsync("flush", "epochs", "folder")),
    Rule("fsync of the store's own folder", skip_fsync("flush", "", "folder")),
    Rule("fsync of the folder that the store lies in", skip_fsync("flush", "workspace", "folder")),
    Rule(
        "fsync of folders after deleting in them",
        skip_fsync("delete"),
        hint="a purge syncs all folders that it swept, in `settle`",
    ),
    Rule("fsync of swept folders after a kill", skip_fsync("settle")),
    Rule(
        "fsync after removing temporary files",
        skip_fsync("remove_scratch"),
        hint="a certificate's own flush syncs the store's folder before anybody is told",
    ),
    Rule("flush before a data set is committed by ingest", skip_flush("_committed")),
    Rule("flush before a data set is committed by rewriting", skip_flush("_rewrite")),
    Rule("flush before a generation is published", skip_flush("_publish")),
    Rule("flush before a roll-back is committed", skip_flush("publish")),
    Rule("flush of a name that was taken", skip_flush("put_new")),
    Rule(
        "checkpoints durable before their segment",
        removals.segment_first,
        hint="a stage whose checkpoint is not whole counts as not stored, and is trained again",
    ),
    Rule("segments durable before the build goes on", removals.segment_late),
    Rule(
        "new segments durable before the old are deleted",
        skip_flush("_sweep_stage_log"),
        hint="deleting syncs the same folder, and what a segment has lost is trained again",
    ),
    Rule("ledger's commits synchronous", removals.ledger_unsynced),
    Rule("rewrite before purge", removals.purge_before_rewrite),
    Rule("purge before certificate", removals.certificate_before_purge),
    Rule("publish before purge", removals.purge_before_publish),
    Rule("tombstones in the transaction of acceptance", removals.tombstones_late),
    Rule("acceptance committed before it is acknowledged", removals.acknowledged_early),
    Rule("check of requests in publish", removals.publish_unchecked, intrusion=LATE),
    Rule("check of the lease", removals.lease_unchecked, intrusion=OVERTAKEN),
)
"""One line each."""


@dataclass(frozen=True)
class State:
    """One power cut: where, and how much is lost; perhaps after a kill that lost nothing."""

    story: Story
    point: str | None
    hit: int
    seed: str
    share: float
    killed: tuple[str, int] | None = None
    names: bool = True


CLOSE: tuple[tuple[str, str | None, tuple[str, int] | None], ...] = (
    ("train", "after rename stages", None),
    ("forget", "after link certificates", None),
    ("first", "after link epochs", None),
    ("work", "after commit certify", ("after unlink lineage", 1)),
    ("work", "after commit certify", ("after unlink partitions", 1)),
    ("work", "after commit certify", ("after rmdir folder tmp", 1)),
    ("correct", "before commit publish", None),
    ("accept", "before commit accept", None),
)
"""Cuts that are aimed at one rule: story, point, and a kill before it; one line each."""


def schedule(
    scene: Scene, seed: int, count: int, stories: Collection[str] | None = None
) -> Iterator[State]:
    """Cuts: first after each commit and at the end of each story, with all that can be lost."""
    chosen = [s for s in STORIES if stories is None or s.name in stories]
    certain = list(_certain(scene, chosen))
    yield from certain[:count]
    reach = {s: _hits(scene, s) for s in chosen}
    for number in range(count - len(certain)):
        draw = random.Random(f"{seed}/cut/{number}")
        story = draw.choice(chosen)
        point = draw.choice([None, *sorted(reach[story])])
        hit = draw.randint(1, reach[story][point]) if point else 1
        killed = None
        if draw.random() < 0.4:
            name = draw.choice(sorted(reach[story]))
            killed = name, draw.randint(1, reach[story][name])
        yield State(story, point, hit, f"{seed}/{number}", draw.choice((0.3, 0.7, 1.0)), killed)


def _certain(scene: Scene, stories: Sequence[Story]) -> Iterator[State]:
    for story in stories:
        yield State(story, None, 1, "all", 1.0)
    for name, point, killed in CLOSE:
        for found in (s for s in stories if s.name == name):
            yield State(found, point, 1, "all", 1.0, killed, names=killed is not None)
    for story in stories:
        for name, hits in sorted(_hits(scene, story).items()):
            if name.startswith("after commit") and "release" not in name and "take" not in name:
                for hit in range(1, hits + 1):
                    yield State(story, name, hit, "all", 1.0)


def _hits(scene: Scene, story: Story) -> dict[str, int]:
    counts = scene.rehearsed(story).counts
    return {p.name: n for p in POINTS if (n := counts.get((p.what, p.place), 0))}


def cut(scene: Scene, rule: Rule, state: State) -> trial.Trial:
    """One trial."""

    def disturb(watch: type[Cut], point: str | None, hit: int) -> trial.Disturb:
        def prepare_child(tell: Tell, folder: Path) -> list[Watch]:
            rule.remove()
            cache = Cache.of(folder)
            place = BY_NAME[point] if point else None
            return [cache, watch(cache, place, hit, state.seed, state.share, state.names)]

        return prepare_child

    last = disturb(Cut, state.point, state.hit)
    first = [disturb(Kill, *state.killed)] if state.killed else []
    return trial.run(scene, state.story, [*first, last])


INTRUDER = """
import sqlite3, sys
if sys.argv.pop(1) == "steal":
    with sqlite3.connect(sys.argv[2] + "/ledger.db") as ledger:
        ledger.execute("UPDATE leases SET expires = '2000', holder = 'x y 1 z'")
from sisa.cli import main
main()
"""


def intruded(scene: Scene, rule: Rule, intrusion: Intrusion) -> trial.Trial:
    """One trial in which another process comes in between."""

    def disturb(tell: Tell, folder: Path) -> list[Watch]:
        def intrude() -> None:
            steal = "steal" if intrusion.steal else "leave"
            words = ["-C", str(folder), *scene.words(intrusion.words), "--output", "json"]
            call = [sys.executable, "-c", INTRUDER, steal, *words]
            done = subprocess.run(call, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(done.stdout + done.stderr)
            if request := json.loads(done.stdout).get("request_id"):
                tell({"accepted": request})

        rule.remove()
        return [At(intrusion.point, 1, intrude)]

    return trial.run(scene, intrusion.story, [disturb], act=intrusion.act)


def campaign(
    scene: Scene,
    log: Log,
    seed: int,
    kept: int,
    removed: int,
    only: str = "",
    stories: Collection[str] | None = None,
) -> None:
    """Cut the code as it is, then without each rule in turn until something is noticed."""
    for number, state in enumerate(schedule(scene, seed, kept, stories)):
        _tried(scene, log, KEPT, state, f"{seed}/kept/{number}")
    for intrusion in (LATE, OVERTAKEN):
        _recorded(
            log,
            f"{seed}/kept/{intrusion.story.name}",
            KEPT,
            lambda i=intrusion: intruded(scene, KEPT, i),
        )
    for rule in RULES:
        if only and only not in rule.name:
            continue
        if rule.intrusion is not None:
            _recorded(
                log, f"{seed}/{rule.name}", rule, lambda r=rule: intruded(scene, r, r.intrusion)
            )
            continue
        for number, state in enumerate(schedule(scene, seed, removed, stories)):
            if _tried(scene, log, rule, state, f"{seed}/{rule.name}/{number}")["noticed"]:
                break


def _tried(scene: Scene, log: Log, rule: Rule, state: State, name: str) -> Line:
    return _recorded(log, name, rule, lambda: cut(scene, rule, state), state)


def _recorded(
    log: Log, name: str, rule: Rule, run: Callable[[], trial.Trial], state: State | None = None
) -> Line:
    if log.holds(name):
        return next(line for line in log.lines if line["trial"] == name)
    started = time.monotonic()
    done = run()
    kept = rule is KEPT
    line: Line = {
        "trial": name,
        "rule": rule.name,
        "story": state.story.name if state else "",
        "point": (state.point or "at the end") if state else "",
        "share": state.share if state else 0,
        "killed": state.killed if state else None,
        "seconds": round(time.monotonic() - started, 3),
        "noticed": done.broken,
        "broken": done.broken if kept else [],
        **({"detail": done.detail} if done.broken and kept else {}),
    }
    log.add(line)
    return line


def unnoticed(lines: list[Line]) -> list[str]:
    """Rules whose removal was not noticed and that are not documented as hints."""
    noticed = {line["rule"] for line in lines if line["noticed"]}
    tried = {line["rule"] for line in lines}
    return [r.name for r in RULES if r.name in tried - noticed and not r.hint]


def summary(lines: list[Line]) -> dict[str, Any]:
    """Figures of a campaign."""
    tried = {line["rule"] for line in lines} - {KEPT.name}
    noticed = {line["rule"] for line in lines if line["noticed"]} & tried
    return {
        "cuts of the code as it is": sum(x["rule"] == KEPT.name for x in lines),
        "broken": sum(bool(x["broken"]) for x in lines),
        "rules removed": len(tried),
        "noticed": len(noticed),
        "hints": sorted(tried - noticed),
        "unnoticed": unnoticed(lines),
        "cuts without a rule": sum(x["rule"] != KEPT.name for x in lines),
    }
