"""Accuracy, step by step: what brings a sharded ensemble closer to the unsharded model.

Each line adds one setting to those above it, or tries one instead of the last. Every ensemble, the
unsharded one too, visits the same number of samples. Means over seeds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import common

from sisa import Workspace

SEEDS = (0, 1, 2)
LAST = "recipe.training.schedule=last_stage_linear"
SMOOTH = "recipe.training.label_smoothing=0.1"
CARRY = "recipe.training.optimizer_state=carry"
SCALES = "recipe.data.scales={image: [72.94, 90.02]}"
"""Mean and deviation of the pixels of Fashion-MNIST as its users know them: public constants."""


@dataclass(frozen=True)
class Rung:
    """A line of the table.

    Attributes:
        name: What it adds or tries.
        settings: Of the recipe.
        learner: The learner.
        aggregation: How votes become one.
    """

    name: str
    settings: tuple[str, ...] = ()
    learner: str = "mlp"
    aggregation: str = "mean"


@dataclass(frozen=True)
class Course:
    """The lines of one data set."""

    data: str
    shape: tuple[int, int]
    drop: tuple[str, ...]
    rungs: tuple[Rung, ...]


BEST = (SCALES, LAST, SMOOTH)
COURSES = (
    Course(
        "fashion_mnist",
        (10, 4),
        (),
        (
            Rung("defaults"),
            Rung("+ declared scales of pixels", (SCALES,)),
            Rung("+ rate falls in the last stage", (SCALES, LAST)),
            Rung("+ label smoothing 0.1", BEST),
            Rung(
                "... rate falls over all stages instead",
                (SCALES, SMOOTH, "recipe.training.schedule=linear"),
            ),
            Rung("... 0.2 instead", (SCALES, LAST, "recipe.training.label_smoothing=0.2")),
            Rung("... and log-mean", BEST, aggregation="log_mean"),
            Rung("... and carried optimizer state", (*BEST, CARRY)),
            Rung(
                "... and a last stage of twice the epochs",
                (*BEST, "recipe.training.last_stage_epochs=2"),
            ),
            Rung(
                "... and Adam at 0.002",
                (*BEST, "recipe.training.optimizer=adam", "recipe.training.lr=0.002"),
            ),
            Rung("cnn, with the same settings", BEST, learner="cnn"),
        ),
    ),
    Course(
        "adult",
        (10, 4),
        ("income",),
        (
            Rung("defaults"),
            Rung("+ rate falls in the last stage", (LAST,)),
            Rung("+ label smoothing 0.1", (LAST, SMOOTH)),
            Rung("... and log-mean", (LAST, SMOOTH), aggregation="log_mean"),
        ),
    ),
)


def accuracy(course: Course, rung: Rung, shards: int, slices: int) -> float:
    """Mean accuracy on the held-out file over seeds."""
    source = common.data(course.data)
    found = []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory(prefix="sisa-bench-") as scratch:
            recipe = (
                *rung.settings,
                f"recipe.training.seed={seed}",
                f"recipe.aggregation={rung.aggregation}",
            )
            with common.workspace(
                Path(scratch) / "workspace",
                source,
                "runtime.executor.workers=2",
                "runtime.checkpoints.max_share=0.01",
                recipe=recipe,
                drop=course.drop,
                shards=shards,
                slices=slices,
                epochs=10,
                learner=rung.learner,
            ) as ws:
                ws.train()
                found.append(scored(ws, source))
    return statistics.mean(found)


def scored(ws: Workspace, source: Path) -> float:
    """Accuracy on the held-out file of a training file."""
    held_out = source.with_name(source.name.replace("_train", "_test"))
    return ws.evaluate(held_out).accuracy or 0.0


def rows(course: Course) -> list[Sequence[str]]:
    """Each line: the ensemble, the unsharded model of the same settings, and the difference."""
    lines = []
    first = 0.0
    for rung in course.rungs:
        ensemble, whole = accuracy(course, rung, *course.shape), accuracy(course, rung, 1, 1)
        first = first or whole
        lines.append(
            [
                rung.name,
                f"{ensemble:.4f}",
                f"{whole:.4f}",
                f"{100 * (ensemble - whole):+.2f}",
                f"{100 * (ensemble - first):+.2f}",
            ]
        )
        print(course.data, lines[-1], flush=True)
    return lines


def main() -> None:
    """Run every line and write a section for each data set."""
    for course in COURSES:
        started = time.monotonic()
        shards, slices = course.shape
        lines = common.text(
            "What brings the ensemble closest to the unsharded model at equal total compute, ten",
            "epochs. A line that begins with + adds to those above; one with ... tries something",
            "beside the line with label smoothing. The unsharded model, S=1, R=1, is trained with",
            "the same settings; the last column compares with its defaults. Means over seeds",
            f"{', '.join(map(str, SEEDS))}.",
        )
        head = [
            f"S={shards}, R={slices}",
            "ensemble",
            "unsharded",
            "points",
            "points to unsharded defaults",
        ]
        lines += common.table(head, rows(course))
        seconds = time.monotonic() - started
        title = f"Step by step: {course.data}"
        common.publish(title, "ladder.py", lines, seconds, common.ACCURACY)


if __name__ == "__main__":
    main()
