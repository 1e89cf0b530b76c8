"""What a killed Ray of a workspace left behind goes with the next purge; what is in use stays."""

from __future__ import annotations

import fcntl
import tempfile
from pathlib import Path

import pytest

from sisa import ray_folders


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp"


def left_behind(temporary: Path, workspace: Path) -> Path:
    folder = temporary / f"{ray_folders.prefix(workspace)}abc"
    (folder / "session" / "logs").mkdir(parents=True)
    (folder / ray_folders.LOCK).touch()
    (folder / "session" / "logs" / "worker.out").write_text("a row")
    return folder


def test_work_sweeps_what_nobody_uses(lab, data, temporary) -> None:
    ws = lab.workspace("ws", data("patients"), shards=2, slices=2, epochs=1, learner="logistic")
    mine = left_behind(temporary, ws.context.folder)
    other = left_behind(temporary, ws.context.folder / "elsewhere")
    ws.work()
    assert not mine.exists() and other.exists()


def test_what_somebody_uses_stays(temporary) -> None:
    folder = left_behind(temporary, temporary)
    with (folder / ray_folders.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert ray_folders.sweep(temporary) == 0 and folder.exists()
    assert ray_folders.sweep(temporary) == 2 and not folder.exists()


def test_what_is_just_being_made_stays(temporary) -> None:
    folder = temporary / f"{ray_folders.prefix(temporary)}new"
    folder.mkdir()
    assert ray_folders.sweep(temporary) == 0 and folder.exists()
