"""What forgetting K records costs: samples against plan and formula, seconds against retraining.

    forget.py [--draws 60 30 30] [--plans 400]

S=20, R=50, Fashion-MNIST, the MLP, one worker on both sides, all checkpoints kept. Draws follow one
another in one workspace, so that each also starts from what the one before left. The mean is
compared with the formula over more draws than are carried out: these are planned only, and a plan
is shown to be exact by those that are carried out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import common
import numpy as np
import pyarrow.parquet as pq

from sisa import Workspace, publish
from sisa.build import Built

SHARDS, SLICES, EPOCHS = 20, 50, 10
RECORDS = (1, 8, 18)


@dataclass(frozen=True)
class Call:
    """One forget, or one training of everything.

    Attributes:
        samples: Visited.
        planned: What the plan said.
        full: What training everything visits.
        wall: Seconds of the call.
        training: Seconds of its stages.
        building: Seconds of its builds: besides the stages, workers read and encode the records
            and make checkpoints durable, as any training does.
        cpu: Seconds of processor time, workers included.
    """

    samples: int
    planned: int
    full: int
    wall: float
    training: float
    building: float
    cpu: float


def share(records: int) -> float:
    """Expected share of all samples that forgetting uniform records visits again.

    A shard trains again from the earliest slice that is hit. It visits stage j, which costs j, if
    one of the records is in its first j slices: sum j (1 - (1 - j/(S R))^K) / sum j. For K = 1 this
    is the (2/3 + 1/(3R)) / S of Bourtoule et al., Machine Unlearning (2021), section VII.
    """
    j = np.arange(1, SLICES + 1)
    hit = 1 - (1 - j / (SHARDS * SLICES)) ** records
    return float((j * hit).sum() / j.sum())


def cpu(ws: Workspace) -> float:
    """Processor seconds of this process and of the workers that live."""
    total = sum(os.times()[:4])
    for pid in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        for child in pid.read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def planned(ws: Workspace, ids: np.ndarray) -> float:
    """Share of all samples that forgetting some records would visit."""
    found = ws.plan(records=ids.tolist())
    return found.samples / found.samples_full


def draw(ws: Workspace, ids: list[int], seconds: list[float]) -> Call:
    """Forget some records in a running process."""
    planned = ws.plan(records=ids).samples
    seconds.clear()
    before, started = cpu(ws), time.perf_counter()
    with timed_builds() as building:
        done = ws.forget(records=ids)
    wall = time.perf_counter() - started
    assert done.status == "certified"
    used = cpu(ws) - before
    trained = sum(seconds)
    built = sum(building)
    return Call(done.samples_trained, planned, done.samples_full, wall, trained, built, used)


@contextmanager
def timed_builds() -> Iterator[list[float]]:
    """Collect the seconds of every build."""
    found: list[float] = []
    whole = publish.build

    def timed(*args: Any, **options: Any) -> Built:
        done = whole(*args, **options)
        found.append(done.seconds)
        return done

    publish.build = timed
    try:
        yield found
    finally:
        publish.build = whole


def fresh(root: Path, ids: list[int]) -> tuple[float, float]:
    """Seconds of `sisa forget` as a command, and of the stages it trained."""
    named = [word for number in ids for word in ("--record", str(number))]
    command = common.command(root, "forget", "--yes", *named)
    started = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    wall = time.perf_counter() - started
    lines = (line for line in done.stderr.splitlines() if line.startswith("shard "))
    return wall, sum(float(line.split(" samples in ")[1].split(" s,")[0]) for line in lines)


def retrain(root: Path, source: Path) -> Call:
    """Train everything, in a workspace of its own whose workers are there already."""
    seconds: list[float] = []
    shape = {"shards": SHARDS, "slices": SLICES, "epochs": EPOCHS}
    with common.workspace(root, source, **shape) as ws:
        heard(ws, seconds)
        before, started = cpu(ws), time.perf_counter()
        done = ws.train()
        wall = time.perf_counter() - started
        used = cpu(ws) - before
    samples = done.samples_trained
    return Call(samples, 0, samples, wall, sum(seconds), done.seconds, used)


def heard(ws: Workspace, seconds: list[float]) -> None:
    """Collect the seconds of every stage that is trained."""
    report = replace(ws.context.report, stage=lambda record, _: seconds.append(record.seconds))
    ws.context = replace(ws.context, report=report)


def main() -> None:
    """Run it and write the section."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, nargs=3, default=[60, 30, 30])
    parser.add_argument("--plans", type=int, default=400)
    options = parser.parse_args()
    draws = dict(zip(RECORDS, options.draws, strict=True))
    started, source = time.monotonic(), common.data("fashion_mnist")
    rng = np.random.default_rng(common.SEED)
    ids = pq.read_table(source, columns=["record_id"])["record_id"].to_numpy()
    left = rng.permutation(ids).tolist()
    with tempfile.TemporaryDirectory(prefix="sisa-bench-") as scratch:
        full = [retrain(Path(scratch) / f"full-{n}", source) for n in range(2)]
        root = Path(scratch) / "full-1"
        found: dict[int, list[Call]] = {}
        plans: dict[int, list[float]] = {}
        seconds: list[float] = []
        with Workspace.open(root, common.QUIET, exact=True) as ws:
            heard(ws, seconds)
            for records in draws:
                plans[records] = [
                    planned(ws, rng.choice(ids, records)) for _ in range(options.plans)
                ]
            draw(ws, [left.pop()], seconds)  # the workers start
            for records, count in draws.items():
                found[records] = [
                    draw(ws, [left.pop() for _ in range(records)], seconds) for _ in range(count)
                ]
                print(
                    records,
                    json.dumps(row(records, found[records], plans[records], full)),
                    flush=True,
                )
        cold = [fresh(root, [left.pop()]) for _ in range(5)]
    rows = [row(k, calls, plans[k], full) for k, calls in found.items()]
    wall, training = (common.median(c[at] for c in cold) for at in (0, 1))
    head = ["K", "draws", "samples = plan", "share of all samples", "formula", "difference",
            "samples", "theory", "CPU", "wall clock",
            "beyond stages s, median", "largest", "beyond build s, median", "largest"]  # fmt: skip
    lines = [
        *common.text(
            "Forgetting K uniform records of Fashion-MNIST, the MLP,",
            f"S={SHARDS}, R={SLICES}, {EPOCHS} epochs, one worker on both sides, all checkpoints",
            "kept, in a running process. `samples`, `CPU` and `wall clock` say how many times less",
            "than training everything; `theory` is the inverse of the formula. `beyond stages` is",
            "a call's wall clock without the seconds of its stages; `beyond build` also without",
            "what any training does besides, reading records and making checkpoints durable: it is",
            "look-up, acceptance, roll-back, publishing, rewriting, purge, search for residue and",
            "certificate. The share of all samples is a mean over",
            f"{options.plans} further draws that were planned only; its difference from the",
            "formula has its standard error.",
        ),
        *common.table(head, rows),
        "",
        *common.text(
            f"Training everything: {common.median(c.wall for c in full):.1f} s wall clock,",
            f"{common.median(c.cpu for c in full):.1f} s CPU, the start of a worker included. In a",
            f"fresh process, `sisa forget` of one record takes {wall:.1f} s,",
            f"{wall - training:.1f} s of it beyond its stages (median of 5).",
        ),
    ]
    common.publish("Forgetting", "forget.py", lines, time.monotonic() - started)


def row(records: int, calls: list[Call], shares: list[float], full: list[Call]) -> list[str]:
    """A line of the table."""
    mean, expected = statistics.mean(shares), share(records)
    error = statistics.stdev(shares) / len(shares) ** 0.5
    whole = {at: common.median(getattr(c, at) for c in full) for at in ("cpu", "wall")}
    times = {at: whole[at] / statistics.mean(getattr(c, at) for c in calls) for at in whole}
    stages = [c.wall - c.training for c in calls]
    builds = [c.wall - c.building for c in calls]
    return [
        str(records),
        str(len(calls)),
        f"{sum(c.samples == c.planned for c in calls)} of {len(calls)}",
        f"{mean:.4f}",
        f"{expected:.4f}",
        f"{mean / expected - 1:+.1%} ± {error / expected:.1%}",
        f"{1 / mean:.2f}x",
        f"{1 / expected:.2f}x",
        f"{times['cpu']:.2f}x",
        f"{times['wall']:.2f}x",
        f"{common.median(stages):.2f}",
        f"{max(stages):.2f}",
        f"{common.median(builds):.2f}",
        f"{max(builds):.2f}",
    ]


if __name__ == "__main__":
    main()
