"""Files are named by their content, checked when read, and gone when deleted."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from data_index import storage
from data_index.errors import ConfigurationError, ExactnessError, NotFoundError
from data_index.storage import FileRef, Store, canonical_json


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def test_a_file_is_named_by_its_content(store):
    ref = store.put("things", ".bin", b"some bytes")
    digest = hashlib.sha256(b"some bytes").hexdigest()
    assert ref == FileRef(f"things/{digest}.bin", digest, 10)
    assert store.read(ref) == b"some bytes"
    assert store.put("things", ".bin", b"some bytes") == ref
    assert list(store.list()) == [ref.path]


def test_a_file_written_in_pieces_is_that_written_at_once(store):
    with store.create("things", ".bin") as sink:
        sink.write(b"some ")
        sink.write(bytearray(b"by"))
        sink.write(memoryview(b"tes"))
        assert sink.tell() == 10
    assert sink.ref == store.put("things", ".bin", b"some bytes")


def test_a_file_that_failed_half_way_is_gone(store):
    with pytest.raises(RuntimeError), store.create("things", ".bin") as sink:
        sink.write(b"some ")
        raise RuntimeError
    assert list(store.list()) == []
    assert not hasattr(sink, "ref")


def test_no_failed_write_leaves_anything(store, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space"):
        store.put("things", ".bin", b"some bytes")
    assert list(store.list()) == []


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: b"", lambda d: b"X" + d[1:]])
def test_torn_and_changed_files_are_noticed(store, change):
    ref = store.put("things", ".bin", b"some bytes")
    store.path(ref.path).write_bytes(change(b"some bytes"))
    with pytest.raises(ExactnessError, match="is damaged"):
        store.read(ref)


def test_a_missing_file_is_noticed(store):
    ref = store.put("things", ".bin", b"some bytes")
    store.delete([ref.path])
    with pytest.raises(ExactnessError, match="is missing"):
        store.read(ref)
    with pytest.raises(NotFoundError, match="is missing"):
        store.read_unchecked(ref.path)


@pytest.mark.parametrize("path", ["../outside", "a/../../outside", "/etc/passwd", "a/b/.."])
def test_no_path_leads_out_of_the_store(store, tmp_path, path):
    (tmp_path / "outside").write_text("precious")
    for call in (
        lambda: store.path(path),
        lambda: store.read(FileRef(path, "", 0)),
        lambda: store.read_unchecked(path),
        lambda: store.put_named(path, b""),
        lambda: store.put_new(path, b""),
        lambda: store.delete([path]),
        lambda: list(store.list(path)),
        lambda: store.holds(FileRef(path, "", 0)),
    ):
        with pytest.raises(ExactnessError, match="leads out of the store"):
            call()
    assert (tmp_path / "outside").read_text() == "precious"


def test_deleting_what_is_gone_does_not_matter(store):
    refs = [store.put("a", ".bin", bytes([n])) for n in range(3)]
    paths = [r.path for r in refs]
    assert store.delete([paths[0], "a/never-there", "no/such/folder"]) == 1
    assert store.delete(paths) == 2
    assert store.delete(paths) == 0
    assert list(store.list()) == []


def test_a_deleted_file_needs_no_sync(store):
    ref = store.put("a", ".bin", b"1")
    store.delete([ref.path])
    store.flush()


def test_a_name_is_taken_once(store):
    assert store.put_new("log/0001", b"first")
    assert not store.put_new("log/0001", b"second")
    assert store.read_unchecked("log/0001") == b"first"
    assert list(store.list()) == ["log/0001"]


def test_of_many_at_once_one_takes_the_name(store):
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda n: store.put_new("log/0001", str(n).encode()), range(32)))
    assert sum(taken) == 1
    assert store.read_unchecked("log/0001") == str(taken.index(True)).encode()


def test_a_flush_syncs_files_before_their_folders_up_to_where_the_store_lies(store, monkeypatch):
    synced = []
    monkeypatch.setattr(storage, "_fsync", synced.append)
    refs = [store.put(f"a/{n}", ".bin", b"x") for n in range(3)]
    store.flush()
    files = {store.path(r.path) for r in refs}
    assert set(synced[:3]) == files
    folders = {store.root / "a", store.root, store.root.parent}
    assert set(synced[3:]) == {f.parent for f in files} | folders
    synced.clear()
    store.flush()
    assert synced == []


def test_after_a_failed_sync_nothing_is_written_or_made_durable_any_more(store, monkeypatch):
    """The kernel may have dropped the pages: trying again could succeed without them."""
    store.put("a", ".bin", b"x")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_fsync", lambda path: os.fsync(1 << 20))
        with pytest.raises(OSError, match="Bad file descriptor"):
            store.flush()
    for call in (store.flush, lambda: store.put("a", ".bin", b"y")):
        with pytest.raises(OSError, match="did not become durable"):
            call()


@pytest.mark.parametrize("piecewise", [False, True])
def test_a_file_that_is_there_whole_is_left_in_its_place(store, monkeypatch, piecewise):
    """It may be current, and bytes that are not durable yet must not take its place."""

    def write():
        if not piecewise:
            return store.put("a", ".bin", b"some bytes")
        with store.create("a", ".bin") as sink:
            sink.write(b"some bytes")
        return sink.ref

    path = store.path(write().path)
    store.flush()
    first = path.stat().st_ino
    synced = []
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_fsync", synced.append)
        write()
        store.flush()
    assert path.stat().st_ino == first and path in synced, "one that was killed may have left it"
    path.write_bytes(b"torn bytes")
    write()
    assert path.read_bytes() == b"some bytes"
    assert list(store.list("tmp")) == []


def test_what_somebody_else_deleted_and_did_not_sync_is_made_durable(store, monkeypatch):
    ref = store.put("a/0", ".bin", b"x")
    store.flush()
    store.path(ref.path).unlink()
    synced = []
    monkeypatch.setattr(storage, "_fsync", synced.append)
    assert store.delete([ref.path]) == 0 and synced == []
    store.settle(["a", "never-made"])
    assert set(synced) == {store.path("a"), store.path("a/0")}
    store.remove_scratch()
    store.remove_scratch()
    assert synced.count(store.root) == 2


def test_whether_a_file_is_there_and_whole_is_told(store):
    ref = store.put("a", ".bin", b"some bytes")
    assert store.holds(ref) and store.intact(ref)
    store.path(ref.path).write_bytes(b"same bytes")
    assert store.holds(ref) and not store.intact(ref)
    store.path(ref.path).write_bytes(b"some")
    assert not store.holds(ref) and not store.intact(ref)
    store.delete([ref.path])
    assert not store.holds(ref) and not store.intact(ref)


def test_a_file_whose_name_does_not_tell_its_content_is_durable_before_its_name(store, monkeypatch):
    events = []
    replace = os.replace
    monkeypatch.setattr(storage, "_fsync", lambda path: events.append("sync"))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), replace(a, b)))
    store.put_named("certificates/1.json", b"{}")
    assert events == ["sync", "rename"]


def test_lists_are_sorted_and_of_one_folder(store):
    for name in ("b/2", "b/1", "a/x/1", "c"):
        store.put_named(name, b"")
    assert list(store.list()) == ["c", "a/x/1", "b/1", "b/2"]
    assert list(store.list("b")) == ["b/1", "b/2"]
    assert list(store.list("no")) == []


def test_temporary_files_go_at_once(store):
    folder = store.scratch()
    (folder / "run").write_text("x")
    assert store.scratch() != folder
    assert store.remove_scratch() == 1
    assert not folder.exists()
    assert store.remove_scratch() == 0


def test_a_folder_may_be_given_as_a_uri(tmp_path):
    assert Store(f"file://{tmp_path}").root == Store(str(tmp_path)).root == tmp_path
    with pytest.raises(ConfigurationError, match=r"s3://\.\.\. cannot be used"):
        Store("s3://bucket/prefix")


def test_equal_values_have_equal_json():
    assert canonical_json({"b": [1, None], "a": "ü"}) == '{"a":"ü","b":[1,null]}'.encode()
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


def test_a_purge_in_between_costs_a_submitter_nothing(tmp_path, monkeypatch):
    """Whoever submits holds no lease, so a purge may sweep the file that it is about to name."""
    store, other, real = Store(tmp_path), Store(tmp_path), os.link
    swept = []

    def link(source, target):
        if len(swept) < 2:
            swept.append(other.remove_scratch())
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    assert store.put_new("log/1.json", b"entry")
    assert swept == [1, 1]
    assert (tmp_path / "log/1.json").read_bytes() == b"entry"
    assert store.put_new("log/2.json", b"next"), "no fsync has failed"


def test_a_submitter_in_between_does_not_disturb_a_purge(tmp_path, monkeypatch):
    store, real = Store(tmp_path), os.rmdir
    (store.scratch() / "rows").write_bytes(b"of an ingest that was killed")
    fresh = tmp_path / "tmp" / "entry"

    def rmdir(path, **more):
        if not fresh.exists():
            fresh.write_bytes(b"of a submitter")
        real(path, **more)

    monkeypatch.setattr(os, "rmdir", rmdir)
    assert store.remove_scratch() == 1
    assert list(store.list()) == ["tmp/entry"]
