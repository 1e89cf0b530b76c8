"""The data set: an immutable manifest of partition, lineage and journal files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from data_index.errors import ConfigurationError
from data_index.keys import IdKind
from data_index.schema import FORMAT
from data_index.storage import FileRef, Store, canonical_json


@dataclass(frozen=True, slots=True)
class PartitionFile:
    """One (shard, slice) that holds records.

    Attributes:
        shard: From 0.
        slice: From 1; appended slices follow those of the recipe.
        rows: Number of records, at least 1.
        logical: Logical digest of its rows, hex.
        file: Its Parquet file.
    """

    shard: int
    slice: int
    rows: int
    logical: str
    file: FileRef

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> PartitionFile:
        """From its fields as JSON holds them."""
        return cls(**{**found, "file": FileRef.from_json(found["file"])})


@dataclass(frozen=True)
class DataSet:
    """What the store holds at one moment.

    Attributes:
        layout: Digest of the recipe's data and partition sections that it was made under.
        record_kind: Whether record ids are integers or text, None before the first ingest.
        subject_kind: The same for subject ids.
        appends: How many appends there have been.
        partitions: In the order of shard and slice.
        by_record: Lineage index in the order of record keys, None if there is no record.
        by_subject: Lineage index in the order of subject and record keys.
        journals: One a call of ingest that took records in.
        moved: Shard, slice and logical digest of partitions that were trained on and that held a
            record which is another subject's now: what serves them has seen it as the first one's.
    """

    layout: str
    record_kind: IdKind | None = None
    subject_kind: IdKind | None = None
    appends: int = 0
    partitions: tuple[PartitionFile, ...] = ()
    by_record: FileRef | None = None
    by_subject: FileRef | None = None
    journals: tuple[FileRef, ...] = ()
    moved: tuple[tuple[int, int, str], ...] = ()

    @cached_property
    def records(self) -> int:
        """Number of records."""
        return sum(p.rows for p in self.partitions)

    def files(self) -> tuple[FileRef, ...]:
        """Every file that it names."""
        indexes = tuple(f for f in (self.by_record, self.by_subject) if f is not None)
        return (*(p.file for p in self.partitions), *indexes, *self.journals)

    def save(self, store: Store) -> FileRef:
        """Write the manifest; durable after the store's `flush`."""
        body: dict[str, Any] = {
            "format": FORMAT,
            "layout": self.layout,
            "record_kind": self.record_kind,
            "subject_kind": self.subject_kind,
            "appends": self.appends,
            "partitions": [asdict(p) for p in self.partitions],
            "by_record": self.by_record and asdict(self.by_record),
            "by_subject": self.by_subject and asdict(self.by_subject),
            "journals": [asdict(j) for j in self.journals],
        }
        if self.moved:
            body["moved"] = self.moved
        return store.put("datasets", ".json", canonical_json(body))

    @classmethod
    def load(cls, store: Store, ref: FileRef) -> DataSet:
        """Read a manifest and check it.

        Raises:
            ExactnessError: It is missing or damaged.
            ConfigurationError: It is of another format version.
        """
        body = json.loads(store.read(ref))
        if body.pop("format") != FORMAT:
            raise ConfigurationError(
                "The store was written in another format version.", "Use the sisa that wrote it."
            )
        for name in ("by_record", "by_subject"):
            body[name] = body[name] and FileRef.from_json(body[name])
        body["partitions"] = tuple(map(PartitionFile.from_json, body["partitions"]))
        body["journals"] = tuple(map(FileRef.from_json, body["journals"]))
        body["moved"] = tuple((m[0], m[1], m[2]) for m in body.get("moved", ()))
        return cls(**body)
