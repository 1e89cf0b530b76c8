"""The document of `sisa lineage`."""

from __future__ import annotations

from sisa.results.base import Result


class LineageRecord(Result):
    """Where one record sits and came from; keys are keyed hashes in hex."""

    record_key: str
    """Keyed hash of the record's id, hex."""

    subject_key: str
    """Keyed hash of the subject's id, hex."""

    shard: int
    """Its shard, from 0."""

    slice: int
    """Its slice, from 1."""

    source: str | None
    """File that it was ingested from; null if the journal does not say."""

    row: int | None
    """Position of its row in that file, from 0; null like the source."""


class LineageStage(Result):
    """A stage of the current chain that has seen a record of the subject."""

    shard: int
    """The shard, from 0."""

    slice: int
    """The slice, from 1."""

    key: str
    """Stage key, hex."""


class LineageResult(Result):
    """`sisa lineage`."""

    records: tuple[LineageRecord, ...]
    """Stored records of the subject, or the one record."""

    stages: tuple[LineageStage, ...]
    """Stages of the current chain that have seen one of them."""

    generations: tuple[int, ...]
    """Numbers of generations that hold such a stage."""

    erased: bool
    """Whether the subject or record is erased."""

    status: str | None
    """Status of the erasure request; null without one."""

    certificate: str | None
    """Path of its certificate; null until there is one."""
