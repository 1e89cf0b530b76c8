"""Source tables -> partitions, lineage and journal, out of core.

An external merge sort: the rows are cut into sorted runs on disk, the runs are merged into the two
lineage indexes range by range, and each partition that gains rows is written anew. What it returns
is a new data set that nothing points to yet; committing it is the ledger's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_index import keys, lineage, partition, sources
from data_index.dataset import DataSet, PartitionFile
from data_index.errors import DataError
from data_index.keys import Keyring, Keys
from data_index.schema import JOURNAL, LINEAGE, RECORD_KEY, SUBJECT_KEY, Columns
from data_index.sources import Kinds
from data_index.storage import FileRef, Store

RUN_BYTES = 64 << 20
"""Size at which a run is sorted and put on disk."""

RUN_ROWS = 1024
"""Rows that a merge reads of a run at a time: it holds so many of every run."""

Progress = Callable[[int], None]
"""Called with the number of rows read so far."""

Meets = Callable[[Keys], npt.NDArray[np.bool_]]
"""Says which keys meet a tombstone; bool [n]."""

_ENTRY = pa.schema([*LINEAGE, JOURNAL.field("file"), JOURNAL.field("row")])


@dataclass(frozen=True, slots=True)
class Grid:
    """Number of shards and slices that subjects are placed in."""

    shards: int
    slices: int


@dataclass(frozen=True, slots=True)
class Ingested:
    """What one call of ingest did.

    Attributes:
        dataset: The data set with the new records; the old one if there were none.
        records: Records taken in.
        subjects: Data subjects they belong to.
        skipped: Rows left out because the same row is stored already.
        tombstoned: Rows left out because their subject or record was erased.
    """

    dataset: DataSet
    records: int
    subjects: int
    skipped: int
    tombstoned: int


def ingest(
    store: Store,
    ring: Keyring,
    columns: Columns,
    grid: Grid,
    before: DataSet,
    paths: list[Path],
    meets: Meets,
    progress: Progress = lambda rows: None,
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

    Raises:
        NotFoundError: A path does not exist.
        DataError: A source does not fit, an id comes twice, or a stored id with another row.
    """
    files = sources.expand(paths)
    kinds = Kinds(before.record_kind, before.subject_kind)
    for file in files:
        kinds = sources.kinds_of(file, columns, kinds)
    with _Runs(store, columns) as runs:
        tombstoned = _sort_into_runs(runs, ring, columns, grid, files, kinds, meets, progress)
        if runs.rows + tombstoned == 0:
            raise DataError("The sources hold no rows.", "Point to files with rows.")
        by_record, journal, records = _merge_records(store, before, runs)
        if records == 0:
            store.delete([journal.path])
            return Ingested(before, 0, 0, runs.rows, tombstoned)
        by_subject, subjects = _merge_subjects(store, before, runs)
        partitions = _merge_partitions(store, ring, columns, before, runs)
    after = replace(
        before,
        record_kind=kinds.record,
        subject_kind=kinds.subject,
        partitions=partitions,
        by_record=by_record,
        by_subject=by_subject,
        journals=(*before.journals, journal),
    )
    return Ingested(after, records, subjects, runs.rows - records, tombstoned)


@dataclass
class _Runs:
    """Sorted runs on disk: by place with features, and the lineage by record and by subject."""

    store: Store
    columns: Columns
    rows: int = 0
    places: dict[tuple[int, int], list[tuple[Path, int]]] = field(default_factory=dict)
    records: list[Path] = field(default_factory=list)
    subjects: list[Path] = field(default_factory=list)
    waiting: list[pa.Table] = field(default_factory=list)
    size: int = 0

    def __enter__(self) -> _Runs:
        self.folder = self.store.scratch()
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.folder.iterdir():
            file.unlink()
        self.folder.rmdir()

    def add(self, table: pa.Table) -> None:
        """Take rows; spill when enough of them wait."""
        if table.num_rows == 0:
            return
        self.waiting.append(table)
        self.rows += table.num_rows
        self.size += table.nbytes
        if self.size >= RUN_BYTES:
            self.spill()

    def spill(self) -> None:
        """Put what waits on disk as one run."""
        if not self.waiting:
            return
        table = pa.concat_tables(self.waiting).combine_chunks()
        self.waiting, self.size = [], 0
        entries = table.select(_ENTRY.names)
        record, subject = (keys.from_arrow(table[name]) for name in (RECORD_KEY, SUBJECT_KEY))
        self.records.append(self._write(entries, keys.sort_order(record)))
        self.subjects.append(self._write(entries, keys.sort_order(subject, record)))
        self._write_places(table.drop_columns(["file", "row"]))

    def partition(self, place: tuple[int, int]) -> pa.Table:
        """All rows for one (shard, slice)."""
        batches = []
        for path, number in self.places[place]:
            with pa.OSFile(str(path)) as file:
                batches.append(pa.ipc.open_file(file).get_batch(number))
        return pa.Table.from_batches(batches)

    def _write(self, table: pa.Table, order: npt.NDArray[np.intp]) -> Path:
        path = self.folder / f"{len(list(self.folder.iterdir()))}.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
            out.write_table(table.take(pa.array(order)), max_chunksize=RUN_ROWS)
        return path

    def _write_places(self, table: pa.Table) -> None:
        shard, slice_ = table["shard"].to_numpy(), table["slice"].to_numpy()
        order = np.lexsort((slice_, shard))
        table = table.take(pa.array(order)).combine_chunks()
        shard, slice_ = shard[order], slice_[order]
        starts = np.flatnonzero(np.r_[True, (np.diff(shard) != 0) | (np.diff(slice_) != 0)])
        ends = [*starts[1:], len(shard)]
        path = self.folder / f"{len(list(self.folder.iterdir()))}.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
            for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
                out.write_table(table.slice(start, end - start))
                place = int(shard[start]), int(slice_[start])
                self.places.setdefault(place, []).append((path, number))


def scan_run(path: Path) -> Iterator[pa.Table]:
    """The record batches of a run, one table each."""
    with pa.OSFile(str(path)) as file:
        reader = pa.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            yield pa.Table.from_batches([reader.get_batch(number)])


def _sort_into_runs(
    runs: _Runs,
    ring: Keyring,
    columns: Columns,
    grid: Grid,
    files: list[Path],
    kinds: Kinds,
    meets: Meets,
    progress: Progress,
) -> int:
    """Read all sources into runs. Returns how many rows were left out as tombstoned."""
    tombstoned = seen = 0
    for file in files:
        for rows in sources.read(file, columns, kinds):
            table = _keyed(rows, file.name, ring, columns, grid)
            gone = meets(keys.from_arrow(table[RECORD_KEY]))
            gone |= meets(keys.from_arrow(table[SUBJECT_KEY]))
            tombstoned += int(gone.sum())
            runs.add(table.filter(pa.array(~gone)))
            seen += len(gone)
            progress(seen)
    runs.spill()
    return tombstoned


def _keyed(rows: sources.Rows, file: str, ring: Keyring, columns: Columns, grid: Grid) -> pa.Table:
    """Source rows with keys, place, row digest and origin, and without ids."""
    records = keys.record_keys(ring, rows.record_ids)
    subjects = keys.subject_keys(ring, rows.subject_ids)
    shard, slice_ = keys.place(subjects, grid.shards, grid.slices)
    table = rows.table.add_column(0, RECORD_KEY, keys.to_arrow(records))
    table = table.add_column(1, SUBJECT_KEY, keys.to_arrow(subjects))
    digests = partition.row_digests(table, columns, ring)
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


def _ranges(
    store: Store, index: FileRef | None, old_rows: int, runs: list[Path], rows: int, column: str
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Walk an index and the runs beside it: the old and the new rows of one range of keys."""
    old = lineage.Cursor(lineage.scan(store, index), column)
    new = [lineage.Cursor(scan_run(path), column) for path in runs]
    for bound in lineage.bounds(old_rows + rows):
        before = [t.cast(LINEAGE) for t in old.below(bound)]
        after = [t for cursor in new for t in cursor.below(bound)]
        yield (
            pa.concat_tables([LINEAGE.empty_table(), *before]),
            pa.concat_tables([_ENTRY.empty_table(), *(t.cast(_ENTRY) for t in after)]),
        )


def _merge(old: pa.Table, new: pa.Table, *by: str) -> tuple[pa.Table, npt.NDArray[np.bool_]]:
    """Both tables in key order, old before new of the same key, and where a key repeats.

    Returns:
        The lineage columns of all rows with a column `fresh`, and bool [rows]: row i has the same
        key as row i - 1.
    """
    origin = pa.schema([_ENTRY.field("file"), _ENTRY.field("row")])
    empty = [pa.nulls(old.num_rows, f.type) for f in origin]
    fresh = np.r_[np.zeros(old.num_rows, dtype=bool), np.ones(new.num_rows, dtype=bool)]
    both = pa.concat_tables(
        [
            pa.table([*old.columns, *empty], names=_ENTRY.names),
            pa.table(new.columns, names=_ENTRY.names),
        ]
    ).append_column("fresh", pa.array(fresh))
    columns = [keys.from_arrow(both[name]) for name in by]
    order = keys.sort_order(*columns)
    stacked = np.concatenate([c[order] for c in columns], axis=1)
    repeats = np.zeros(len(order), dtype=bool)
    repeats[1:] = (stacked[1:] == stacked[:-1]).all(axis=1)
    return both.take(pa.array(order)).combine_chunks(), repeats


def _merge_records(store: Store, before: DataSet, runs: _Runs) -> tuple[FileRef, FileRef, int]:
    """Write the index by record and the journal. Returns both and how many rows are new."""
    records = 0
    index = store.create("lineage/by_record", ".parquet")
    journal = store.create("journal", ".parquet")
    with (
        index,
        journal,
        partition.streaming(index, LINEAGE) as put_index,
        partition.streaming(journal, JOURNAL) as put_journal,
    ):
        for old, new in _ranges(
            store, before.by_record, before.records, runs.records, runs.rows, RECORD_KEY
        ):
            both, repeats = _merge(old, new, RECORD_KEY)
            _refuse_conflicts(both, repeats)
            kept = both.filter(pa.array(~repeats))
            put_index(kept)
            fresh = kept.filter(kept["fresh"])
            put_journal(fresh)
            records += fresh.num_rows
    return index.ref, journal.ref, records


def _refuse_conflicts(both: pa.Table, repeats: npt.NDArray[np.bool_]) -> None:
    again = np.flatnonzero(repeats)
    if len(again) == 0:
        return
    fresh = both["fresh"].to_numpy()
    twice = again[fresh[again - 1]]
    if len(twice):
        first, second = (both.slice(i, 1).to_pylist()[0] for i in (twice[0] - 1, twice[0]))
        raise DataError(
            f"{len(twice)} record ids come twice in this call, the first in row {first['row']} of "
            f"{first['file']} and row {second['row']} of {second['file']}.",
            "Leave one of the rows out.",
        )
    digests = keys.from_arrow(both["row_digest"])
    changed = again[(digests[again] != digests[again - 1]).any(axis=1)]
    if len(changed):
        row = both.slice(changed[0], 1).to_pylist()[0]
        raise DataError(
            f"{len(changed)} stored records have another row in this call, the first in row "
            f"{row['row']} of {row['file']}.",
            "Leave these rows out: a stored record cannot be changed.",
        )


def _merge_subjects(store: Store, before: DataSet, runs: _Runs) -> tuple[FileRef, int]:
    """Write the index by subject. Returns it and how many subjects the new rows belong to."""
    subjects = 0
    last: bytes | None = None
    index = store.create("lineage/by_subject", ".parquet")
    with index, partition.streaming(index, LINEAGE) as put:
        for old, new in _ranges(
            store, before.by_subject, before.records, runs.subjects, runs.rows, SUBJECT_KEY
        ):
            both, repeats = _merge(old, new, SUBJECT_KEY, RECORD_KEY)
            kept = both.filter(pa.array(~repeats))
            put(kept)
            found = keys.from_arrow(kept.filter(kept["fresh"])[SUBJECT_KEY])
            if len(found):
                subjects += int((found[1:] != found[:-1]).any(axis=1).sum())
                subjects += found[0].tobytes() != last
                last = found[-1].tobytes()
    return index.ref, subjects


def _merge_partitions(
    store: Store, ring: Keyring, columns: Columns, before: DataSet, runs: _Runs
) -> tuple[PartitionFile, ...]:
    """Write each partition that gains rows. Returns all partitions of the new data set."""
    partitions = {(p.shard, p.slice): p for p in before.partitions}
    for place in sorted(runs.places):
        old = partitions.get(place)
        table = runs.partition(place).cast(
            pa.schema(
                [*columns.schema, *(LINEAGE.field(n) for n in ("shard", "slice", "row_digest"))]
            )
        )
        table = table.drop_columns(["shard", "slice"])
        if old is not None:
            table = _with_stored(partition.read(store.read(old.file)), table, columns, ring)
            if table.num_rows == old.rows:
                continue
        partitions[place] = write_partition(store, ring, place, partition.sort(table), columns)
    return tuple(partitions[place] for place in sorted(partitions))


def _with_stored(stored: pa.Table, new: pa.Table, columns: Columns, ring: Keyring) -> pa.Table:
    """The stored rows, and those of the new ones that are not among them."""
    known = keys.contains(keys.from_arrow(stored[RECORD_KEY]), keys.from_arrow(new[RECORD_KEY]))
    digests = partition.row_digests(stored, columns, ring)
    stored = stored.append_column(new.schema.field("row_digest"), keys.to_arrow(digests))
    return pa.concat_tables([stored.cast(new.schema), new.filter(pa.array(~known))])


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
