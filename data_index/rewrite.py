"""The data set without erased rows: every file that held one is written anew.

The old files stay until nothing points to them and they are swept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_index import ingest, keys, lineage, partition
from data_index.dataset import DataSet, PartitionFile
from data_index.keys import Keyring
from data_index.lineage import Selection
from data_index.schema import JOURNAL, LINEAGE, Columns
from data_index.storage import FileRef, Store


@dataclass(frozen=True, slots=True)
class _Out:
    """What goes, but for what stays."""

    gone: Selection
    stays: Selection

    def mask(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        """Which rows of a table with key columns go; bool [rows]."""
        return self.gone.mask(table) & ~self.stays.mask(table)


def without(
    store: Store,
    ring: Keyring,
    columns: Columns,
    before: DataSet,
    gone: Selection,
    stays: Selection | None = None,
) -> DataSet:
    """Write the data set without the rows of erased subjects and records.

    Args:
        store: Where it lies.
        ring: Subkeys.
        columns: What the recipe declares.
        before: The data set.
        gone: The subjects and records.
        stays: Subjects and records whose rows stay nevertheless.

    Returns:
        A data set whose partition and lineage files are byte-equal to those of one that never
        held the rows; the same object if it held none.
    """
    out = _Out(gone, stays or Selection.nothing())
    rows = lineage.find(store, before.by_record, before.by_subject, gone)
    rows = rows.filter(pa.array(out.mask(rows)))
    if rows.num_rows == 0:
        return before
    places = set(zip(rows["shard"].to_pylist(), rows["slice"].to_pylist(), strict=True))
    partitions = (
        _partition(store, ring, columns, p, out) if (p.shard, p.slice) in places else p
        for p in before.partitions
    )
    return replace(
        before,
        partitions=tuple(p for p in partitions if p is not None),
        by_record=_index(store, before.by_record, LINEAGE, out),
        by_subject=_index(store, before.by_subject, LINEAGE, out),
        journals=tuple(
            kept
            for journal in before.journals
            if (kept := _index(store, journal, JOURNAL, out)) is not None
        ),
    )


def _partition(
    store: Store, ring: Keyring, columns: Columns, old: PartitionFile, out: _Out
) -> PartitionFile | None:
    table = partition.read(store.read(old.file))
    table = table.filter(pa.array(~out.mask(table)))
    if table.num_rows == 0:
        return None
    digests = keys.to_arrow(partition.row_digests(table, columns, ring))
    table = table.append_column("row_digest", digests)
    return ingest.write_partition(store, ring, (old.shard, old.slice), table, columns)


def _index(store: Store, ref: FileRef | None, schema: pa.Schema, out: _Out) -> FileRef | None:
    """An index or journal without the rows; None if nothing is left of it."""
    if ref is None:
        return None
    left = 0
    sink = store.create(ref.path.rpartition("/")[0], ".parquet")
    with sink, partition.streaming(sink, schema) as put:
        for table in lineage.scan(store, ref):
            kept = table.filter(pc.invert(pa.array(out.mask(table))))
            left += kept.num_rows
            put(kept)
    if left == 0:
        store.delete([sink.ref.path])
        return None
    return sink.ref
