"""What an erasure will be searched for is sealed at acceptance, and destroyed with the request."""

from __future__ import annotations

import base64
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime

import pytest
from click.testing import CliRunner

from data_index import keys, scan_sets
from data_index.scan_sets import Sealed
from sisa import accept, certificate, closing, forget, residue
from sisa.cli import main
from sisa.residue import ScanSet
from sisa.residue.decoders import DECODERS
from sisa.residue.scan import scan
from sisa.workspace import Workspace

CHOICES = {"shards": 3, "slices": 3, "epochs": 1, "learner": "logistic"}
GONE = ("patient-7", "patient-11")


class Crash(BaseException):
    pass


def crash(*_: object, **__: object) -> None:
    raise Crash


@pytest.fixture
def ws(lab, data, stock) -> Workspace:
    def fill(first) -> None:
        first.workspace("ws", data("patients"), **CHOICES).train()

    lab.copied(stock.lab("scan sets", fill))
    return lab.open("ws")


def kept(ws: Workspace) -> dict[str, Sealed]:
    with ws.context.ledger.read() as connection:
        return scan_sets.every(connection)


def only(ws: Workspace) -> ScanSet:
    """The scan set of the one open request."""
    (request,) = ws.context.ledger.pending().requests
    found = closing.open_sets(ws.context)
    assert found.keys() == {request.id}
    return found[request.id]


def assert_destroyed(ws: Workspace, sealed: dict[str, Sealed]) -> None:
    """Nothing of sets and keys is in the ledger's files."""
    assert kept(ws) == {} and sealed
    files = list(ws.context.folder.glob("ledger.db*"))
    held = b"".join(f.read_bytes() for f in files)
    assert len(held) > 1000
    assert not [s for pair in sealed.values() for s in pair if s[-32:] in held]


def rows_of(ws: Workspace, gone: ScanSet) -> ScanSet:
    return residue.erased(ws.context, gone.gone)


def test_the_set_is_sealed_in_the_transaction_of_the_acceptance(ws, monkeypatch) -> None:
    ws.submit(GONE, dry_run=True)
    assert kept(ws) == {}
    with monkeypatch.context() as patch:
        patch.setattr(accept, "_roll_back", crash)
        with pytest.raises(Crash):
            ws.submit(GONE)
    assert kept(ws) == {} and ws.status().requests == ()
    ws.submit([*GONE, "nobody-at-all"])
    found = only(ws)
    assert found.ids == tuple(sorted(i.encode() for i in GONE)), "only those that have rows"
    named = keys.subject_keys(ws.context.ring, list(found.ids))
    assert {*found.subjects} == {k.tobytes() for k in named}
    assert found.digests == (), "rows come when it is carried out"
    ((sealed, _),) = kept(ws).values()
    held = b"".join(f.read_bytes() for f in ws.context.folder.glob("ledger.db*"))
    assert sealed[-32:] in held and not any(i.encode() in held for i in GONE)


def test_a_call_of_several_requests_has_a_set_for_each(ws) -> None:
    done = ws.submit_each([*GONE, "nobody-at-all"])
    found = closing.open_sets(ws.context)
    first, second, _ = done.requests
    assert {n: s.ids for n, s in found.items()} == {
        first.id: (b"patient-7",),
        second.id: (b"patient-11",),
    }


def test_the_set_survives_a_kill(ws, lab) -> None:
    ws.close()
    code = (
        "import os, sys; from sisa import Workspace\n"
        "ws = Workspace.open(sys.argv[1], ['runtime.tracking.uri=null'], exact=True)\n"
        "ws.forget(subjects=sys.argv[2:], wait=False)\n"
        f"os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
    )
    call = [sys.executable, "-c", code, str(ws.context.folder), *GONE]
    environment = {**os.environ, "SISA_SECRET_KEY": "5a" * 32}
    assert subprocess.run(call, env=environment).returncode == -signal.SIGKILL
    again = lab.open("ws")
    assert only(again).ids == tuple(sorted(i.encode() for i in GONE))
    assert again.work().exit_code == 0 and kept(again) == {}


def test_rows_are_in_the_set_before_they_are_rewritten(ws, lab, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(forget, "_rewrite", crash)
        with pytest.raises(Crash):
            ws.forget(subjects=GONE)
    before = only(ws)
    rows = rows_of(ws, before)
    assert rows.digests and rows.windows and {*rows.digests} == {*before.digests}
    assert {*rows.windows} == {*before.windows} and len(before.ids) == 2
    with monkeypatch.context() as patch:
        patch.setattr(closing, "close", crash)
        with pytest.raises(Crash):
            ws.work()
    assert rows_of(ws, before) == ScanSet() and only(ws) == before, "only the set tells them now"
    again, sought = lab.open("ws"), []
    whole = residue.of

    def noting(context, open_sets):
        sought.extend(open_sets)
        return whole(context, sought)

    monkeypatch.setattr(residue, "of", noting)
    assert again.work().exit_code == 0 and sought == [before]


@pytest.mark.parametrize("end", ["certified", "cancelled"])
def test_set_and_key_are_destroyed_with_the_request(end: str, ws, monkeypatch) -> None:
    request = ws.forget(subjects=GONE, wait=False).request_id
    sealed = kept(ws)
    with pytest.raises(AssertionError):
        assert_destroyed(ws, sealed)
    if end == "cancelled":
        ws.cancel(request, "withdrawn")
    else:
        monkeypatch.setattr(forget, "_rewrite", crash)
        with pytest.raises(Crash):
            ws.work()
        monkeypatch.undo()
        sealed |= {f"with rows: {name}": pair for name, pair in kept(ws).items()}
        assert len({*sealed.values()}) == 2
    ws.work()
    assert ws.request(request).request.status == end
    assert_destroyed(ws, sealed)


def test_after_an_old_ledger_the_set_is_made_anew_from_pseudonyms(
    ws, lab, monkeypatch, tmp_path
) -> None:
    folder, old = ws.context.folder, tmp_path / "old.db"
    ws.context.ledger.compact()
    shutil.copy(folder / "ledger.db", old)
    ws.forget(subjects=GONE, wait=False)
    had = only(ws)
    ws.close()
    for tail in ("", "-wal", "-shm"):
        (folder / f"ledger.db{tail}").unlink(missing_ok=True)
    shutil.copy(old, folder / "ledger.db")
    again = lab.open("ws", restored=True)
    assert kept(again) == {}
    with monkeypatch.context() as patch:
        patch.setattr(forget, "_rewrite", crash)
        with pytest.raises(Crash):
            again.work()
    made = only(again)
    assert made.ids == (), "nobody can tell them"
    assert {*made.subjects} == {*had.subjects}
    assert {*made.digests} == {*rows_of(again, had).digests} and made.windows
    leak = _leak(again, made.digests[0].hex().encode())
    assert again.work().exit_code == 75, "what is left of the rows is still found"
    leak.unlink()
    assert again.work().exit_code == 0 and kept(again) == {}


def _leak(ws: Workspace, what: bytes = GONE[0].encode()):
    path = ws.context.folder / "mlartifacts" / "left.json.gz"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(b'{"left": "' + what + b'"}'))
    return path


def stated(path: str) -> dict:
    with open(path) as file:
        return json.loads(base64.b64decode(json.load(file)["payload"]))["predicate"]


def command(ws: Workspace, monkeypatch) -> Callable[..., tuple[int, dict]]:
    monkeypatch.setenv("SISA_SECRET_KEY", "5a" * 32)

    def call(*words: str) -> tuple[int, dict]:
        quiet = ["--set", "runtime.tracking.uri=null", "--set", "runtime.executor.kind=process"]
        line = ["-C", str(ws.context.folder), *words, *quiet, "--output", "json"]
        done = CliRunner().invoke(main, line)
        return done.exit_code, json.loads(done.stdout)

    return call


def test_residue_blocks_the_certificate_until_it_is_removed(ws, monkeypatch) -> None:
    sisa, leak = command(ws, monkeypatch), _leak(ws)
    code, done = sisa("forget", "--subject", GONE[0], "--yes")
    assert (code, done["status"], done["certificate"]) == (75, "blocked", None)
    code, again = sisa("work")
    assert code == 75 and "left.json.gz" in again["blocked"] and again["requests"] == []
    assert not list(ws.context.store.list("certificates"))
    shown = ws.request(done["request_id"])
    assert shown.request.status == "blocked"
    assert shown.request.blocked == again["blocked"] and GONE[0] not in again["blocked"]
    assert datetime.fromisoformat(shown.request.retry) > ws.context.ledger.clock()
    steps = {step.name: step.done for step in shown.steps}
    assert steps == dict.fromkeys(steps, True) | {"certified": False}, "all else is done"
    assert "blocked" in [event.what for event in shown.events]
    assert rows_of(ws, only(ws)) == ScanSet()
    leak.unlink()
    code, last = sisa("work")
    assert code == 0 and last["blocked"] is None
    shown = ws.request(done["request_id"]).request
    assert (shown.status, shown.blocked, shown.retry) == ("certified", None, None)
    assert kept(ws) == {}
    said = stated(str(ws.context.store.path(shown.certificate)))["residue"]
    assert said["found"] == 0 and said["files"] > 5 and len(said["digest"]) == 64


def test_who_submits_after_the_search_is_not_lost(ws, lab, monkeypatch) -> None:
    """A search that opens and closes the ledger's file gives up the locks of its own process on it.

    Then the next one to close the ledger deletes the write-ahead log under this one's feet, and
    both commit into files of their own.
    """
    issue = certificate.issue_all
    code = (
        "import sys; from sisa import Workspace\n"
        "with Workspace.open(sys.argv[1], ['runtime.tracking.uri=null'], exact=True) as ws:\n"
        "    ws.submit(subjects=sys.argv[2:3], external_id=sys.argv[3])\n"
    )

    def submit(subject: str, name: str) -> None:
        call = [sys.executable, "-c", code, str(ws.context.folder), subject, name]
        subprocess.run(call, env={**os.environ, "SISA_SECRET_KEY": "5a" * 32}, check=True)

    def between(*found: object) -> None:
        monkeypatch.undo()
        submit("patient-8", "T-8")
        issue(*found)
        submit("patient-9", "T-9")

    monkeypatch.setattr(certificate, "issue_all", between)
    assert ws.forget(subjects=GONE[:1]).status == "certified"
    ws.close()
    again = lab.open("ws")
    found = {r.external_id: r.status for r in again.requests().requests}
    assert found == dict.fromkeys((None, "T-8", "T-9"), "certified")
    assert again.verify(replay=False).exit_code == 0


def test_a_search_that_misses_its_controls_certifies_nothing(ws, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(scan, "__defaults__", (DECODERS[1:], *scan.__defaults__[1:]))
        done = ws.forget(subjects=GONE)
        assert (done.status, done.certificate) == ("blocked", None)
    assert "controls" in ws.request(done.request_id).request.blocked
    assert ws.work().exit_code == 0


def test_without_a_search_the_certificate_says_so(ws, lab) -> None:
    _leak(ws)
    ws.close()
    other = lab.open("ws", "runtime.erasure.residue=none")
    done = other.forget(subjects=GONE)
    assert done.status == "certified" and stated(done.certificate)["residue"] is None
    shown = other.show_certificate(done.request_id).text()
    assert "residue scan: none was part of this" in shown
    assert kept(other) == {}
