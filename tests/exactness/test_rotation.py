"""Tombstone epochs rotate: the forgotten stay out for as long as a backup could bring them back."""

from __future__ import annotations

import shutil
from datetime import timedelta

import pytest

from data_index.ledger import Ledger, utc_now
from data_index.tombstones import Epochs

CHOICES = {"shards": 3, "slices": 4, "epochs": 3, "learner": "logistic"}
FIRST, SECOND = "patient-7", "patient-11"


@pytest.fixture
def ws(lab, data):
    made = lab.workspace("ws", data("patients"), **CHOICES)
    made.train()
    return made


def later(ws, days):
    """Lets time pass for a workspace."""
    ws.context.ledger.clock = lambda: utc_now() + timedelta(days=days)


def rows_of(data, *subjects):
    return sum(s in subjects for s in data("patients")["subject_id"].to_pylist())


def epoch_files(ws):
    return list(ws.context.store.list("epochs"))


def test_tombstones_of_all_live_epochs_keep_people_out(ws, data) -> None:
    ws.forget(subjects=[FIRST])
    done = ws.rotate_epochs()
    assert (done.epoch, done.destroyed) == (2, ())
    ws.forget(subjects=[SECOND])
    assert [(e.number, e.tombstones) for e in ws.keys().epochs] == [(1, 1), (2, 1)]
    again = ws.ingest()
    assert (again.records, again.tombstoned) == (0, rows_of(data, FIRST, SECOND))
    assert ws.verify(replay=False).exit_code == 0


def test_an_epoch_ends_when_no_backup_outlives_it(ws, data) -> None:
    ws.forget(subjects=[FIRST])
    ws.rotate_epochs()
    ws.forget(subjects=[SECOND])
    later(ws, 89)
    assert ws.rotate_epochs().destroyed == ()
    later(ws, 91)
    done = ws.rotate_epochs()
    assert done.destroyed == (1,)
    assert epoch_files(ws) == ["epochs/0002.key", "epochs/0003.key"]
    assert len(ws.context.ledger.tombstones()) == 1
    again = ws.ingest()
    assert again.records == rows_of(data, FIRST), "nobody can tell any more"
    assert again.tombstoned == rows_of(data, SECOND)
    assert ws.verify(replay=False).exit_code == 6, "data came in"


def test_an_epoch_without_tombstones_is_kept(ws) -> None:
    assert ws.rotate_epochs().epoch == 1
    assert epoch_files(ws) == ["epochs/0001.key"]


def test_a_dry_run_changes_nothing(ws) -> None:
    ws.forget(subjects=[FIRST])
    before = ws.keys()
    planned = ws.rotate_epochs(dry_run=True)
    assert (planned.epoch, planned.destroyed, planned.epochs) == (2, (), before.epochs)
    assert ws.keys() == before and epoch_files(ws) == ["epochs/0001.key"]


def test_an_open_request_keeps_its_epoch(ws) -> None:
    ws.forget(subjects=[FIRST], wait=False)
    ws.rotate_epochs()
    later(ws, 91)
    assert ws.rotate_epochs().destroyed == ()
    ws.work()
    assert ws.rotate_epochs().destroyed == (1,)


def test_who_has_it_open_for_long_notices_a_rotation(ws, lab, data) -> None:
    ws.forget(subjects=[FIRST])
    other = lab.open("ws")
    assert other.context.epochs.numbers == (1,)
    ws.rotate_epochs()
    ws.forget(subjects=[SECOND])
    assert other.ingest().tombstoned == rows_of(data, FIRST, SECOND)
    assert other.forget(subjects=[SECOND]).status == "certified", "already"
    later(ws, 91)
    ws.rotate_epochs()
    assert other.ingest().tombstoned == rows_of(data, SECOND)


class Crash(BaseException):
    """Stands for the end of the process: nothing catches it."""


def crash(*_) -> None:
    raise Crash


def test_a_crash_before_the_new_epoch_is_entered_leaves_the_old_one(ws, lab, monkeypatch) -> None:
    ws.forget(subjects=[FIRST])
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "open_epoch", crash)
        with pytest.raises(Crash):
            ws.rotate_epochs()
    again = lab.open("ws")
    assert again.context.epochs.numbers == (1,)
    made = again.context.store.read_unchecked("epochs/0002.key")
    assert again.rotate_epochs().epoch == 2
    assert again.context.store.read_unchecked("epochs/0002.key") == made
    again.forget(subjects=[SECOND])
    assert len(again.keys().epochs) == 2


def test_a_crash_before_a_key_is_destroyed_destroys_it_later(ws, lab, monkeypatch) -> None:
    ws.forget(subjects=[FIRST])
    ws.rotate_epochs()
    later(ws, 91)
    with monkeypatch.context() as patch:
        patch.setattr(Epochs, "destroy", crash)
        with pytest.raises(Crash):
            ws.rotate_epochs()
    assert epoch_files(ws) == ["epochs/0001.key", "epochs/0002.key"]
    again = lab.open("ws")
    assert epoch_files(again) == ["epochs/0002.key"]


def test_a_restored_store_does_not_bring_a_destroyed_key_back(ws, lab, tmp_path) -> None:
    ws.forget(subjects=[FIRST])
    shutil.copytree(ws.context.folder / "store", tmp_path / "old")
    ws.rotate_epochs()
    later(ws, 91)
    ws.rotate_epochs()
    shutil.copytree(tmp_path / "old", ws.context.folder / "store", dirs_exist_ok=True)
    again = lab.open("ws")
    assert epoch_files(again) == ["epochs/0002.key"]
