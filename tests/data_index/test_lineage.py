"""Looking ids up reads little and finds what reading everything finds."""

from __future__ import annotations

import hashlib
import os
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_index import keys, lineage, partition
from data_index.errors import ExactnessError
from data_index.lineage import Cursor, Selection
from data_index.schema import LINEAGE
from data_index.storage import Store

RING = keys.derive(bytes(range(32)))
COUNT = 300


def key_of(kind, numbers):
    make = keys.record_keys if kind == "r" else keys.subject_keys
    return make(RING, [f"{kind}{n}".encode() for n in numbers])


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    """Both indexes of 300 records of 100 subjects, in row groups of 8."""
    store = Store(tmp_path_factory.mktemp("lineage"))
    records, subjects = key_of("r", range(COUNT)), key_of("s", [n // 3 for n in range(COUNT)])
    whole = pa.table(
        [
            keys.to_arrow(records),
            keys.to_arrow(subjects),
            pa.array(np.arange(COUNT) % 5, pa.int32()),
            pa.array(np.arange(COUNT) % 3 + 1, pa.int32()),
            keys.to_arrow(records[::-1]),
        ],
        schema=LINEAGE,
    )
    refs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partition, "ROW_GROUP", 8)
        for order in (keys.sort_order(records), keys.sort_order(subjects, records)):
            sink = store.create("lineage", ".parquet")
            with sink, partition.streaming(sink, LINEAGE) as put:
                put(whole.take(pa.array(order)))
            refs.append(sink.ref)
    return store, *refs, partition.sort(whole)


numbers = st.lists(st.integers(0, 2 * COUNT), max_size=8)


@settings(max_examples=80, deadline=None)
@given(numbers, numbers)
def test_what_is_found_is_what_a_full_scan_finds(indexes, records, subjects):
    store, by_record, by_subject, whole = indexes
    wanted = Selection(key_of("s", subjects), key_of("r", records))
    found = lineage.find(store, by_record, by_subject, wanted)
    expected = whole.filter(pa.array(wanted.mask(whole)))
    assert found.equals(expected)


def test_only_row_groups_that_may_hold_a_key_are_read(indexes, monkeypatch):
    store, by_record, by_subject, _ = indexes
    read = []
    original = partition.read_groups

    def counting(file, groups):
        groups = list(groups)
        read.append((len(groups), file.metadata.num_row_groups))
        return original(file, groups)

    monkeypatch.setattr(partition, "read_groups", counting)
    for n in range(0, COUNT, 29):
        read.clear()
        found = lineage.find(
            store, by_record, by_subject, Selection(keys.empty(), key_of("r", [n]))
        )
        assert found.num_rows == 1
        assert read == [(1, 38)]
        read.clear()
        found = lineage.find(
            store, by_record, by_subject, Selection(key_of("s", [n // 3]), keys.empty())
        )
        assert found.num_rows == 3
        ((groups, of),) = read
        assert 1 <= groups <= 2 and of == 38


def test_no_key_reads_nothing(indexes, monkeypatch):
    store, by_record, by_subject, _ = indexes
    monkeypatch.setattr(lineage, "open_index", lambda *_: pytest.fail("opened an index"))
    assert lineage.find(store, by_record, by_subject, Selection.nothing()).num_rows == 0
    assert not Selection.nothing()


def test_without_indexes_nothing_is_found(indexes):
    found = lineage.find(indexes[0], None, None, Selection(key_of("s", [1]), key_of("r", [1])))
    assert found.num_rows == 0
    assert found.schema.equals(LINEAGE)


def test_a_record_that_is_named_twice_is_found_once(indexes):
    store, by_record, by_subject, _ = indexes
    wanted = Selection(key_of("s", [1, 1]), key_of("r", [3, 4, 3, 50]))
    found = lineage.find(store, by_record, by_subject, wanted)
    assert found.num_rows == 4  # 3, 4, 5 of subject 1, and 50


def test_a_record_key_is_no_subject_key(indexes):
    store, by_record, by_subject, _ = indexes
    assert (
        lineage.find(
            store, by_record, by_subject, Selection(key_of("r", [1]), key_of("s", [1]))
        ).num_rows
        == 0
    )


def test_a_damaged_index_is_noticed(indexes, tmp_path):
    store, by_record, *_ = indexes
    other = Store(tmp_path)
    data = bytearray(store.read(by_record))
    page = pq.ParquetFile(store.path(by_record.path)).metadata.row_group(3).column(1)
    data[page.data_page_offset + page.total_compressed_size - 20] ^= 1
    for damaged in (bytes(data), bytes(data[:100])):
        other.put_named(by_record.path, damaged)
        with pytest.raises(ExactnessError, match="is damaged"):
            list(lineage.scan(other, by_record))
    other.delete([by_record.path])
    with pytest.raises(ExactnessError, match="is missing"):
        list(lineage.scan(other, by_record))


def test_a_flipped_statistic_hides_nobody(indexes, tmp_path, monkeypatch):
    """Statistics have no checksum; a wrong one would let a subject be `not_found`."""
    store, by_record, by_subject, _ = indexes
    data, other = store.read(by_subject), Store(tmp_path)
    metadata = pq.ParquetFile(store.path(by_subject.path)).metadata
    footer, hidden = len(data) - metadata.serialized_size - 8, 0
    for group in range(metadata.num_row_groups):
        low = metadata.row_group(group).column(1).statistics.min
        wanted = Selection(keys.from_arrow(pa.array([low], pa.binary(16))), keys.empty())
        there = lineage.find(store, by_record, by_subject, wanted).num_rows
        assert there > 0
        for at in [i for i in range(footer, len(data)) if data.startswith(low, i)]:
            wrong = bytearray(data)
            wrong[at : at + 8] = b"\xff" * 8
            other.put_named(by_subject.path, bytes(wrong))
            with pytest.raises(ExactnessError, match="is damaged"):
                lineage.find(other, by_record, by_subject, wanted)
            with monkeypatch.context() as unchecked:
                unchecked.setattr(Store, "checked", lambda self, ref: self.path(ref.path))
                hidden += lineage.find(other, None, by_subject, wanted).num_rows < there
    assert hidden > 0, "the control: without the check somebody is not found"


def test_an_index_is_hashed_once_and_again_when_it_changes(indexes, monkeypatch):
    whole, by_record, *_ = indexes
    store, hashed = Store(whole.root), []
    real = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: hashed.append(a) or real(*a))
    for _ in range(3):
        list(lineage.scan(store, by_record))
    assert len(hashed) == 1
    os.utime(store.path(by_record.path))
    list(lineage.scan(store, by_record))
    assert len(hashed) == 2


@given(
    st.lists(st.integers(0, 9), max_size=30).map(sorted),
    st.lists(st.integers(0, 30), max_size=4),
    st.lists(st.integers(0, 11), max_size=4).map(sorted),
)
def test_a_cursor_gives_every_row_once_and_below_its_bound(words, cuts, bounds):
    def table(some):
        raw = b"".join(w.to_bytes(8, "big") + bytes(8) for w in some)
        return pa.table({"k": keys.to_arrow(np.frombuffer(raw, np.uint8).reshape(-1, 16))})

    edges = sorted([0, len(words), *(c % (len(words) + 1) for c in cuts)])
    cursor = Cursor([table(words[a:b]) for a, b in pairwise(edges)], "k")
    before = 0
    for bound in [*bounds, None]:
        taken = [
            int(w) for t in cursor.below(bound) for w in keys.words(keys.from_arrow(t["k"]))[:, 0]
        ]
        assert taken == [w for w in words if before <= w and (bound is None or w < bound)]
        before = 10**9 if bound is None else max(before, bound)


@pytest.mark.parametrize("rows", [0, 1, 200_000, 200_001, 1_000_000])
def test_bounds_cut_all_keys_into_ranges_of_a_fixed_size(rows):
    found = lineage.bounds(rows)
    assert found[-1] is None
    assert len(found) == max(1, -(-rows // lineage.RANGE_ROWS))
    assert found[:-1] == sorted(found[:-1])
    assert all(0 < b < 1 << 64 for b in found[:-1])
