"""A data index to try: columns of every kind, tables with nulls, and a store to take them in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_index import keys, partition, rewrite
from data_index.dataset import DataSet
from data_index.ingest import Grid, Ingested, ingest
from data_index.keys import Keyring, Keys
from data_index.lineage import Selection
from data_index.schema import Columns
from data_index.storage import Store

RING = keys.derive(bytes(range(32)))
COLUMNS = Columns.of(
    "id",
    "who",
    "y",
    (0, 1, 2),
    {"a": "float64", "n": "int32", "b": "bool", "t": "text", "image": "uint8[6]"},
)


def nobody(found: Keys) -> Any:
    """No key meets a tombstone."""
    return np.zeros(len(found), dtype=bool)


def source(count: int, seed: int = 0, start: int = 0, per_subject: int = 3) -> pa.Table:
    """Rows `start..start+count` of an endless table: a row depends on its number and the seed."""
    rows = range(start, start + count)
    rng = [np.random.default_rng((seed, row)) for row in rows]

    def or_null(values: list[Any]) -> list[Any]:
        return [None if (row + seed) % 11 == 3 else v for row, v in zip(rows, values, strict=True)]

    return pa.table(
        {
            "id": [f"r{row}" for row in rows],
            "who": [f"s{row // per_subject}" for row in rows],
            "y": pa.array([int(r.integers(3)) for r in rng], pa.int64()),
            "a": pa.array(or_null([float(r.normal()) for r in rng]), pa.float64()),
            "n": pa.array(or_null([int(r.integers(-9, 9)) for r in rng]), pa.int32()),
            "b": pa.array(or_null([bool(r.integers(2)) for r in rng]), pa.bool_()),
            "t": pa.array(or_null(["ü" * int(r.integers(4)) for r in rng]), pa.string()),
            "image": pa.array(
                [r.integers(0, 255, 6).tolist() for r in rng], pa.list_(pa.uint8(), 6)
            ),
        }
    )


@dataclass
class Index:
    """A store with what ingest needs, and the data set that it holds."""

    folder: Path
    columns: Columns = COLUMNS
    ring: Keyring = RING
    grid: Grid = field(default_factory=lambda: Grid(3, 2))
    dataset: DataSet = field(default_factory=lambda: DataSet("layout"))
    written: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.store = Store(self.folder / "store")

    def write(self, table: pa.Table, name: str | None = None, rows: int = 1000) -> Path:
        """A Parquet file with a table."""
        self.written += 1
        path = self.folder / (name or f"source{self.written}.parquet")
        pq.write_table(table, path, row_group_size=rows)
        return path

    def ingest(
        self, *tables: pa.Table | Path, meets: Callable[[Keys], Any] = nobody, **how: bool
    ) -> Ingested:
        """Take tables in with one call; an error changes nothing."""
        paths = [t if isinstance(t, Path) else self.write(t) for t in tables]
        done = ingest(
            self.store, self.ring, self.columns, self.grid, self.dataset, paths, meets, **how
        )
        self.dataset = done.dataset
        return done

    def named(self, subjects: list[str] | None = None, records: list[str] | None = None) -> Any:
        """The selection that ids stand for."""
        return Selection(
            keys.subject_keys(self.ring, [s.encode() for s in subjects or []]),
            keys.record_keys(self.ring, [r.encode() for r in records or []]),
        )

    def forget(self, *, subjects: list[str] | None = None, records: list[str] | None = None) -> Any:
        """Write the data set without subjects and records."""
        gone = self.named(subjects, records)
        self.dataset = rewrite.without(self.store, self.ring, self.columns, self.dataset, gone)
        return self.dataset

    def compared(self) -> dict[str, Any]:
        """What must not depend on how the records came in: all but the journals."""
        d = self.dataset
        return {
            "partitions": [asdict(p) for p in d.partitions],
            "by_record": d.by_record,
            "by_subject": d.by_subject,
        }

    def journal(self) -> pa.Table:
        """All rows of all journals."""
        return pa.concat_tables(partition.read(self.store.read(j)) for j in self.dataset.journals)

    def scratch(self) -> list[str]:
        """Temporary files and folders that were left."""
        top = self.store.root / "tmp"
        return [str(p) for p in top.rglob("*")] if top.exists() else []


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """An empty data index."""
    return Index(tmp_path / "index")


@pytest.fixture
def make_index(tmp_path: Path) -> Callable[..., Index]:
    """Makes further ones."""
    count = 0

    def make(**changed: Any) -> Index:
        nonlocal count
        count += 1
        return Index(tmp_path / f"index-{count}", **changed)

    return make


@pytest.fixture(name="source", scope="session")
def source_fixture() -> Callable[..., pa.Table]:
    """Makes source tables."""
    return source


@pytest.fixture(scope="session")
def ring() -> Keyring:
    """Subkeys of a fixed secret."""
    return RING


@pytest.fixture(scope="session")
def columns() -> Columns:
    """One feature of each kind."""
    return COLUMNS
