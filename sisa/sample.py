"""Some rows of the data, for the checks that look at values: of the store, else of the sources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_index import keys, sources
from data_index.keys import Keyring
from data_index.schema import RECORD_KEY, SUBJECT_KEY, TARGET, Columns
from data_index.storage import Store
from data_index.view import PartitionView

MOST = 20_000
FEWEST = 4_000
CELLS = 2_000_000
"""Rows times columns; wide tables are sampled more thinly, but not under `FEWEST` rows."""

FILES = 64
"""Partitions that are opened at most."""

READ = 1_000_000
"""Rows of the sources that are looked through at most."""

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """n of the rows there are.

    Attributes:
        rows: Keys, target and features as partitions hold them, n rows.
        shards: Shard of each, int64 [n].
        sizes: Rows of each (shard, slice) that has any; before the first ingest, as estimated.
        total: Rows that these n were taken from.
    """

    rows: pa.Table
    shards: Indices
    sizes: Mapping[tuple[int, int], int]
    total: int

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    @property
    def complete(self) -> bool:
        """Whether it is all rows."""
        return len(self) == self.total

    @cached_property
    def target(self) -> npt.NDArray[Any]:
        """Class index int64 [n], or value float64 [n]."""
        values = self.rows[TARGET].to_numpy()
        kind = np.float64 if values.dtype.kind == "f" else np.int64
        found: npt.NDArray[Any] = values.astype(kind)
        return found

    @cached_property
    def subjects(self) -> Indices:
        """A number for each row's subject, int64 [n]."""
        words = keys.words(keys.from_arrow(self.rows[SUBJECT_KEY]))
        found: Indices = np.unique(words[:, 0], return_inverse=True)[1]
        return found

    def half(self, column: str) -> npt.NDArray[np.bool_]:
        """A random half of the rows, or of the subjects, by one bit of a key column; bool [n]."""
        words = keys.words(keys.from_arrow(self.rows[column]))
        bits: npt.NDArray[np.bool_] = (words[:, 1] >> np.uint64(63)).astype(bool)
        return bits


def limit(columns: Columns) -> int:
    """How many rows to sample."""
    return min(MOST, max(FEWEST, CELLS // len(columns.features)))


def of_store(store: Store, columns: Columns, views: Sequence[PartitionView]) -> Sample:
    """The first rows of partitions: sorted by keyed hashes, they are random ones.

    Raises:
        ExactnessError: A partition is missing or damaged.
    """
    chosen = [views[i] for i in _spread(len(views), FILES)]
    share = min(1.0, limit(columns) / sum(v.rows for v in chosen))
    # Rounded up, so that a small partition is not passed over.
    tables = [v.read(store).slice(0, int(np.ceil(v.rows * share))) for v in chosen]
    shards = np.repeat([v.shard for v in chosen], [t.num_rows for t in tables])
    sizes = {(v.shard, v.slice): v.rows for v in views}
    return Sample(pa.concat_tables(tables), shards, sizes, sum(sizes.values()))


def of_sources(
    paths: Iterable[Path], columns: Columns, ring: Keyring, grid: tuple[int, int]
) -> Sample | None:
    """Rows spread evenly over source files, placed as ingest would place them; None if no row.

    Args:
        paths: Files and folders.
        columns: What the recipe declares.
        ring: Subkeys.
        grid: Numbers of shards and slices.

    Raises:
        NotFoundError: A path does not exist.
        DataError: A file cannot be read or does not fit.
    """
    parts, total = _thinned(sources.expand(list(paths)), columns, limit(columns), ring)
    if not parts:
        return None
    rows = pa.concat_tables(parts)
    shards, slices = keys.place(keys.from_arrow(rows[SUBJECT_KEY]), *grid)
    counts = Counter(zip(shards.tolist(), slices.tolist(), strict=True))
    sizes = {place: round(n * total / len(shards)) for place, n in sorted(counts.items())}
    return Sample(rows, shards.astype(np.int64), sizes, total)


def _thinned(
    files: Sequence[Path], columns: Columns, most: int, ring: Keyring
) -> tuple[list[pa.Table], int]:
    """Every k-th row with the smallest power of two k that leaves at most `most`, and all rows."""
    parts: list[pa.Table] = []
    step, total = 1, 0
    for file in files:
        for batch in sources.read(file, columns):
            parts.append(_keyed(batch, range(-total % step, batch.table.num_rows, step), ring))
            total += batch.table.num_rows
            while sum(p.num_rows for p in parts) > most:
                step *= 2
                parts = _halved(parts)
            if total >= READ:
                return parts, total
    return parts, total


def _halved(parts: list[pa.Table]) -> list[pa.Table]:
    rows = pa.concat_tables(parts)
    return [rows.take(pa.array(range(0, rows.num_rows, 2)))]


def _keyed(batch: sources.Rows, rows: range, ring: Keyring) -> pa.Table:
    """Some rows of a batch as a partition has them."""
    records = keys.record_keys(ring, [batch.record_ids[i] for i in rows])
    subjects = keys.subject_keys(ring, [batch.subject_ids[i] for i in rows])
    table = batch.table.take(pa.array(rows, pa.int64()))
    table = table.add_column(0, SUBJECT_KEY, keys.to_arrow(subjects))
    return table.add_column(0, RECORD_KEY, keys.to_arrow(records))


def _spread(count: int, most: int) -> list[int]:
    """At most `most` numbers below `count`, evenly spread."""
    return sorted({i * count // most for i in range(most)}) if count > most else list(range(count))
