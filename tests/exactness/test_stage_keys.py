"""The key property, and what a training digest must and must not depend on."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from data_index import keys, lineage
from data_index.dataset import DataSet
from data_index.ingest import Grid, ingest
from data_index.lineage import Selection
from data_index.schema import Columns
from data_index.storage import Store
from data_index.view import through
from sisa.stage import chain, root_key

RING = keys.derive(b"k" * 32)
COLUMNS = Columns.of("id", None, "y", (0, 1), {"a": "float64", "b": "text"})


def stage_keys(store: Store, dataset: DataSet, gone: Selection, shards: int) -> dict:
    """Key of every (shard, slice) that has a stage, as a build would see the data."""
    views = through(store, RING, COLUMNS, dataset, gone)
    links = [
        link for s in range(shards) for link in chain(s, (v for v in views if v.shard == s), "t")
    ]
    return {(link.shard, link.slice): link.key for link in links}


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.floats(-10, 10), st.sampled_from(["x", "y", None]), st.integers(0, 1)),
        min_size=2,
        max_size=30,
    ),
    shards=st.integers(1, 4),
    slices=st.integers(1, 5),
    victim=st.integers(0, 10**6),
)
def test_a_record_decides_the_keys_from_its_slice_on_and_no_other(
    rows, shards, slices, victim
) -> None:
    a, b, y = zip(*rows, strict=True)
    ids = [f"id-{i}" for i in range(len(rows))]
    table = pa.table({"id": ids, "a": a, "b": pa.array(b, pa.string()), "y": y})
    victim %= len(rows)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "rows.parquet")
        pq.write_table(table, source)
        store = Store(Path(folder, "store"))
        grid = Grid(shards, slices)
        none = lambda found: np.zeros(len(found), dtype=bool)  # noqa: E731
        dataset = ingest(store, RING, COLUMNS, grid, DataSet("x"), [source], none).dataset
        key = keys.record_keys(RING, [ids[victim].encode()])
        gone = Selection(keys.empty(), key)
        (row,) = lineage.find(store, dataset.by_record, dataset.by_subject, gone).to_pylist()
        before = stage_keys(store, dataset, Selection.nothing(), shards)
        after = stage_keys(store, dataset, gone, shards)

        rest = table.filter(pa.array([i != victim for i in range(len(rows))]))
        pq.write_table(rest, source)
        never = ingest(store, RING, COLUMNS, grid, DataSet("x"), [source], none).dataset
        assert after == stage_keys(store, never, Selection.nothing(), shards)

    own = (row["shard"], row["slice"])
    for place, old in before.items():
        later = place[0] == own[0] and place[1] >= own[1]
        assert (after.get(place) != old) == later, place
    assert set(after) - set(before) == set()


def test_keys_are_what_they_were() -> None:
    """A golden chain: a change here would retrain every model there is."""
    from data_index.storage import FileRef
    from data_index.view import PartitionView

    file = FileRef("p", "00", 1)
    views = [PartitionView(2, r, 5, f"{r:064x}", file) for r in (1, 3)]
    assert root_key(2, "t") == GOLDEN[0]
    assert [link.key for link in chain(2, views, "t")] == GOLDEN[1:]


GOLDEN = [
    "4b10c8c78bd87ecfe519e9cae62d3c5fe36a6ca5793d927edc823cd1855cd0f9",
    "690cd449d31c7c2907bfc50320943c2c440c17a1ade5afa5d75f5eddb415c437",
    "652ae0526a23c4eb442053ddb0f79f677bc4629c972aea02e93058a151737ec4",
]
