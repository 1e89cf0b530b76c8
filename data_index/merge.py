"""Merge the entries of a call into the lineage and the journals, range of keys by range of keys.

The merge by record is the one that decides: which records are new, stored already or corrected, and
where a corrected one goes. The other passes follow what it left behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_index import keys, lineage, partition
from data_index.errors import DataError
from data_index.intake import ENTRY, Call, Runs
from data_index.runs import Place
from data_index.schema import JOURNAL, LINEAGE, RECORD_KEY, SUBJECT_KEY
from data_index.storage import FileRef


def _ranges(rows: int, *sorted_rows: list[lineage.Cursor]) -> Iterator[list[list[pa.Table]]]:
    """Walk several sequences of n rows in all side by side: what each has in one range of keys."""
    for bound in lineage.bounds(rows):
        yield [[t for cursor in cursors for t in cursor.below(bound)] for cursors in sorted_rows]


def _stacked(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([schema.empty_table(), *(t.cast(schema) for t in tables)])


def _old(call: Call, index: FileRef | None, column: str) -> list[lineage.Cursor]:
    return [lineage.Cursor(lineage.scan(call.store, index), column)]


@dataclass(frozen=True, slots=True)
class Merged:
    """The outcome of merging by record; no index and no journal if nothing came of it."""

    by_record: FileRef | None
    journal: FileRef | None
    records: int = 0
    corrected: int = 0
    erased: int = 0
    moved: frozenset[Place] = frozenset()


def by_record(call: Call, runs: Runs) -> Merged:
    """Write the index by record and the journal, and note what becomes of every other row."""
    before, new = call.before, runs.entries
    if new.rows == 0:
        return Merged(None, None)
    records = corrected = erased = 0
    moved: set[Place] = set()
    index = call.store.create("lineage/by_record", ".parquet")
    journal = call.store.create("journal", ".parquet")
    with (
        index,
        journal,
        partition.streaming(index, LINEAGE) as put_index,
        partition.streaming(journal, JOURNAL) as put_journal,
    ):
        rows = before.records + new.rows
        old_rows = _old(call, before.by_record, RECORD_KEY)
        for old, fresh in _ranges(rows, old_rows, new.cursors()):
            met = _meet(call, _stacked(old, LINEAGE), _stacked(fresh, ENTRY))
            put_index(met.kept)
            put_journal(met.arrived)
            runs.arrived.add(met.arrived.select(LINEAGE.names))
            runs.detours.add(met.detours)
            for left in (runs.left, runs.left_subjects, runs.left_records):
                left.add(met.left)
            records += met.arrived.num_rows - met.left.num_rows
            corrected += met.left.num_rows
            erased += met.erased
            moved |= met.moved
    if records + corrected == 0:
        call.store.delete([journal.ref.path])
        return Merged(None, None, erased=erased)
    return Merged(index.ref, journal.ref, records, corrected, erased, frozenset(moved))


@dataclass(frozen=True, slots=True)
class _Met:
    """Stored and new entries of one range of record keys, held against each other.

    Attributes:
        kept: Entries of all records then, where they go.
        arrived: Those of them whose row is of this call, with their origin.
        left: Entries of stored rows that are superseded.
        detours: Rows of this call that are no new records; see `Runs`.
        erased: How many of these belong to a stored record that was erased.
        moved: Places of stored records that are another subject's now.
    """

    kept: pa.Table
    arrived: pa.Table
    left: pa.Table
    detours: pa.Table
    erased: int
    moved: set[Place]


def _meet(call: Call, old: pa.Table, new: pa.Table) -> _Met:
    both = _together(old, new)
    found = keys.from_arrow(both[RECORD_KEY])
    fresh = both["fresh"].to_numpy()
    again = 1 + np.flatnonzero((found[1:] == found[:-1]).all(axis=1))
    _refuse_twice(both, again[fresh[again - 1]])
    digests = keys.from_arrow(both["row_digest"])
    other = (digests[again] != digests[again - 1]).any(axis=1)
    # Rows of an accepted erasure may still be stored; no correction takes one out of it.
    erased = other & call.erased(both.take(pa.array(again - 1)))
    changed = again[other & ~erased]
    if len(changed) and not call.correct:
        _refuse_changed(both, changed)
    place = both.select([RECORD_KEY, "shard", "slice"]).take(pa.array(again))
    slices = both["slice"].to_numpy().copy()
    subjects = keys.from_arrow(both[SUBJECT_KEY])
    _, slices[changed] = call.place_again(subjects[changed], slices[changed - 1])
    others = (subjects[changed] != subjects[changed - 1]).any(axis=1)
    moved = both.select(["shard", "slice"]).take(pa.array(changed[others] - 1))
    both = both.set_column(both.schema.get_field_index("slice"), "slice", pa.array(slices))
    stays = np.ones(len(fresh), dtype=bool)
    stays[again] = False
    stays[changed] = True
    to = pa.array(np.where(stays[again], slices[again], 0).astype(np.int32))
    stays[changed - 1] = False
    return _Met(
        kept=both.filter(pa.array(stays)),
        arrived=both.filter(pa.array(stays & fresh)),
        left=both.take(pa.array(changed - 1)).select(LINEAGE.names),
        detours=place.append_column("to", to),
        erased=int(erased.sum()),
        moved=set(zip(moved["shard"].to_pylist(), moved["slice"].to_pylist(), strict=True)),
    )


def _together(old: pa.Table, new: pa.Table) -> pa.Table:
    """Both in the order of record keys, old before new; the column `fresh` marks the new."""
    origin = pa.schema([ENTRY.field("file"), ENTRY.field("row")])
    empty = [pa.nulls(old.num_rows, f.type) for f in origin]
    fresh = np.r_[np.zeros(old.num_rows, dtype=bool), np.ones(new.num_rows, dtype=bool)]
    both = pa.concat_tables(
        [
            pa.table([*old.columns, *empty], names=ENTRY.names),
            pa.table(new.columns, names=ENTRY.names),
        ]
    ).append_column("fresh", pa.array(fresh))
    order = keys.sort_order(keys.from_arrow(both[RECORD_KEY]))
    return both.take(pa.array(order)).combine_chunks()


def _refuse_twice(both: pa.Table, twice: npt.NDArray[np.intp]) -> None:
    if len(twice) == 0:
        return
    first, second = (both.slice(i, 1).to_pylist()[0] for i in (twice[0] - 1, twice[0]))
    raise DataError(
        f"{len(twice)} record ids come twice in this call, the first in row {first['row']} of "
        f"{first['file']} and row {second['row']} of {second['file']}.",
        "Leave one of the rows out.",
    )


def _refuse_changed(both: pa.Table, changed: npt.NDArray[np.intp]) -> None:
    row = both.slice(changed[0], 1).to_pylist()[0]
    raise DataError(
        f"{len(changed)} stored records have another row in this call, the first in row "
        f"{row['row']} of {row['file']}.",
        "Leave these rows out, or replace the stored ones with --correct.",
    )


def by_subject(call: Call, runs: Runs) -> tuple[FileRef, int]:
    """Write the index by subject. Returns it and how many subjects the arrived rows belong to."""
    before, subjects = call.before, 0
    last: bytes | None = None
    index = call.store.create("lineage/by_subject", ".parquet")
    with index, partition.streaming(index, LINEAGE) as put:
        for old, arrived, left in _ranges(
            before.records + runs.arrived.rows,
            _old(call, before.by_subject, SUBJECT_KEY),
            runs.arrived.cursors(),
            runs.left_subjects.cursors(),
        ):
            kept = without(_stacked(old, LINEAGE), _stacked(left, LINEAGE))
            new = _stacked(arrived, LINEAGE)
            both = pa.concat_tables([kept, new])
            put(both.take(pa.array(_order(both))))
            found = keys.from_arrow(new[SUBJECT_KEY])
            found = found[keys.sort_order(found)]
            if len(found):
                subjects += int((found[1:] != found[:-1]).any(axis=1).sum())
                subjects += found[0].tobytes() != last
                last = found[-1].tobytes()
    return index.ref, subjects


def _order(table: pa.Table) -> npt.NDArray[np.intp]:
    return keys.sort_order(*(keys.from_arrow(table[n]) for n in (SUBJECT_KEY, RECORD_KEY)))


def without(table: pa.Table, left: pa.Table) -> pa.Table:
    """The rows whose records are not among those left."""
    gone = keys.contains(keys.from_arrow(left[RECORD_KEY]), keys.from_arrow(table[RECORD_KEY]))
    return table.filter(pa.array(~gone)) if gone.any() else table


def journals_without(call: Call, runs: Runs, journals: tuple[FileRef, ...]) -> Iterator[FileRef]:
    """The earlier journals without corrected records; one with none of them stays as it is."""
    if runs.left_records.rows == 0:
        yield from journals
        return
    for old in journals:
        count = 0
        journal = call.store.create("journal", ".parquet")
        with journal, partition.streaming(journal, JOURNAL) as put:
            for rows, left in _ranges(
                call.before.records, _old(call, old, RECORD_KEY), runs.left_records.cursors()
            ):
                kept = without(_stacked(rows, JOURNAL), _stacked(left, LINEAGE))
                count += kept.num_rows
                put(kept)
        if count:
            yield journal.ref
        else:
            call.store.delete([journal.ref.path])
