"""Seeds, batch order, epochs of a stage, threads and the environment fingerprint.

Everything here is a function of (seed, shard, slice, epoch, batch) and of record keys, never of
positions or of how much data there is elsewhere.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sisa.config import Training

Words = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]

_MASK = (1 << 64) - 1


def mix(*parts: int) -> int:
    """One 64-bit word of several: splitmix64 (Steele et al., OOPSLA 2014) chained over them."""
    word = 0
    for part in parts:
        word = (word ^ (part & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        word = (word ^ word >> 27) * 0x94D049BB133111EB & _MASK
        word ^= word >> 31
    return word


def scatter(words: Words, word: int) -> Words:
    """splitmix64 of each of n words, started from one word; uint64 [n]."""
    with np.errstate(over="ignore"):
        z = (words ^ np.uint64(word)) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def in_order(hashes: Words) -> Indices:
    """What a stable sort of hashes gives; without a tie, as nearly always, any sort gives it, and
    the plain one takes a sixth of the time.

    Args:
        hashes: uint64 [n].
    """
    order = np.argsort(hashes)
    ranked = hashes[order]
    if (ranked[1:] == ranked[:-1]).any():
        return np.argsort(hashes, kind="stable")
    return order


def stage_epochs(training: Training, slices: int, slice_: int) -> Fraction:
    """Epochs of a stage, so that R stages visit what e0 epochs would.

    Stage r sees r of R equal slices, and stage R takes m times the epochs e of the others:
    the sum of e_r * r / R is e0 for e = 2 e0 / (R - 1 + 2 m).

    Args:
        training: The recipe's section; e0 is `epochs`, m is `last_stage_epochs`.
        slices: R.
        slice_: From 1; slices beyond R, of appended data, take e as well.
    """
    last = Fraction(training.last_stage_epochs)
    ordinary = Fraction(training.epochs) * 2 / (slices - 1 + 2 * last)
    return ordinary * last if slice_ == slices else ordinary


class Step(NamedTuple):
    """One optimizer step.

    Attributes:
        rows: Indices of its records among those of the stage, int64 [b].
        lr: Learning rate.
        place: Seed, shard, slice, epoch and batch.
    """

    rows: Indices
    lr: float
    place: tuple[int, int, int, int, int]

    @property
    def seed(self) -> int:
        """For everything random in it, under 2**63."""
        return mix(*self.place, 2) >> 1


@dataclass(frozen=True)
class StagePlan:
    """The steps of one stage, made from record keys alone.

    Attributes:
        training: The recipe's section.
        slices: The recipe's number of slices R.
        shard: From 0.
        slice: From 1; may exceed R for appended data, which trains at the rates of stage R.
        words: First word of each record key of slices 1..slice in key order, uint64 [n].
    """

    training: Training
    slices: int
    shard: int
    slice: int
    words: Words

    @property
    def shares(self) -> list[int]:
        """Of 2**64 hashes, how many take part in each epoch: all, but for a last partial one."""
        whole, rest = divmod(stage_epochs(self.training, self.slices, self.slice), 1)
        shares = [_MASK + 1] * int(whole)
        return [*shares, (rest.numerator << 64) // rest.denominator] if rest else shares

    @cached_property
    def epochs(self) -> tuple[Indices, ...]:
        """Row indices of each epoch in their order; an epoch too small for a step is empty."""
        found = (self._epoch(number, share) for number, share in enumerate(self.shares))
        return tuple(e if len(e) >= self.training.min_batch else e[:0] for e in found)

    def _hashes(self, epoch: int) -> Words:
        return scatter(self.words, mix(self.training.seed, self.shard, self.slice, epoch, 1))

    def _epoch(self, number: int, share: int) -> Indices:
        """In hash order; a record is in a partial epoch iff its hash is under the share."""
        hashes = self._hashes(number)
        if share > _MASK:
            return in_order(hashes)
        rows = np.flatnonzero(hashes < np.uint64(share))
        return rows[in_order(hashes[rows])]

    @property
    def samples(self) -> int:
        """Records visited, each once per epoch in which it takes part; sorts nothing."""
        counts = (
            len(self.words)
            if share > _MASK
            else int(np.count_nonzero(self._hashes(number) < np.uint64(share)))
            for number, share in enumerate(self.shares)
        )
        return sum(count for count in counts if count >= self.training.min_batch)

    @cached_property
    def steps(self) -> int:
        """Number of optimizer steps."""
        return sum(len(cuts(len(r), self.training)) for r in self.epochs)

    def __iter__(self) -> Iterator[Step]:
        done = 0
        for epoch, rows in enumerate(self.epochs):
            for batch, (start, end) in enumerate(cuts(len(rows), self.training)):
                place = (self.training.seed, self.shard, self.slice, epoch, batch)
                yield Step(rows[start:end], self._rate(done), place)
                done += 1

    def _rate(self, done: int) -> float:
        """Learning rate: a function of the slice and of the fraction of this stage's steps."""
        rate, schedule = self.training.lr, self.training.schedule
        if schedule != "constant":
            start, share = self._fall
            fallen = start + share * (done / self.steps)
            linear = schedule.endswith("linear")
            rate *= 1 - fallen if linear else (1 + math.cos(math.pi * fallen)) / 2
        rise = self.training.warmup * self.steps
        return rate * (done + 1) / rise if done + 1 < rise else rate

    @cached_property
    def _fall(self) -> tuple[float, float]:
        """How far the rate has fallen when the stage begins, and its part of the fall; 1 is all.

        Over all stages it falls with the share of samples visited if all slices were equal, the
        sum of e_q * q / (R * e0) over stages q: no slice's own size enters.
        """
        at = min(self.slice, self.slices)
        if self.training.schedule.startswith("last_stage"):
            return (0.0, 1.0) if at == self.slices else (0.0, 0.0)
        whole = self.slices * Fraction(self.training.epochs)
        own = stage_epochs(self.training, self.slices, at) * at / whole
        if at == self.slices:
            return float(1 - own), float(own)
        return float(own * (at - 1) / 2), float(own)


def cuts(rows: int, training: Training) -> list[tuple[int, int]]:
    """Bounds of the batches of an epoch; a last one under `min_batch` joins the one before."""
    if rows < training.min_batch:
        return []
    starts = list(range(0, rows, training.batch_size))
    if len(starts) > 1 and rows - starts[-1] < training.min_batch:
        starts.pop()
    return list(zip(starts, [*starts[1:], rows], strict=True))


def init_seed(training: Training, shard: int) -> int:
    """Seed of a shard's initial state, under 2**63."""
    return mix(training.seed, shard, 0) >> 1


@cache
def _pools(torch_loaded: bool) -> Any:
    """The arithmetic libraries of this process; finding them takes a millisecond."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def pin_threads(threads: int) -> None:
    """Set the number of arithmetic threads of NumPy's BLAS and, where it is loaded, of torch.

    Called inside every stage: a worker that is used again has the number of the job before.
    """
    _pools("torch" in sys.modules).limit(limits=threads)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)


def fingerprint(uses_torch: bool) -> dict[str, Any]:
    """What bits may depend on besides recipe and data, read back from where it is in force.

    Args:
        uses_torch: Whether the learner computes with torch; what it does not use is left out.
    """
    pools = [p for p in _pools("torch" in sys.modules).info() if p["user_api"] == "blas"]
    # SciPy, where somebody has imported it, brings a BLAS of its own.
    own = [p for p in pools if "numpy" in p["filepath"]] or pools
    blas = {(p["internal_api"], p["version"], p["architecture"], p["num_threads"]) for p in own}
    found: dict[str, Any] = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "instruction_set": _numpy_features(),
        "blas": [list(p) for p in sorted(blas, key=str)],
        "device": "cpu",
    }
    if uses_torch:
        import torch

        found["torch"] = torch.__version__
        found["torch_instruction_set"] = torch.backends.cpu.get_cpu_capability()
        found["threads"] = torch.get_num_threads()
    return found


@cache
def _numpy_features() -> str:
    from numpy._core._multiarray_umath import __cpu_features__ as features

    return " ".join(sorted(name for name, there in features.items() if there))


def cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
