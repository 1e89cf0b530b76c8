"""One request and one place in the chain get one certificate, whatever fails meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_index.ledger import Ledger
from sisa import certificate
from sisa.errors import ExactnessError
from sisa.statement import Statement

from .helpers import check_of, file, made, opened


class Crash(BaseException):
    """Stands for the end of the process: nothing catches it."""


def crash(*_: Any, **__: Any) -> Any:
    raise Crash


def test_a_crash_between_file_and_ledger_leaves_one_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made(tmp_path / "ws") as workspace:
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "certify", crash)
            with pytest.raises(Crash):
                workspace.forget(subjects=["person-1"])
        first = file(workspace, 1).read_bytes()
        assert check_of(workspace) is None
        later = workspace.forget(subjects=["person-2"], wait=False)
    with opened(tmp_path / "ws") as again:
        finished = again.work().requests
        assert [r.status for r in finished] == ["certified", "certified"]
        assert file(again, 1).read_bytes() == first, "a second certificate for the same place"
        assert again.show_certificate(later.request_id).statement.predicate.sequence == 2
        assert len(list(again.context.store.list(certificate.FOLDER))) == 2
        assert check_of(again) is True


def test_a_crash_after_one_of_two_keeps_both_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The certificate that waits is of the second request in one run, of the first in another."""
    certify = Ledger.certify
    calls = []

    def once(ledger: Ledger, *given: Any) -> None:
        calls.append(given)
        if len(calls) == 2:
            raise Crash
        certify(ledger, *given)

    with made(tmp_path / "ws") as workspace:
        workspace.forget(subjects=["person-1"], wait=False)
        workspace.forget(subjects=["person-2"], wait=False)
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "certify", once)
            with pytest.raises(Crash):
                workspace.work()
    with opened(tmp_path / "ws") as again:
        before = {p: file(again, p).read_bytes() for p in (1, 2)}
        assert [r.status for r in again.work().requests] == ["certified"]
        assert {p: file(again, p).read_bytes() for p in (1, 2)} == before
        assert (
            check_of(again) is True
            and len({c.request for c in again.certificates().certificates}) == 2
        )


def test_a_crash_before_the_file_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made(tmp_path / "ws") as workspace:
        with monkeypatch.context() as patch:
            patch.setattr(Statement, "signed", crash)
            with pytest.raises(Crash):
                workspace.forget(subjects=["person-1"])
        assert not file(workspace, 1).exists() and check_of(workspace) is True
        assert workspace.work().requests[0].status == "certified"


def test_two_writers_cannot_take_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One who has lost the lease and does not know it yet finds the place taken."""
    with made(tmp_path / "ws") as workspace:
        workspace.forget(subjects=["person-1"])
        first = file(workspace, 1).read_bytes()
        monkeypatch.setattr(certificate, "_next", lambda context: (1, None))
        monkeypatch.setattr(certificate, "complete", lambda context, lease: [])
        assert workspace.forget(subjects=["person-2"]).status == "blocked"
        assert file(workspace, 1).read_bytes() == first
        monkeypatch.undo()
        assert [r.status for r in workspace.work().requests] == ["certified"]
        assert check_of(workspace) is True


WOBBLY = """
import os

import torch


def make(inputs, outputs):
    model = torch.nn.Linear(inputs, outputs)
    seed = int.from_bytes(os.urandom(4), "little")
    torch.nn.init.normal_(model.weight, generator=torch.Generator().manual_seed(seed))
    return model
"""


@pytest.mark.parametrize("asked", ["none", "sample", "all"])
def test_a_replay_stands_in_the_certificate(tmp_path: Path, asked: str) -> None:
    made(tmp_path / "ws").close()
    with opened(tmp_path / "ws", f"runtime.erasure.replay={asked}") as workspace:
        people = [f"person-{n}" for n in range(1, 7)]
        done = workspace.forget(subjects=people)
        assert done.shards_affected == (0, 1)
        said = workspace.show_certificate(done.request_id or "").statement.predicate
        assert said.replay == asked
        count = {"none": 0, "sample": 1, "all": 2}[asked]
        assert len({r.shard for r in said.replayed}) == len(said.replayed) == count
        current = workspace.context.served()[1]
        digests = {c.shard: c.stages[-1].tensors for c in current.constituents}
        for replayed in said.replayed:
            assert replayed.equal is True
            assert replayed.digest == replayed.replay_digest == digests[replayed.shard]


@pytest.mark.slow
def test_a_replay_that_differs_leaves_no_certificate(tmp_path: Path) -> None:
    (tmp_path / "ws").mkdir()
    (tmp_path / "ws" / "wobbly.py").write_text(WOBBLY)
    made(tmp_path / "ws", learner="wobbly:make", slices=1).close()
    with opened(tmp_path / "ws", "runtime.erasure.replay=all") as workspace:
        with pytest.raises(ExactnessError, match="No certificate") as raised:
            workspace.forget(subjects=["person-1"])
        assert raised.value.exit_code == 4
        assert workspace.status().requests[0].certificate is None
        assert list(workspace.context.store.list(certificate.FOLDER)) == []
    with opened(tmp_path / "ws") as workspace:  # without the replay it would have passed
        assert workspace.work().requests[0].status == "certified"
