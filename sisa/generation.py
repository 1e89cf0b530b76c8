"""The manifest of a published ensemble: immutable, named by its content."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

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
        file: Its checkpoint.
        steps: Optimizer steps taken in it.
    """

    slice: int
    key: str
    tensors: str
    file: FileRef
    steps: int

    @classmethod
    def of(cls, record: StageRecord) -> Stage:
        """From the stage log.

        Raises:
            ValueError: The stage failed.
        """
        if record.file is None:
            raise ValueError("a failed stage is in no generation")
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
        stages: Its stages in order, as far as it is served.
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

    def before(self, slice_: int) -> Constituent:
        """Rolled back to its last stage that never saw this slice; an earlier failure stays."""
        stages = tuple(s for s in self.stages if s.slice < slice_)
        failed = self.failed if self.failed and self.failed.slice < slice_ else None
        return replace(self, stages=stages, failed=failed)


@dataclass(frozen=True)
class Generation:
    """A published ensemble.

    Attributes:
        recipe: The recipe it was trained with.
        training: Its training digest.
        constituents: In shard order, one a shard that has any record.
        partitions: Shard, slice, rows and logical digest of what it was trained on.
        reason: `train`, `erasure` or `roll-back`.
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
        """sha256 of the canonical JSON of [aggregation, [shard, tensors digest]...]."""
        votes = [[c.shard, c.stages[-1].tensors] for c in self.voting]
        return sha256(canonical_json([self.recipe.aggregation, *votes]))

    @property
    def depth(self) -> float:
        """Mean share of its stages that a served constituent has; 0 if none votes."""
        shares = [len(c.stages) / c.length for c in self.voting]
        return sum(shares) / len(shares) if shares else 0.0

    @property
    def failed_shards(self) -> list[int]:
        """Shards whose training failed deterministically."""
        return [c.shard for c in self.constituents if c.failed]

    def quorate(self, quorum: float) -> bool:
        """Whether enough of the recipe's shards vote."""
        return len(self.voting) > 0 and len(self.voting) >= quorum * self.recipe.partition.shards

    def same_as(self, other: Generation | None) -> bool:
        """Whether publishing it would change nothing but the reason."""
        return other is not None and self._body()["what"] == other._body()["what"]

    def _body(self) -> dict[str, Any]:
        return {
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

    def save(self, store: Store) -> FileRef:
        """Write the manifest; durable after the store's `flush`."""
        return store.put("generations", ".json", canonical_json(self._body()))

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


def _constituent(found: dict[str, Any]) -> Constituent:
    stages = tuple(
        Stage(**{**stage, "file": FileRef.from_json(stage["file"])}) for stage in found["stages"]
    )
    failed = found["failed"] and Failure(**found["failed"])
    return Constituent(**{**found, "stages": stages, "failed": failed})
