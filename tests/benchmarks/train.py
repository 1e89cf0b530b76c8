"""`train` against a bare torch loop that takes the same steps in as many processes.

    train.py [tiny] [long] [workers]

`tiny`: S=20, R=50, about ten steps a stage, a quarter of the checkpoints kept and all of them.
`long`: a job of five minutes and more, S=8, R=4, all checkpoints kept.
`workers`: two workers against two bare processes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import common
import numpy as np

from data_index.view import through
from sisa import Workspace
from sisa.build import walk
from sisa.determinism import StagePlan
from sisa.retention import ALL
from sisa.shard import ShardJob

BARE = Path(__file__).with_name("bare.py")
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
IMAGES = "fashion_mnist"
Plan = list[list[tuple[int, list[int]]]]


def plan(ws: Workspace) -> Plan:
    """What every stage takes: its records, and the records of each epoch."""
    c = ws.context
    views = through(c.store, c.ring, c.columns, c.dataset(), c.ledger.pending().gone)
    recipe, shards = c.config.recipe, []
    for one in walk(c.store, views, c.training):
        words, stages = {v.slice: v.words(c.store) for v in one.views}, []
        for link in one.links:
            seen = np.concatenate([w for s, w in words.items() if s <= link.slice])
            made = StagePlan(recipe.training, recipe.partition.slices, one.shard, link.slice, seen)
            stages.append((len(seen), [len(rows) for rows in made.epochs]))
        shards.append(stages)
    return shards


def bare(source: Path, shards: Plan, processes: int, folder: Path) -> tuple[float, float, int]:
    """Whole seconds, seconds from the first read to the last step, and steps, of bare processes."""
    files = []
    for number in range(processes):
        file = folder / f"plan-{number}.json"
        file.write_text(json.dumps(shards[number::processes]), "utf-8")
        files.append(file)
    started = time.perf_counter()
    running = [
        subprocess.Popen(
            [sys.executable, str(BARE), str(source), str(file), "1"],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | THREADS,
        )
        for file in files
    ]
    answers = [json.loads(p.communicate()[0]) for p in running]
    whole = time.perf_counter() - started
    return whole, max(a["seconds"] for a in answers), sum(a["steps"] for a in answers)


def command(root: Path, settings: Sequence[str]) -> tuple[float, int]:
    """Seconds of `sisa train` over a copy of an ingested workspace, and its steps."""
    folder = root.with_name("command")
    shutil.copytree(root, folder)
    call = common.command(folder, "train", settings=settings)
    started = time.perf_counter()
    subprocess.run(call, check=True, capture_output=True)
    whole = time.perf_counter() - started
    with Workspace.open(folder, common.QUIET, exact=True) as ws:
        steps = sum(s.steps for c in ws.context.served()[1].constituents for s in c.stages)
    shutil.rmtree(folder)
    return whole, steps


def inside(root: Path, settings: Sequence[str]) -> float:
    """Seconds from the first job handed out to the last one back.

    The workers are there already, as bare torch's loop runs in a process that has imported torch.
    """
    folder = root.with_name("inside")
    shutil.copytree(root, folder)
    with Workspace.open(folder, (*common.QUIET, *settings), exact=True) as ws:
        warm(ws)
        seconds = ws.train().seconds
    shutil.rmtree(folder)
    return seconds


def warm(ws: Workspace) -> None:
    """Start the workers and let them import what training needs, by a job with nothing to do."""
    c = ws.context
    views = through(c.store, c.ring, c.columns, c.dataset(), c.ledger.pending().gone)
    first = walk(c.store, views, c.training)[0]
    jobs = [
        ShardJob(
            shard=first.shard,
            attempt=f"warm-{number}",
            recipe=c.config.recipe,
            training=c.training,
            views=first.views[:1],
            links=first.links[:1],
            length=1,
            retention=ALL,
            parent=None,
            store=str(c.store.root),
            output=str(c.store.scratch()),
        )
        for number in range(c.config.runtime.executor.workers or 1)
    ]
    for _ in c.executor.run(jobs, lambda: None):
        pass


def compare(
    title: str, shape: dict[str, object], settings: Sequence[str], processes: int, times: int
) -> list[str]:
    """Alternate both, and put medians side by side."""
    with tempfile.TemporaryDirectory(prefix="sisa-bench-") as scratch:
        root, settings, shards = _made(scratch, shape, settings, processes)
        source, found = common.data(IMAGES), []
        for _ in range(times):
            whole, inner, steps = bare(source, shards, processes, Path(scratch))
            ours, taken = command(root, settings)
            assert taken == steps, "both take the same steps"
            found.append((inner, inside(root, settings), whole, ours))
            print(title, found[-1], flush=True)
    cells = [title, str(processes), f"{steps:,}"]
    for mine, its in ((1, 0), (3, 2)):
        b, o = common.median(f[its] for f in found), common.median(f[mine] for f in found)
        cells += [
            f"{b:.1f}",
            f"{o:.1f}",
            f"**{common.median(f[mine] / f[its] for f in found):.2f}**",
        ]
    return cells


def beside(title: str, shape: dict[str, object]) -> list[str]:
    """Both at the same time, a core each, so that they meet the same machine; whole commands."""
    with tempfile.TemporaryDirectory(prefix="sisa-bench-") as scratch:
        root, settings, shards = _made(scratch, shape, (), 1)
        with ThreadPoolExecutor(2) as pool:
            theirs = pool.submit(bare, common.data(IMAGES), shards, 1, Path(scratch))
            ours = pool.submit(command, root, settings)
            (whole, _, steps), (mine, taken) = theirs.result(), ours.result()
    assert taken == steps, "both take the same steps"
    ratio = f"**{mine / whole:.2f}**"
    return [title, "1", f"{steps:,}", "", "", "", f"{whole:.1f}", f"{mine:.1f}", ratio]


def _made(
    scratch: str, shape: dict[str, object], settings: Sequence[str], processes: int
) -> tuple[Path, tuple[str, ...], Plan]:
    """An ingested workspace, the settings to train it with, and the steps that this takes."""
    root = Path(scratch) / "workspace"
    with common.workspace(root, common.data(IMAGES), **shape) as ws:
        shards = plan(ws)
    return root, (*settings, f"runtime.executor.workers={processes}"), shards


def main() -> None:
    """Run what is asked for, by default everything."""
    started, chosen = time.monotonic(), sys.argv[1:] or ["tiny", "workers", "long"]
    tiny = {"shards": 20, "slices": 50, "epochs": 10}
    rows = []
    if "tiny" in chosen:
        share = ("runtime.checkpoints.max_share=0.25",)
        rows.append(compare("S=20, R=50, a quarter kept", tiny, share, 1, 3))
        rows.append(compare("S=20, R=50, all kept", tiny, (), 1, 3))
    if "workers" in chosen:
        rows.append(compare("S=8, R=4", {"shards": 8, "slices": 4, "epochs": 40}, (), 2, 3))
    if "long" in chosen:
        rows.append(beside("S=8, R=4, minutes", {"shards": 8, "slices": 4, "epochs": 900}))
    head = ["job", "processes", "steps", "bare s", "train s", "ratio", "bare command s",
            "`sisa train` s", "ratio"]  # fmt: skip
    lines = [
        *common.text(
            "`sisa train` of the MLP on Fashion-MNIST against a bare torch loop that takes the",
            "same number of steps of the same sizes, keeps no checkpoint and knows no digest.",
            "The first three figures run from the first read to the last step (ours: to the last",
            "durable checkpoint) in processes that have imported torch; the last three are whole",
            "commands, start, imports and publishing included. Medians, the two alternating; of",
            "the job of minutes whole commands only, once, both at the same time, a core each.",
        ),
        *common.table(head, rows),
    ]
    common.publish("Training", "train.py", lines, time.monotonic() - started)


if __name__ == "__main__":
    main()
