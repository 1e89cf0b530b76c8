"""A partition written without a record is byte-equal to one that never held it."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_index import keys, partition
from data_index.errors import ExactnessError
from data_index.schema import LINEAGE, Columns

RING = keys.derive(bytes(range(32)))
COLUMNS = Columns.of(
    "id",
    "who",
    "y",
    (0, 1, 2),
    {"a": "float64", "n": "int16", "b": "bool", "t": "text", "i": "uint8[3]"},
)
NUMERIC = Columns.of("id", None, "y", None, {"a": "float32"})

few = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
rows = st.fixed_dictionaries(
    {
        "y": st.integers(0, 2),
        "a": st.none() | st.floats(-1e9, 1e9),
        "n": st.none() | st.integers(-9, 9),
        "b": st.none() | st.booleans(),
        "t": st.none() | st.text(max_size=5),
        "i": st.binary(min_size=3, max_size=3),
    }
)
tables = st.lists(rows, min_size=1, max_size=30)


def table(content: list[dict[str, Any]], first: int = 0) -> pa.Table:
    """Rows in the order of their record keys."""
    ids = [str(first + n).encode() for n in range(len(content))]
    built = pa.table(
        [
            keys.to_arrow(keys.record_keys(RING, ids)),
            keys.to_arrow(keys.subject_keys(RING, ids)),
            pa.array([r["y"] for r in content], pa.int32()),
            *(pa.array([r[f.name] for r in content], f.arrow) for f in COLUMNS.features),
        ],
        schema=COLUMNS.schema,
    )
    return partition.sort(built)


def plain(count: int, seed: int = 0) -> pa.Table:
    """Many rows of one number and one text."""
    rng = np.random.default_rng(seed)
    text = rng.bytes(2 * count).hex()
    found = keys.record_keys(RING, [str(n).encode() for n in range(count)])
    return partition.sort(
        pa.table(
            [
                keys.to_arrow(found),
                keys.to_arrow(found),
                pa.array(rng.integers(0, 3, count), pa.int32()),
                pa.array(rng.normal(size=count), mask=rng.random(count) < 0.1),
                pa.array(rng.random(count) < 0.5, mask=rng.random(count) < 0.1),
                pa.array([text[i : i + 3] for i in range(count)]),
            ],
            names=["record_key", "subject_key", "target", "x_a", "x_b", "x_t"],
        )
    )


PLAIN = Columns.of("id", None, "y", (0, 1, 2), {"a": "float64", "b": "bool", "t": "text"})


def in_pieces(whole: pa.Table, cuts: list[int]) -> pa.Table:
    """The same rows in many chunks, with garbage before and behind each."""
    edges = sorted({0, whole.num_rows, *(c % (whole.num_rows + 1) for c in cuts)})
    pieces = [
        pa.concat_tables([whole.slice(0, 1), whole]).combine_chunks().slice(1 + a, b - a)
        for a, b in pairwise(edges)
    ]
    return pa.concat_tables(pieces)


def cut(table: pa.Table, edges: list[int]) -> list[pa.Table]:
    return [table.slice(a, b - a) for a, b in pairwise(edges)]


def streamed(pieces: list[pa.Table], schema: pa.Schema) -> bytes:
    sink = io.BytesIO()
    with partition.streaming(sink, schema) as put:
        for piece in pieces:
            put(piece)
    return sink.getvalue()


@few
@given(tables, st.lists(st.integers(0, 99)), st.data())
def test_bytes_after_a_rewrite_are_those_of_a_file_that_never_held_the_rows(content, cuts, data):
    whole = table(content)
    keep = np.array(
        data.draw(st.lists(st.booleans(), min_size=len(content), max_size=len(content)))
    )
    stored = partition.read(partition.write(in_pieces(whole, cuts), COLUMNS))
    rewritten = partition.write(stored.filter(pa.array(keep)), COLUMNS)
    never = whole.take(pa.array(np.flatnonzero(keep)))
    assert rewritten == partition.write(never, COLUMNS)
    assert partition.digest_of(stored.filter(pa.array(keep)), COLUMNS, RING) == partition.digest_of(
        never, COLUMNS, RING
    )


@few
@given(tables, st.lists(st.integers(0, 99)))
def test_what_is_read_is_what_was_written(content, cuts):
    whole = table(content)
    stored = partition.read(partition.write(in_pieces(whole, cuts), COLUMNS))
    assert stored.equals(whole)
    assert stored.schema.equals(COLUMNS.schema, check_metadata=True)


@few
@given(tables, st.lists(st.integers(0, 99)))
def test_digests_do_not_depend_on_chunks(content, cuts):
    whole = table(content)
    pieces = in_pieces(whole, cuts)
    digests = partition.row_digests(whole, COLUMNS, RING)
    assert partition.row_digests(pieces, COLUMNS, RING).tobytes() == digests.tobytes()
    alone = [partition.row_digests(whole.slice(n, 1), COLUMNS, RING) for n in range(len(content))]
    assert np.concatenate(alone).tobytes() == digests.tobytes()


BASE = {"y": 1, "a": 0.0, "n": 0, "b": False, "t": "", "i": b"\0\0\0"}
OTHER = {
    "y": [0, 2],
    "a": [None, 5e-324, 1.0],
    "n": [None, 1, 256],
    "b": [None, True],
    "t": [None, "\0", "x", "xx"],
    "i": [b"\0\0\1", b"\1\0\0"],
}


def test_every_cell_is_in_the_row_digest():
    changed = [BASE, *({**BASE, name: value} for name in OTHER for value in OTHER[name])]
    found = [partition.row_digests(table([row]), COLUMNS, RING)[0].tobytes() for row in changed]
    assert len(set(found)) == len(changed)


def test_keys_are_in_the_row_digest():
    one = table([BASE])
    for name in ("record_key", "subject_key"):
        at = one.column_names.index(name)
        other = one.set_column(
            at, one.schema.field(name), keys.to_arrow(np.zeros((1, 16), np.uint8))
        )
        before, after = (partition.row_digests(t, COLUMNS, RING) for t in (one, other))
        assert before.tobytes() != after.tobytes()


def test_digests_are_keyed():
    other = keys.derive(bytes(32))
    one = table([BASE])
    before = partition.row_digests(one, COLUMNS, RING).tobytes()
    assert before != partition.row_digests(one, COLUMNS, other).tobytes()
    assert partition.digest_of(one, COLUMNS, RING) != partition.digest_of(one, COLUMNS, other)


def test_the_logical_digest_sees_rows_their_order_and_their_number():
    whole = table([BASE, {**BASE, "y": 2}, {**BASE, "y": 0}])
    found = {
        partition.digest_of(t, COLUMNS, RING)
        for t in (
            whole,
            whole.slice(1),
            whole.slice(0, 2),
            whole.take([1, 0, 2]),
            whole.slice(0, 0),
        )
    }
    assert len(found) == 5


def test_the_logical_digest_of_fixed_rows_never_changes():
    """It decides what is trained again: a new pyarrow or platform must not move it."""
    found = partition.digest_of(table([BASE, {**BASE, "t": "ü", "a": None}]), COLUMNS, RING)
    assert found == "247fc13a933bd60d61d638c8e2fad69c6021897899956e12e8b4a263a3e8983a"


def test_the_logical_digest_does_not_depend_on_the_bytes_of_the_file():
    whole = plain(500)
    sink = io.BytesIO()
    pq.write_table(whole, sink, compression="snappy", use_dictionary=True, row_group_size=70)
    other = partition.read(sink.getvalue())
    assert sink.getvalue() != partition.write(whole, PLAIN)
    assert partition.digest_of(other, PLAIN, RING) == partition.digest_of(whole, PLAIN, RING)


@few
@given(st.lists(st.integers(0, 40), max_size=6), st.integers(1, 12))
def test_a_streamed_file_does_not_depend_on_how_the_rows_are_cut(monkeypatch, cuts, group):
    monkeypatch.setattr(partition, "ROW_GROUP", group)
    whole = plain(40)
    edges = sorted([0, 40, *cuts])
    assert streamed(cut(whole, edges), PLAIN.schema) == streamed([whole], PLAIN.schema)


def test_row_groups_are_of_one_size(monkeypatch):
    monkeypatch.setattr(partition, "ROW_GROUP", 16)
    data = streamed(cut(plain(40), [0, 3, 3, 33, 40]), PLAIN.schema)
    meta = pq.ParquetFile(io.BytesIO(data)).metadata
    assert [meta.row_group(g).num_rows for g in range(meta.num_row_groups)] == [16, 16, 8]


@pytest.mark.slow
def test_large_files_do_not_depend_on_how_the_rows_are_cut():
    """Several full row groups with several pages each."""
    count = 2 * partition.ROW_GROUP + 4321
    whole = plain(count)
    edges = [0, 7, 65_530, 65_537, 100_003, 131_072, count]
    assert streamed(cut(whole, edges), PLAIN.schema) == partition.write(whole, PLAIN)
    keep = pa.array(np.random.default_rng(1).random(count) < 0.7)
    stored = partition.read(partition.write(whole, PLAIN))
    assert partition.write(stored.filter(keep), PLAIN) == partition.write(whole.filter(keep), PLAIN)


def test_no_rows_make_a_file_without_row_groups():
    data = streamed([], LINEAGE)
    assert data == streamed([LINEAGE.empty_table()], LINEAGE)
    assert partition.read(data).num_rows == 0


def test_nothing_of_the_source_but_its_rows_is_in_the_file():
    marked = table([BASE]).replace_schema_metadata({"pandas": "left-over-zq"})
    fields = [f.with_metadata({"note": "left-over-zq"}) for f in marked.schema]
    data = partition.write(marked.cast(pa.schema(fields)), COLUMNS)
    assert b"left-over-zq" not in data
    assert b"ARROW:schema" not in data
    assert data == partition.write(table([BASE]), COLUMNS)


def test_a_flipped_bit_is_noticed_wherever_it_is():
    """A reader may skip what is flipped; but never may other rows come out of it."""
    data = partition.write(plain(300), PLAIN)
    whole, noticed = partition.read(data), 0
    positions = list(range(4, len(data), max(1, len(data) // 300)))
    for at in positions:
        flipped = bytearray(data)
        flipped[at] ^= 0x10
        try:
            found = partition.read(bytes(flipped))
        except ExactnessError:
            noticed += 1
            continue
        assert found.equals(whole) or at > len(data) - 2000  # the footer has no checksum
    assert noticed > 0.6 * len(positions)


def test_a_flipped_bit_in_a_page_is_noticed_when_row_groups_are_read():
    data = bytearray(partition.write(plain(300), PLAIN))
    meta = pq.ParquetFile(io.BytesIO(bytes(data))).metadata.row_group(0).column(0)
    data[meta.data_page_offset + meta.total_compressed_size // 2] ^= 1
    file = pq.ParquetFile(io.BytesIO(bytes(data)), page_checksum_verification=True)
    with pytest.raises(ExactnessError, match="cannot be read"):
        list(partition.read_groups(file, [0]))
    with pytest.raises(ExactnessError, match="cannot be read"):
        partition.read(bytes(data))


@pytest.mark.parametrize("data", [b"", b"PAR1", b"no Parquet at all, but long enough"])
def test_what_is_no_parquet_is_refused(data):
    with pytest.raises(ExactnessError, match="cannot be read"):
        partition.read(data)


def test_arrays_are_seen_without_a_copy_and_through_slices():
    columns = Columns.of("id", None, "y", None, {"v": "float32[2]"})
    values = np.arange(10, dtype="<f4").reshape(5, 2)
    feature = columns.features[0]
    stored = pa.chunked_array([pa.array([r.tobytes() for r in values], feature.arrow)])
    found = partition.array_values(stored, np.dtype("<f4"), 2)
    assert (found == values).all() and not found.flags.owndata
    assert (partition.array_values(stored.slice(3), np.dtype("<f4"), 2) == values[3:]).all()
    none = partition.array_values(pa.chunked_array([], feature.arrow), np.dtype("<f4"), 2)
    assert none.shape == (0, 2)
