"""The manifest of a published ensemble: immutable, named by its content."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from data_index.requests import Places, touches
from data_index.schema import FORMAT
from data_index.storage import FileRef, Store, canonical_json, sha256
from sisa.config import Recipe
from sisa.errors import ExactnessError
from sisa.stage_log import StageRecord


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a constituent.

    Attributes:
        slice: From 1.
        key: Stage key.
        tensors: Digest of the state's tensors.
        file: Its checkpoint, None if it was not kept.
        steps: Optimizer steps taken in it.
    """

    slice: int
    key: str
    tensors: str
    file: FileRef | None
    steps: int

    @classmethod
    def of(cls, record: StageRecord) -> Stage:
        """From the stage log."""
        return cls(record.slice, record.key, record.tensors, record.file, record.steps)


@dataclass(frozen=True, slots=True)
class Failure:
    """A stage that failed deterministically: its slice and its stage key."""

    slice: int
    key: str


@dataclass(frozen=True, slots=True)
class Constituent:
    """The model of one shard.

    Attributes:
        shard: From 0.
        stages: Its stages in order, as far as it is served: the last one's checkpoint is kept.
        length: Number of stages that its chain has.
        failed: The stage that failed, or None; a constituent that failed does not vote.
    """

    shard: int
    stages: tuple[Stage, ...]
    length: int
    failed: Failure | None = None

    @property
    def votes(self) -> bool:
        """Whether it takes part: it has not failed, and its state has taken a step."""
        return self.failed is None and sum(s.steps for s in self.stages) > 0

    @classmethod
    def of(
        cls, shard: int, stages: Iterable[Stage], length: int, failed: Failure | None
    ) -> Constituent:
        """Served as far as there are checkpoints."""
        served = list(stages)
        while served and served[-1].file is None:
            served.pop()
        return cls(shard, tuple(served), length, failed)

    @property
    def file(self) -> FileRef:
        """The checkpoint that is served.

        Raises:
            ValueError: It has no stage.
        """
        if not self.stages or self.stages[-1].file is None:
            raise ValueError("a constituent without a stage has no checkpoint")
        return self.stages[-1].file

    def before(self, slice_: int) -> Constituent:
        """Rolled back to its last checkpoint that never saw a slice; an earlier failure stays."""
        stages = (s for s in self.stages if s.slice < slice_)
        failed = self.failed if self.failed and self.failed.slice < slice_ else None
        return Constituent.of(self.shard, stages, self.length, failed)


@dataclass(frozen=True)
class Generation:
    """A published ensemble.

    Attributes:
        recipe: The recipe it was trained with.
        training: Its training digest.
        constituents: In shard order, one a shard that has any record.
        partitions: Shard, slice, rows and logical digest of what it was trained on.
        reason: `train`, `erasure`, `roll-back` or `cancelled`.
        certificate_head: sha256 of the last certificate when it was published, or None.
    """

    recipe: Recipe
    training: str
    constituents: tuple[Constituent, ...]
    partitions: tuple[tuple[int, int, int, str], ...]
    reason: str
    certificate_head: str | None

    @property
    def voting(self) -> tuple[Constituent, ...]:
        """The constituents that take part."""
        return tuple(c for c in self.constituents if c.votes)

    @cached_property
    def digest(self) -> str:
        """See `digest_of`."""
        return digest_of(self.recipe, ((c.shard, c.stages[-1].tensors) for c in self.voting))

    @property
    def depth(self) -> float:
        """Mean share of its stages that a constituent is served with; 0 if none votes.

        One that is rolled back to nothing counts as 0, and one that failed does not count.
        """
        shares = [len(c.stages) / c.length for c in self.constituents if c.failed is None]
        return sum(shares) / len(shares) if self.voting else 0.0

    @property
    def failed_shards(self) -> list[int]:
        """Shards whose training failed deterministically."""
        return [c.shard for c in self.constituents if c.failed]

    def quorate(self, quorum: float) -> bool:
        """Whether enough of the recipe's shards vote."""
        return quorate(len(self.voting), self.recipe, quorum)

    def before(self, places: Places, certificate_head: str | None) -> Generation:
        """Rolled back: each constituent at its last checkpoint that never saw what places name."""
        first = dict(places)
        return replace(
            self,
            constituents=tuple(
                c.before(first[c.shard]) if c.shard in first else c for c in self.constituents
            ),
            partitions=tuple(p for p in self.partitions if not touches(places, p[0], p[1])),
            reason="roll-back",
            certificate_head=certificate_head,
        )

    def same_as(self, other: Generation | None) -> bool:
        """Whether publishing it would change nothing but the reason."""
        if other is None:
            return False
        return self == replace(other, reason=self.reason, certificate_head=self.certificate_head)

    @cached_property
    def manifest(self) -> bytes:
        """The bytes of its manifest."""
        body = {
            "format": FORMAT,
            "what": {
                "recipe": self.recipe.model_dump(mode="json"),
                "training": self.training,
                "constituents": [asdict(c) for c in self.constituents],
                "partitions": [list(p) for p in self.partitions],
            },
            "digest": self.digest,
            "reason": self.reason,
            "certificate_head": self.certificate_head,
        }
        return canonical_json(body)

    def save(self, store: Store) -> FileRef:
        """Write the manifest; durable after the store's `flush`."""
        return store.put("generations", ".json", self.manifest)

    @classmethod
    def load(cls, store: Store, ref: FileRef) -> Generation:
        """Read a manifest and check it.

        Raises:
            ExactnessError: It is missing or damaged, or its digest is not that of its votes.
        """
        body = json.loads(store.read(ref))
        what = body["what"]
        found = cls(
            Recipe.model_validate(what["recipe"]),
            what["training"],
            tuple(map(_constituent, what["constituents"])),
            tuple((p[0], p[1], p[2], p[3]) for p in what["partitions"]),
            body["reason"],
            body["certificate_head"],
        )
        if found.digest != body["digest"]:
            raise ExactnessError(f"{ref.path} states another digest than its votes give.")
        return found


def digest_of(recipe: Recipe, votes: Iterable[tuple[int, str]]) -> str:
    """sha256 of the canonical JSON of [aggregation, [shard, tensors digest]...], in shard order."""
    return sha256(canonical_json([recipe.aggregation, *votes]))


def quorate(voting: int, recipe: Recipe, quorum: float) -> bool:
    """Whether so many votes are enough of the recipe's shards."""
    return voting > 0 and voting >= quorum * recipe.partition.shards


def _constituent(found: dict[str, Any]) -> Constituent:
    stages = tuple(
        Stage(**{**stage, "file": stage["file"] and FileRef.from_json(stage["file"])})
        for stage in found["stages"]
    )
    failed = found["failed"] and Failure(**found["failed"])
    return Constituent(**{**found, "stages": stages, "failed": failed})
