"""Subject or record -> where its rows sit: two sorted Parquet indexes, looked up and merged.

Neither index is ever held in memory whole: a look-up reads the row groups whose statistics admit
the key, a merge walks all its inputs in ranges of keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data_index import keys, partition
from data_index.errors import ExactnessError
from data_index.keys import Keys
from data_index.schema import LINEAGE, RECORD_KEY, SUBJECT_KEY
from data_index.storage import FileRef, Store

RANGE_ROWS = 100_000
"""About how many rows a merge holds at a time."""


@dataclass(frozen=True)
class Selection:
    """Subjects and records by their keys: what a request names, or what is to be left out.

    Attributes:
        subjects: Subject keys, uint8 [n, 16].
        records: Record keys, uint8 [m, 16].
    """

    subjects: Keys
    records: Keys

    @classmethod
    def nothing(cls) -> Selection:
        """Neither subject nor record."""
        return cls(keys.empty(), keys.empty())

    def __or__(self, other: Selection) -> Selection:
        return Selection(
            np.concatenate([self.subjects, other.subjects]),
            np.concatenate([self.records, other.records]),
        )

    def __bool__(self) -> bool:
        return len(self.subjects) + len(self.records) > 0

    def mask(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        """Which rows of a table with key columns it names; bool [rows]."""
        subjects = keys.contains(self.subjects, keys.from_arrow(table[SUBJECT_KEY]))
        return subjects | keys.contains(self.records, keys.from_arrow(table[RECORD_KEY]))


def find(
    store: Store, by_record: FileRef | None, by_subject: FileRef | None, wanted: Selection
) -> pa.Table:
    """The lineage rows of subjects and records, sorted by record key, each once."""
    parts = [
        *_lookup(store, by_subject, SUBJECT_KEY, wanted.subjects),
        *_lookup(store, by_record, RECORD_KEY, wanted.records),
    ]
    if not parts:
        return LINEAGE.empty_table()
    table = partition.sort(pa.concat_tables(parts))
    found = keys.words(keys.from_arrow(table[RECORD_KEY]))
    first = np.ones(len(found), dtype=bool)
    first[1:] = (found[1:] != found[:-1]).any(axis=1)
    return table.filter(pa.array(first))


def _lookup(store: Store, ref: FileRef | None, column: str, wanted: Keys) -> Iterator[pa.Table]:
    if ref is None or len(wanted) == 0:
        return
    ordered = keys.words(wanted[keys.sort_order(wanted)])
    with open_index(store, ref) as file:
        for table in partition.read_groups(file, _groups(file.metadata, column, ordered)):
            hit = keys.contains(wanted, keys.from_arrow(table[column]))
            if hit.any():
                yield table.filter(pa.array(hit)).cast(LINEAGE)


def _groups(
    metadata: pq.FileMetaData, column: str, ordered: npt.NDArray[np.uint64]
) -> Iterator[int]:
    """Row groups whose statistics admit one of the keys, given as sorted words [n, 2]."""
    index = metadata.schema.names.index(column)
    first_words = ordered[:, 0]
    for group in range(metadata.num_row_groups):
        stats = metadata.row_group(group).column(index).statistics
        low = int.from_bytes(stats.min[:8], "big")
        high = int.from_bytes(stats.max[:8], "big")
        start = np.searchsorted(first_words, np.uint64(low), side="left")
        if start < len(first_words) and int(first_words[start]) <= high:
            yield group


def open_index(store: Store, ref: FileRef) -> pq.ParquetFile:
    """Open an index for reading in parts, once all of it was checked.

    Pages have checksums of their own, but the statistics that tell where a key can be have none: by
    a damaged one a subject would not be found.

    Raises:
        ExactnessError: It is missing or damaged.
    """
    try:
        return pq.ParquetFile(store.checked(ref), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise ExactnessError(f"{ref.path} cannot be read: {partition.reason(error)}.") from None


def scan(store: Store, ref: FileRef | None) -> Iterator[pa.Table]:
    """All rows of an index or journal in their order, a row group at a time."""
    if ref is None:
        return
    with open_index(store, ref) as file:
        yield from partition.read_groups(file, range(file.metadata.num_row_groups))


def count(store: Store, ref: FileRef | None, column: str) -> tuple[int, int]:
    """How many rows an index has, and how many different keys in the column it is sorted by.

    Raises:
        ExactnessError: It is missing or damaged.
    """
    rows = different = 0
    last = keys.empty()
    for table in scan(store, ref):
        found = np.concatenate([last, keys.from_arrow(table[column])])
        different += int((found[1:] != found[:-1]).any(axis=1).sum())
        rows += table.num_rows
        last = found[-1:]
    different += len(last)  # the first has none before it to differ from
    return rows, different


class Cursor:
    """Walks a sorted sequence of tables, taking off what lies below a bound."""

    def __init__(self, tables: Iterable[pa.Table], column: str) -> None:
        self._tables = iter(tables)
        self._column = column
        self._waiting: pa.Table | None = None

    def below(self, bound: int | None) -> list[pa.Table]:
        """All rows not yet taken whose first key word is under the bound (None: all)."""
        taken: list[pa.Table] = []
        while True:
            table = self._waiting if self._waiting is not None else next(self._tables, None)
            self._waiting = None
            if table is None:
                return taken
            if bound is None:
                taken.append(table)
                continue
            found = keys.words(keys.from_arrow(table[self._column]))[:, 0]
            cut = int(np.searchsorted(found, np.uint64(bound), side="left"))
            if cut:
                taken.append(table.slice(0, cut))
            if cut < table.num_rows:
                self._waiting = table.slice(cut)
                return taken


def bounds(rows: int) -> list[int | None]:
    """Upper bounds of first key words that cut n uniform keys into ranges of `RANGE_ROWS`."""
    ranges = max(1, -(-rows // RANGE_ROWS))
    return [(i << 64) // ranges for i in range(1, ranges)] + [None]
