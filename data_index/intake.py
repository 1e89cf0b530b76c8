"""What one call of ingest is given, where its rows go, and what is on disk between its passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_index import keys
from data_index.dataset import DataSet
from data_index.keys import Keyring, Keys
from data_index.runs import Placed, Scratch, Sorted
from data_index.schema import JOURNAL, LINEAGE, RECORD_KEY, SUBJECT_KEY, Columns
from data_index.storage import Store

Meets = Callable[[Keys], npt.NDArray[np.bool_]]
"""Says which keys meet a tombstone; bool [n]."""

Slices = npt.NDArray[np.int32]

ENTRY = pa.schema([*LINEAGE, JOURNAL.field("file"), JOURNAL.field("row")])
"""A row of a source without its features: where it would go as a new record, and its origin."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Number of shards and slices that subjects are placed in."""

    shards: int
    slices: int


@dataclass(frozen=True, slots=True)
class Call:
    """What one call was given; `append` is its number, None if it is no append."""

    store: Store
    ring: Keyring
    columns: Columns
    grid: Grid
    before: DataSet
    meets: Meets
    correct: bool
    append: int | None

    def place(self, subjects: Keys) -> tuple[Slices, Slices]:
        """Shard and slice of new records of these subjects."""
        shard, slice_ = keys.place(subjects, self.grid.shards, self.grid.slices)
        if self.append is not None:
            slice_ = np.full_like(slice_, self.grid.slices + self.append)
        return shard, slice_

    def place_again(self, subjects: Keys, stored: Slices) -> tuple[Slices, Slices]:
        """Shard and slice of corrected records; what came with an append stays with it.

        Args:
            subjects: Their subjects now, n.
            stored: The slices that they sit in, int32 [n].
        """
        shard, slice_ = keys.place(subjects, self.grid.shards, self.grid.slices)
        return shard, np.where(stored > self.grid.slices, stored, slice_)

    def erased(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        """Which rows meet a tombstone, by record or by subject; bool [rows]."""
        met = self.meets(keys.from_arrow(table[RECORD_KEY]))
        return met | self.meets(keys.from_arrow(table[SUBJECT_KEY]))


class Runs:
    """What is on disk between the passes.

    Attributes:
        rows: The rows with features, by the place of a new record.
        entries: Their entries, for the index by record.
        detours: Rows that are no new records: the place they are under, and the slice `to` which
            they go, 0 for none.
        arrived: Entries of new and corrected records where they go, for the index by subject.
        left: Entries of superseded rows by their place, and for the index by subject and journals.
    """

    def __init__(self, scratch: Scratch) -> None:
        self.rows = Placed(scratch)
        self.entries = Sorted(scratch, RECORD_KEY)
        self.detours = Placed(scratch)
        self.arrived = Sorted(scratch, SUBJECT_KEY, RECORD_KEY)
        self.left = Placed(scratch)
        self.left_subjects = Sorted(scratch, SUBJECT_KEY, RECORD_KEY)
        self.left_records = Sorted(scratch, RECORD_KEY)
