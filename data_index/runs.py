"""Scratch files of an ingest: rows by their place, entries in the order of a key.

An external sort and an external partitioning. Nothing here outlives the call: the folder is removed
when the scratch is left, and by purge after a crash.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_index import keys, lineage
from data_index.storage import Store

RUN_ROWS = 1024
"""Rows that a merge reads of a run at a time: it holds so many of every run."""

Place = tuple[int, int]
"""Shard and slice."""


class Scratch:
    """A folder for the time of one call; a context manager."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._numbers = count()

    def __enter__(self) -> Scratch:
        self._folder = self._store.scratch()
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._folder.iterdir():
            file.unlink()
        self._folder.rmdir()

    def file(self) -> Path:
        """A path that no other file has."""
        return self._folder / f"{next(self._numbers)}.arrow"


class Placed:
    """Rows on disk that are read back one (shard, slice) at a time."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._parts: dict[Place, list[tuple[Path, int]]] = {}

    @property
    def places(self) -> frozenset[Place]:
        """Those that have rows."""
        return frozenset(self._parts)

    def add(self, table: pa.Table) -> None:
        """Put rows on disk; they have the columns `shard` and `slice`."""
        if table.num_rows == 0:
            return
        shard, slice_ = table["shard"].to_numpy(), table["slice"].to_numpy()
        order = np.lexsort((slice_, shard))
        shard, slice_ = shard[order], slice_[order]
        starts = np.flatnonzero(np.r_[True, (np.diff(shard) != 0) | (np.diff(slice_) != 0)])
        ends = [*starts[1:], len(shard)]
        table = table.combine_chunks()
        path = self._scratch.file()
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
            for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
                out.write_table(table.take(pa.array(order[start:end])))
                place = int(shard[start]), int(slice_[start])
                self._parts.setdefault(place, []).append((path, number))

    def take(self, place: Place) -> list[pa.Table]:
        """All rows of a place, which has none from then on."""
        tables = []
        for path, number in self._parts.pop(place, ()):
            with pa.OSFile(str(path)) as file:
                batch = pa.ipc.open_file(file).get_batch(number)
                tables.append(pa.Table.from_batches([batch]))
        return tables


class Sorted:
    """Rows on disk in runs that are in the order of key columns, for a merge."""

    def __init__(self, scratch: Scratch, *by: str) -> None:
        self._scratch = scratch
        self._by = by
        self._waiting: list[pa.Table] = []
        self._runs: list[Path] = []
        self.rows = 0

    def add(self, table: pa.Table) -> None:
        """Take rows; they become a run once enough of them wait."""
        if table.num_rows == 0:
            return
        self._waiting.append(table)
        self.rows += table.num_rows
        if sum(t.num_rows for t in self._waiting) >= lineage.RANGE_ROWS:
            self._spill()

    def cursors(self) -> list[lineage.Cursor]:
        """One a run, by the first key column."""
        self._spill()
        return [lineage.Cursor(_scan(path), self._by[0]) for path in self._runs]

    def _spill(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting).combine_chunks()
        self._waiting = []
        order = keys.sort_order(*(keys.from_arrow(table[name]) for name in self._by))
        path = self._scratch.file()
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
            out.write_table(table.take(pa.array(order)), max_chunksize=RUN_ROWS)
        self._runs.append(path)


def _scan(path: Path) -> Iterator[pa.Table]:
    """The record batches of a run, one table each; no file stays open between them."""
    number, batches = 0, 1
    while number < batches:
        with pa.OSFile(str(path)) as file:
            reader = pa.ipc.open_file(file)
            batches = reader.num_record_batches
            table = pa.Table.from_batches([reader.get_batch(number)])
        yield table
        number += 1
