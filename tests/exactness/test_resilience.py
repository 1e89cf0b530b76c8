"""What must not go wrong when something else has: lost leases, lost files, changed code, races."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sqlite3
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_index import keys
from data_index.storage import Store
from sisa import accept, certificate_chain, forget, purge, stage_log
from sisa import context as context_module
from sisa.errors import BlockedError, BusyError, ConfigurationError, ExactnessError, UsageError
from sisa.workspace import Workspace

CHOICES = {"shards": 3, "slices": 3, "epochs": 3, "learner": "logistic"}


@pytest.fixture
def ws(lab, data, stock) -> Workspace:
    def fill(first) -> None:
        first.workspace("ws", data("patients"), **CHOICES).train()

    lab.copied(stock.lab("resilience", fill))
    return lab.open("ws")


def test_one_who_has_lost_the_lease_destroys_nothing(ws, lab) -> None:
    other = lab.open("ws")
    context = ws.context
    with context.ledger.writer() as lost:
        with context.ledger.write() as connection:
            connection.exec_driver_sql("UPDATE leases SET expires = '2000', holder = 'x y 1 z'")
        with other.context.ledger.writer():
            pass
        before = set(context.store.list())
        context.store.put("partitions", ".parquet", b"of the other writer")
        with pytest.raises(BusyError):
            purge.purge(context, lost)
    assert before < set(context.store.list())


def test_a_lost_epoch_key_stops_everything(ws, lab) -> None:
    """Without it no tombstone would be met, and the erased would come back unnoticed."""
    ws.forget(subjects=["patient-7"])
    shutil.rmtree(ws.context.store.path("epochs"))
    with pytest.raises(ExactnessError, match="tombstone epoch 1"):
        lab.open("ws")


def module(folder: Path, width: int) -> None:
    (folder / "ownnet.py").write_text(
        "from torch import nn\n"
        "def make(inputs, outputs):\n"
        f"    return nn.Sequential(nn.Linear(inputs, {width}), nn.Tanh(), "
        f"nn.Linear({width}, outputs))\n"
    )


OWN = {"shards": 2, "slices": 2, "epochs": 1, "learner": "ownnet:make"}


@pytest.mark.clean_process
def test_changed_code_is_trained_under_new_keys_or_not_at_all(lab, data) -> None:
    ws = lab.folder / "ws"
    ws.mkdir()
    module(ws, 4)
    made = lab.workspace("ws", data("patients", 400), inline=False, **OWN)
    first = made.train()
    module(ws, 5)
    with pytest.raises(ConfigurationError, match="changed"):
        made.forget(subjects=["patient-1"])
    assert made.verify().exit_code == 6, "other code compares nothing"
    second = made.train()
    assert second.samples_reused == 0 and second.digest != first.digest
    module(ws, 4)
    assert made.train().digest == first.digest
    assert made.verify().exact is True


def test_code_that_changes_during_a_build_is_refused(lab, data) -> None:
    folder = lab.folder / "ws"
    folder.mkdir()
    module(folder, 4)
    made = lab.workspace("ws", data("patients", 400), **OWN)
    executor = made.context.make_executor()
    run = executor.run

    def edited(jobs, tick):
        module(folder, 6)
        return run(jobs, tick)

    executor.run = edited
    with pytest.raises(ConfigurationError, match="code"):
        made.train()
    assert made.status().generation is None


def test_two_workspaces_with_modules_of_the_same_name(lab, data) -> None:
    digests = []
    for name, width in (("one", 4), ("two", 7)):
        (lab.folder / name).mkdir()
        module(lab.folder / name, width)
        made = lab.workspace(name, data("patients", 400), **OWN)
        made.train()
        digests.append(made.context.training)
        assert made.verify().exact is True
        assert made.predict(data("patients", 3)).num_rows == 3
    assert digests[0] != digests[1]


def test_a_roll_back_leaves_failed_constituents_out(ws) -> None:
    _, current = ws.context.served()
    a, b, c = current.constituents
    from sisa.generation import Failure

    failed = dataclasses.replace(b, stages=b.stages[:1], failed=Failure(2, b.stages[1].key))
    assert not failed.votes
    assert failed.before(3).failed == failed.failed
    assert failed.before(2).failed is None and failed.before(2).votes
    assert a.votes and c.votes


def test_a_missing_or_damaged_checkpoint_is_trained_again(ws, oracle) -> None:
    _, current = ws.context.served()
    place = ws.lineage(subject="patient-7").records[0]
    stages = current.constituents[place.shard].stages
    ws.context.store.path(stages[-1].file.path).unlink()
    before = ws.status()
    assert ws.train().samples_trained > 0
    assert ws.status().digest == before.digest and ws.verify().exact is True
    parents = [s for s in stages if s.slice < place.slice]
    if parents:
        path = ws.context.store.path(parents[-1].file.path)
        path.write_bytes(b"\0" + path.read_bytes()[1:])
    plan = ws.plan(subjects=["patient-7"])
    done = ws.forget(subjects=["patient-7"])
    assert done.status == "certified" and done.samples_trained == plan.samples
    assert done.digest == oracle("patient-7")


@pytest.fixture
def oracle(lab, data):
    def digest(gone: str) -> str:
        made = lab.oracle("oracle", data("patients"), {"subject_id": [gone]}, **CHOICES)
        return made.status().digest

    return digest


def test_named_files_are_durable_before_they_have_their_name(tmp_path, monkeypatch) -> None:
    """A segment's name does not tell its content: it must never be seen torn."""
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("name"), replace(a, b))[1])
    store = Store(tmp_path)
    store.put_named("stages/0000/a-000001.json", b"[]")
    assert order == ["fsync", "name"]
    store.flush()
    assert order[-1] == "fsync"


def test_a_failed_fsync_is_believed(tmp_path, monkeypatch) -> None:
    store = Store(tmp_path)
    store.put("checkpoints", ".safetensors", b"x")
    with monkeypatch.context() as patch:

        def fail(fd: int) -> None:
            raise OSError(5, "Input/output error")

        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input"):
            store.flush()
    with pytest.raises(OSError, match="durable"):
        store.flush()
    with pytest.raises(OSError, match="durable"):
        store.put("checkpoints", ".safetensors", b"y")


def test_verify_looks_at_one_moment(ws, lab, monkeypatch) -> None:
    """A request that comes while it runs changes nothing of what it says."""
    other = lab.open("ws")
    files = __import__("sisa.verify", fromlist=["_files"])._files

    def interrupted(subject):
        other.forget(subjects=["patient-7"], wait=False)
        return files(subject)

    monkeypatch.setattr("sisa.verify._files", interrupted)
    assert ws.verify().exact is True


def test_data_that_came_in_since_is_no_taint(lab, data, tmp_path) -> None:
    table = data("patients")
    ws = lab.workspace("ws", table.slice(0, 1500), **CHOICES)
    ws.train()
    more = tmp_path / "more.parquet"
    pq.write_table(table.slice(1500), more)
    ws.ingest(more)
    found = ws.verify()
    assert found.exact is None and found.exit_code == 6
    ws.train()
    assert ws.verify().exact is True


def test_verify_answers_when_a_request_empties_a_shard(lab, data) -> None:
    ws = lab.workspace("ws", data("patients"), **{**CHOICES, "shards": 40})
    ws.train()
    owners = {}
    for subject in set(data("patients")["subject_id"].to_pylist()):
        shard = ws.lineage(subject=subject).records[0].shard
        owners.setdefault(shard, []).append(subject)
    alone = next(subjects for subjects in owners.values() if len(subjects) == 1)
    ws.forget(subjects=alone, wait=False)
    assert ws.verify().exit_code == 6
    ws.work()
    assert ws.verify().exact is True


def test_a_torn_file_that_nothing_points_to_disproves_nothing(ws) -> None:
    path = ws.context.store.path("partitions/0000/0001/" + "0" * 64 + ".parquet")
    path.write_bytes(b"PAR1 torn")
    assert ws.verify().exit_code == 6
    ws.work()
    assert not path.exists() and ws.verify().exact is True


def test_readers_and_submitters_survive_a_purge_in_between(ws, lab, monkeypatch) -> None:
    other = lab.open("ws")
    load = context_module.Generation.load
    came: list[str] = []

    def late(store, ref):
        if not came:
            came.append("patient-8")
            other.forget(subjects=came)
        return load(store, ref)

    for read in (
        lambda: ws.status().digest,
        lambda: ws.predict(pq.read_table(lab.folder / "ws.parquet").slice(0, 3)).num_rows,
        lambda: ws.forget(subjects=["patient-9"], wait=False).status,
    ):
        came.clear()
        with monkeypatch.context() as patch:
            patch.setattr(context_module.Generation, "load", late)
            assert read()
    ws.work()
    assert ws.verify().exact is True


def test_readers_survive_a_purge_that_writes_the_stage_log_anew(ws, lab, monkeypatch) -> None:
    """The pointers have moved by then; only names of segments change."""
    other = lab.open("ws")
    shard = ws.lineage(subject="patient-8").records[0].shard
    read = stage_log.read_segment
    came: list[str] = []

    def late(store, name):
        if not came and store is ws.context.store:
            came.append("patient-8")
            other.forget(subjects=came)
        return read(store, name)

    monkeypatch.setattr(stage_log, "read_segment", late)
    assert stage_log.read_shard(ws.context.store, shard) and came


def test_a_blocked_forget_answers_beside_the_writer(ws, lab, monkeypatch) -> None:
    other, work = lab.open("ws"), forget.work
    load = context_module.Generation.load
    came = ["not yet"]

    def busy(*_):
        came.clear()
        raise BusyError("Another one is writing.", "Wait.")

    def late(store, ref):
        if not came:
            came.append("worked")
            work(other.context)
        return load(store, ref)

    monkeypatch.setattr(forget, "work", busy)
    monkeypatch.setattr(context_module.Generation, "load", late)
    done = ws.forget(subjects=["patient-7"])
    assert came == ["worked"] and done.samples_full > 0


@pytest.mark.parametrize("name", ["walk", "waiting"])
def test_the_chain_is_whole_beside_one_who_certifies(ws, lab, monkeypatch, name) -> None:
    ws.forget(subjects=["patient-7"])
    other, look = lab.open("ws"), getattr(certificate_chain, name)
    came: list[str] = []

    def late(context):
        found = look(context)
        if not came:
            came.append("patient-8")
            other.forget(subjects=came)
        return found

    monkeypatch.setattr(certificate_chain, name, late)
    assert certificate_chain.outcome(ws.context)[0] is True and came


@pytest.fixture
def moving(ws, lab, monkeypatch):
    """Has another workspace erase once, between a pointer that is read next and its file."""
    other, load = lab.open("ws"), context_module.DataSet.load
    waiting: list[str] = []

    def late(store, ref):
        if waiting:
            other.forget(subjects=[waiting.pop()])
        return load(store, ref)

    monkeypatch.setattr(context_module.DataSet, "load", late)
    return waiting


def test_doctor_survives_a_purge_in_between(ws, moving) -> None:
    before = [f for f in ws.doctor().findings if f.severity == "error"]
    moving.append("patient-8")
    assert [f for f in ws.doctor().findings if f.severity == "error"] == before == []
    assert not moving


def test_a_request_is_shown_beside_a_purge(ws, moving, monkeypatch) -> None:
    def down():
        raise BlockedError("The mirror is down.", "Wait.", 60.0)

    ws.context = dataclasses.replace(ws.context, purge_mirror=down)
    done = ws.forget(subjects=["patient-7"])
    assert done.status == "blocked"
    unreachable = purge.unreachable

    def late(context):
        moving.append("patient-8")
        monkeypatch.setattr(purge, "unreachable", unreachable)
        return unreachable(context)

    monkeypatch.setattr(purge, "unreachable", late)
    assert ws.request(done.request_id).request.id == done.request_id
    assert not moving


def test_pseudonyms_are_gone_from_the_database_files(ws) -> None:
    key = keys.subject_keys(ws.context.ring, [b"patient-7"])[0].tobytes()
    ws.forget(subjects=["patient-7"], wait=False)
    assert any(key in p.read_bytes() for p in ws.context.folder.glob("ledger.db*"))
    ws.work()
    assert not any(key in p.read_bytes() for p in ws.context.folder.glob("ledger.db*"))


def test_somebody_reading_the_ledger_is_said(ws) -> None:
    said: list[str] = []
    reporter = dataclasses.replace(ws.context.report, warn=said.append)
    ws.context = dataclasses.replace(ws.context, report=reporter)
    reader = sqlite3.connect(ws.context.folder / "ledger.db")
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM requests").fetchall()
    assert ws.forget(subjects=["patient-7"]).status == "certified"
    reader.close()
    assert len(said) == 1 and "work" in said[0]


def test_rows_of_a_killed_ingest_go_with_the_next_call(lab, data, monkeypatch) -> None:
    ws = lab.workspace("ws", data("patients").slice(0, 900), **CHOICES)

    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    more = lab.folder / "more.parquet"
    pq.write_table(data("patients").slice(900), more)
    with monkeypatch.context() as patch:
        patch.setattr(type(ws.context.ledger), "commit_dataset", kill)
        with pytest.raises(Killed):
            ws.ingest(more)
    named = {p.file.path for p in ws.context.dataset().partitions}
    assert set(ws.context.store.list("partitions")) > named
    subject = data("patients")["subject_id"][1700].as_py()
    assert ws.forget(subjects=[subject]).status == "not_found"
    assert set(ws.context.store.list("partitions")) == named


@pytest.mark.parametrize("ids", ["patient-7", b"patient-7"])
def test_a_single_text_is_not_taken_for_its_letters(ws, ids) -> None:
    with pytest.raises(UsageError):
        ws.forget(subjects=ids, dry_run=True)


@pytest.mark.parametrize("one", [7.0, True, None])
def test_ids_of_other_kinds_are_refused(ws, one) -> None:
    with pytest.raises(UsageError):
        ws.forget(subjects=[one], dry_run=True)


def test_without_a_subject_column_a_subject_is_its_record(lab, data) -> None:
    ws = lab.workspace("ws", data("digits", 300), **CHOICES)
    first = ws.forget(subjects=["record-7"])
    again = ws.forget(records=["record-7"])
    assert again.status == "certified" and again.certificate == first.certificate


def test_a_torn_segment_names_its_remedy(ws) -> None:
    (name, *_) = ws.context.store.list(f"{stage_log.FOLDER}/0000")
    ws.context.store.path(name).write_bytes(b"[{")
    with pytest.raises(ExactnessError, match="Delete it"):
        ws.train()
    ws.context.store.path(name).unlink()
    assert ws.train().samples_trained > 0
    assert ws.verify().exact is True


def test_a_segment_with_another_number_is_refused(ws) -> None:
    """What it says of cost and environment stands in certificates, too."""
    (name, *_) = ws.context.store.list(f"{stage_log.FOLDER}/0000")
    path = ws.context.store.path(name)
    data = path.read_bytes()
    samples = stage_log.read_segment(ws.context.store, name)[0].samples
    path.write_bytes(data.replace(b'"samples":%d' % samples, b'"samples":%d' % (samples + 1)))
    with pytest.raises(ExactnessError, match="Delete it"):
        ws.plan(subjects=["patient-7"])
    path.write_bytes(data + b"\n")
    assert ws.verify(replay=False).exit_code == 4
    path.write_bytes(data)
    assert ws.verify(replay=False).exit_code == 0


def test_a_crash_inside_acceptance_accepts_nothing(ws, monkeypatch) -> None:
    def crash(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(accept, "_roll_back", crash)
        with pytest.raises(KeyboardInterrupt):
            ws.forget(subjects=["patient-7"])
    assert ws.status().requests == () and ws.status().depth == 1
    assert len(ws.context.ledger.tombstones()) == 0
