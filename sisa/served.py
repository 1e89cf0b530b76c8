"""What predicting needs of a generation, and nothing else of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from data_index.schema import FORMAT
from data_index.storage import FileRef
from sisa.config import Recipe
from sisa.errors import ExactnessError, IncompleteError
from sisa.generation import Generation, digest_of, quorate


@dataclass(frozen=True, slots=True)
class Vote:
    """A constituent that takes part: its shard, its tensors' digest and its checkpoint."""

    shard: int
    tensors: str
    file: FileRef


@dataclass(frozen=True)
class Served:
    """A generation as it is served.

    Attributes:
        number: The generation's number.
        recipe: The recipe that it was trained with.
        training: Its training digest, which covers the learner's code.
        votes: In shard order.
        quorum: Share of shards that must vote before anything is predicted.
    """

    number: int
    recipe: Recipe
    training: str
    votes: tuple[Vote, ...]
    quorum: float

    @classmethod
    def of(cls, number: int, generation: Generation, quorum: float) -> Served:
        """The last stage of every voting constituent."""
        votes = tuple(Vote(c.shard, c.stages[-1].tensors, c.file) for c in generation.voting)
        return cls(number, generation.recipe, generation.training, votes, quorum)

    @property
    def digest(self) -> str:
        """The generation's digest."""
        return digest_of(self.recipe, [(v.shard, v.tensors) for v in self.votes])

    def require_quorum(self) -> None:
        """Refuse to answer with too few votes.

        Raises:
            IncompleteError: Fewer constituents vote than the quorum asks for.
        """
        if not self.votes:
            raise IncompleteError(
                "No constituent votes, so nothing can be predicted.",
                "Run `sisa work`; if nobody is left to learn from, run `sisa ingest` and "
                "`sisa train`.",
            )
        if not quorate(len(self.votes), self.recipe, self.quorum):
            raise IncompleteError(
                f"Only {len(self.votes)} of {self.recipe.partition.shards} constituents "
                f"vote, fewer than the quorum of {self.quorum:g}.",
                "Run `sisa work`, or correct the recipe and train.",
            )

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "format": FORMAT,
            "generation": self.number,
            "digest": self.digest,
            "training": self.training,
            "quorum": self.quorum,
            "recipe": self.recipe.model_dump(mode="json"),
            "constituents": [asdict(v) for v in self.votes],
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Served:
        """The inverse of `to_json`.

        Raises:
            ExactnessError: It states another digest than its votes give.
        """
        votes = (
            Vote(v["shard"], v["tensors"], FileRef.from_json(v["file"]))
            for v in body["constituents"]
        )
        recipe = Recipe.model_validate(body["recipe"])
        found = cls(body["generation"], recipe, body["training"], tuple(votes), body["quorum"])
        if found.digest != body["digest"]:
            raise ExactnessError("The ensemble states another digest than its votes give.")
        return found
