"""The data set seen through the filter of accepted tombstones: what every build and plan reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_index import keys, lineage, partition
from data_index.dataset import DataSet, PartitionFile
from data_index.keys import Keyring
from data_index.lineage import Selection
from data_index.schema import RECORD_KEY, Columns
from data_index.storage import FileRef, Store


@dataclass(frozen=True, slots=True)
class PartitionView(PartitionFile):
    """A partition without the rows that are to be left out.

    `rows` and `logical` are of the rows left, at least one; `file` may still hold the others.

    Attributes:
        drop: Row numbers in the file to leave out. Numbers, so that no job sees a tombstone.
    """

    drop: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> PartitionView:
        """From its fields as JSON holds them."""
        file, drop = FileRef.from_json(found["file"]), tuple(found["drop"])
        return cls(**{**found, "file": file, "drop": drop})

    def read(self, store: Store, names: list[str] | None = None) -> pa.Table:
        """The rows left, in record-key order."""
        table = partition.read(store.read(self.file), names)
        if not self.drop:
            return table
        keep = np.ones(table.num_rows, dtype=bool)
        keep[list(self.drop)] = False
        return table.filter(pa.array(keep))

    def words(self, store: Store) -> npt.NDArray[np.uint64]:
        """First word of each record key left, uint64 [rows]; nothing but keys is read."""
        with lineage.open_index(store, self.file) as file:
            found = file.read(columns=[RECORD_KEY], use_threads=False)[RECORD_KEY]
        first: npt.NDArray[np.uint64] = keys.words(keys.from_arrow(found))[:, 0]
        return np.delete(first, list(self.drop))


def through(
    store: Store, ring: Keyring, columns: Columns, dataset: DataSet, gone: Selection
) -> tuple[PartitionView, ...]:
    """All partitions without the rows of some subjects and records; reads those it touches only.

    Returns:
        Views in the order of shard and slice; a partition with no row left is not among them.
    """
    rows = lineage.find(store, dataset.by_record, dataset.by_subject, gone)
    places = set(zip(rows["shard"].to_pylist(), rows["slice"].to_pylist(), strict=True))
    views = (
        _without(store, ring, columns, p, gone)
        if (p.shard, p.slice) in places
        else PartitionView(p.shard, p.slice, p.rows, p.logical, p.file)
        for p in dataset.partitions
    )
    return tuple(v for v in views if v.rows)


def _without(
    store: Store, ring: Keyring, columns: Columns, file: PartitionFile, gone: Selection
) -> PartitionView:
    table = partition.read(store.read(file.file))
    out = gone.mask(table)
    kept = table.filter(pa.array(~out))
    logical = partition.digest_of(kept, columns, ring) if kept.num_rows else ""
    drop = tuple(np.flatnonzero(out).tolist())
    return PartitionView(file.shard, file.slice, kept.num_rows, logical, file.file, drop)
