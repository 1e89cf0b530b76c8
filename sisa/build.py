"""Build: walk each shard's chain over the current data, reuse what is stored, train the rest.

First training, resuming after a crash, forgetting and adding data are all this walk over changed
data; nothing else decides what is trained. A plan is the same walk without the training.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data_index.storage import Store
from data_index.view import PartitionView
from sisa import stage, stage_log
from sisa.config import Recipe
from sisa.determinism import StagePlan, Words, stage_epochs
from sisa.errors import WorkerError
from sisa.executor import Executor
from sisa.generation import Constituent, Failure, Stage
from sisa.retention import ALL, Retention
from sisa.shard import ShardJob
from sisa.stage import Link
from sisa.stage_log import StageRecord

Progress = Callable[[StageRecord, int], None]
"""Called with each newly stored stage and the number of stages that its shard has."""


@dataclass(frozen=True)
class Walk:
    """One shard's chain against what is stored.

    Attributes:
        shard: From 0.
        views: Its partitions in slice order.
        links: All its stages.
        stored: Records of the leading stages that are stored; the last may have failed.
    """

    shard: int
    views: tuple[PartitionView, ...]
    links: tuple[Link, ...]
    stored: tuple[StageRecord, ...]

    @property
    def failed(self) -> StageRecord | None:
        """The stage that failed, if one did; no later one is run."""
        return self.stored[-1] if self.stored and self.stored[-1].failure else None

    @property
    def missing(self) -> tuple[Link, ...]:
        """The stages to train."""
        return () if self.failed else self.links[len(self.stored) :]

    def constituent(self) -> Constituent:
        """What it contributes once nothing is missing."""
        good = (Stage.of(r) for r in self.stored if not r.failure)
        failed = self.failed
        failure = Failure(failed.slice, failed.key) if failed else None
        return Constituent.of(self.shard, good, len(self.links), failure)


@dataclass(frozen=True)
class Cost:
    """Samples of a build, each record counted once per epoch in which it takes part.

    Attributes:
        trained: Of the stages that are not stored.
        reused: Of those that are.
        before: Of builds before it that belong to the same call.
    """

    trained: int = 0
    reused: int = 0
    before: int = 0

    @property
    def full(self) -> int:
        """What training everything would visit."""
        return self.trained + self.reused

    @property
    def visited(self) -> int:
        """What the call has visited in all."""
        return self.before + self.trained

    def after(self, other: Cost) -> Cost:
        """The cost of this build and of what came before it in the same call."""
        return Cost(self.trained, self.reused, self.before + other.visited)


@dataclass(frozen=True)
class Built:
    """The outcome of a build: constituents in shard order, and what it cost."""

    constituents: tuple[Constituent, ...]
    trained: tuple[StageRecord, ...]
    cost: Cost
    seconds: float


def walk(store: Store, views: Sequence[PartitionView], training: str) -> tuple[Walk, ...]:
    """Hold every shard's chain against what is stored; one walk a shard with any record."""
    return tuple(
        _walk(store, shard, tuple(v for v in views if v.shard == shard), training)
        for shard in sorted({v.shard for v in views})
    )


def _walk(store: Store, shard: int, views: tuple[PartitionView, ...], training: str) -> Walk:
    links = stage.chain(shard, views, training)
    return Walk(shard, views, links, stage_log.stored(store, shard, links))


def cost(store: Store, recipe: Recipe, walks: Sequence[Walk]) -> Cost:
    """Samples that training the missing stages visits, exactly, and those of the stored ones."""
    reused = sum(r.samples for w in walks for r in w.stored)
    return Cost(sum(samples(store, recipe, w) for w in walks if w.missing), reused)


def samples(store: Store, recipe: Recipe, walk: Walk, links: Sequence[Link] | None = None) -> int:
    """Samples that training some stages of one shard visits, the missing ones by default."""
    links = walk.missing if links is None else links
    words = {v.slice: _words(store, recipe, v, links) for v in walk.views}
    total = 0
    for link in links:
        seen = np.concatenate([w for slice_, w in words.items() if slice_ <= link.slice])
        slices = recipe.partition.slices
        plan = StagePlan(recipe.training, slices, walk.shard, link.slice, seen)
        total += plan.samples
    return total


def _words(store: Store, recipe: Recipe, view: PartitionView, links: Sequence[Link]) -> Words:
    """Key words of a partition; zeros where no partial epoch asks who takes part in it."""
    slices = recipe.partition.slices
    epochs = (stage_epochs(recipe.training, slices, link.slice) for link in links)
    if all(e.denominator == 1 for e in epochs):
        return np.zeros(view.rows, dtype=np.uint64)
    return view.words(store)


def build(
    store: Store,
    recipe: Recipe,
    training: str,
    walks: Sequence[Walk],
    executor: Executor,
    progress: Progress = lambda record, stages: None,
    output: Store | None = None,
    import_paths: tuple[str, ...] = (),
    retention: Retention = ALL,
) -> Built:
    """Train what is missing.

    Args:
        store: Holds partitions and parents.
        recipe: The recipe.
        training: Its training digest, which stands for the learner's code too.
        walks: From `walk`.
        executor: Where to train.
        progress: Called as stages become durable.
        output: Where checkpoints and the stage log go; the store itself if None.
        import_paths: Where user modules are found.
        retention: Which checkpoints to keep.

    Raises:
        SisaError: What a worker raised.
    """
    started = time.monotonic()
    target = output or store
    jobs = {
        w.shard: ShardJob(
            shard=w.shard,
            attempt=uuid.uuid4().hex,
            recipe=recipe,
            training=training,
            views=w.views,
            links=w.missing,
            length=len(w.links),
            retention=retention,
            parent=w.stored[-1] if w.stored else None,
            store=str(store.root),
            output=str(target.root),
            import_paths=import_paths,
        )
        for w in walks
        if w.missing
    }
    watch = _Watch(target, jobs, progress)
    # The longest jobs first, so that none is left alone at the end.
    order = sorted(jobs.values(), key=lambda j: -sum(v.rows for v in j.views) * len(j.links))
    for _ in executor.run(order, watch.look) if order else ():
        watch.look()
    watch.look()
    finished = [_finished(target, w) for w in walks]
    trained = tuple(
        r for w, f in zip(walks, finished, strict=True) for r in f.stored[len(w.stored) :]
    )
    done = sum(r.samples for r in trained)
    return Built(
        tuple(w.constituent() for w in finished),
        trained,
        Cost(done, sum(r.samples for w in walks for r in w.stored)),
        time.monotonic() - started,
    )


def _finished(output: Store, before: Walk) -> Walk:
    """The walk with what its job has stored."""
    known = stage_log.read_shard(output, before.shard) if before.missing else {}
    stored = list(before.stored)
    for link in before.missing:
        record = known.get(link.key)
        if record is None:
            raise WorkerError(
                f"Shard {before.shard} came back without slice {link.slice}.", "Try again."
            )
        stored.append(record)
        if record.failure:
            break
    return Walk(before.shard, before.views, before.links, tuple(stored))


class _Watch:
    """Reports stages as their segments become durable; the store is the only channel."""

    def __init__(self, store: Store, jobs: dict[int, ShardJob], progress: Progress) -> None:
        self._store, self._jobs, self._progress = store, jobs, progress
        self._seen: set[str] = set()

    def look(self) -> None:
        for shard, job in self._jobs.items():
            folder = f"{stage_log.FOLDER}/{shard:04d}"
            for name in self._store.list(folder):
                if name.startswith(f"{folder}/{job.attempt}-") and name not in self._seen:
                    self._seen.add(name)
                    for record in stage_log.read_segment(self._store, name):
                        self._progress(record, len(job.links))
