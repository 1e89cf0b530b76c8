"""Train, forget and prove it, on the handwritten digits that come with scikit-learn.

Runs the `sisa` commands that a user would type, in a temporary folder that is removed afterwards.
It ends with exit code 0 only if every check held.

    .venv/bin/python examples/demo.py                       # shards are trained on a local Ray
    .venv/bin/python examples/demo.py --executor process    # in child processes, without Ray
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sklearn.datasets import load_digits

SECRET = "d1" * 32
"""Fixed, so that every run on one machine prints the same; `sisa init` draws a random one."""

PEOPLE = 120
FORGOTTEN = ("person-007", "person-042", "person-101")


def write_data(folder: Path) -> pa.Table:
    """Write train.parquet and test.parquet; the digits name no writers, so people are made up."""
    digits = load_digits()
    count = len(digits.target)
    flat = pa.array(digits.data.astype(np.float32).ravel())
    table = pa.table(
        {
            "image": [f"image-{i:04d}" for i in range(count)],
            "person": [f"person-{i % PEOPLE:03d}" for i in range(count)],
            "pixels": pa.FixedSizeListArray.from_arrays(flat, 64),
            "digit": digits.target,
        }
    )
    order = np.random.default_rng(0).permutation(count)
    train, test = table.take(order[: count * 4 // 5]), table.take(order[count * 4 // 5 :])
    pq.write_table(train, folder / "train.parquet")
    pq.write_table(test, folder / "test.parquet")
    return train


class Demo:
    """Runs commands in a folder and keeps count of the checks."""

    def __init__(self, folder: Path, executor: str) -> None:
        self.folder = folder
        self.failed: list[str] = []
        self.checks = 0
        outer = ("SISA_", "RAY_ADDRESS", "MLFLOW_TRACKING_URI")
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(outer)}
        self.environment["SISA_SECRET_KEY"] = SECRET
        self.environment["SISA__RUNTIME__EXECUTOR__KIND"] = executor
        self.environment["SISA__RUNTIME__TRACKING__URI"] = "null"

    def sisa(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """Show a command, run it and return its JSON document."""
        print(f"$ sisa {' '.join(arguments)}", flush=True)
        done = subprocess.run(
            [Path(sys.executable).with_name("sisa"), *arguments, "--output", "json"],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != code:
            sys.exit(f"exit code {done.returncode}, not {code}:\n{done.stdout}{done.stderr}")
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def check(self, name: str, held: bool) -> None:
        """Say whether something holds, and remember it."""
        self.checks += 1
        if not held:
            self.failed.append(name)
        say(f"{'ok' if held else 'FAILED'}: {name}")


def say(text: str) -> None:
    """One line of results."""
    print(f"    {text}", flush=True)


def init(demo: Demo, workspace: str, data: str) -> None:
    """Make a workspace and take the data in."""
    columns = "--record-id image --subject-id person --target digit"
    sizes = "--shards 4 --slices 4 --epochs 20"
    demo.sisa("init", workspace, "--data", data, *columns.split(), *sizes.split())
    done = demo.sisa("-C", workspace, "ingest")
    say(f"{done['records']} records of {done['subjects']} people, {done['partitions']} partitions")


def train(demo: Demo, workspace: str) -> dict[str, Any]:
    """Train and publish."""
    done = demo.sisa("-C", workspace, "train")
    say(f"generation {done['generation']}, {done['samples_trained']} samples")
    say(f"digest {done['digest']}")
    return done


def forget(demo: Demo) -> dict[str, Any]:
    """Plan the erasure of three people, and carry it out."""
    named = [word for person in FORGOTTEN for word in ("--subject", person)]
    planned = demo.sisa("-C", "digits", "plan", *named)
    say(f"{planned['records']} records; {planned['samples']} of {planned['samples_full']} samples")
    done = demo.sisa("-C", "digits", "forget", *named, "--yes")
    say(f"{done['status']}: {done['records_erased']} records in shards {done['shards_affected']}")
    say(f"out of what is served after {done['rolled_back_seconds']:.3f} s")
    say(f"retrained with {done['samples_trained']} of {done['samples_full']} samples")
    say(f"digest {done['digest']}")
    demo.check("the erasure cost what was planned", done["samples_trained"] == planned["samples"])
    return done


def damage(demo: Demo) -> None:
    """A negative control: one flipped bit must be noticed."""
    store = demo.folder / "digits" / "store"
    victim = max(store.rglob("*.safetensors"))
    whole = victim.read_bytes()
    print("# one bit of one checkpoint is flipped")
    victim.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    found = demo.sisa("-C", "digits", "verify", code=4)
    demo.check("verify refuses it with exit code 4", found["exact"] is False)
    print("# the bit is flipped back")
    victim.write_bytes(whole)
    restored = demo.sisa("-C", "digits", "verify")
    demo.check("verify is exact again", restored["exact"] is True)


def tell(demo: Demo) -> None:
    """The whole story."""
    rows = write_data(demo.folder)
    init(demo, "digits", "train.parquet")
    train(demo, "digits")
    scored = demo.sisa("-C", "digits", "evaluate", "test.parquet")
    say(f"accuracy {scored['accuracy']:.3f} on {scored['records']} held-out images")

    after = forget(demo)
    found = demo.sisa("-C", "digits", "verify")
    demo.check("retrained in a clean process, every bit is equal", found["exact"] is True)

    print("# an oracle: a new workspace with the same secret that never holds the three people")
    kept = rows.filter(pc.invert(pc.is_in(rows["person"], pa.array(FORGOTTEN))))
    pq.write_table(kept, demo.folder / "without.parquet")
    init(demo, "oracle", "without.parquet")
    oracle = train(demo, "oracle")
    demo.check("its digest is that after the erasure", oracle["digest"] == after["digest"])

    damage(demo)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; 0 if every check held."""
    parser = argparse.ArgumentParser(description="Train, forget and prove it.")
    parser.add_argument("--executor", choices=["ray", "process"], default="ray")
    chosen = parser.parse_args(arguments)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sisa-demo-") as folder:
        demo = Demo(Path(folder), chosen.executor)
        print(f"# in {folder}, executor {chosen.executor}, no MLflow")
        if chosen.executor == "ray":
            print("# each command that trains starts a Ray of its own, which takes some seconds")
        tell(demo)
    seconds = time.monotonic() - started
    if demo.failed:
        print(f"{len(demo.failed)} of {demo.checks} checks failed, in {seconds:.0f} s")
        return 1
    print(f"all {demo.checks} checks held, in {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
