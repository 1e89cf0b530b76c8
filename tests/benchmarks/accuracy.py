"""What sharding and slicing cost in accuracy: trains a grid of ensembles with the default recipe.

Every cell trains the same learner for the same number of epochs in a workspace of its own and is
scored on the held-out file. One shard with one slice is the unsharded model.

    SISA_TEST_DATA=/where/data/lies .venv/bin/python tests/benchmarks/accuracy.py
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import common

SETS: dict[str, tuple[str, ...]] = {"fashion_mnist": (), "adult": ("income",)}
"""Data sets, each with the columns that are no features; `income` is adult's label in words."""

SHARDS, SLICES, EPOCHS = (1, 5, 10, 20), (1, 4, 10), 10


@dataclass(frozen=True)
class Cell:
    """One trained ensemble."""

    shards: int
    slices: int
    accuracy: float
    log_loss: float
    samples: int
    seconds: float
    records: int
    held_out: int


def cell(name: str, shards: int, slices: int) -> Cell:
    """Train and score one ensemble."""
    source = common.data(name)
    with tempfile.TemporaryDirectory(prefix="sisa-bench-") as scratch:
        shape = {"shards": shards, "slices": slices, "epochs": EPOCHS, "drop": SETS[name]}
        with common.workspace(Path(scratch) / "workspace", source, **shape) as ws:
            trained = ws.train()
            scored = ws.evaluate(source.with_name(f"{name}_test.parquet"))
            return Cell(
                shards,
                slices,
                scored.accuracy or 0.0,
                scored.log_loss or 0.0,
                trained.samples_trained,
                trained.seconds,
                ws.status().records,
                scored.records,
            )


def section(name: str) -> list[str]:
    """The whole grid of one data set."""
    cells = []
    for shards in SHARDS:
        for slices in SLICES:
            cells.append(cell(name, shards, slices))
            print(name, cells[-1], flush=True)
    whole = cells[0]
    error = 100 * max((c.accuracy * (1 - c.accuracy) / c.held_out) ** 0.5 for c in cells)
    return [
        *common.text(
            f"{whole.records:,} records, {whole.held_out:,} held out; the `mlp` with the default",
            f"recipe, {EPOCHS} epochs. Epochs per stage are epochs * 2 / (slices + 1), so that",
            "every line visits about the same number of samples. Points are the difference to one",
            "shard with one slice, the unsharded model. One run a line; the binomial standard",
            f"error of an accuracy is at most {error:.2f} points. Seconds are those of `train`",
            "alone.",
        ),
        *common.table(
            [
                "shards",
                "slices",
                "records a slice",
                "accuracy",
                "points",
                "log loss",
                "samples",
                "s",
            ],
            [
                [
                    str(c.shards),
                    str(c.slices),
                    f"{c.records / c.shards / c.slices:,.0f}",
                    f"{c.accuracy:.4f}",
                    "" if c is whole else f"{100 * (c.accuracy - whole.accuracy):+.2f}",
                    f"{c.log_loss:.4f}",
                    f"{c.samples:,}",
                    f"{c.seconds:.1f}",
                ]
                for c in cells
            ],
        ),
    ]


def main() -> None:
    """Run both grids and write their sections."""
    for name in SETS:
        started = time.monotonic()
        lines = section(name)
        seconds = time.monotonic() - started
        common.publish(f"Grid: {name}", "accuracy.py", lines, seconds, common.ACCURACY)


if __name__ == "__main__":
    main()
