"""What stages take, as the stage log tells; no row is read for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from sisa import stage_log
from sisa.config import Recipe
from sisa.context import Context
from sisa.determinism import cpus, stage_epochs
from sisa.stage_log import StageRecord


@dataclass(frozen=True, slots=True)
class Work:
    """Stages to train.

    Attributes:
        stages: How many.
        samples: What they visit, each record once per epoch in which it takes part.
        shards: How many shards they are of: so many can be trained side by side.
    """

    stages: float
    samples: float
    shards: int


@dataclass(frozen=True, slots=True)
class Tempo:
    """Seconds that one worker takes.

    Attributes:
        stage: For a stage, whatever its size.
        sample: For each sample of it besides.
    """

    stage: float
    sample: float

    @classmethod
    def of(cls, records: Iterable[StageRecord]) -> Tempo:
        """The line through what stages took (least squares); through 0 if that has no sense."""
        took = np.array([(r.samples, r.seconds) for r in records if r.samples], dtype=np.float64)
        if len(took) == 0:
            return cls(0.0, 0.0)
        samples, seconds = took.T
        if np.ptp(samples) > 0:
            sample, stage = np.polyfit(samples, seconds, 1)
            if sample >= 0 and stage >= 0:
                return cls(float(stage), float(sample))
        return cls(0.0, float(seconds.sum() / samples.sum()))

    def seconds(self, work: Work, workers: int = 1) -> float:
        """What work takes, its shards side by side on so many workers."""
        alone = work.stages * self.stage + work.samples * self.sample
        return alone / max(1, min(workers, work.shards))


def measured(context: Context) -> Tempo:
    """The tempo of all stages in the stage log, whatever they were trained for."""
    shards = range(context.config.recipe.partition.shards)
    return Tempo.of(r for s in shards for r in stage_log.read_shard(context.store, s).values())


def workers(context: Context) -> int:
    """How many shards are trained at a time."""
    return context.config.runtime.executor.workers or cpus()


def behind(recipe: Recipe, rows: Mapping[int, int], first: int) -> Work:
    """The stages of one shard from a slice on, as its numbers of rows alone tell.

    A partial epoch is counted by its share, so that samples are right but for who takes part in it.

    Args:
        recipe: The recipe.
        rows: Number of rows by slice, of all its slices that hold any.
        first: The first slice that is trained.
    """
    slices, seen, samples, stages = recipe.partition.slices, 0, 0.0, 0
    for slice_ in sorted(rows):
        seen += rows[slice_]
        if slice_ >= first:
            stages += 1
            samples += float(stage_epochs(recipe.training, slices, slice_)) * seen
    return Work(stages, samples, 1 if stages else 0)


def sum_of(parts: Iterable[Work]) -> Work:
    """The work of several shards together."""
    found = list(parts)
    return Work(
        sum(w.stages for w in found), sum(w.samples for w in found), sum(w.shards for w in found)
    )
