"""Peak memory of `sisa ingest` and `sisa train` with n and with ten times n rows, and the ratio.

Rows are images of 784 bytes with a label. There are ten times as many shards for the larger one, so
that a shard, which a worker holds in memory as a whole, has the same size in both. A peak is the
largest resident set of the command or of any of its processes, which the kernel counts.

    .venv/bin/python tests/benchmarks/memory.py --rows 60000
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import common

GROUP = 10_000
"""Rows of a row group of the source."""

WRITE = """
import sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq

path, (rows, group, seed) = sys.argv[1], map(int, sys.argv[2:])
schema = pa.schema(
    [("record_id", pa.int64()), ("image", pa.list_(pa.uint8(), 784)), ("label", pa.int64())]
)
with pq.ParquetWriter(path, schema, compression="none") as out:
    for start in range(0, rows, group):
        ids = np.arange(start, min(start + group, rows))
        label = ids % 10
        rng = np.random.default_rng((seed, start))
        pixels = rng.integers(0, 256, (len(ids), 784), dtype=np.uint8)
        pixels[:, :78] //= 1 + label[:, None].astype(np.uint8)
        image = pa.FixedSizeListArray.from_arrays(pa.array(pixels.ravel()), 784)
        out.write_table(pa.table([ids, image, label], schema=schema), group)
"""


@dataclass(frozen=True)
class Peak:
    """What one command needed: resident memory in MiB, wall time in seconds."""

    mib: float
    seconds: float


def write(path: Path, rows: int, seed: int = 0) -> None:
    """A Parquet source; written by a process of its own, so that this one stays small."""
    numbers = map(str, (rows, GROUP, seed))
    subprocess.run([sys.executable, "-c", WRITE, str(path), *numbers], check=True)


def measured(command: list[str], environment: Mapping[str, str]) -> Peak:
    """Run a command and read the peak of its largest process from the kernel.

    The kernel counts what a process had before it became another program, so that the peak of this
    one, some tens of MiB, is the least that can be measured.
    """
    started = time.monotonic()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = subprocess.Popen(command, env=dict(environment), **quiet)
    _, status, usage = os.wait4(running.pid, 0)
    running.returncode = os.waitstatus_to_exitcode(status)
    if running.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {running.returncode}")
    return Peak(usage.ru_maxrss / 1024, time.monotonic() - started)


def peaks(folder: Path, rows: int, shards: int) -> dict[str, Peak]:
    """Take rows in, train on them, and correct them all, in a workspace of their own."""
    source = folder / f"{rows}.parquet"
    write(source, rows)
    sisa = [str(Path(sys.executable).parent / "sisa"), "-C", str(folder / f"ws-{rows}")]
    environment = {
        **os.environ,
        "SISA__RUNTIME__EXECUTOR__KIND": "process",
        "SISA__RUNTIME__EXECUTOR__WORKERS": "1",
        "SISA__RUNTIME__TRACKING__URI": "null",
    }
    made = ["init", "--data", str(source), "--record-id", "record_id", "--target", "label"]
    chosen = ["--shards", str(shards), "--slices", "2", "--epochs", "0.5"]
    measured([*sisa, *made, *chosen], environment)
    found = {
        "ingest": measured([*sisa, "ingest"], environment),
        "train": measured([*sisa, "train"], environment),
    }
    write(source, rows, seed=1)
    found["ingest --correct"] = measured([*sisa, "ingest", "--correct"], environment)
    source.unlink()
    return found


def main() -> None:
    """Measure n and ten times n rows, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--shards", type=int, default=2, help="of the smaller workspace")
    options = parser.parse_args()
    started, rows = time.monotonic(), options.rows
    with tempfile.TemporaryDirectory() as scratch:
        small = peaks(Path(scratch), rows, options.shards)
        large = peaks(Path(scratch), 10 * rows, 10 * options.shards)
    lines = [
        *common.text(
            "Peak resident memory of a command or of the largest of its processes. Rows are images",
            "of 784 bytes; the larger set has ten times as many shards, because a worker holds one",
            "shard as a whole. `--correct` replaces every row.",
        ),
        *common.table(
            ["command", f"{rows:,} rows", f"{10 * rows:,} rows", "ratio"],
            [
                [
                    f"`sisa {name}`",
                    f"{one.mib:.0f} MiB",
                    f"{large[name].mib:.0f} MiB",
                    f"{large[name].mib / one.mib:.3f}",
                ]
                for name, one in small.items()
            ],
        ),
    ]
    common.publish("Memory", "memory.py", lines, time.monotonic() - started)


if __name__ == "__main__":
    main()
