"""Train the missing stages of one shard: what a worker does, paths in and digests out."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from data_index.storage import Store
from data_index.view import PartitionView
from sisa import checkpoint, determinism, learners, stage_log
from sisa.config import Recipe
from sisa.determinism import StagePlan
from sisa.errors import ConfigurationError
from sisa.learners.protocol import Learner, State
from sisa.learners.records import Encoding, Records
from sisa.retention import Retention
from sisa.stage import Link
from sisa.stage_log import StageRecord


@dataclass(frozen=True, slots=True)
class ShardJob:
    """Stages of one shard to be trained one after the other.

    Attributes:
        shard: From 0.
        attempt: Unique name of this job.
        recipe: The recipe.
        training: The training digest that the stage keys were made of.
        views: All its partitions that hold a row, in slice order.
        links: The stages to train, in order: the last ones of the chain.
        length: Number of stages of the whole chain.
        retention: Which checkpoints to keep.
        parent: The stored stage before the first of them, None for the shard's beginning.
        store: Folder that partitions and the parent are read from.
        output: Folder that checkpoints and the stage log are written to.
        import_paths: Where user modules are found.
    """

    shard: int
    attempt: str
    recipe: Recipe
    training: str
    views: tuple[PartitionView, ...]
    links: tuple[Link, ...]
    length: int
    retention: Retention
    parent: StageRecord | None
    store: str
    output: str
    import_paths: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As it is handed to a worker."""
        return {
            "shard": self.shard,
            "attempt": self.attempt,
            "recipe": self.recipe.model_dump(mode="json"),
            "training": self.training,
            "views": [asdict(v) for v in self.views],
            "links": [asdict(link) for link in self.links],
            "length": self.length,
            "retention": asdict(self.retention),
            "parent": self.parent and asdict(self.parent),
            "store": self.store,
            "output": self.output,
            "import_paths": list(self.import_paths),
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> ShardJob:
        """The inverse of `to_json`."""
        return cls(
            shard=found["shard"],
            attempt=found["attempt"],
            recipe=Recipe.model_validate(found["recipe"]),
            training=found["training"],
            views=tuple(map(PartitionView.from_json, found["views"])),
            links=tuple(Link(**link) for link in found["links"]),
            length=found["length"],
            retention=Retention(**found["retention"]),
            parent=found["parent"] and StageRecord.from_json(found["parent"]),
            store=found["store"],
            output=found["output"],
            import_paths=tuple(found["import_paths"]),
        )


def train_shard(job: ShardJob) -> None:
    """Train a job's stages; what it did stands in the stage log of its output.

    Stages that an earlier attempt of the same output has stored are taken over. A stage that fails
    deterministically is logged as such, and the later ones are not run.

    Raises:
        ConfigurationError: The learner does not fit.
        ExactnessError: A partition or checkpoint is damaged.
    """
    learners.find_in(job.import_paths)
    job = _resumed(job)
    if not job.links:
        return
    learner = learners.load(job.recipe)
    _require_code(job)
    store = Store(job.store)
    determinism.pin_threads(job.recipe.training.threads)
    records, slices = _records(job, store)
    state = _parent_state(job, store, learner)
    writer = stage_log.Writer(Store(job.output), job.shard, job.attempt)
    try:
        for number, link in enumerate(job.links, job.length - len(job.links) + 1):
            rows = records.take(slices <= link.slice)
            record, state = _stage(job, link, number, learner, state, rows, writer)
            writer.add(record)
            if record.failure:
                break
    except OSError:
        raise  # what could not be written must not be logged
    except BaseException:
        writer.flush()
        raise
    writer.flush()


def _require_code(job: ShardJob) -> None:
    """Refuse to store one code's stages under another's keys; looked at after the import.

    Raises:
        ConfigurationError: The learner's code is not the one that the stage keys were made of.
    """
    code = learners.code_digest(job.recipe.learner.factory)
    if job.recipe.training_digest(code) != job.training:
        raise ConfigurationError(
            "The learner's code is not what it was when the build began.", "Run the command again."
        )


def _resumed(job: ShardJob) -> ShardJob:
    """The job without the stages that its output holds already."""
    stored = stage_log.stored(Store(job.output), job.shard, job.links)
    if not stored:
        return job
    links = () if stored[-1].failure else job.links[len(stored) :]
    return replace(job, parent=stored[-1], links=links)


def _records(job: ShardJob, store: Store) -> tuple[Records, np.ndarray[Any, Any]]:
    """All records up to the last stage in key order, and the slice of each."""
    last = job.links[-1].slice
    views = [v for v in job.views if v.slice <= last]
    tables = [v.read(store) for v in views]
    records = Encoding.of(job.recipe.data).encode(pa.concat_tables(tables))
    slices = np.repeat([v.slice for v in views], [t.num_rows for t in tables])
    # Ties of first words keep the order of slices, which no other record changes.
    order = np.argsort(records.words, kind="stable")
    return records.take(order), slices[order]


def _parent_state(job: ShardJob, store: Store, learner: Learner) -> State:
    if job.parent is None:
        seed = determinism.init_seed(job.recipe.training, job.shard)
        return checkpoint.load(checkpoint.dump(learner.init(seed)))
    if job.parent.file is None:
        raise ValueError("the parent of a stage has no checkpoint")
    at = store if store.holds(job.parent.file) else Store(job.output)
    return checkpoint.read(at, job.parent.file, job.parent.tensors)


def _stage(
    job: ShardJob,
    link: Link,
    number: int,
    learner: Learner,
    state: State,
    records: Records,
    writer: stage_log.Writer,
) -> tuple[StageRecord, State]:
    """Train one stage. Its state comes back from its checkpoint's bytes, as the next run has it.

    Args:
        job: The job.
        link: The stage.
        number: Its number in the chain, from 1.
        learner: The learner.
        state: Of its parent.
        records: Those of slices 1 to its own.
        writer: Takes the checkpoint, if it is kept.
    """
    started = time.monotonic()
    recipe = job.recipe
    plan = StagePlan(recipe.training, recipe.partition.slices, job.shard, link.slice, records.words)
    done = learner.advance(state, records, plan)
    file, tensors = None, ""
    if done.failure is None:
        data = checkpoint.dump(done.state)
        if number in job.retention.kept(job.length, len(data)):
            file = writer.checkpoint(data)
        state = checkpoint.load(data)
        tensors = checkpoint.tensors_digest(state)
    record = StageRecord(
        key=link.key,
        parent=link.parent,
        shard=job.shard,
        slice=link.slice,
        tensors=tensors,
        file=file,
        samples=plan.samples,
        steps=plan.steps,
        seconds=round(time.monotonic() - started, 6),
        loss=stage_log.finite(done.loss),
        failure=done.failure,
        fingerprint=determinism.fingerprint(learner.uses_torch),
    )
    return record, state
