"""Documents of the state of a workspace and of its generations."""

from __future__ import annotations

from sisa.results.base import Result
from sisa.results.requests import RequestState


class Status(Result):
    """`sisa status`."""

    workspace: str
    """Folder of the workspace, absolute."""

    generation: int | None
    """Number of the current generation; null before the first training."""

    digest: str | None
    """Its digest, sha256 in hex; null like the generation."""

    reason: str | None
    """Why it was published: `train`, `erasure`, `roll-back` or `cancelled`; null like the
    generation."""

    voting: int
    """Count of constituents that vote."""

    shards: int
    """Count of shards of the recipe."""

    depth: float
    """Mean share of its stages that a served constituent has, 0 to 1."""

    quorate: bool
    """Whether enough constituents vote for predictions."""

    records: int
    """Count of records in the store."""

    partitions: int
    """Count of partitions in the store."""

    requests: tuple[RequestState, ...]
    """All erasure requests, the oldest first."""

    certificate_head: str | None
    """sha256 of the last certificate, hex; null before the first."""

    outbox: int
    """Count of generations that MLflow has not been told of yet."""


class HistoryEntry(Result):
    """A generation; once retired, number, digest, time and reason are all that is kept."""

    number: int
    """Number of the generation, from 1."""

    digest: str
    """Its digest, sha256 in hex."""

    time: str
    """When it was published, ISO 8601 in UTC."""

    reason: str
    """Why: `train`, `erasure`, `roll-back` or `cancelled`."""

    current: bool
    """Whether it is the current one."""

    retired: bool
    """Whether its manifest is destroyed."""


class History(Result):
    """`sisa history`."""

    generations: tuple[HistoryEntry, ...]
    """All generations, the oldest first."""
