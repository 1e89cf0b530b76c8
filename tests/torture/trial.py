"""One trial: disturb a story in a child, look, finish it in others, judge it by the invariants."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import seam
from .children import Outcome, Tell, forked
from .invariants import Case, broken
from .points import watch_calls
from .scenario import Scene, Story, Words, files, look
from .seam import Op, Watch

Disturb = Callable[[Tell, Path], list[Watch]]
"""Prepares a child, before it runs commands on a workspace; returns what watches it."""


@dataclass
class Early(Watch):
    """Tells of files of the erased that are there when a certificate gets its name."""

    store: Path
    doomed: list[str]
    tell: Tell

    def after(self, op: Op) -> None:
        """See `Watch`."""
        if op.place == "certificates" and op.what in ("rename", "link"):
            for name in self.doomed:
                if (self.store / name).exists():
                    self.tell({"early": name})


@dataclass
class Trial:
    """What came of one.

    Attributes:
        broken: Names of the invariants that did not hold.
        outcomes: The disturbed children, in order.
        detail: Facts for whoever looks into it.
    """

    broken: list[str]
    outcomes: list[Outcome]
    detail: dict[str, Any] = field(default_factory=dict)


def run(
    scene: Scene,
    story: Story,
    disturbances: list[Disturb],
    kill_after: list[float | None] | None = None,
    act: tuple[Words, ...] | None = None,
) -> Trial:
    """Disturb a story once or several times, then finish it.

    Args:
        scene: The states.
        story: The story.
        disturbances: The first is of its acts, the others of attempts to finish it.
        kill_after: Seconds after which each disturbed child is killed from outside, if it is.
        act: The commands that are disturbed, if not those of the story.
    """
    folder = scene.copy(story.start, "trial")
    doomed = scene.rehearsed(story).doomed
    try:
        outcomes = []
        for number, disturb in enumerate(disturbances):
            commands = story.finish if number else act or story.act

            def disturbed(tell: Tell, disturb: Disturb = disturb, commands: Any = commands) -> None:
                watches = [Early(folder / "store", doomed, tell), *disturb(tell, folder)]
                seam.install(folder / "store", *watches)
                watch_calls(*watches)
                for words in commands:
                    for watch in watches:
                        watch.begin()
                    scene.play(tell, folder, (words,))
                for watch in watches:
                    watch.end()

            outcomes.append(forked(disturbed, kill_after[number] if kill_after else None))
        early = [name for o in outcomes for name in o.of("early")] + _early(folder, doomed, story)
        after = forked(lambda tell: look(tell, folder, scene.keys))
        finish = forked(lambda tell: _finish(tell, scene, folder, story, doomed))
        early += finish.of("early")
        final = forked(lambda tell: look(tell, folder, scene.keys))
        return _judged(scene, story, outcomes, after, finish, final, early)
    finally:
        for path in folder.parent.glob("trial*"):
            shutil.rmtree(path)


def _finish(tell: Tell, scene: Scene, folder: Path, story: Story, doomed: list[str]) -> None:
    seam.install(folder / "store", Early(folder / "store", doomed, tell))
    scene.play(tell, folder, story.finish)


def _early(folder: Path, doomed: list[str], story: Story) -> list[str]:
    """Files of the erased that stand beside a certificate of theirs."""
    there = set(files(folder))
    if story.start == "certified" or not any(f.startswith("certificates/") for f in there):
        return []
    return sorted(there & set(doomed))


def _judged(
    scene: Scene,
    story: Story,
    outcomes: list[Outcome],
    after: Outcome,
    finish: Outcome,
    final: Outcome,
    early: list[str],
) -> Trial:
    children = [*outcomes, after, finish, final]
    faults = [fault for o in children for fault in o.faults]
    refused = [
        f"{c['words'][0]}: {c['code']} {c['answer']}"
        for c in finish.of("command")
        if c["code"] and not c["may"]
    ]
    detail = {"faults": faults, "refused": refused, "early": early}
    if not after.of("seen") or not final.of("seen"):
        return Trial(["no_traceback_and_no_hang"], outcomes, detail)
    case = Case(
        before=scene.rehearsed(story).before,
        after=after.of("seen")[0],
        final=final.of("seen")[0],
        accepted=[request for o in outcomes for request in o.of("accepted")],
        accepted_later=finish.of("accepted"),
        digest=scene.rehearsed(story).digest,
        early=early,
        named=[tuple(pair) for o in (*outcomes, finish) for pair in o.of("named")],
        purged=story.purged,
        faults=faults,
        refused=refused,
    )
    return Trial(broken(case), outcomes, {**detail, "after": case.after, "final": case.final})
