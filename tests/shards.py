"""A small store of digits and what trains it, for the tests of executors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_digits

from data_index import keys
from data_index.dataset import DataSet
from data_index.ingest import Grid, ingest
from data_index.lineage import Selection
from data_index.storage import Store
from data_index.view import through
from sisa import build, learners
from sisa.config import Recipe
from sisa.executor import Executor
from sisa.shard import ShardJob
from sisa.stage_log import StageRecord

SHARDS, SLICES = 3, 2
ID, NOTE = "person-zq-", "private-note-zq"
"""What no log may hold: the beginning of every id, and a feature of every row."""

Digests = dict[tuple[int, int], str]
"""Tensors digest by shard and slice."""

USER_MODULE = '''
"""A linear model that does as its parameters say; the marker says that it has been done."""
import os
import signal
import time
from pathlib import Path

from torch import nn

from sisa.errors import ConfigurationError

STEPS = 0


class Model(nn.Module):
    def __init__(self, inputs, outputs, act="none", at=0, marker=None):
        super().__init__()
        self.act, self.at, self.marker = act, at, marker and Path(marker)
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, batch):
        global STEPS
        if len(batch) > 2:
            STEPS += 1
            if self.act == "sleep":
                time.sleep(0.05)
            if self.act == "print":
                print("PRINTED-zq", batch[0].tolist(), flush=True)
                os.write(2, b"PRINTED-zq")
            if self.act == "die" and STEPS > self.at and not (self.marker and self.marker.exists()):
                if self.marker:
                    self.marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return self.linear(batch)


def refuse(inputs, outputs):
    raise ConfigurationError("This will not do.", "Do that.")


def break_down(inputs, outputs):
    raise SystemExit("never mind")


def tell(inputs, outputs):
    secret = os.environ.get("SISA_SECRET_KEY")
    raise ConfigurationError(f"The secret is {secret}, the version is one.")
'''


def recipe(
    factory: str = "logistic", params: dict[str, Any] | None = None, **training: Any
) -> Recipe:
    """A recipe over the digits."""
    return Recipe.model_validate(
        {
            "data": {
                "record_id": "id",
                "target": "digit",
                "classes": list(range(10)),
                "features": {"pixels": "uint8[64]", "note": "text"},
                "hash_buckets": 1,
            },
            "partition": {"shards": SHARDS, "slices": SLICES},
            "learner": {"factory": factory, "params": params or {}},
            "training": {"epochs": 2, **training},
        }
    )


@functools.cache
def ingested(folder: Path) -> tuple[Store, DataSet, keys.Keyring]:
    """A store with 900 digits below a folder."""
    digits = load_digits()
    count = 900
    pixels = pa.array(digits.data[:count].astype(np.uint8).ravel())
    table = pa.table(
        {
            "id": [f"{ID}{i}" for i in range(count)],
            "digit": digits.target[:count].astype(np.int64),
            "pixels": pa.FixedSizeListArray.from_arrays(pixels, 64),
            "note": [NOTE] * count,
        }
    )
    pq.write_table(table, folder / "digits.parquet")
    store, ring, settled = Store(folder / "store"), keys.derive(bytes(32)), recipe()
    empty = DataSet(settled.layout_digest())
    found = ingest(
        store,
        ring,
        settled.data.columns(),
        Grid(SHARDS, SLICES),
        empty,
        [folder / "digits.parquet"],
        lambda known: np.zeros(len(known), dtype=np.bool_),
    )
    store.flush()
    return store, found.dataset, ring


@dataclass
class Counted:
    """An executor that counts the calls of `tick`, and does something in each."""

    executor: Executor
    action: Callable[[], None] = lambda: None
    ticks: int = 0

    def run(self, jobs: Sequence[ShardJob], tick: Callable[[], None]) -> Iterator[int]:
        def counted() -> None:
            self.ticks += 1
            self.action()
            tick()

        return self.executor.run(jobs, counted)

    def close(self) -> None:
        self.executor.close()


@dataclass
class Bench:
    """Trains recipes over one store, each call into a folder of its own.

    Attributes:
        folder: Holds the store and the user's module.
        outputs: Where outputs go.
        seen: Every stage that the progress of the last call was told of.
    """

    folder: Path
    outputs: Path
    seen: list[StageRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.code = self.folder / "code"
        self.code.mkdir(exist_ok=True)
        (self.code / "acting.py").write_text(USER_MODULE)

    def train(self, executor: Executor, settled: Recipe, shards: int = SHARDS) -> Digests:
        """Build the first shards. Returns the digests of all stages."""
        store, dataset, ring = ingested(self.folder)
        nobody = Selection.nothing()
        views = through(store, ring, settled.data.columns(), dataset, nobody)
        learners.find_in((str(self.code),))
        training = settled.training_digest(learners.code_digest(settled.learner.factory))
        walks = build.walk(store, views, training)[:shards]
        self.seen.clear()
        built = build.build(
            store,
            settled,
            training,
            walks,
            executor,
            lambda record, stages: self.seen.append(record),
            output=Store(self.outputs / f"output-{len(list(self.outputs.iterdir()))}"),
            import_paths=(str(self.code),),
        )
        return {(r.shard, r.slice): r.tensors for r in built.trained}
