"""A thousand canaries: what an erased person leaves, hidden in every sink, each in one place alone.

Run this with `pytest -s` to see the figures that docs/residue.md holds.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import secrets
import shutil
import sqlite3
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save

from data_index import changes
from data_index.ledger import Ledger
from data_index.storage import Store
from sisa import mirror_purge, outbox, purge, residue, stage_log, tracking
from sisa.errors import BlockedError, SisaError
from sisa.mirror_artefacts import Artefacts
from sisa.mirror_purge import MirrorPurge
from sisa.mirror_rows import Rows
from sisa.residue.decoders import DECODERS
from sisa.residue.decoders.protocol import halves
from sisa.residue.needles import Needle, ScanSet
from sisa.residue.places import places
from sisa.residue.scan import scan
from sisa.residue.search import Finder
from sisa.tracking import Source
from sisa.workspace import Workspace

CHOICES = {"shards": 3, "slices": 2, "epochs": 1, "learner": "logistic"}
MANY, FEW = 1000, 120
ERASED = 240
"""So many of 300 people, with two records each, give a thousand canaries."""


def people() -> pa.Table:
    """Rows with ids, texts and arrays that occur once; two classes."""
    rng = np.random.default_rng(5)
    flat = pa.array(rng.normal(size=600 * 8).astype(np.float32))
    return pa.table(
        {
            "record_id": [f"visit-{i:06d}" for i in range(600)],
            "subject_id": [f"person-{i % 300:05d}" for i in range(600)],
            "signal": pa.FixedSizeListArray.from_arrays(flat, 8),
            "remark": [f"remark {rng.bytes(9).hex()} of a visit" for _ in range(600)],
            "label": rng.integers(0, 2, 600),
        }
    )


PEOPLE = [f"person-{i:05d}" for i in range(ERASED)]
VISITS = [f"visit-{i:06d}" for i in (*range(ERASED), *range(300, 300 + ERASED))]


def parquet(payload: bytes, **options) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"c": pa.array([payload, b"other"])}), sink, **options)
    return sink.getvalue()


def footer(payload: bytes) -> bytes:
    table = pa.table({"c": [1]}).replace_schema_metadata({b"note": payload})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def unused(payload: bytes) -> bytes:
    """In a dictionary page that no row refers to."""
    column = pa.array([halves(payload), b"b", b"b"]).dictionary_encode()
    sink = io.BytesIO()
    table = pa.table({"c": column.filter(pa.array([False, True, True]))})
    pq.write_table(table, sink, compression="zstd", write_statistics=False)
    return sink.getvalue()


def zipped(payload: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("data.pkl", halves(payload))
    return sink.getvalue()


def array(payload: bytes) -> bytes:
    return save({"w": np.frombuffer(payload + bytes(-len(payload) % 4), np.float32)})


def zstd(payload: bytes) -> bytes:
    return pa.compress(halves(payload), "zstd", asbytes=True)


RUN = "mlartifacts/RUN/artifacts"
"""The files of a retired generation."""

FILES: dict[str, Callable[[bytes], bytes]] = {
    f"{RUN}/model/model.safetensors": array,
    f"{RUN}/model/table.parquet": lambda p: parquet(halves(p), compression="zstd"),
    f"{RUN}/model/old.parquet": unused,
    f"{RUN}/model/note.parquet": footer,
    f"{RUN}/model/state.pt": zipped,
    f"{RUN}/log.zst": zstd,
    **{f"{RUN}/{d.name}": d.conceal for d in DECODERS},
    "outgoing/1/log.gz": lambda p: gzip.compress(halves(p)),
}
"""Files of the mirror, by the way a canary gets into them."""

STORE: dict[str, Callable[[bytes], bytes]] = {
    "tmp/left": bytes,
    "tmp/run.parquet": lambda p: parquet(halves(p), compression="zstd", use_dictionary=False),
    "tmp/run.gz": lambda p: gzip.compress(halves(p)),
    "partitions/old.parquet": lambda p: parquet(halves(p), compression="zstd"),
    "lineage/old.parquet": unused,
    "journal/old.parquet": footer,
    "checkpoints/old.safetensors": array,
    "generations/old.json": lambda p: b'{"note": "' + p + b'"}',
    "datasets/old.json": lambda p: json.dumps({"note": p.decode()}).encode(),
}
"""Files of the store that nothing reaches."""


ROWS = ("stage log", "ledger: freed pages", "ledger: write-ahead log")
MIRROR_ROWS = ("mlflow: tags", "mlflow: freed pages")
TEXTS = {*ROWS, *MIRROR_ROWS, *(f"{RUN}/{d.name}" for d in DECODERS), "datasets/old.json"}
TEXTS |= {f"{RUN}/model/note.parquet", "journal/old.parquet"}
"""Sinks that take ids and texts alone, no bytes of features."""


def scan_set(ws: Workspace) -> ScanSet:
    """What the erasure will keep."""
    named = residue.named(ws.context, PEOPLE, VISITS)
    return named | residue.erased(ws.context, named.gone)


def retired_run(ws: Workspace) -> str:
    """The run of a generation that the erasure retires."""
    with closing(sqlite3.connect(ws.context.folder / "mlflow.db")) as database:
        found = "SELECT run_uuid FROM runs WHERE name = 'generation-1'"
        return str(database.execute(found).fetchone()[0])


@contextmanager
def freeing(path: Path) -> Iterator[sqlite3.Connection]:
    """A database from which rows are deleted without overwriting them."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA secure_delete=OFF")
        yield database
        database.commit()


def planted(ws: Workspace, count: int) -> dict[str, list[bytes]]:
    """Hide ids, texts and features of those that will be erased. Returns canaries by sink."""
    mirror = (ws.context.folder / "mlflow.db").exists()
    sinks = [*STORE, *ROWS, *(FILES if mirror else ()), *(MIRROR_ROWS if mirror else ())]
    sets = scan_set(ws)
    kinds = [list(sets.ids), list(sets.texts), list(sets.windows)]
    found: dict[str, list[bytes]] = {sink: [] for sink in sinks}
    for i in range(count):
        sink = sinks[i % len(sinks)]
        found[sink].append(kinds[i // len(sinks) % (2 if sink in TEXTS else 3)].pop())
    record = next(iter(stage_log.read_shard(ws.context.store, 0).values()))
    for sink, canaries in found.items():
        for i, canary in enumerate(canaries):
            if sink in STORE or sink in FILES:
                name = sink.replace("RUN", retired_run(ws)) if sink in FILES else f"store/{sink}"
                path = ws.context.folder / f"{name}.{i}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes((STORE | FILES)[sink](canary))
    noted = found["stage log"]
    for i, canary in enumerate(noted):
        other = dataclasses.replace(record, key=f"{i:064x}", failure=canary.decode())
        stage_log.write_segment(ws.context.store, f"stages/0000/{i}.json", [other])
    freed(ws.context.folder / "ledger.db", found["ledger: freed pages"])
    with closing(sqlite3.connect(ws.context.folder / "ledger.db")) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    freed(ws.context.folder / "ledger.db", found["ledger: write-ahead log"])
    if mirror:
        run = retired_run(ws)
        with freeing(ws.context.folder / "mlflow.db") as database:
            rows = [(f"note-{i}", c.decode(), run) for i, c in enumerate(found["mlflow: tags"])]
            database.executemany("INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)", rows)
        freed(ws.context.folder / "mlflow.db", found["mlflow: freed pages"])
    return found


def freed(path: Path, canaries: list[bytes]) -> None:
    """Leave them in pages that no table has any more, too many to be used again soon."""
    rest = [(bytes(4000),)] * 100
    with freeing(path) as database:
        database.execute("CREATE TABLE left_over (value)")
        rows = [*rest, *((c,) for c in canaries), *rest]
        database.executemany("INSERT INTO left_over VALUES (?)", rows)
        database.commit()
        database.execute("DROP TABLE left_over")


def searched(
    ws: Workspace, canaries: dict[str, list[bytes]], monkeypatch, decoders=DECODERS
) -> set[bytes]:
    """The canaries that a scan finds."""
    found: set[bytes] = set()
    whole = Finder.find

    def noting(finder: Finder, data, skip=()):
        numbers = whole(finder, data, skip)
        found.update(finder.needles[n].pattern for n in numbers)
        return numbers

    needles = [Needle(c, "value") for some in canaries.values() for c in some]
    with monkeypatch.context() as patch:
        patch.setattr(Finder, "find", noting)
        outcome = scan(ws.context.store, places(ws.context, False), needles, decoders)
    assert outcome.valid == (decoders is DECODERS)
    return found & {n.pattern for n in needles}


@pytest.fixture
def ws(lab, stock) -> Workspace:
    """Without a mirror."""

    def fill(first) -> None:
        first.workspace("ws", people(), **CHOICES).train()

    lab.copied(stock.lab("canaries", fill))
    return lab.open("ws")


@pytest.fixture
def mirrored(lab, stock, monkeypatch) -> Workspace:
    """With an MLflow of its own in a SQLite file, delivered to and purged in this process."""
    for name, value in outbox.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def fill(first) -> None:  # to make its tables takes MLflow many seconds
        tracking.load().MlflowClient(f"sqlite:///{first.folder}/mlflow.db").search_experiments()

    lab.workspace("ws", people(), **CHOICES).train()
    shutil.copy(stock.lab("mirror", fill).folder / "mlflow.db", lab.folder / "ws")
    ws = lab.open("ws", "runtime.tracking.uri=sqlite:///mlflow.db")
    ws._outbox = lab.open("ws")._outbox  # it has no messenger
    context, section = ws.context, ws.context.config.runtime.tracking
    with context.ledger.write() as connection:
        connection.exec_driver_sql("INSERT INTO outbox SELECT number FROM generations")
    source = Source(context.folder, Ledger("sqlite:///ledger.db", context.folder), context.store, 1)

    def purged() -> MirrorPurge:
        try:
            return mirror_purge.purge(section, source, tracking.load)
        except SisaError as error:
            raise BlockedError(error.message, error.remedy, 60.0) from None

    warned: list[str] = []
    assert tracking.drain(section, source, warned.append) == 1 and warned == []
    ws.context = dataclasses.replace(context, published=lambda: None, purge_mirror=purged)
    return ws


def test_a_thousand_canaries(mirrored, monkeypatch) -> None:
    ws = mirrored
    canaries = planted(ws, MANY)
    every = {c for some in canaries.values() for c in some}
    assert len(every) == MANY
    sets = scan_set(ws)
    shares = [len(every & {*kind}) for kind in (sets.ids, sets.texts, sets.windows)]
    assert min(shares) > 100 and sum(shares) == MANY
    before = searched(ws, canaries, monkeypatch)
    assert {s: len({*c} - before) for s, c in canaries.items() if {*c} - before} == {}
    done = ws.forget(subjects=PEOPLE, records=VISITS)
    assert done.status == "certified", ws.requests()
    after = searched(ws, canaries, monkeypatch)
    assert {s: len({*c} & after) for s, c in canaries.items() if {*c} & after} == {}
    assert residue.of(ws.context, [], sets, whole=True).hits == ()
    print(
        f"\n{len(every)} canaries ({shares[0]} ids, {shares[1]} texts, {shares[2]} features) in "
        f"{len(canaries)} sinks: {len(before)} found before, {len(after)} after."
    )


def test_every_decoder_finds_what_no_other_does(ws, monkeypatch) -> None:
    canaries = {d.name: [secrets.token_hex(20).encode()] for d in DECODERS}
    folder = ws.context.folder / "mlartifacts"
    folder.mkdir()
    for decoder in DECODERS:
        (folder / decoder.name).write_bytes(decoder.conceal(canaries[decoder.name][0]))
    every = {c for (c,) in canaries.values()}
    assert searched(ws, canaries, monkeypatch) == every
    for decoder in DECODERS:
        fewer = [d for d in DECODERS if d is not decoder]
        found = searched(ws, canaries, monkeypatch, fewer)
        assert canaries[decoder.name][0] not in found, decoder.name


def assert_blocked(ws: Workspace, where: str) -> None:
    """The erasure ends without a certificate and says where something is left."""
    done = ws.forget(subjects=PEOPLE, records=VISITS)
    assert (done.status, done.exit_code, done.certificate) == ("blocked", 75, None)
    assert where in ws.request(done.request_id).request.blocked
    assert not list(ws.context.store.list("certificates"))
    found = ws.verify(replay=False, residue=True, subjects=PEOPLE, records=VISITS)
    assert found.exit_code == 4


def _keep_folder(folder: str) -> Callable[[pytest.MonkeyPatch], None]:
    folders = tuple(f for f in purge.DATA + purge.MODELS if f != folder)
    return lambda patch: patch.setattr(purge.purge, "__defaults__", (folders,))


def _keep_stage_log(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(purge, "_sweep_stage_log", lambda context, keep: 0)


def _keep_scratch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Store, "remove_scratch", lambda store: 0)


STEPS = {folder: (f"store/{folder}", _keep_folder(folder)) for folder in purge.DATA + purge.MODELS}
STEPS |= {"stages": ("store/stages", _keep_stage_log), "tmp": ("store/tmp", _keep_scratch)}


@pytest.mark.parametrize("step", STEPS)
def test_each_step_of_the_purge_that_is_left_out_is_caught(step: str, ws, monkeypatch) -> None:
    planted(ws, 36)
    where, skip = STEPS[step]
    with monkeypatch.context() as patch:
        skip(patch)
        assert_blocked(ws, where)
    assert ws.work().exit_code == 0, "with the step it is done"
    assert ws.verify(replay=False, residue=True, subjects=PEOPLE, records=VISITS).exit_code == 0


@pytest.mark.parametrize("left_out", ["VACUUM", "checkpoint", "both"])
def test_a_ledger_that_is_not_written_anew_is_caught(left_out: str, ws, monkeypatch) -> None:
    planted(ws, 36)
    whole = ws.context.ledger.compact

    def half() -> bool:
        with closing(sqlite3.connect(ws.context.folder / "ledger.db")) as database:
            if left_out == "VACUUM":
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            if left_out == "checkpoint":
                database.execute("VACUUM")
        return True

    ws.context.ledger.compact = half
    assert_blocked(ws, "ledger.db")
    ws.context.ledger.compact = whole
    assert ws.work().exit_code == 0


def test_pseudonyms_that_outlive_their_request_are_found(ws, monkeypatch) -> None:
    """Deleted rows in the write-ahead log, rows that nobody deleted, sets that nobody deleted."""
    whole, calls = ws.context.ledger.compact, []
    ws.context.ledger.compact = lambda: bool(calls) or (calls.append(1) is None and whole())
    assert ws.forget(subjects=PEOPLE[:2]).status == "certified"
    found = ws.verify(replay=False, residue=True, subjects=PEOPLE[:2])
    assert found.exit_code == 4 and "ledger.db" in found.checks[-1].detail
    ws.context.ledger.compact = whole
    ws.work()
    assert ws.verify(replay=False, residue=True, subjects=PEOPLE[:2]).exit_code == 0


@pytest.mark.parametrize("table", ["request_keys", "scan_sets"])
def test_a_closed_request_keeps_neither_pseudonyms_nor_a_scan_set(
    table: str, ws, monkeypatch
) -> None:
    other = {"request_keys": changes.scan_sets, "scan_sets": changes.request_keys}[table]

    def half(connection, ids) -> None:
        connection.execute(other.delete().where(other.c.request_id.in_(ids)))

    monkeypatch.setattr(changes, "_destroy_pseudonyms", half)
    assert ws.forget(subjects=PEOPLE[:2]).status == "certified"
    found = ws.verify(replay=False, residue=True)
    assert found.exit_code == 4 and "closed" in found.checks[-1].detail


def _no_delete(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Artefacts, "delete", lambda found: 0)


def _no_drop(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Rows, "drop", lambda found: 0)


def _no_scrub(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mirror_purge, "scrub", lambda engine: None)


def _no_empty(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mirror_purge, "_empty", lambda folder: None)


@pytest.mark.parametrize(
    ("where", "skip"),
    [
        ("workspace/mlartifacts", _no_delete),
        ("workspace/mlflow.db", _no_drop),
        ("workspace/mlflow.db", _no_scrub),
        ("workspace/outgoing", _no_empty),
    ],
)
def test_each_step_of_the_mirrors_purge_that_is_left_out_is_caught(
    where, skip, mirrored, monkeypatch
) -> None:
    planted(mirrored, FEW)
    with monkeypatch.context() as patch:
        skip(patch)
        if skip in (_no_delete, _no_drop):  # it lists again, before anything is searched
            done = mirrored.forget(subjects=PEOPLE, records=VISITS)
            assert (done.status, done.certificate) == ("blocked", None)
            assert "still there" in mirrored.request(done.request_id).request.blocked
            patch.setattr(mirror_purge._Place, "_require", lambda place, **found: None)
            assert mirrored.work().exit_code == 75
            assert where in mirrored.request(done.request_id).request.blocked
        else:
            assert_blocked(mirrored, where)


def test_a_mirror_that_is_not_purged_at_all_is_caught(mirrored) -> None:
    planted(mirrored, FEW)
    mirrored.context = dataclasses.replace(mirrored.context, purge_mirror=MirrorPurge)
    assert_blocked(mirrored, "workspace/ml")
