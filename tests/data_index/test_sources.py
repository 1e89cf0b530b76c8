"""Source files of every kind are read alike; what does not fit is refused without a value of it."""

from __future__ import annotations

import decimal
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from data_index import casting, sources
from data_index.errors import DataError, NotFoundError
from data_index.schema import Columns, feature
from data_index.sources import Kinds

PLANTED = "zeno@secret.org"
SCALARS = Columns.of("id", "who", "y", ("no", "yes"), {"a": "float64", "n": "int32", "t": "text"})
TABLE = pa.table(
    {
        "id": ["r1", "r2", "r3"],
        "who": ["s1", "s1", "s2"],
        "y": ["yes", "no", "yes"],
        "a": [1.5, None, -2.0],
        "n": pa.array([1, 2, None], pa.int32()),
        "t": ["ü", None, 'x, "y"'],
        "unused": [1, 2, 3],
    }
)


def arrow_file(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(str(path), table.schema) as out:
        out.write_table(table, max_chunksize=2)


def arrow_stream(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_stream(str(path), table.schema) as out:
        out.write_table(table, max_chunksize=2)


def lz4(table: pa.Table, path: Path) -> None:
    feather.write_feather(table, path, compression="lz4")


def zstd(table: pa.Table, path: Path) -> None:
    feather.write_feather(table, path, compression="zstd")


WRITERS = {
    "a.parquet": pq.write_table,
    "a.PQ": lambda t, p: pq.write_table(t, p, row_group_size=1),
    "a.csv": pacsv.write_csv,
    "a.arrow": arrow_file,
    "stream.arrow": arrow_stream,
    "a.ipc": arrow_stream,
    "lz4.feather": lz4,
    "zstd.feather": zstd,
}


def taken(path: Path, columns: Columns = SCALARS, **options: Any) -> dict[str, Any]:
    """All that is read of a file, ids and columns."""
    batches = list(sources.read(path, columns, **options))
    table = pa.concat_tables(b.table for b in batches)
    return {
        "record_ids": [i for b in batches for i in b.record_ids],
        "subject_ids": [i for b in batches for i in b.subject_ids],
        **table.to_pydict(),
    }


def cast(values: Any, declared: str) -> list[Any]:
    array = values if isinstance(values, pa.Array) else pa.array(values)
    return casting.cast_feature(array, feature("f", declared)).to_pylist()


def floats(stored: list[bytes]) -> list[tuple[float, ...]]:
    return [struct.unpack("<2f", b) for b in stored]


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_holds_the_same_rows(tmp_path, name):
    WRITERS[name](TABLE, tmp_path / name)
    assert taken(tmp_path / name) == {
        "record_ids": [b"r1", b"r2", b"r3"],
        "subject_ids": [b"s1", b"s1", b"s2"],
        "target": [1, 0, 1],
        "x_a": [1.5, None, -2.0],
        "x_n": [1, 2, None],
        "x_t": ["ü", None, 'x, "y"'],
    }


def test_rows_are_read_in_batches_that_know_their_position(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BATCH_ROWS", 2)
    for name in ("a.parquet", "a.arrow"):
        WRITERS[name](TABLE, tmp_path / name)
        found = list(sources.read(tmp_path / name, SCALARS))
        assert [(b.first, len(b.record_ids)) for b in found] == [(0, 2), (2, 1)]


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.dictionary_encode(),
        lambda c: c.cast(pa.large_string()),
        lambda c: pa.chunked_array([c.chunk(0).slice(0, 1), c.chunk(0).slice(1)]),
        lambda c: pa.chunked_array([pa.concat_arrays([c.chunk(0)] * 2).slice(3)]),
    ],
    ids=["dictionary", "large", "chunked", "sliced"],
)
def test_how_text_is_encoded_changes_nothing(tmp_path, change):
    table = TABLE
    for name in ("id", "who", "y", "t"):
        at = table.column_names.index(name)
        table = table.set_column(at, name, change(table[name]))
    for name in ("a.parquet", "a.feather"):
        plain, other = tmp_path / name, tmp_path / f"other-{name}"
        WRITERS["a.parquet" if name == "a.parquet" else "lz4.feather"](TABLE, plain)
        WRITERS["a.parquet" if name == "a.parquet" else "lz4.feather"](table, other)
        assert taken(other) == taken(plain)


def test_a_dictionary_value_of_no_row_leaves_no_trace():
    column = pa.DictionaryArray.from_arrays(pa.array([0]), pa.array(["kept", PLANTED]))
    stored = casting.cast_feature(column, feature("f", "text"))
    assert stored.type == pa.string()
    assert PLANTED.encode() not in b"".join(bytes(b) for b in stored.buffers() if b)


@pytest.mark.parametrize(
    ("values", "declared", "expected"),
    [
        ([1, 2, None], "float64", [1.0, 2.0, None]),
        ([1.0, float("nan"), None], "float32", [1.0, None, None]),
        ([1.0, float("nan")], "int64", [1, None]),
        ([True, None, False], "int8", [1, None, 0]),
        ([1, 0, None], "bool", [True, False, None]),
        ([1.0, 0.0, float("nan")], "bool", [True, False, None]),
        (["7", None], "int64", [7, None]),
        (["0.5"], "float64", [0.5]),
        ([decimal.Decimal("1.25")], "float64", [1.25]),
        (pa.nulls(2), "int32", [None, None]),
        (pa.nulls(2), "text", [None, None]),
        (pa.array([1.5], pa.float16()), "float32", [1.5]),
        (pa.array([3, None, 3]).dictionary_encode(), "uint8", [3, None, 3]),
        ([7, None], "text", ["7", None]),
        (pa.array([2**63], pa.uint64()), "uint64", [2**63]),
    ],
)
def test_scalars_are_cast(values, declared, expected):
    assert cast(values, declared) == expected


def test_minus_zero_becomes_zero():
    assert struct.pack("<d", cast([-0.0], "float64")[0]) == bytes(8)
    assert struct.pack("<f", cast(pa.array([-0.0], pa.float32()), "float32")[0]) == bytes(4)
    column = pa.array([[-0.0, 1.0]], pa.list_(pa.float32()))
    assert cast(column, "float32[2]") == [struct.pack("<2f", 0.0, 1.0)]


def test_every_nan_in_an_array_has_the_same_bytes():
    odd = np.frombuffer(struct.pack("<I", 0x7FC00001) + struct.pack("<I", 0xFFC00000), "<f4")
    column = pa.FixedSizeListArray.from_arrays(pa.array(odd), 2)
    first, second = struct.unpack("<2I", cast(column, "float32[2]")[0])
    assert first == second == 0x7FC00000


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[1, 2], [3, 4]]),
        pa.array([[1, 2], [3, 4]], pa.list_(pa.uint8())),
        pa.array([[1, 2], [3, 4]], pa.large_list(pa.int16())),
        pa.array([[1, 2], [3, 4]], pa.list_(pa.float64(), 2)),
        pa.array([[9, 9], [1, 2], [3, 4]], pa.list_(pa.uint8(), 2)).slice(1),
        pa.array([[9], [1, 2], [3, 4]]).slice(1),
        pa.array([b"\1\2", b"\3\4"], pa.binary(2)),
        pa.array([b"\0\0", b"\1\2", b"\3\4"], pa.binary(2)).slice(1),
    ],
    ids=lambda c: str(c.type),
)
def test_arrays_of_every_type_are_stored_alike(column):
    assert cast(column, "uint8[2]") == [b"\1\2", b"\3\4"]


@pytest.mark.parametrize(
    ("values", "declared", "reason"),
    [
        ([1.0, float("inf")], "float64", "infinite"),
        ([float("-inf"), None], "float32", "infinite"),
        ([1e300], "float32", "infinite"),
        ([7, 0], "bool", "other than 0 and 1"),
        ([0.5], "bool", "other than 0 and 1"),
        ([[1, 2], None], "uint8[2]", "1 null arrays"),
        (pa.array([[1, 2], None], pa.list_(pa.uint8(), 2)), "uint8[2]", "1 null arrays"),
        (pa.nulls(2), "uint8[2]", "2 null arrays"),
        ([[1, None]], "uint8[2]", "1 null elements"),
        ([[1, 2], [1]], "uint8[2]", "another length than 2"),
        (pa.array([[1, 2, 3]], pa.list_(pa.uint8(), 3)), "uint8[2]", "another length"),
        (pa.array([b"\1\2\3"], pa.binary(3)), "uint8[2]", "another size"),
        ([1, 2], "uint8[2]", "int64 values, not arrays"),
    ],
)
def test_what_does_not_fit_is_refused(values, declared, reason):
    with pytest.raises(DataError, match=reason):
        cast(values, declared)


def planted(values: list[Any], declared: dict[str, str], **target: Any) -> tuple[pa.Table, Columns]:
    table = pa.table({"id": ["r1", PLANTED], "y": target.get("y", [0, 1]), "f": values})
    return table, Columns.of("id", None, "y", target.get("classes", (0, 1)), declared)


UNFIT = {
    "text as a number": planted(["1", PLANTED], {"f": "int64"}),
    "text as a float": planted(["1", PLANTED], {"f": "float64"}),
    "text as a truth value": planted(["true", PLANTED], {"f": "bool"}),
    "too large": planted([1, 77_777], {"f": "int8"}),
    "negative": planted([1, -77_777], {"f": "uint32"}),
    "fraction": planted([1.0, 77_777.5], {"f": "int64"}),
    "elements": planted([[1], [77_777]], {"f": "uint8[1]"}),
    "structs": planted([{"a": PLANTED}, {"a": PLANTED}], {"f": "text"}),
    "no class": planted([1, 2], {"f": "int64"}, y=["1", PLANTED]),
    "unknown class": planted([1, 2], {"f": "int64"}, y=["a", PLANTED], classes=("a", "b")),
    "fraction of a class": planted([1, 2], {"f": "int64"}, y=[1.0, 77_777.5]),
    "no number to predict": planted([1, 2], {"f": "int64"}, y=["1", PLANTED], classes=None),
}


@pytest.mark.parametrize("name", UNFIT)
@pytest.mark.parametrize("suffix", ["parquet", "csv", "arrow"])
def test_no_value_gets_into_a_message(tmp_path, capfd, name, suffix):
    table, columns = UNFIT[name]
    path = tmp_path / f"f.{suffix}"
    if suffix == "csv" and any(pa.types.is_nested(t) for t in table.schema.types):
        pytest.skip("CSV holds no nested values")
    WRITERS[f"a.{suffix}"](table, path)
    with pytest.raises(DataError) as error:
        list(sources.read(path, columns))
    assert path.name in str(error.value)
    printed = capfd.readouterr()
    for text in (str(error.value), repr(error.value.args), printed.out, printed.err):
        assert PLANTED not in text
        assert "zeno" not in text
        assert "77777" not in text
    assert error.value.__cause__ is None and error.value.__suppress_context__


BROKEN_CSV = {
    "too many fields": f"id,who,y,a,n,t\nr1,s,no,1,1,x\n{PLANTED},s,no,1,1,x,9\n",
    "too few fields": f"id,who,y,a,n,t\nr1,s,no,1,1,x\n{PLANTED},s\n",
    "colons": f"id,who,y,a,n,t\nr1,s,no,1,1,x\n{PLANTED}: a: b: c,s\n",
    "not UTF-8": f"id,who,y,a,n,t\n{PLANTED},s,no,1,1,x\n{PLANTED}\xff,s,no,1,1,\xff\n",
    "text for a number": f"id,who,y,a,n,t\nr1,s,no,{PLANTED},1,x\n",
}


@pytest.mark.parametrize("name", BROKEN_CSV)
def test_a_broken_csv_quotes_no_row(tmp_path, capfd, name):
    path = tmp_path / "f.csv"
    path.write_bytes(BROKEN_CSV[name].encode("latin-1"))
    with pytest.raises(DataError, match=r"^f\.csv cannot be read") as error:
        list(sources.read(path, SCALARS))
    assert "zeno" not in str(error.value) + "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.parquet", None),
        ("text.parquet", b"id,y\n1,2\n"),
        ("empty.parquet", b""),
        ("text.arrow", b"id,y\n1,2\n"),
        ("empty.arrow", b""),
        ("empty.csv", b""),
    ],
)
def test_an_unreadable_file_is_named(tmp_path, name, content):
    path = tmp_path / name
    if content is None:
        pq.write_table(TABLE, path)
        content = path.read_bytes()[:-9]
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{name} cannot be read: "):
        list(sources.read(path, SCALARS))


def test_parquet_with_another_suffix_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    pq.write_table(TABLE, path)
    with pytest.raises(DataError):
        list(sources.read(path, SCALARS))


@pytest.mark.parametrize("suffix", ["parquet", "csv", "arrow"])
def test_all_missing_columns_are_named_at_once(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    WRITERS[f"a.{suffix}"](TABLE.drop_columns(["who", "y", "a"]), path)
    with pytest.raises(DataError, match=rf"^a\.{suffix} lacks the columns who, y, a\."):
        list(sources.read(path, SCALARS))


@pytest.mark.parametrize("suffix", ["parquet", "csv", "arrow"])
def test_a_column_that_is_there_twice_is_refused(tmp_path, suffix):
    twice = pa.Table.from_arrays([*TABLE.columns, TABLE["a"]], names=[*TABLE.column_names, "a"])
    path = tmp_path / f"a.{suffix}"
    WRITERS[f"a.{suffix}"](twice, path)
    with pytest.raises(DataError, match="more than one column a"):
        list(sources.read(path, SCALARS))
    with pytest.raises(DataError, match="more than one column a"):
        list(sources.column(path, "a"))


def test_csv_cannot_hold_arrays(tmp_path):
    (tmp_path / "a.csv").write_text("id,y,f\n1,0,2\n")
    columns = Columns.of("id", None, "y", (0, 1), {"f": "uint8[2]"})
    with pytest.raises(DataError, match="CSV, which cannot hold the array feature 'f'"):
        list(sources.read(tmp_path / "a.csv", columns))


@pytest.mark.parametrize("written", ["true,false", "1,0", "1.0,0.0"])
def test_integer_classes_are_read_from_csv_however_they_are_written(tmp_path, written):
    one, zero = written.split(",")
    (tmp_path / "a.csv").write_text(f"id,y,f\nr1,{one},1\nr2,{zero},2\n")
    columns = Columns.of("id", None, "y", (0, 1), {"f": "int64"})
    assert taken(tmp_path / "a.csv", columns)["target"] == [1, 0]


def test_leading_zeros_of_a_csv_id_are_kept(tmp_path):
    (tmp_path / "a.csv").write_text("id,y,f\n007,0,1\n7,1,2\n")
    columns = Columns.of("id", None, "y", (0, 1), {"f": "int64"})
    assert taken(tmp_path / "a.csv", columns)["record_ids"] == [b"007", b"7"]


def test_csv_ids_fit_a_data_set_of_integers_if_they_are_written_as_such(tmp_path):
    columns = Columns.of("id", None, "y", (0, 1), {"f": "int64"})
    path = tmp_path / "a.csv"
    path.write_text("id,y,f\n7,0,1\n-12,1,2\n")
    kinds = sources.kinds_of(path, columns, Kinds("integer", "integer"))
    assert kinds == Kinds("integer", "integer")
    assert taken(path, columns, kinds=kinds)["record_ids"] == [b"7", b"-12"]
    for wrong in ("007", "+7", "1.0", PLANTED):
        path.write_text(f"id,y,f\n7,0,1\n{wrong},1,2\n")
        with pytest.raises(DataError, match="no integers") as error:
            list(sources.read(path, columns, kinds))
        assert wrong not in str(error.value)


def test_kinds_of_ids_must_agree(tmp_path):
    columns = Columns.of("id", "who", "y", (0, 1), {"f": "int64"})
    table = pa.table({"id": [1], "who": ["a"], "y": [0], "f": [1]})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path)
    assert sources.kinds_of(path, columns, Kinds()) == Kinds("integer", "string")
    assert sources.kinds_of(path, columns, Kinds("integer", "string"))
    with pytest.raises(DataError, match=r"'id' .*integer ids, but the data set has string ids"):
        sources.kinds_of(path, columns, Kinds("string", "string"))
    with pytest.raises(DataError, match=r"'who' .*string ids, but the data set has integer ids"):
        sources.kinds_of(path, columns, Kinds("integer", "integer"))


def test_without_a_subject_column_each_record_is_its_own_subject(tmp_path):
    columns = Columns.of("id", None, "y", ("no", "yes"), {"a": "float64"})
    pq.write_table(TABLE, tmp_path / "a.parquet")
    found = taken(tmp_path / "a.parquet", columns)
    assert found["subject_ids"] == found["record_ids"] == [b"r1", b"r2", b"r3"]


def test_targets_may_be_left_out_where_they_are_not_needed(tmp_path):
    pq.write_table(TABLE.drop_columns(["y", "who"]), tmp_path / "a.parquet")
    found = taken(tmp_path / "a.parquet", target=False)
    assert "target" not in found
    assert found["subject_ids"] == [b"r1", b"r2", b"r3"]


@pytest.mark.parametrize(
    ("y", "classes", "reason"),
    [
        ([0, None], (0, 1), "1 null targets"),
        ([0.5, None], None, "1 null targets"),
        ([0.5, float("nan")], None, "not finite"),
        ([0.5, float("inf")], None, "not finite"),
        ([0, 2], (0, 1), "1 values that are not among the declared classes"),
    ],
)
def test_targets_that_do_not_fit_are_refused(tmp_path, y, classes, reason):
    table = pa.table({"id": ["a", "b"], "y": y, "f": [1, 2]})
    columns = Columns.of("id", None, "y", classes, {"f": "int64"})
    for name in ("a.parquet", "a.arrow"):
        WRITERS[name](table, tmp_path / name)
        with pytest.raises(DataError, match=f"Column 'y' of {name} .*{reason}"):
            list(sources.read(tmp_path / name, columns))


def test_a_null_that_a_dictionary_hides_is_refused(tmp_path):
    y = pa.DictionaryArray.from_arrays([0, 1], pa.array([0.5, None]))
    arrow_file(pa.table({"id": ["a", "b"], "y": y, "f": [1, 2]}), tmp_path / "a.arrow")
    columns = Columns.of("id", None, "y", None, {"f": "int64"})
    with pytest.raises(DataError, match="1 null targets"):
        list(sources.read(tmp_path / "a.arrow", columns))


@pytest.mark.parametrize("y", [[True, False], [1, 0], [1.0, 0.0], ["1", "0"]])
def test_integer_classes_are_found_under_any_type(tmp_path, y):
    pq.write_table(pa.table({"id": ["a", "b"], "y": y, "f": [1, 2]}), tmp_path / "a.parquet")
    columns = Columns.of("id", None, "y", (0, 1), {"f": "int64"})
    assert taken(tmp_path / "a.parquet", columns)["target"] == [1, 0]


def test_a_folder_stands_for_the_source_files_below_it(tmp_path):
    folder = tmp_path / "data"
    for name in ("b.parquet", "a.csv", "deep/c.PARQUET", "notes.txt", "spark.parquet/part-0.pq"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    found = [p.relative_to(folder).as_posix() for p in sources.expand([folder])]
    assert found == ["a.csv", "b.parquet", "deep/c.PARQUET", "spark.parquet/part-0.pq"]


def test_a_path_that_stands_for_nothing_is_refused(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(NotFoundError, match="does not exist"):
        sources.expand([tmp_path / "no.parquet"])
    with pytest.raises(DataError, match="unknown kind"):
        sources.expand([tmp_path / "a.txt"])
    with pytest.raises(DataError, match="holds no Parquet"):
        sources.expand([tmp_path])


def test_a_file_that_went_away_is_not_found(tmp_path):
    with pytest.raises(NotFoundError):
        sources.schema_of(tmp_path / "a.parquet")


def test_a_table_is_cast_like_a_file():
    columns = Columns.of("id", None, "y", (0, 1), {"f": "int64", "g": "text"})
    table = pa.table({"g": ["a", "b"], "f": pa.chunked_array([[1.0], [None]])})
    assert casting.cast_features(table, columns).to_pydict() == {
        "x_f": [1, None],
        "x_g": ["a", "b"],
    }
    with pytest.raises(DataError, match="lacks the column g"):
        casting.cast_features(table.drop_columns(["g"]), columns)
    with pytest.raises(DataError, match="Column 'f' has string values") as error:
        casting.cast_features(pa.table({"f": [PLANTED], "g": ["a"]}), columns)
    assert PLANTED not in str(error.value)
