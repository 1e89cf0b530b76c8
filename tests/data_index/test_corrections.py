"""Corrected and appended records sit where they would in a data set that never knew another row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_index import ingest as ingestion
from data_index import keys, lineage, partition, sources
from data_index.dataset import DataSet
from data_index.errors import DataError


def owned(table, who):
    """The same rows, of somebody else."""
    return table.set_column(1, "who", pa.array([who] * table.num_rows))


def changed(source, *rows):
    """Other values for some rows, of the same subjects."""
    return pa.concat_tables([source(1, seed=9, start=row) for row in rows])


def instead(table, *others):
    """A table with other rows for the ids that these have."""
    by_id = {row["id"]: row for row in pa.concat_tables([table, *others]).to_pylist()}
    return pa.Table.from_pylist([by_id[i] for i in table["id"].to_pylist()], table.schema)


def slices_of(index, records):
    rows = lineage.find(
        index.store, index.dataset.by_record, None, index.named(records=records)
    ).to_pylist()
    return {row["slice"] for row in rows}


def small(monkeypatch):
    monkeypatch.setattr(ingestion, "RUN_BYTES", 2500)
    monkeypatch.setattr(lineage, "RANGE_ROWS", 40)
    monkeypatch.setattr(sources, "BATCH_ROWS", 17)
    monkeypatch.setattr(partition, "ROW_GROUP", 16)


@pytest.mark.parametrize("runs", ["one run", "many runs"])
def test_a_correction_is_as_if_the_row_had_always_been_so(
    index, make_index, source, monkeypatch, runs
):
    if runs == "many runs":
        small(monkeypatch)
    table = source(150)
    index.ingest(table)
    new = changed(source, *range(0, 150, 4))
    new = instead(new, owned(source(20, seed=5, start=60), "s3"))
    done = index.ingest(new, source(3, start=1), source(2, start=150), correct=True)
    assert (done.records, done.corrected, done.skipped) == (2, 38, 3)
    other = make_index()
    other.ingest(instead(table, new), source(2, start=150))
    assert index.compared() == other.compared()
    assert index.scratch() == []


@pytest.mark.parametrize("runs", ["one run", "many runs"])
def test_a_record_moves_to_the_subject_that_the_correction_names(
    index, make_index, source, monkeypatch, runs
):
    if runs == "many runs":
        small(monkeypatch)
    table = source(150)
    index.ingest(table)
    new = owned(source(40, seed=4, start=30), "s3")
    done = index.ingest(new, correct=True)
    assert (done.corrected, done.subjects) == (40, 1)
    rows = table.slice(30, 40)["who"].to_pylist()
    shard, slice_ = keys.place(keys.subject_keys(index.ring, [w.encode() for w in rows]), 3, 2)
    assert done.moved == set(zip(shard.tolist(), slice_.tolist(), strict=True))
    other = make_index()
    other.ingest(instead(table, new))
    assert index.compared() == other.compared()
    assert (
        lineage.find(
            index.store, None, index.dataset.by_subject, index.named(subjects=["s3"])
        ).num_rows
        == 43
    )


def test_a_correction_back_brings_the_digests_back(index, source):
    index.ingest(source(60))
    before = index.compared()
    new = pa.concat_tables([owned(changed(source, 5, 6), "s15"), changed(source, 30)])
    index.ingest(new, correct=True)
    assert index.compared() != before
    assert index.ingest(source(60), correct=True).corrected == 3
    assert index.compared() == before


def test_a_partition_that_loses_its_only_record_has_no_file(index, source):
    index.grid = type(index.grid)(40, 6)
    index.ingest(source(12, per_subject=1))
    alone = next(p for p in index.dataset.partitions if p.rows == 1)
    key = partition.read(index.store.read(alone.file))["record_key"][0].as_py()
    rows = {bytes(keys.record_keys(index.ring, [f"r{n}".encode()])[0]): n for n in range(12)}
    others = (s for s in map(str, range(99)) if place(index, s) != (alone.shard, alone.slice))
    done = index.ingest(owned(source(1, start=rows[key]), next(others)), correct=True)
    assert done.corrected == 1 and index.dataset.records == 12
    assert (alone.shard, alone.slice) not in [(p.shard, p.slice) for p in index.dataset.partitions]


def place(index, subject):
    key = keys.subject_keys(index.ring, [subject.encode()])
    shard, slice_ = keys.place(key, index.grid.shards, index.grid.slices)
    return int(shard[0]), int(slice_[0])


def test_a_record_twice_in_a_correction_is_refused(index, source):
    index.ingest(source(20))
    before = index.dataset
    with pytest.raises(DataError, match="1 record ids come twice"):
        index.ingest(source(1, start=3), changed(source, 3), correct=True)
    with pytest.raises(DataError, match="1 record ids come twice"):
        index.ingest(changed(source, 3), owned(changed(source, 3), "x"), correct=True)
    assert index.dataset is before


def test_the_journals_say_where_the_row_comes_from_now(index, source):
    index.ingest(index.write(source(30), "first.parquet"))
    index.ingest(index.write(source(3, start=30), "second.parquet"))
    index.ingest(index.write(changed(source, 4, 31), "corrections.parquet"), correct=True)
    origin = {row["record_key"]: (row["file"], row["row"]) for row in index.journal().to_pylist()}
    assert index.journal().num_rows == len(origin) == 33
    keyed = keys.record_keys(index.ring, [b"r3", b"r4", b"r30", b"r31"])
    assert [origin[bytes(k)] for k in keyed] == [
        ("first.parquet", 3), ("corrections.parquet", 0),
        ("second.parquet", 0), ("corrections.parquet", 1),
    ]  # fmt: skip
    index.ingest(changed(source, 30, 32), correct=True)
    assert len(index.dataset.journals) == 3, "the second holds nothing any more"


def test_no_file_of_the_data_set_knows_the_former_subject(index, source):
    index.ingest(source(30))
    index.ingest(owned(source(3, start=9), "s1"), correct=True)
    former = bytes(index.named(subjects=["s3"]).subjects[0])
    for ref in index.dataset.files():
        table = partition.read(index.store.read(ref), ["subject_key"])
        assert former not in table["subject_key"].to_pylist()


@pytest.mark.parametrize("correct", [False, True])
def test_a_stored_row_of_an_accepted_erasure_is_left_as_it_is(index, source, correct):
    index.ingest(source(30))
    gone = index.named(subjects=["s3"], records=["r20"])
    stones = np.concatenate([gone.subjects, gone.records])
    before = index.dataset
    new = pa.concat_tables([owned(source(3, start=9), "s1"), changed(source, 20)])
    done = index.ingest(new, meets=lambda found: keys.contains(stones, found), correct=correct)
    assert (done.tombstoned, done.corrected, done.skipped) == (4, 0, 0)
    assert index.dataset is before


def test_a_correction_cannot_give_a_record_to_an_erased_subject(index, source):
    index.ingest(source(30))
    before = index.dataset
    stones = index.named(subjects=["gone"]).subjects
    done = index.ingest(
        owned(source(2, start=9), "gone"),
        meets=lambda found: keys.contains(stones, found),
        correct=True,
    )
    assert (done.tombstoned, done.corrected) == (2, 0)
    assert index.dataset is before


def test_appended_records_come_behind_all_others(index, source):
    index.ingest(source(30))
    before = index.dataset.partitions
    done = index.ingest(source(12, start=27), append=True)
    assert (done.records, done.skipped, index.dataset.appends) == (9, 3, 1)
    assert index.dataset.partitions[0] in before
    assert slices_of(index, [f"r{n}" for n in range(30, 39)]) == {3}
    assert {p for p in index.dataset.partitions if p.slice <= 2} == set(before)
    index.ingest(source(6, start=39), append=True)
    assert slices_of(index, [f"r{n}" for n in range(39, 45)]) == {4}
    index.ingest(source(6, start=45))
    assert slices_of(index, [f"r{n}" for n in range(45, 51)]) <= {1, 2}
    for p in index.dataset.partitions:
        table = partition.read(index.store.read(p.file))
        shard, _ = keys.place(keys.from_arrow(table["subject_key"]), 3, 2)
        assert set(shard) == {p.shard}


def test_further_records_of_a_known_subject_are_appended_too(index, source):
    index.ingest(source(7))
    index.ingest(source(2, start=7), append=True)  # s2 has r6, and now r7 and r8
    rows = lineage.find(
        index.store, None, index.dataset.by_subject, index.named(subjects=["s2"])
    ).to_pylist()
    assert sorted(row["slice"] for row in rows)[1:] == [3, 3]
    assert len({row["shard"] for row in rows}) == 1


def test_an_append_of_nothing_new_counts(index, source):
    index.ingest(source(30))
    before = index.dataset
    done = index.ingest(source(5), append=True)
    assert done.skipped == 5 and done.dataset == replace(before, appends=1)
    everyone = lambda found: np.ones(len(found), dtype=bool)  # noqa: E731
    assert index.ingest(source(5, start=90), append=True, meets=everyone).tombstoned == 5
    index.ingest(source(1).slice(1), append=True)
    assert index.dataset.appends == 3
    index.ingest(source(3, start=30), append=True)
    assert slices_of(index, ["r30", "r31", "r32"]) == {6}


def test_an_append_refuses_another_row_and_does_not_count_then(index, source):
    index.ingest(source(30))
    with pytest.raises(DataError, match="another row"):
        index.ingest(changed(source, 3), source(3, start=30), append=True)
    assert index.dataset.appends == 0


def test_a_call_can_correct_and_append(index, make_index, source):
    base, first = source(30), source(6, start=30)
    index.ingest(base)
    index.ingest(first, append=True)
    new = pa.concat_tables([changed(source, 4, 31), owned(source(2, start=33), "s1")])
    done = index.ingest(new, source(4, start=36), correct=True, append=True)
    assert (done.records, done.corrected) == (4, 4)
    assert slices_of(index, ["r31", "r33", "r34"]) == {3}, "they stay with their append"
    assert slices_of(index, [f"r{n}" for n in range(36, 40)]) == {4}
    other = make_index()
    other.ingest(instead(base, new.slice(0, 1)))
    other.ingest(instead(first, new.slice(1)), append=True)
    other.ingest(source(4, start=36), append=True)
    assert index.compared() == other.compared()


def test_a_data_set_without_moves_is_written_as_before(index, source):
    index.ingest(source(9))
    ref = index.dataset.save(index.store)
    assert b'"moved"' not in index.store.read(ref)
    assert DataSet.load(index.store, ref) == index.dataset
    moved = replace(index.dataset, moved=((1, 2, "ab"),))
    assert DataSet.load(index.store, moved.save(index.store)) == moved


ROWS = st.lists(
    st.tuples(st.integers(0, 15), st.sampled_from("abcdefg"), st.integers(0, 2)),
    max_size=8,
    unique_by=lambda row: row[0],
)
CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), ROWS, st.booleans(), st.booleans()),
        st.tuples(st.just("forget"), st.sampled_from("abcdefg")),
    ),
    min_size=1,
    max_size=8,
)


def as_table(source, rows):
    """Rows of (record, subject, value)."""
    if not rows:
        return source(1).slice(1)
    return pa.concat_tables([owned(source(1, seed=v, start=r), who) for r, who, v in rows])


@given(calls=CALLS)
@settings(max_examples=60, deadline=None, suppress_health_check=[*HealthCheck])
def test_any_history_leaves_what_its_records_give(make_index, source, calls):
    """Rows of each record as they are now, fed in the calls that first brought the record."""
    index = make_index(grid=ingestion.Grid(2, 2))
    held: dict[int, tuple[str, int, int]] = {}
    appends = 0
    for call in calls:
        if call[0] == "forget":
            held = {r: row for r, row in held.items() if row[0] != call[1]}
            index.forget(subjects=[call[1]])
            continue
        _, rows, correct, append = call
        differ = [r for r, who, v in rows if r in held and held[r][:2] != (who, v)]
        if (differ and not correct) or (not rows and not append):
            with pytest.raises(DataError):
                index.ingest(as_table(source, rows), correct=correct, append=append)
            continue
        done = index.ingest(as_table(source, rows), correct=correct, append=append)
        appends += append
        new = sum(r not in held for r, _, _ in rows)
        assert (done.records, done.corrected) == (new, len(differ))
        assert done.skipped == len(rows) - new - len(differ)
        for r, who, v in rows:
            held[r] = (who, v, held[r][2] if r in held else appends * append)
    assert index.dataset.appends == appends
    assert index.dataset.records == len(held)
    assert sum(partition.read(index.store.read(j)).num_rows for j in index.dataset.journals) == len(
        held
    )
    other = make_index(grid=index.grid)
    for group in range(appends + 1):
        rows = [(r, who, v) for r, (who, v, g) in held.items() if g == group]
        if rows or group:
            other.ingest(as_table(source, rows), append=group > 0)
    assert index.compared() == other.compared()
