"""However records come in, the same records make the same files; an error changes nothing."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pytest

from data_index import ingest as ingestion
from data_index import keys, lineage, partition, sources
from data_index.errors import DataError, NotFoundError


def with_column(table, name, values):
    return table.set_column(table.column_names.index(name), name, values)


def stored(index):
    """Paths of all files of the store."""
    return list(index.store.list())


def test_what_came_in_is_counted(index, source):
    done = index.ingest(source(40))
    assert (done.records, done.subjects, done.skipped, done.tombstoned) == (40, 14, 0, 0)
    done = index.ingest(source(20, start=38))
    assert (done.records, done.subjects, done.skipped, done.tombstoned) == (18, 7, 2, 0)
    assert index.dataset.records == 58


def test_both_indexes_tell_where_every_record_sits(index, source):
    index.ingest(source(60))
    d = index.dataset
    by_record, by_subject = (
        partition.read(index.store.read(r)) for r in (d.by_record, d.by_subject)
    )
    expected = {
        (key, subject, p.shard, p.slice, digest)
        for p in d.partitions
        for table in [partition.read(index.store.read(p.file))]
        for key, subject, digest in zip(
            table["record_key"].to_pylist(),
            table["subject_key"].to_pylist(),
            map(bytes, partition.row_digests(table, index.columns, index.ring)),
            strict=True,
        )
    }
    assert len(expected) == 60
    for found in (by_record, by_subject):
        assert set(zip(*(c.to_pylist() for c in found.columns), strict=True)) == expected
    records = by_record["record_key"].to_pylist()
    assert records == sorted(records)
    pairs = list(
        zip(
            by_subject["subject_key"].to_pylist(), by_subject["record_key"].to_pylist(), strict=True
        )
    )
    assert pairs == sorted(pairs)


def test_records_sit_where_their_subject_belongs(index, source):
    index.ingest(source(60))
    for p in index.dataset.partitions:
        table = partition.read(index.store.read(p.file))
        subjects = keys.from_arrow(table["subject_key"])
        shard, slice_ = keys.place(subjects, index.grid.shards, index.grid.slices)
        assert set(shard) == {p.shard} and set(slice_) == {p.slice}
        assert p.rows == table.num_rows > 0
        assert p.logical == partition.digest_of(table, index.columns, index.ring)


def test_no_raw_id_is_stored(index, source):
    table = with_column(source(30), "id", pa.array([f"person-zq-{n}" for n in range(30)]))
    index.ingest(with_column(table, "who", pa.array([f"whole-zq-{n}" for n in range(30)])))
    for ref in index.dataset.files():
        names = set(partition.read(index.store.read(ref)).column_names)
        assert names <= {*index.columns.schema.names, "shard", "slice", "row_digest", "file", "row"}
    for path in stored(index):
        data = index.store.read_unchecked(path)
        assert b"person-zq" not in data and b"whole-zq" not in data


@pytest.mark.parametrize("parts", [[(0, 90), (90, 30)], [(90, 30), (0, 90)], [(0, 60), (30, 90)]])
def test_two_calls_in_any_order_give_the_files_of_one(index, make_index, source, parts):
    index.ingest(source(120))
    other = make_index()
    for start, count in parts:
        other.ingest(source(count, start=start))
    assert other.compared() == index.compared()


def test_the_order_of_rows_and_files_does_not_matter(index, make_index, source):
    whole = source(100)
    index.ingest(whole)
    shuffled = whole.take(np.random.default_rng(0).permutation(100))
    other = make_index()
    other.ingest(shuffled.slice(70), shuffled.slice(0, 10), shuffled.slice(10, 60))
    assert other.compared() == index.compared()


def test_many_small_runs_give_the_files_of_one(index, make_index, source, monkeypatch):
    monkeypatch.setattr(partition, "ROW_GROUP", 16)
    index.ingest(source(150))
    index.ingest(source(150, start=140))
    monkeypatch.setattr(ingestion, "RUN_BYTES", 2500)
    monkeypatch.setattr(lineage, "RANGE_ROWS", 40)
    monkeypatch.setattr(sources, "BATCH_ROWS", 17)
    other = make_index()
    spills = []
    whole_spill = ingestion._spill
    monkeypatch.setattr(ingestion, "_spill", lambda *a: (spills.append(1), whole_spill(*a)))
    other.ingest(source(150))
    second = other.ingest(source(150, start=140))
    assert len(spills) >= 10 and len(lineage.bounds(300)) > 5
    assert (second.records, second.skipped) == (140, 10)
    assert other.compared() == index.compared()
    assert other.journal().to_pylist() != [] and other.journal().num_rows == 290
    assert other.scratch() == []


def test_how_columns_are_encoded_does_not_matter(index, make_index, source):
    table = source(80)
    index.ingest(table)
    for name in ("id", "t"):
        table = with_column(table, name, table[name].dictionary_encode())
    table = with_column(table, "who", table["who"].cast(pa.large_string()))
    table = with_column(table, "image", table["image"].cast(pa.list_(pa.int64())))
    table = with_column(table, "a", pc.fill_null(table["a"], float("nan")))
    other = make_index()
    other.ingest(pa.concat_tables([table.slice(50), table.slice(0, 50)]))
    assert other.compared() == index.compared()
    again = index.ingest(table)
    assert (again.records, again.skipped) == (0, 80)


def test_a_stored_row_is_skipped_and_nothing_is_written_for_it(index, source):
    index.ingest(source(40))
    before = index.dataset
    files = stored(index)
    done = index.ingest(source(10, start=5))
    assert done.dataset is before
    assert stored(index) == files
    assert (done.records, done.subjects, done.skipped) == (0, 0, 10)


def test_partitions_that_gain_nothing_stay_as_they_are(index, source):
    index.ingest(source(60))
    before = {(p.shard, p.slice): p for p in index.dataset.partitions}
    index.ingest(source(1, start=60))
    after = {(p.shard, p.slice): p for p in index.dataset.partitions}
    assert sum(before[place] is not after[place] for place in before) == 1


OTHER = {
    "y": lambda old: (old + 1) % 3,
    "a": lambda old: 5.5,
    "n": lambda old: 99,
    "b": lambda old: not old,
    "t": lambda old: "other",
    "image": lambda old: [9] * 6,
    "who": lambda old: "s-other",
}


@pytest.mark.parametrize("column", OTHER)
def test_a_stored_id_with_another_row_is_refused(index, source, column):
    index.ingest(source(40))
    before, files = index.compared(), stored(index)
    table = source(10, start=30)
    values = table[column].to_pylist()
    values[3] = OTHER[column](values[3])
    changed = with_column(table, column, pa.array(values, table.schema.field(column).type))
    path = index.write(changed, "changed.parquet")
    message = (
        r"1 stored records have another row in this call, the first in row 3 of changed\.parquet"
    )
    with pytest.raises(DataError, match=message) as error:
        index.ingest(path)
    assert "r33" not in str(error.value)
    assert (index.compared(), stored(index), index.scratch()) == (before, files, [])


def test_an_id_twice_in_one_call_is_refused(index, source):
    index.ingest(source(20))
    before, files = index.compared(), stored(index)
    first = index.write(source(10, start=20), "first.parquet")
    second = index.write(source(5, start=29), "second.parquet")
    with pytest.raises(DataError) as error:
        index.ingest(first, second)
    assert "1 record ids come twice in this call" in error.value.message
    assert "row 9 of first.parquet" in error.value.message
    assert "row 0 of second.parquet" in error.value.message
    assert "r29" not in str(error.value)
    with pytest.raises(DataError, match="10 record ids come twice"):
        index.ingest(first, first)
    assert (index.compared(), stored(index), index.scratch()) == (before, files, [])


def test_an_id_twice_is_told_before_a_stored_id_with_another_row(index, source):
    index.ingest(source(20))
    changed = with_column(source(20), "y", pa.array([2 - y for y in source(20)["y"].to_pylist()]))
    with pytest.raises(DataError, match="come twice"):
        index.ingest(changed, source(1, start=20), source(1, start=20))


def test_an_id_under_two_subjects_is_refused(index, source):
    one = source(1)
    other = with_column(one, "who", pa.array(["somebody else"]))
    with pytest.raises(DataError, match="come twice"):
        index.ingest(one, other)
    index.ingest(one)
    with pytest.raises(DataError, match="another row"):
        index.ingest(other)
    assert index.dataset.records == 1


def test_a_record_of_a_forgotten_subject_may_come_under_another(index, source):
    index.ingest(source(9))
    index.forget(subjects=["s0"])
    done = index.ingest(with_column(source(1), "who", pa.array(["s9"])))
    assert done.records == 1


def test_tombstoned_rows_are_left_out_and_counted(index, make_index, source):
    gone = index.named(subjects=["s2", "unknown"], records=["r0", "r7"])

    def meets(found):
        return keys.contains(np.concatenate([gone.subjects, gone.records]), found)

    done = index.ingest(source(20), meets=meets)
    assert (done.records, done.tombstoned, done.skipped) == (16, 4, 0)  # r7 is of s2
    other = make_index()
    keep = [n for n in range(20) if n not in (0, 6, 7, 8)]
    other.ingest(source(20).take(keep))
    assert index.compared() == other.compared()
    assert not keys.contains(gone.records, keys.from_arrow(index.journal()["record_key"])).any()


def test_when_all_rows_are_tombstoned_nothing_changes(index, source):
    done = index.ingest(source(5), meets=lambda found: np.ones(len(found), dtype=bool))
    assert (done.records, done.tombstoned) == (0, 5)
    assert index.dataset.records == 0 and index.dataset.partitions == ()


def test_the_journal_tells_file_and_row(index, source):
    index.ingest(source(5))
    first = index.write(source(3, start=5), "first.parquet", rows=2)
    second = index.write(source(4, start=8), "second.parquet")
    index.ingest(first, second)
    assert len(index.dataset.journals) == 2
    table = partition.read(index.store.read(index.dataset.journals[1]))
    records = keys.record_keys(index.ring, [f"r{n}".encode() for n in range(5, 12)])
    expected = [("first.parquet", n) for n in range(3)] + [("second.parquet", n) for n in range(4)]
    found = zip(table["file"].to_pylist(), table["row"].to_pylist(), strict=True)
    assert dict(zip(table["record_key"].to_pylist(), found, strict=True)) == dict(
        zip(map(bytes, records), expected, strict=True)
    )


def test_a_csv_file_makes_the_same_files_as_parquet(make_index, source, tmp_path):
    made = [make_index() for _ in range(2)]
    table = source(30).drop_columns(["image"])
    texts = table["t"].to_pylist()
    table = with_column(table, "t", pa.array([t or "x" for t in texts]))
    pacsv.write_csv(table, tmp_path / "a.csv")
    plain = type(made[0].columns).of(
        "id", "who", "y", (0, 1, 2), {"a": "float64", "n": "int32", "b": "bool", "t": "text"}
    )
    for index in made:
        index.columns = plain
    made[0].ingest(table)
    made[1].ingest(tmp_path / "a.csv")
    assert made[0].compared() == made[1].compared()


def test_the_kind_of_ids_is_fixed_by_the_first_call(index, source):
    index.ingest(source(5))
    assert (index.dataset.record_kind, index.dataset.subject_kind) == ("string", "string")
    with pytest.raises(DataError, match="integer ids, but the data set has string ids"):
        index.ingest(with_column(source(5, start=5), "id", pa.array(range(5))))


def test_the_kind_of_ids_is_one_throughout_a_call(index, source):
    numbered = with_column(source(5, start=5), "id", pa.array(range(5)))
    with pytest.raises(DataError, match="integer ids, but the data set has string ids"):
        index.ingest(source(5), numbered)
    with pytest.raises(DataError, match="string ids, but the data set has integer ids"):
        index.ingest(numbered, source(5))
    assert index.dataset.records == 0 and stored(index) == []


def test_sources_without_rows_are_refused(index, source):
    with pytest.raises(DataError, match="hold no rows"):
        index.ingest(source(1).slice(1))
    (index.folder / "head.csv").write_text("id,who,y,a,n,b,t,image\n")
    index.columns = type(index.columns).of("id", "who", "y", (0, 1, 2), {"a": "float64"})
    with pytest.raises(DataError, match="hold no rows"):
        index.ingest(index.folder / "head.csv")
    assert stored(index) == [] and index.scratch() == []


def test_an_error_in_a_later_file_changes_nothing(index, source, monkeypatch):
    index.ingest(source(20))
    before, files = index.compared(), stored(index)
    monkeypatch.setattr(ingestion, "RUN_BYTES", 1000)
    nulls = with_column(source(5, start=50), "who", pa.array([None, *"abcd"]))
    for wrong in (nulls, source(5, start=50).drop_columns(["y", "b"])):
        with pytest.raises(DataError):
            index.ingest(source(30, start=20), wrong)
    with pytest.raises(NotFoundError):
        index.ingest(index.folder / "no.parquet")
    assert (index.compared(), stored(index), index.scratch()) == (before, files, [])


def test_progress_counts_all_rows(index, source, monkeypatch):
    monkeypatch.setattr(sources, "BATCH_ROWS", 10)
    seen = []
    ingestion.ingest(
        index.store, index.ring, index.columns, index.grid, index.dataset,
        [index.write(source(25))], lambda k: np.zeros(len(k), dtype=bool), seen.append,
    )  # fmt: skip
    assert seen == [10, 20, 25]


MEASURE = """
import sys
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from data_index import ingest, keys, lineage, partition, sources
from data_index.dataset import DataSet
from data_index.schema import Columns
from data_index.storage import Store

folder, rows = Path(sys.argv[1]), int(sys.argv[2])
path = folder / f"{rows}.parquet"
ingest.RUN_BYTES, lineage.RANGE_ROWS, sources.BATCH_ROWS = 1 << 20, 4000, 2000
partition.ROW_GROUP = 2000
pa.set_memory_pool(pa.system_memory_pool())
schema = pa.schema([("id", pa.int64()), ("y", pa.int64()), ("a", pa.float64())])
with pq.ParquetWriter(path, schema) as out:
    for start in range(0, rows, 2000):
        ids = np.arange(start, start + 2000)
        out.write_table(pa.table([ids, ids % 2, ids * 0.5], schema=schema))
columns = Columns.of("id", None, "y", (0, 1), {"a": "float64"})
store = Store(folder / f"store-{rows}")
nobody = lambda found: np.zeros(len(found), dtype=bool)
grid, before = ingest.Grid(16, 16), DataSet("")
done = ingest.ingest(store, keys.derive(bytes(32)), columns, grid, before, [path], nobody)
assert done.records == rows
# The peak of this program alone: ru_maxrss counts the parent's at the time of the fork too.
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_rows(tmp_path):
    def peak(rows):
        command = [sys.executable, "-c", MEASURE, str(tmp_path), str(rows)]
        return int(subprocess.run(command, check=True, capture_output=True).stdout)

    small, large = peak(40_000), peak(400_000)
    assert large < 1.15 * small, f"{small} KiB for 40,000 rows, {large} KiB for 400,000"
