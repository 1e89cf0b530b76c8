"""What a steady rate of erasures will cost, and which shards and slices would cost least.

Requests come at random (a Poisson process), each names one record, and every record is as likely
as another. A window opens with the first request and closes after the longest wait, so a batch
holds K = 1 + Poisson(rate * wait) of them, and there are rate / (1 + rate * wait) batches a day.
With S equal shards of R equal slices, stage q of a shard is trained iff one of the K is among its
first q slices:

    P(q) = 1 - E[(1 - q / (S R))^K],        E[x^K] = x exp(-rate * wait * (1 - x))

so a batch visits S * sum over q of P(q) * e_q * q N / (S R) samples, with N records and e_q epochs
of stage q. For R = 1 that is e N (1 - (1 - 1/S)^K), and for K = 1 it is e N / S (2/3 + 1/(3R)): the
costs of sharding and of slicing of Bourtoule et al. (IEEE S&P 2021). That a window may close
earlier, because too much is rolled back, is left out.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from sisa import config, tempo
from sisa.config import Recipe, Training
from sisa.context import Context
from sisa.determinism import stage_epochs
from sisa.errors import IncompleteError, UsageError
from sisa.plan import open_window
from sisa.results import Choice, Planned
from sisa.tempo import Work

SHARDS, SLICES = (1, 2, 4, 8, 16, 32), (1, 2, 4, 8, 16, 32)
"""The grid of choices; what is set now is among them too."""

STEPS = 20
"""Fewest optimizer steps of a first stage: with fewer, stages cost accuracy and time."""

DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Load:
    """Requests as they come and wait.

    Attributes:
        rate: Requests a day.
        wait: Days from a window's first request to its end.
    """

    rate: float
    wait: float

    @classmethod
    def parse(cls, text: str, max_wait: str) -> Load:
        """Read a rate such as `20/day` or `0.5/hour`.

        Raises:
            UsageError: It is not written like that.
        """
        match = re.fullmatch(r"(\d+(?:\.\d+)?)/(day|hour)", text)
        if match is None or not float(match[1]):
            raise UsageError(f"{text!r} is no rate.", "Write N/day or N/hour, such as 20/day.")
        rate = float(match[1]) * (24 if match[2] == "hour" else 1)
        return cls(rate, config.period(max_wait).total_seconds() / DAY)

    @property
    def mean(self) -> float:
        """Mean number of requests of a batch."""
        return 1 + self.rate * self.wait

    @property
    def batches(self) -> float:
        """Batches a day."""
        return self.rate / self.mean

    def none(self, share: float) -> float:
        """Probability that no request of a batch is among a share of all records."""
        left = 1 - share
        return left * math.exp(-self.rate * self.wait * share)


def batch(training: Training, shards: int, slices: int, records: int, load: Load) -> Work:
    """What a batch is expected to train, as the module says."""
    cells = shards * slices
    stages = samples = 0.0
    for q in range(1, slices + 1):
        reached = shards * (1 - load.none(q / cells))
        stages += reached
        samples += reached * float(stage_epochs(training, slices, q)) * q * records / cells
    return Work(stages, samples, 1)


def plan(context: Context, text: str) -> Planned:
    """Expected cost of a rate of requests, now and with other numbers of shards and slices.

    Raises:
        UsageError: The rate is not written as N/day or N/hour.
        IncompleteError: There is no record.
    """
    recipe, records = context.config.recipe, context.dataset().records
    load = Load.parse(text, context.config.runtime.erasure.max_wait)
    if records == 0:
        raise IncompleteError("There is no record to plan for.", "Run `sisa ingest` first.")
    pace = tempo.measured(context)
    now = (recipe.partition.shards, recipe.partition.slices)
    grid = sorted({now, *((s, r) for s in SHARDS for r in SLICES)})
    choices = []
    for shards, slices in grid:
        work, steps = (
            batch(recipe.training, shards, slices, records, load),
            _steps(recipe, shards, slices, records),
        )
        if steps < STEPS and (shards, slices) != now:
            continue
        choices.append(
            Choice(
                shards=shards,
                slices=slices,
                samples=round(work.samples * load.batches, 1),
                seconds=round(pace.seconds(work) * load.batches, 3),
                steps=steps,
                present=(shards, slices) == now,
            )
        )
    enough = [c for c in choices if c.steps >= STEPS] or choices
    best = min(enough, key=lambda c: (c.seconds, c.samples, c.shards, c.slices))
    present = next(c for c in choices if c.present)
    return Planned(
        samples_full=_full(recipe, records),
        window=open_window(context),
        rate=load.rate,
        requests_per_batch=round(load.mean, 3),
        samples_per_day=present.samples,
        seconds_per_day=present.seconds,
        best=best,
        choices=tuple(sorted(choices, key=lambda c: (c.seconds, c.samples))),
    )


def _steps(recipe: Recipe, shards: int, slices: int, records: int) -> int:
    """About how many optimizer steps a first stage takes."""
    rows = records / (shards * slices)
    epochs = float(stage_epochs(recipe.training, slices, 1))
    return int(epochs * rows / recipe.training.batch_size)


def _full(recipe: Recipe, records: int) -> int:
    """About what training everything visits: the stages' samples are those of e0 epochs."""
    return round(float(recipe.training.epochs) * records)
