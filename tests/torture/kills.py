"""SIGKILL at every named point and at random; each story is finished afterwards and checked."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from . import trial
from .log import Log
from .points import BY_NAME, POINTS, At, Point, uncovered
from .scenario import STORIES, Scene
from .trial import Disturb

RANDOM = "at random"
"""In the place of a point: SIGKILL from outside, after a random time."""

RANDOM_SHARE, TWICE_SHARE = 0.2, 0.25
"""Shares of the kills that are at random, and of those that are followed by another one."""


@dataclass(frozen=True)
class Reach:
    """How often each story reaches each point undisturbed, and how long it takes."""

    hits: dict[str, dict[str, int]]
    seconds: dict[str, float]

    def stories(self, point: str) -> list[str]:
        """Stories that reach a point."""
        return sorted(s for s, hits in self.hits.items() if hits.get(point))


def reach(scene: Scene, stories: Collection[str] | None = None) -> Reach:
    """Run stories undisturbed, by default all, and count.

    Raises:
        RuntimeError: A durable step has no line in `points`.
    """
    hits: dict[str, dict[str, int]] = {}
    seconds = {}
    missing: set[tuple[str, str]] = set()
    for story in STORIES:
        if stories is not None and story.name not in stories:
            continue
        done = scene.rehearsed(story)
        missing |= uncovered(done.counts)
        hits[story.name] = {
            p.name: n for p in POINTS if (n := done.counts.get((p.what, p.place), 0))
        }
        seconds[story.name] = done.seconds
    if missing:
        raise RuntimeError(f"no line of points.py names {sorted(missing)}")
    return Reach(hits, seconds)


@dataclass(frozen=True)
class Plan:
    """One kill that is drawn: a point and a story, and perhaps a second kill."""

    number: int
    story: str
    point: str
    hit: int
    after: float
    second: tuple[str, int] | None


def plans(reached: Reach, seed: int, count: int, only: str | None = None) -> Iterator[Plan]:
    """Kills in their order: all points in turn, the story and the hit of each drawn."""
    names = [p.name for p in POINTS if reached.stories(p.name)]
    if only is not None:
        names = [only]
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        point = names[number % len(names)]
        if only is None and draw.random() < RANDOM_SHARE:
            point = RANDOM
        story = draw.choice(sorted(reached.hits) if point == RANDOM else reached.stories(point))
        hit = draw.randint(1, reached.hits[story][point]) if point != RANDOM else 0
        second = None
        if draw.random() < TWICE_SHARE:
            at = draw.choice(sorted(reached.hits[story]))
            second = (at, draw.randint(1, reached.hits[story][at]))
        after = draw.uniform(0, reached.seconds[story]) if point == RANDOM else 0.0
        yield Plan(number, story, point, hit, after, second)


def _at(point: str, hit: int) -> Disturb:
    found: Point = BY_NAME[point]
    return lambda tell, folder: [At(found, hit)]


def kill(scene: Scene, plan: Plan) -> trial.Trial:
    """Carry one out."""
    story = next(s for s in STORIES if s.name == plan.story)
    first: Disturb = (lambda t, f: []) if plan.point == RANDOM else _at(plan.point, plan.hit)
    disturbances = [first, *([_at(*plan.second)] if plan.second else [])]
    times = [plan.after if plan.point == RANDOM else None, None]
    return trial.run(scene, story, disturbances, times)


def campaign(
    scene: Scene,
    log: Log,
    seed: int,
    count: int,
    only: str | None = None,
    stories: Collection[str] | None = None,
) -> None:
    """Make all kills that the log does not hold yet."""
    reached = reach(scene, stories)
    for plan in plans(reached, seed, count, only):
        name = f"{seed}/{only or 'all'}/{plan.number}"
        if log.holds(name):
            continue
        started = time.monotonic()
        done = kill(scene, plan)
        log.add(
            {
                "trial": name,
                "story": plan.story,
                "point": plan.point,
                "hit": plan.hit,
                "second": plan.second and plan.second[0],
                "kills": sum(o.killed for o in done.outcomes),
                "killed": done.outcomes[0].killed,
                "seconds": round(time.monotonic() - started, 3),
                "broken": done.broken,
                **({"detail": done.detail} if done.broken else {}),
            }
        )


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of a campaign."""
    at: Counter[str] = Counter(x["point"] for x in lines if x["killed"])
    return {
        "trials": len(lines),
        "kills": sum(x["kills"] for x in lines),
        "points": len(set(at) - {RANDOM}),
        "by story": dict(sorted(Counter(x["story"] for x in lines if x["kills"]).items())),
        "at random": at[RANDOM],
        "double": sum(x["kills"] > 1 for x in lines),
        "fewest at a point": min((n for p, n in at.items() if p != RANDOM), default=0),
        "broken": sum(bool(x["broken"]) for x in lines),
    }
