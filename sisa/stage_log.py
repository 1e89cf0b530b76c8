"""The stage log: which stages are stored, with digests, cost and fingerprint.

Each attempt at a shard writes numbered immutable segments, durable every second or two and at the
end, each after the checkpoints it names. Readers take the union by stage key.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from data_index.storage import FileRef, Store, canonical_json, sha256
from sisa import checkpoint
from sisa.errors import BusyError, ExactnessError, NotFoundError
from sisa.stage import Link

FOLDER = "stages"
ATTEMPTS = 100
"""How often a shard is read again because a purge came in between."""

INTERVAL = 1.5
"""Seconds between two segments: what a killed worker does again at most."""


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One stored stage.

    Attributes:
        key: Its stage key.
        parent: Key of the stage before.
        shard: From 0.
        slice: From 1.
        tensors: Digest of the state's tensors; empty if it failed.
        file: Its checkpoint; None if it failed or its checkpoint was not kept.
        samples: Records visited, each once per epoch in which it took part.
        steps: Optimizer steps taken in it.
        seconds: Wall-clock seconds.
        loss: Mean training loss, None if it took no step or is not finite.
        failure: Why the stage failed, or None.
        fingerprint: The environment it ran in.
    """

    key: str
    parent: str
    shard: int
    slice: int
    tensors: str
    file: FileRef | None
    samples: int
    steps: int
    seconds: float
    loss: float | None
    failure: str | None
    fingerprint: dict[str, Any] = field(hash=False)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> StageRecord:
        """Read one of a segment."""
        return cls(**{**found, "file": found["file"] and FileRef.from_json(found["file"])})


class Writer:
    """Writes checkpoints and segments of one attempt at a shard."""

    def __init__(self, store: Store, shard: int, attempt: str) -> None:
        self._store, self._shard, self._attempt = store, shard, attempt
        self._waiting: list[StageRecord] = []
        self._number = 0
        self._last = time.monotonic()

    def checkpoint(self, data: bytes) -> FileRef:
        """Write the bytes of a state; durable with the next segment."""
        return self._store.put(checkpoint.FOLDER, checkpoint.SUFFIX, data)

    def add(self, record: StageRecord) -> None:
        """Log a stage whose checkpoint is written."""
        self._waiting.append(record)
        if time.monotonic() - self._last >= INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Make all logged stages durable, checkpoints first."""
        if self._waiting:
            self._store.flush()
            self._number += 1
            name = f"{FOLDER}/{self._shard:04d}/{self._attempt}-{self._number:06d}.json"
            write_segment(self._store, name, self._waiting)
            self._store.flush()
        self._waiting = []
        self._last = time.monotonic()


def write_segment(store: Store, name: str, records: Iterable[StageRecord]) -> None:
    """Write a segment, which carries its own sha256; durable after the store's `flush`."""
    store.put_named(name, _framed(canonical_json([asdict(r) for r in records])))


def read_segment(store: Store, name: str) -> list[StageRecord]:
    """Read a segment.

    Raises:
        ExactnessError: It is damaged.
    """
    data = store.read_unchecked(name)
    stages = data[len(_framed(b"")) - 1 : -1]
    if data != _framed(stages):
        raise ExactnessError(
            f"{name} is damaged.", "Delete it and run `sisa train`; its stages are trained again."
        )
    return [StageRecord.from_json(found) for found in json.loads(stages)]


def _framed(stages: bytes) -> bytes:
    """A segment's bytes: canonical JSON of the sha256 of its stages, and of these."""
    return b'{"sha256":"%s","stages":%s}' % (sha256(stages).encode(), stages)


def read_shard(store: Store, shard: int) -> dict[str, StageRecord]:
    """All stored stages of a shard by key; of several records of one, one whose checkpoint is kept.

    Raises:
        ExactnessError: Two attempts disagree on the tensors of a stage.
        BusyError: Segments are written anew faster than they can be read.
    """
    for _ in range(ATTEMPTS):
        with suppress(NotFoundError):  # a purge has written a segment anew since it was listed
            return _union(store, shard)
    raise BusyError(f"The stage log of shard {shard} changes too fast.", "Try again.")


def _union(store: Store, shard: int) -> dict[str, StageRecord]:
    found: dict[str, StageRecord] = {}
    for name in store.list(f"{FOLDER}/{shard:04d}"):
        for record in read_segment(store, name):
            known = found.setdefault(record.key, record)
            if (known.tensors, known.failure) != (record.tensors, record.failure):
                raise ExactnessError(
                    f"Two attempts at slice {record.slice} of shard {shard} gave different bits.",
                    "Train on one kind of machine with one number of threads.",
                )
            if known.file is None:
                found[record.key] = record
    return found


def stored(store: Store, shard: int, links: Sequence[Link]) -> tuple[StageRecord, ...]:
    """Records of the leading stages of a chain, up to the last one to go on from.

    They end with a failure or with a kept checkpoint. One that is missing, or the one to go on from
    if it is damaged, is trained again.

    Raises:
        ExactnessError: Two attempts disagree on the tensors of a stage.
    """
    known = read_shard(store, shard)
    found: list[StageRecord] = []
    for link in links:
        record = known.get(link.key)
        if record is None or not (record.file is None or store.holds(record.file)):
            break
        found.append(record)
        if record.failure:
            return tuple(found)
    whole = len(found) == len(links)
    while found and not _serves(store, found[-1], whole):
        found.pop()
        whole = False
    return tuple(found)


def _serves(store: Store, record: StageRecord, last: bool) -> bool:
    """Whether a stage can be gone on from; nobody goes on from the last one of a chain."""
    return record.file is not None and (last or store.intact(record.file))


def finite(loss: float) -> float | None:
    """A loss as JSON can hold it."""
    return loss if math.isfinite(loss) else None
