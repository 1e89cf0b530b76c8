"""Whatever old copy is restored: the forgotten are forgotten again, or the workspace refuses."""

from __future__ import annotations

import shutil

import pytest

from data_index.errors import ConfigurationError, ExactnessError, RestoredError
from sisa.workspace import Workspace

CHOICES = {"shards": 3, "slices": 4, "epochs": 3, "learner": "logistic"}
GONE = ("patient-7", "patient-11")


@pytest.fixture
def ws(lab, data):
    made = lab.workspace("ws", data("patients"), **CHOICES)
    made.train()
    return made


@pytest.fixture
def oracle(lab, data):
    return lab.oracle("oracle", data("patients"), {"subject_id": list(GONE)}, **CHOICES)


def copy(ws, to, *names):
    """Copies of the ledger, of the store, or of the whole workspace as they are now."""
    folder = ws.context.folder
    for name in names or ("ledger.db", "store"):
        target = to / name
        if name == "store":
            shutil.copytree(folder / name, target)
        else:
            ws.context.ledger.compact()
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name, target)


def put_back(ws, old, *names):
    """Puts copies in the place of what is there."""
    ws.close()
    folder = ws.context.folder
    for name in names:
        if name == "store":
            shutil.rmtree(folder / name)
            shutil.copytree(old / name, folder / name)
        else:
            for tail in ("", "-wal", "-shm"):
                (folder / f"{name}{tail}").unlink(missing_ok=True)
            shutil.copy(old / name, folder / name)


def restored(lab) -> Workspace:
    """Opens as `sisa work` does."""
    return lab.open("ws", restored=True)


def refused(lab):
    with pytest.raises(RestoredError, match=r"older than|missing from") as caught:
        lab.open("ws")
    assert "sisa work" in caught.value.remedy


def test_an_old_ledger_beside_a_newer_store_catches_up(ws, lab, oracle, same, tmp_path):
    copy(ws, tmp_path / "old", "ledger.db")
    done = ws.forget(subjects=GONE)
    before, head = ws.status(), ws.status().certificate_head
    put_back(ws, tmp_path / "old", "ledger.db")
    refused(lab)
    again = restored(lab)
    assert (again.status().generation, again.status().certificate_head) == (before.generation, head)
    assert again.status().requests == before.requests
    same(again, oracle)
    assert again.work().requests == ()
    assert again.forget(subjects=GONE[:1]).certificate == done.certificate
    assert again.verify().exact is True
    assert lab.open("ws").status() == again.status()


def test_a_lost_ledger_comes_back(ws, lab, oracle, same):
    ws.forget(subjects=GONE)
    before = ws.status()
    ws.close()
    for tail in ("", "-wal", "-shm"):
        (ws.context.folder / f"ledger.db{tail}").unlink(missing_ok=True)
    refused(lab)
    again = restored(lab)
    assert again.status().digest == before.digest
    same(again, oracle)


def test_an_open_request_is_open_again_after_an_old_ledger(ws, lab, oracle, same, tmp_path):
    copy(ws, tmp_path / "old", "ledger.db")
    ws.forget(subjects=GONE, wait=False)
    put_back(ws, tmp_path / "old", "ledger.db")
    again = restored(lab)
    assert [r.status for r in again.status().requests] == ["accepted"]
    assert again.train().digest == oracle.status().digest, "the rows are still in the files"
    (done,) = again.work().requests
    assert done.status == "certified"
    same(again, oracle)


def test_an_old_store_beside_a_newer_ledger_is_erased_again(ws, lab, oracle, same, tmp_path):
    copy(ws, tmp_path / "old", "store")
    first = ws.forget(subjects=GONE)
    put_back(ws, tmp_path / "old", "store")
    refused(lab)
    again = restored(lab)
    assert [r.status for r in again.status().requests] == ["accepted"]
    (done,) = again.work().requests
    assert (done.id, done.status) == (first.request_id, "certified")
    assert again.status().generation > first.generation
    same(again, oracle)
    assert again.verify().exact is True


def test_old_copies_of_all_with_the_newest_log_are_erased_again(ws, lab, oracle, same, tmp_path):
    """What is to be kept apart from the backups, and up to date, is the log alone."""
    copy(ws, tmp_path / "old")
    first = ws.forget(subjects=GONE)
    copy(ws, tmp_path / "new")
    put_back(ws, tmp_path / "old", "ledger.db", "store")
    shutil.rmtree(ws.context.folder / "store" / "log")
    shutil.copytree(tmp_path / "new" / "store" / "log", ws.context.folder / "store" / "log")
    refused(lab)
    again = restored(lab)
    assert {r.status for r in again.work().requests} == {"certified"}
    assert again.status().generation > first.generation, "numbers never go back"
    same(again, oracle)
    assert again.verify().exact is True


def test_what_is_served_after_an_old_store_never_held_the_forgotten(ws, lab, oracle, tmp_path):
    copy(ws, tmp_path / "old", "store")
    ws.forget(subjects=GONE)
    put_back(ws, tmp_path / "old", "store")
    again = restored(lab)
    assert again.status().generation is None, "nothing is served until it is built"
    assert again.train().digest == oracle.status().digest


def test_files_that_come_back_beside_what_is_current_are_swept(ws, lab, oracle, same, tmp_path):
    """A copy that was restored over the store, without deleting what is newer."""
    copy(ws, tmp_path / "old", "store")
    ws.forget(subjects=GONE)
    shutil.copytree(tmp_path / "old" / "store", ws.context.folder / "store", dirs_exist_ok=True)
    again = lab.open("ws")
    assert again.verify().exact is False, "rows of the forgotten lie about"
    again.work()
    assert again.verify().exact is True
    same(again, oracle)


def test_data_that_came_after_the_old_store_are_told_to_be_missing(ws, lab, tmp_path, data):
    copy(ws, tmp_path / "old", "store")
    ws.forget(subjects=["patient-7"])
    records = ws.status().records
    put_back(ws, tmp_path / "old", "store")
    told: list[str] = []
    again = lab.open("ws", restored=True, warn=told.append)
    assert again.status().records > records
    (text,) = told
    assert "ingest it again" in text and "1 requests opened again" in text


def test_another_store_is_refused(ws, lab):
    ws.forget(subjects=["patient-7"])
    ws.close()
    shutil.rmtree(ws.context.folder / "store")
    with pytest.raises(RestoredError, match="is missing from the store"):
        lab.open("ws")
    with pytest.raises(ExactnessError, match="none of the data sets"):
        lab.open("ws", restored=True)
    with pytest.raises(ExactnessError, match="none of the data sets"):
        lab.open("ws", restored=True)


def test_a_store_of_another_workspace_is_refused(ws, lab, data):
    other = lab.workspace("other", data("patients"), **CHOICES)
    other.train(), other.close()
    put_back(ws, other.context.folder, "store")
    for how in (False, True):
        with pytest.raises((ExactnessError, ConfigurationError)):
            lab.open("ws", restored=how)


def test_without_its_log_an_old_ledger_would_serve_the_forgotten(ws, lab, oracle, tmp_path):
    """The control: why there is a log."""
    copy(ws, tmp_path / "old")
    ws.forget(subjects=GONE)
    put_back(ws, tmp_path / "old", "ledger.db", "store")
    again = lab.open("ws")
    assert again.status().digest != oracle.status().digest
    assert again.status().requests == ()
