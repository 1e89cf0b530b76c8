"""Source tables -> partitions, lineage and journal, out of core.

The rows are put on disk by the place that they would have as new records, their entries in sorted
runs. Merging the runs into the index by record, range by range, shows which records are new, stored
already or corrected, and where a corrected one goes. The index by subject is merged from what that
left behind, and each partition that gains or loses rows is written anew, one after the other. What
it returns is a new data set that nothing points to yet; committing it is the ledger's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_index import keys, merge, partition, sources
from data_index.dataset import DataSet, PartitionFile
from data_index.errors import DataError
from data_index.intake import ENTRY, Call, Grid, Meets, Runs
from data_index.keys import Keyring
from data_index.runs import Place, Scratch
from data_index.schema import LINEAGE, RECORD_KEY, SUBJECT_KEY, Columns
from data_index.sources import Kinds
from data_index.storage import Store

RUN_BYTES = 16 << 20
"""Size at which the rows that were read are put on disk."""

Progress = Callable[[int], None]
"""Called with the number of rows read so far."""


@dataclass(frozen=True, slots=True)
class Ingested:
    """What one call of ingest did.

    Attributes:
        dataset: The data set as it is then; the old one itself if nothing changed.
        records: Records taken in.
        corrected: Stored records whose row was replaced.
        subjects: Data subjects that these and those belong to.
        skipped: Rows left out because the same row is stored already.
        tombstoned: Rows left out because their subject or record was erased.
        moved: Shards and slices that a record sat in which is another subject's now.
    """

    dataset: DataSet
    records: int
    corrected: int
    subjects: int
    skipped: int
    tombstoned: int
    moved: frozenset[Place]


def ingest(
    store: Store,
    ring: Keyring,
    columns: Columns,
    grid: Grid,
    before: DataSet,
    paths: list[Path],
    meets: Meets,
    progress: Progress = lambda rows: None,
    correct: bool = False,
    append: bool = False,
) -> Ingested:
    """Take source files into a data set.

    Args:
        store: Where to write; scratch files are made there too, and removed.
        ring: Subkeys.
        columns: What the recipe declares.
        grid: Shards and slices.
        before: The data set as it is.
        paths: Source files and folders.
        meets: Says which record or subject keys are tombstoned.
        progress: Called as rows are read.
        correct: Another row of a stored record replaces the stored one.
        append: New records go to a further slice of their shard, behind all others. The number of
            appends rises even if no row is taken in.

    Raises:
        NotFoundError: A path does not exist.
        DataError: A source does not fit, an id comes twice, or a stored id with another row and
            this is no correction.
    """
    files = sources.expand(paths)
    kinds = Kinds(before.record_kind, before.subject_kind)
    for file in files:
        kinds = sources.kinds_of(file, columns, kinds)
    number = before.appends + 1 if append else None
    call = Call(store, ring, columns, grid, before, meets, correct, number)
    with Scratch(store) as scratch:
        runs = Runs(scratch)
        read, tombstoned = _read(call, runs, files, kinds, progress)
        if read == 0 and not append:
            raise DataError("The sources hold no rows.", "Point to files with rows.")
        merged = merge.by_record(call, runs)
        tombstoned += merged.erased
        skipped = read - tombstoned - merged.records - merged.corrected
        after = before if number is None else replace(before, appends=number)
        if merged.by_record is None or merged.journal is None:
            return Ingested(after, 0, 0, 0, skipped, tombstoned, frozenset())
        by_subject, subjects = merge.by_subject(call, runs)
        journals = tuple(merge.journals_without(call, runs, before.journals))
        _detour(runs)
        partitions = _write_partitions(call, runs)
    after = replace(
        after,
        record_kind=kinds.record,
        subject_kind=kinds.subject,
        partitions=partitions,
        by_record=merged.by_record,
        by_subject=by_subject,
        journals=(*journals, merged.journal),
    )
    return Ingested(
        after, merged.records, merged.corrected, subjects, skipped, tombstoned, merged.moved
    )


def _read(
    call: Call, runs: Runs, files: list[Path], kinds: Kinds, progress: Progress
) -> tuple[int, int]:
    """Put all sources on disk. Returns rows read, and how many were left out as tombstoned."""
    tombstoned = seen = size = 0
    waiting: list[pa.Table] = []
    for file in files:
        for rows in sources.read(file, call.columns, kinds):
            table = _keyed(call, rows, file.name)
            gone = call.erased(table)
            tombstoned += int(gone.sum())
            waiting.append(table.filter(pa.array(~gone)))
            size += waiting[-1].nbytes
            if size >= RUN_BYTES:
                _spill(runs, waiting)
                size = 0
            seen += len(gone)
            progress(seen)
    if waiting:
        _spill(runs, waiting)
    return seen, tombstoned


def _spill(runs: Runs, waiting: list[pa.Table]) -> None:
    """Put the rows that wait on disk; none waits then."""
    table = pa.concat_tables(waiting).combine_chunks()
    waiting.clear()
    runs.entries.add(table.select(ENTRY.names))
    runs.rows.add(table.drop_columns(["file", "row"]))
    del table
    pa.default_memory_pool().release_unused()  # else what lies between the runs adds up


def _keyed(call: Call, rows: sources.Rows, file: str) -> pa.Table:
    """Source rows with keys, place, row digest and origin, and without ids."""
    records = keys.record_keys(call.ring, rows.record_ids)
    subjects = keys.subject_keys(call.ring, rows.subject_ids)
    shard, slice_ = call.place(subjects)
    table = rows.table.add_column(0, RECORD_KEY, keys.to_arrow(records))
    table = table.add_column(1, SUBJECT_KEY, keys.to_arrow(subjects))
    digests = partition.row_digests(table, call.columns, call.ring)
    count = len(records)
    added: dict[str, Any] = {
        "shard": pa.array(shard),
        "slice": pa.array(slice_),
        "row_digest": keys.to_arrow(digests),
        "file": pa.repeat(pa.scalar(file), count),
        "row": pa.array(np.arange(rows.first, rows.first + count, dtype=np.int64)),
    }
    for name, column in added.items():
        table = table.append_column(name, column)
    return table


def _detour(runs: Runs) -> None:
    """Take rows that are no new records from where these go to where they belong, if anywhere."""
    for place in sorted(runs.detours.places):
        rows = pa.concat_tables(runs.rows.take(place))
        detours = pa.concat_tables(runs.detours.take(place))
        at = keys.positions(keys.from_arrow(detours[RECORD_KEY]), keys.from_arrow(rows[RECORD_KEY]))
        to = np.where(at < 0, np.int32(place[1]), detours["to"].to_numpy()[at])
        rows = rows.set_column(rows.schema.get_field_index("slice"), "slice", pa.array(to))
        runs.rows.add(rows.filter(pa.array(to > 0)))


def _write_partitions(call: Call, runs: Runs) -> tuple[PartitionFile, ...]:
    """Write each partition that gains or loses rows. Returns all of the new data set."""
    partitions = {(p.shard, p.slice): p for p in call.before.partitions}
    schema = pa.schema([*call.columns.schema, LINEAGE.field("row_digest")])
    for place in sorted(runs.rows.places | runs.left.places):
        old, left = partitions.pop(place, None), runs.left.take(place)
        stored = [_stored(call, old, left)] if old is not None else []
        tables = [t.select(schema.names).cast(schema) for t in (*stored, *runs.rows.take(place))]
        table = partition.sort(pa.concat_tables(tables))
        if table.num_rows:
            partitions[place] = write_partition(call.store, call.ring, place, table, call.columns)
    return tuple(partitions[place] for place in sorted(partitions))


def _stored(call: Call, old: PartitionFile, left: list[pa.Table]) -> pa.Table:
    """The rows of a partition that stay, with their row digests."""
    table = partition.read(call.store.read(old.file))
    if left:
        table = merge.without(table, pa.concat_tables(left))
    digests = partition.row_digests(table, call.columns, call.ring)
    return table.append_column(LINEAGE.field("row_digest"), keys.to_arrow(digests))


def write_partition(
    store: Store, ring: Keyring, place: tuple[int, int], table: pa.Table, columns: Columns
) -> PartitionFile:
    """Write one partition from sorted rows with their row digests."""
    digests = keys.from_arrow(table["row_digest"])
    logical = partition.logical_digest(keys.from_arrow(table[RECORD_KEY]), digests, ring)
    shard, slice_ = place
    data = partition.write(table, columns)
    file = store.put(f"partitions/{shard:04d}/{slice_:04d}", ".parquet", data)
    return PartitionFile(shard, slice_, table.num_rows, logical, file)
