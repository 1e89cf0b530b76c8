"""What sharding and slicing cost in accuracy: trains a grid of ensembles, writes docs/accuracy.md.

Every cell trains the same learner for the same number of epochs in a workspace of its own and is
scored on the held-out file. One shard with one slice is the unsharded model.

    SISA_TEST_DATA=/where/data/lies .venv/bin/python tests/benchmarks/accuracy.py --data adult
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sisa import Workspace

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "accuracy.md"
SECRET = "5a" * 32
"""Placement and batch order depend on the secret; a public one makes the numbers repeatable."""

SETS: dict[str, tuple[str, ...]] = {"fashion_mnist": (), "adult": ("income",)}
"""Data sets, each with the columns that are no features; `income` is adult's label in words."""

SHARDS = (1, 5, 10, 20)
SLICES = (1, 4, 10)


@dataclass(frozen=True)
class Cell:
    """One trained ensemble."""

    shards: int
    slices: int
    accuracy: float
    log_loss: float
    samples: int
    seconds: float


@dataclass(frozen=True)
class Grid:
    """All ensembles of one data set."""

    name: str
    records: int
    held_out: int
    cells: tuple[Cell, ...]


def folder() -> Path:
    """Where the data sets lie."""
    named = os.environ.get("SISA_TEST_DATA")
    if not named:
        sys.exit("SISA_TEST_DATA is not set: name the folder that holds data/adult_train.parquet.")
    found = Path(named) / "data"
    if not found.is_dir():
        sys.exit(f"{found} does not exist: set SISA_TEST_DATA to the folder that holds data/.")
    return found


def run(name: str, options: argparse.Namespace, data: Path) -> Grid:
    """Train and score every cell of one data set."""
    cells, records, held_out = [], 0, 0
    for shards in options.shards:
        for slices in options.slices:
            cell, records, held_out = _cell(name, shards, slices, options, data)
            print(
                f"{name} shards {shards} slices {slices}: accuracy {cell.accuracy:.4f}, "
                f"{cell.seconds:.0f} s",
                flush=True,
            )
            cells.append(cell)
    return Grid(name, records, held_out, tuple(cells))


def _cell(
    name: str, shards: int, slices: int, options: argparse.Namespace, data: Path
) -> tuple[Cell, int, int]:
    with tempfile.TemporaryDirectory(prefix="sisa-accuracy-") as scratch:
        root = Path(scratch) / "workspace"
        Workspace.init(
            root,
            data / f"{name}_train.parquet",
            record_id="record_id",
            target="label",
            drop=SETS[name],
            shards=shards,
            slices=slices,
            epochs=options.epochs,
        )
        settings = (
            "runtime.executor.kind=process",
            f"runtime.executor.workers={options.workers}",
            "runtime.tracking.uri=null",
        )
        with Workspace.open(root, settings) as workspace:
            records = workspace.ingest().total_records
            trained = workspace.train()
            scored = workspace.evaluate(data / f"{name}_test.parquet")
    cell = Cell(
        shards,
        slices,
        scored.accuracy or 0.0,
        scored.log_loss or 0.0,
        trained.samples_trained,
        trained.seconds,
    )
    return cell, records, scored.records


def page(grids: list[Grid], options: argparse.Namespace, seconds: float) -> str:
    """The text of docs/accuracy.md."""
    return "\n".join([*_head(options, seconds), *(line for g in grids for line in _table(g))])


def _head(options: argparse.Namespace, seconds: float) -> Iterator[str]:
    script = shlex.join([".venv/bin/python", "tests/benchmarks/accuracy.py", *options.given])
    command = script if options.given else "make bench-accuracy"
    yield from (
        "# Accuracy",
        "",
        "Sharding and slicing make an erasure cheap and cost accuracy. These tables say how much,",
        "for two public data sets, [Fashion-MNIST](https://github.com/zalandoresearch/fashion-mnist)",
        "and [Adult](https://archive.ics.uci.edu/dataset/2/adult), in their original splits.",
        "They are written by the command below; do not edit them.",
        "",
        f"- Command: `{command}`, with `SISA_TEST_DATA` set to a folder that holds",
        "  `data/{fashion_mnist,adult}_{train,test}.parquet`.",
        f"- Learner: `mlp` with its defaults, {options.epochs:g} epochs; every other setting is",
        "  the default of [the recipe](recipe.md): sgd, lr 0.05, momentum 0.9, batch size 64,",
        "  seed 0, 1 thread, aggregation mean. `adult` without the column `income`, which is the",
        "  label in words.",
        "- Epochs per stage are epochs * 2 / (slices + 1), so that every cell visits about the",
        "  same number of samples.",
        "- Accuracy is that of the whole ensemble on the held-out file. Points are the difference",
        "  to one shard with one slice, the unsharded model. One run a cell, no repeats.",
        "- Seconds are wall-clock seconds of `train` alone.",
        f"- Machine: {_machine()}; {options.workers} worker at a time; Python "
        f"{platform.python_version()}, torch {version('torch')}.",
        f"- Run on {datetime.now(UTC):%Y-%m-%d}; {seconds:.0f} seconds in all; load average over",
        f"  the last 15 minutes {os.getloadavg()[2]:.1f}. Other work on the machine changes the",
        "  seconds and nothing else.",
        "",
    )


def _table(grid: Grid) -> Iterator[str]:
    whole = next((c for c in grid.cells if c.shards == c.slices == 1), None)
    error = 100 * max((c.accuracy * (1 - c.accuracy) / grid.held_out) ** 0.5 for c in grid.cells)
    yield from (
        f"## {grid.name}",
        "",
        f"{grid.records:,} records, {grid.held_out:,} held out. The binomial standard error of an",
        f"accuracy here is at most {error:.2f} points.",
        "",
        "| shards | slices | records a slice | accuracy | points | log loss | samples | seconds |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    )
    for c in grid.cells:
        share = grid.records / (c.shards * c.slices)
        yield (
            f"| {c.shards} | {c.slices} | {share:,.0f} | {c.accuracy:.4f} | {_points(c, whole)} | "
            f"{c.log_loss:.4f} | {c.samples:,} | {c.seconds:.1f} |"
        )
    yield ""


def _points(cell: Cell, whole: Cell | None) -> str:
    if whole is None or cell is whole:
        return ""
    return f"{100 * (cell.accuracy - whole.accuracy):+.2f}"


def _machine() -> str:
    model = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = os.cpu_count() or 1
    return f"{named[0] if named else model}, {cores} cores"


def _options(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--shards", nargs="+", type=int, default=list(SHARDS))
    parser.add_argument("--slices", nargs="+", type=int, default=list(SLICES))
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--workers", type=int, default=1, help="shards trained at a time")
    parser.add_argument("--out", type=Path, help="where to write; a part of the grid is printed")
    options: Any = parser.parse_args(given)
    options.given = given
    whole = (
        options.data == list(SETS)
        and options.shards == list(SHARDS)
        and options.slices == list(SLICES)
    )
    options.out = options.out or (PAGE if whole else None)
    return options


def main() -> None:
    """Run what was asked for."""
    options = _options(sys.argv[1:])
    os.environ["SISA_SECRET_KEY"] = SECRET
    data, started = folder(), time.monotonic()
    grids = [run(name, options, data) for name in options.data]
    text = page(grids, options, time.monotonic() - started)
    if options.out is None:
        print(text)
        return
    options.out.write_text(text, "utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
