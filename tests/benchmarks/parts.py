"""Where the time of training and of forgetting goes, part by part.

Parts are timed by wrapping the functions that do them, in one process, with everything that runs
inside a part but belongs to another counted there.
"""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import common
import pyarrow.parquet as pq
import sqlalchemy as sa

from sisa import Workspace
from sisa.executor import attempt, raise_error
from sisa.shard import ShardJob

PARTS: dict[str, tuple[str, ...]] = {
    "reading": ("data_index.view:PartitionView.read", "sisa.learners.records:Encoding.encode"),
    "ordering": ("sisa.determinism:StagePlan._epoch", "sisa.learners.records:Records.take"),
    "steps": ("sisa.learners.torch_module:TorchLearner._train",),
    "modules": (
        "sisa.learners.torch_module:TorchLearner._load",
        "sisa.learners.torch_optim:make",
    ),
    "checkpoint": (
        "sisa.checkpoint:dump",
        "sisa.checkpoint:load",
        "data_index.storage:Store._place",
        "sisa.stage_log:write_segment",
    ),
    "fsync": ("data_index.storage:Store.flush",),
    "hashing": ("sisa.checkpoint:tensors_digest", "data_index.storage:sha256"),
    "chain and log": (
        "sisa.build:walk",
        "sisa.generation:Generation.save",
        "sisa.generation:Generation.load",
        "sisa.purge:mark",
    ),
    "data set": (
        "data_index.lineage:find",
        "data_index.rewrite:without",
        "data_index.dataset:DataSet.load",
        "data_index.view:through",
    ),
}


@dataclass
class Clock:
    """Seconds by part; a part that runs inside another stops the other's clock."""

    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    stack: list[str] = field(default_factory=list)
    since: float = 0.0

    def push(self, name: str) -> None:
        """A part begins."""
        self._switch()
        self.stack.append(name)

    def pop(self) -> None:
        """It ends, and the one that it ran in goes on."""
        self._switch()
        self.stack.pop()

    def _switch(self) -> None:
        now = time.perf_counter()
        if self.stack:
            self.spent[self.stack[-1]] += now - self.since
        self.since = now


class Inline:
    """Trains in this process, so that the clock sees what workers do."""

    def run(self, jobs: Sequence[ShardJob], tick: Callable[[], None]) -> Iterator[int]:
        """See `sisa.executor.Executor.run`."""
        for job in jobs:
            error = attempt(job)
            if error:
                raise_error(error)
            yield job.shard

    def close(self) -> None:
        """Nothing is kept."""


@contextmanager
def timed(clock: Clock) -> Iterator[None]:
    """Wrap every function of `PARTS`, wherever it was imported to, and all that talks SQL."""
    undo: list[tuple[Any, str, Any]] = []
    for part, names in PARTS.items():
        for name in names:
            module, _, path = name.partition(":")
            owner: Any = importlib.import_module(module)
            *outer, last = path.split(".")
            for attribute in outer:
                owner = getattr(owner, attribute)
            found = getattr(owner, last)
            holders = (
                [owner]
                if outer
                else [m for m in list(sys.modules.values()) if getattr(m, last, None) is found]
            )
            for holder in holders:
                undo.append((holder, last, found))
                setattr(holder, last, _wrapped(found, part, clock))
    listeners = {
        "before_cursor_execute": lambda *_: clock.push("ledger"),
        "after_cursor_execute": lambda *_: clock.pop(),
    }
    for event, listener in listeners.items():
        sa.event.listen(sa.Engine, event, listener)
    commit = sa.engine.default.DefaultDialect.do_commit
    sa.engine.default.DefaultDialect.do_commit = _wrapped(commit, "ledger", clock)
    try:
        yield
    finally:
        sa.engine.default.DefaultDialect.do_commit = commit
        for event, listener in listeners.items():
            sa.event.remove(sa.Engine, event, listener)
        for holder, name, found in undo:
            setattr(holder, name, found)


def _wrapped(function: Callable[..., Any], part: str, clock: Clock) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        clock.push(part)
        try:
            return function(*args, **kwargs)
        finally:
            clock.pop()

    return wrapper


def inner(ws: Workspace, records: Sequence[int]) -> list[tuple[str, Clock]]:
    """Parts of `train` and of `forget` in a running process."""
    ws.context = replace(ws.context, make_executor=Inline)
    found = []
    for name, call in (
        ("train", ws.train),
        (f"forget {len(records)}", lambda: ws.forget(records=records)),
    ):
        clock = Clock()
        with timed(clock):
            clock.push("the rest")
            call()
            clock.pop()
        found.append((name, clock))
    return found


def seconds(command: Sequence[str]) -> float:
    """Median wall-clock seconds of a command over five runs."""
    taken = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        taken.append(time.perf_counter() - started)
    return common.median(taken)


def mirrored(root: Path, record: int) -> list[tuple[str, float]]:
    """Seconds of an erasure that is mirrored, and of the delivery that goes on beside it."""
    settings = (*common.QUIET[:2], "runtime.tracking.uri=sqlite:///mlflow.db")
    ws = Workspace.open(root, settings, exact=True)
    started = time.perf_counter()
    ws.forget(records=[record])
    done = time.perf_counter()
    ws.close()
    closed = time.perf_counter()
    return [
        ("`forget` of one record, mirrored", done - started),
        ("... until MLflow has both its generations, after it returned", closed - done),
    ]


def starts() -> list[tuple[str, float]]:
    """What is paid once a process."""
    python = sys.executable
    ray = (
        "import time; from pathlib import Path; from sisa.config import ExecutorSection; "
        "from cluster.connect import connect; import tempfile\n"
        "with connect(ExecutorSection(workers=1), Path(tempfile.mkdtemp())): pass"
    )
    return [
        ("`sisa --help`", seconds([str(Path(python).with_name("sisa")), "--help"])),
        ("a worker process, torch imported", seconds([python, "-c", "import sisa.worker, torch"])),
        ("Ray started on this machine and ended again", seconds([python, "-c", ray])),
        ("MLflow imported", seconds([python, "-c", "import mlflow"])),
    ]


def main() -> None:
    """Run it and write the section."""
    started, source = time.monotonic(), common.data("fashion_mnist")
    ids = pq.read_table(source, columns=["record_id"])["record_id"].to_pylist()
    with tempfile.TemporaryDirectory(prefix="sisa-bench-") as scratch:
        shape = {"shards": 20, "slices": 50, "epochs": 10}
        with common.workspace(Path(scratch) / "workspace", source, **shape) as ws:
            columns = inner(ws, ids[1000:1008])
        delivery = mirrored(Path(scratch) / "workspace", ids[2000])
    names = [*PARTS, "ledger", "the rest"]
    rows = [[name, *(f"{clock.spent[name]:.2f}" for _, clock in columns)] for name in names]
    rows.append(["all", *(f"{sum(clock.spent.values()):.2f}" for _, clock in columns)])
    lines = [
        *common.text(
            "Seconds by part of training and of forgetting eight records, Fashion-MNIST, the MLP,",
            "S=20, R=50, 10 epochs, all checkpoints kept, in one process without MLflow. What runs",
            "inside one part and belongs to another is counted in the other.",
        ),
        *common.table(["part", *(name for name, _ in columns)], rows),
        "",
        "Paid once a process, and by MLflow's mirror, for which nothing waits:",
        "",
        *common.table(["what", "s"], [[n, f"{s:.1f}"] for n, s in (*starts(), *delivery)]),
    ]
    common.publish("Parts", "parts.py", lines, time.monotonic() - started)


if __name__ == "__main__":
    main()
