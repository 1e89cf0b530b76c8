"""Each format is opened, to its last corner, and what cannot be opened is told."""

from __future__ import annotations

import errno
import gzip
import io
import secrets
import sqlite3
import zipfile
from contextlib import closing
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_index.storage import Store
from sisa.residue import decoders as formats
from sisa.residue.decoders import DECODERS
from sisa.residue.decoders.text import ESCAPES
from sisa.residue.needles import Needle
from sisa.residue.places import Place
from sisa.residue.scan import Scan, scan

WORD = "someone-0042-particular"
WINDOW = bytes(range(7, 23))
each_format = pytest.mark.parametrize("decoder", DECODERS, ids=lambda d: d.name)


def search(folder: Path, files: dict[str, bytes], **options) -> Scan:
    place = folder / "place"
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    store = Store(folder / "store")
    needles = [Needle(WORD.encode(), "id"), Needle(WINDOW, "value")]
    return scan(store, (Place("store", store.root), Place("place", place)), needles, **options)


def table_bytes(table: pa.Table, **options) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def squeezed() -> str:
    """A text that compressors do not write out at its last place."""
    return formats.protocol.halves(WORD.encode()).decode()


@each_format
def test_a_control_is_seen_by_its_decoder_alone(decoder, tmp_path) -> None:
    for _ in range(50):
        canary = secrets.token_hex(20).encode()
        hidden = decoder.conceal(canary)
        assert canary not in hidden
        assert next(d for d in DECODERS if d.recognises(memoryview(hidden))) == decoder
    found = search(tmp_path, {"a": decoder.conceal(secrets.token_hex(20).encode())})
    assert found.valid and not found.hits
    assert found.files == 1 and found.decoded[decoder.name] == 1


@each_format
def test_without_a_decoder_the_scan_is_not_valid(decoder, tmp_path) -> None:
    others = [d for d in DECODERS if d is not decoder]
    found = search(tmp_path, {"a": b"nothing"}, decoders=others)
    assert not found.valid and not found.clean
    assert not found.controls[decoder.name]
    assert search(tmp_path, {}).valid


@each_format
def test_no_control_stays(decoder, tmp_path) -> None:
    search(tmp_path, {"a": b"nothing"})
    assert [p for p in (tmp_path / "store").rglob("*") if p.is_file()] == []


def masked() -> pa.Array:
    """A null that covers the word."""
    data = pa.py_buffer(WORD.encode() + b"x")
    ends = pa.py_buffer(np.array([0, len(WORD), len(WORD) + 1], np.int32))
    return pa.Array.from_buffers(pa.string(), 2, [pa.py_buffer(b"\x02"), ends, data])


def dictionary() -> pa.Array:
    """A dictionary whose word no row uses any more, as filtering leaves it."""
    full = pa.array([WORD, "other", "other"]).dictionary_encode()
    return full.filter(pa.array([False, True, True]))


def numbers() -> pa.Array:
    """The same with numbers, whose dictionary no reader shows."""
    halves = np.frombuffer(WINDOW, "<i8")
    return pa.array([*halves, 5, 5, 5, 5] * 10, pa.int64())


def old_pages() -> bytes:
    """A Parquet file with a dictionary page of which no row uses the first two values."""
    table = pa.table({"n": numbers()})
    return table_bytes(table, compression="gzip", data_page_version="2.0", write_statistics=False)


def ipc(column: pa.Array, stream: bool, **options) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"c": column})
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue()


def archive(inner: bytes, depth: int = 1) -> bytes:
    for _ in range(depth):
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("inner", inner)
        inner = sink.getvalue()
    return inner


def array_file(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def columns(codec: str) -> bytes:
    table = pa.table({"c": [squeezed()] * 3, "k": pa.array([WINDOW] * 3, pa.binary(16))})
    return table_bytes(table, compression=codec, write_statistics=False)


def delta() -> bytes:
    texts = sorted([WORD, WORD[:12], WORD[:15] + "z", "t"])
    encoding = {"c": "DELTA_BYTE_ARRAY"}
    table = pa.table({"c": texts})
    return table_bytes(table, use_dictionary=False, column_encoding=encoding, compression="none")


def split_bytes() -> bytes:
    table = pa.table({"c": np.frombuffer(WINDOW * 4, "<f4")})
    options = {"column_encoding": {"c": "BYTE_STREAM_SPLIT"}, "compression": "none"}
    return table_bytes(table, use_dictionary=False, write_statistics=False, **options)


def fixed(**options) -> bytes:
    """Keys alone, some of them only in a dictionary page."""
    keys = pa.array([WINDOW, *[secrets.token_bytes(16)] * 3], pa.binary(16))
    return table_bytes(pa.table({"k": keys}), write_statistics=False, **options)


def nested() -> bytes:
    table = pa.table({"c": [[{"a": squeezed(), "b": {"x": [1, 2]}}], None, []]})
    return table_bytes(table, compression="zstd", write_statistics=False)


WHERE = {
    **{f"parquet {c}": columns(c) for c in ("none", "snappy", "gzip", "brotli", "zstd", "lz4")},
    "parquet dictionary": table_bytes(pa.table({"c": dictionary()}), compression="zstd"),
    "parquet numbers": old_pages(),
    "parquet prefixes": delta(),
    "parquet split": split_bytes(),
    **{f"parquet keys {c}": fixed(compression=c) for c in ("snappy", "zstd", "lz4")},
    "parquet keys plain": fixed(compression="zstd", use_dictionary=False),
    **{
        f"parquet keys {encoding}": fixed(use_dictionary=False, column_encoding={"k": encoding})
        for encoding in ("BYTE_STREAM_SPLIT", "DELTA_BYTE_ARRAY")
    },
    "parquet nested": nested(),
    "parquet footer": table_bytes(
        pa.table({"c": [1]}).replace_schema_metadata({"note": f"of {WORD}"})
    ),
    "parquet column": table_bytes(pa.table({WORD: [1]})),
    "parquet statistics": table_bytes(pa.table({"c": [WORD]}), compression="zstd"),
    "arrow file": ipc(pa.array([squeezed()]), False, compression="zstd"),
    "arrow stream": ipc(pa.array([squeezed()]), True, compression="lz4"),
    "arrow dictionary": ipc(dictionary(), False, compression="zstd"),
    "arrow null": ipc(pa.concat_arrays([pa.array([squeezed()]), masked()]), False),
    "arrow keys": ipc(pa.array([WINDOW], pa.binary(16)), True, compression="zstd"),
    "gzip of zip": gzip.compress(archive(squeezed().encode())),
    "two gzips": gzip.compress(b"first") + gzip.compress(squeezed().encode()),
    "zip in zip": archive(squeezed().encode(), depth=3),
    "npz": archive(array_file(np.frombuffer(WINDOW, "<u4").astype(">u4"))),
    "npy columns": array_file(np.asfortranarray(np.frombuffer(WINDOW * 2, "<f8").reshape(2, 2))),
    "log of json": b'INFO got "{\\"who\\": \\"' + formats.text.escape(WORD.encode()) + b'\\"}"\n',
    "utf-16": f"who: {WORD}".encode("utf-16"),
}


@pytest.mark.parametrize("name", WHERE)
def test_what_a_format_hides_is_found(name: str, tmp_path) -> None:
    found = search(tmp_path, {"file": WHERE[name]})
    assert found.valid and found.complete, found
    assert {h.where.partition("!")[0] for h in found.hits} == {"place/file"}


def test_a_dictionary_that_nothing_refers_to_is_there_and_is_found_in_its_page(tmp_path) -> None:
    data = WHERE["parquet dictionary"]
    read = pq.read_table(pa.BufferReader(data))
    assert WORD not in str(read.to_pydict())
    assert any("page of" in hit.where for hit in search(tmp_path, {"f": data}).hits)


def database(path: Path, *, journal: str = "wal") -> sqlite3.Connection:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA secure_delete = OFF")
    connection.execute(f"PRAGMA journal_mode = {journal}")
    connection.execute("CREATE TABLE t (a TEXT, b BLOB, c INTEGER)")
    connection.commit()
    return connection


def test_a_database_with_its_log(tmp_path) -> None:
    (tmp_path / "place").mkdir()
    with closing(database(tmp_path / "place" / "a.db")) as connection:
        cut = "x" * 4000 + squeezed()
        connection.execute(
            "INSERT INTO t VALUES (?, ?, 1)", (cut, gzip.compress(secrets.token_bytes(90) + WINDOW))
        )
        connection.commit()
        found = search(tmp_path, {})
    assert {h.kind for h in found.hits} == {"id", "value"}
    assert any(h.where == "place/a.db!table t" for h in found.hits), "values are read"
    assert any(h.where == "place/a.db-wal" for h in found.hits), "and the log as it is"
    assert found.complete


def test_a_deleted_row_in_a_free_page(tmp_path) -> None:
    (tmp_path / "place").mkdir()
    with closing(database(tmp_path / "place" / "a.db", journal="delete")) as connection:
        connection.execute("INSERT INTO t VALUES (?, x'00', 1)", (WORD,))
        connection.commit()
        connection.execute("DELETE FROM t")
        connection.commit()
        assert {h.where for h in search(tmp_path, {}).hits} == {"place/a.db"}
        connection.execute("VACUUM")
        assert search(tmp_path, {}).hits == ()


def damaged(data: bytes) -> bytes:
    return data[: len(data) // 2]


UNREADABLE = {
    "parquet": damaged(nested()),
    "arrow file": damaged(WHERE["arrow file"]),
    "zip": damaged(archive(b"x" * 500)),
    "gzip": damaged(gzip.compress(secrets.token_bytes(500))),
    "sqlite": b"SQLite format 3\0" + bytes(4000),
    "npy header": b"\x93NUMPY\1\0\xff\xff nothing",
    "npy of objects": array_file(np.array([{"a": 1}], dtype=object)),
    "safetensors": (40).to_bytes(8, "little") + b'{"a":{"data_offsets":[0,900]}}          ',
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_decoded_is_named_and_searched_as_it_is(name: str, tmp_path) -> None:
    data = UNREADABLE[name]
    found = search(tmp_path, {"sub/file": data, "other": data + WINDOW})
    assert found.undecodable == ("place/other", "place/sub/file") and not found.complete
    assert [h.where for h in found.hits] == ["place/other"] and found.valid


@given(st.lists(st.sampled_from([b"\\", b"n", b'"', b"u0041", b"\xc3\xa4", b"\n"]), max_size=30))
def test_escapes_are_taken_off_alike_with_and_without_numbered_ones(parts) -> None:
    text = b"".join(parts) + b"x"
    assert formats.text._unescaped(text) == ESCAPES.sub(formats.text._plain, text)


def test_a_bomb_is_refused(tmp_path) -> None:
    bomb = gzip.compress(gzip.compress(bytes(30 << 20)))
    found = search(tmp_path, {"bomb": bomb, "fine": gzip.compress(WINDOW)}, inflated=4 << 20)
    assert found.refused == ("place/bomb!",) or found.refused == ("place/bomb",)
    assert [h.where for h in found.hits] == ["place/fine"] and not found.complete


def test_a_full_disk_is_not_taken_for_a_damaged_file(tmp_path, monkeypatch) -> None:
    def full(**where):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(OSError, match="No space left"):
        search(tmp_path, {"large": gzip.compress(secrets.token_bytes(3 << 20))})


def test_a_log_that_goes_while_it_is_copied_ends_no_search(tmp_path, monkeypatch) -> None:
    def gone(source: Path, target: str):
        raise FileNotFoundError(errno.ENOENT, "No such file", str(source))

    with closing(database(tmp_path / "a.db")) as connection:
        place = tmp_path / "place"
        place.mkdir()
        (place / "a.db").write_bytes((tmp_path / "a.db").read_bytes())
        (place / "a.db-wal").write_bytes((tmp_path / "a.db-wal").read_bytes())
        connection.rollback()
    monkeypatch.setattr("shutil.copyfile", gone)
    found = search(tmp_path, {})
    assert found.undecodable == ("place/a.db",)


def test_what_is_nested_too_deep_is_refused(tmp_path) -> None:
    found = search(tmp_path, {"deep": archive(squeezed().encode(), depth=9)})
    assert len(found.refused) == 1 and found.hits == ()


def test_names_are_searched_and_withheld(tmp_path) -> None:
    files = {f"of-{WORD}/log": b"x", f"b/{WORD}.csv": b"x", f"{WORD}": archive(WORD.encode())}
    found = search(tmp_path, files)
    assert {h.where for h in found.hits} == {
        "place/(withheld)/log",
        "place/b/(withheld)",
        "place/(withheld)",
        "place/(withheld)!inner",
    } or all("(withheld)" in h.where for h in found.hits)
    assert WORD not in str(found.to_json()) and len(found.hits) >= 3


def test_what_cannot_be_read_is_named(tmp_path, monkeypatch) -> None:
    def refuse(path: str, mode: str):
        if path.endswith("/locked"):
            raise PermissionError(13, "no")
        return open(path, mode)

    search(tmp_path, {"locked": b"x", "open": b"x"})
    monkeypatch.setattr(import_module("sisa.residue.scan"), "open", refuse, raising=False)
    found = search(tmp_path, {})
    assert found.undecodable == ("place/locked",) and found.valid


def test_links_are_not_followed(tmp_path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(WINDOW)
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "link").symlink_to(tmp_path / "outside" / "file")
    (tmp_path / "place" / "folder").symlink_to(tmp_path / "outside")
    assert search(tmp_path, {}).files == 0


def test_the_digest_is_of_the_outcome(tmp_path) -> None:
    one, two = search(tmp_path, {"a": b"1"}), search(tmp_path, {"a": b"1"})
    assert one == two and one.digest == two.digest
    assert search(tmp_path, {"b": WINDOW}).digest != one.digest
