"""The life of a request: what it is known by, when it is due, and that it is answered once."""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from data_index import keys
from sisa.cli import main
from sisa.errors import ConfigurationError, UsageError
from sisa.results import RequestState, Submitted
from sisa.states import STATES
from sisa.workspace import Workspace

QUIET = ("runtime.tracking.uri=null", "runtime.executor.kind=process")
SECRET = "5a" * 32
MARK = "personal-mark"


def write(path: Path, rows: int, subjects: int) -> None:
    rng = np.random.default_rng(0)
    age = rng.integers(18, 90, rows)
    table = {
        "id": [f"{MARK}-r{i}" for i in range(rows)],
        "who": [f"{MARK}-s{i % subjects}" for i in range(rows)],
        "age": age,
        "y": (age > 50).astype(np.int64),
    }
    pq.write_table(pa.table(table), path)


def who(number: int) -> str:
    return f"{MARK}-s{number}"


Opener = Callable[[], Workspace]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained workspace to be copied."""
    folder = tmp_path_factory.mktemp("trained")
    write(folder / "rows.parquet", 200, 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SISA_SECRET_KEY", SECRET)
        columns = {"record_id": "id", "subject_id": "who", "target": "y"}
        size = {"shards": 2, "slices": 2, "epochs": 1, "learner": "logistic"}
        Workspace.init(folder / "ws", folder / "rows.parquet", **columns, **size)
        with Workspace.open(folder / "ws", QUIET, exact=True) as made:
            made.ingest()
            made.train()
    return folder / "ws"


@pytest.fixture
def opener(trained: Path, tmp_path: Path) -> Iterator[Opener]:
    """Opens one trained workspace as often as asked."""
    shutil.copytree(trained, tmp_path / "ws")
    opened: list[Workspace] = []

    def make() -> Workspace:
        environment = {"SISA_SECRET_KEY": SECRET}
        opened.append(Workspace.open(tmp_path / "ws", QUIET, exact=True, environment=environment))
        return opened[-1]

    yield make
    for found in opened:
        found.close()


@pytest.fixture
def ws(opener: Opener) -> Workspace:
    return opener()


def one(done: Submitted) -> RequestState:
    (request,) = done.requests
    return request


def test_a_request_is_accepted_and_rolled_back_and_left_to_work(ws: Workspace) -> None:
    before = ws.status()
    done = ws.submit([who(1), "nobody"], external_id="T-1", regulation="GDPR")
    request = one(done)
    assert (done.status, done.accepted, done.duplicates, done.known) == ("accepted", 1, 0, 0)
    assert (request.status, request.records, done.records) == ("accepted", 5, 5)
    assert (request.external_id, request.regulation) == ("T-1", "GDPR")
    assert done.not_found == ("nobody",) and done.generation == before.generation + 1
    assert done.digest == ws.status().digest != before.digest
    (finished,) = ws.work().requests
    assert finished.id == request.id and ws.request("T-1").request.status == "certified"
    assert ws.request(request.id) == ws.request("T-1")


@pytest.mark.parametrize("until", ["accepted", "published", "certified", "cancelled", "not_found"])
def test_the_same_external_id_and_body_are_answered_with_the_same_request(
    ws: Workspace, until: str
) -> None:
    ids = ["nobody"] if until == "not_found" else [who(1), who(2)]
    first = one(ws.submit(ids, external_id="T-1", regulation="CCPA", due="45d"))
    if until == "published":
        ws.hold("T-1", "court order")
    if until in ("published", "certified"):
        ws.work()
    if until == "cancelled":
        ws.cancel("T-1", "withdrawn")
    entries = len(ws.requests().requests)
    again = ws.submit([*reversed(ids)], external_id="T-1", regulation="CCPA", due="45d")
    assert one(again).id == first.id and (again.known, again.accepted) == (1, 0)
    assert one(again).status == {"published": "on_hold"}.get(until, until)
    assert len(ws.requests().requests) == entries


@pytest.mark.parametrize(
    "other",
    [
        {"subjects": [who(2)]},
        {"subjects": [who(1), who(2)]},
        {"records": [who(1)]},
        {"subjects": [who(1)], "regulation": "GDPR"},
        {"subjects": [who(1)], "due": "45d"},
        {"subjects": [who(1)], "received": "2020-01-01"},
        {"subjects": [who(1)], "hold": "court order"},
    ],
)
def test_the_same_external_id_with_another_body_is_refused(
    ws: Workspace, other: dict[str, Any]
) -> None:
    ws.submit([who(1)], external_id="T-1")
    before = ws.status(), ws.requests()
    with pytest.raises(UsageError, match="another request already") as error:
        ws.submit(external_id="T-1", **other)
    assert error.value.exit_code == 2 and MARK not in str(error.value)
    with pytest.raises(UsageError, match="another request already"):
        ws.submit_each([who(5), {"external_id": "T-1", "subject": who(2)}])
    assert (ws.status(), ws.requests()) == before, "nothing of the call was taken"


def test_the_body_cannot_be_compared_without_its_epoch(ws: Workspace) -> None:
    ws.submit([who(1)], external_id="T-1")
    body = ws.context.ledger.request("T-1").body
    number, _, digest = body.partition(":")
    assert number == str(ws.context.epochs.numbers[-1]) and len(digest) == 64
    with ws.context.ledger.write() as connection:
        connection.exec_driver_sql("UPDATE requests SET body = '99:' || substr(body, 3)")
    with pytest.raises(UsageError, match="too old"):
        ws.submit([who(1)], external_id="T-1")


def test_what_is_erased_already_or_unknown_is_noted(ws: Workspace) -> None:
    first = one(ws.submit([who(1)]))
    second = one(ws.submit([who(1)]))
    assert (second.status, second.duplicate_of) == ("duplicate", first.id)
    ws.work()
    third = one(ws.submit([who(1)]))
    assert (third.status, third.duplicate_of, third.records) == ("duplicate", first.id, 0)
    nobody = ws.submit(["nobody"])
    assert one(nobody).status == "not_found" and nobody.exit_code == 0
    assert ws.request(one(nobody).id).steps == ()
    assert ws.work().requests == ()
    with pytest.raises(UsageError, match="duplicate of er_"):
        ws.hold(second.id, "court order")
    with pytest.raises(UsageError, match="not_found"):
        ws.cancel(one(nobody).id, "withdrawn")


def test_a_hold_on_what_another_request_erases_is_kept(ws: Workspace) -> None:
    first = one(ws.submit([who(1)]))
    held = one(ws.submit([who(1)], hold="court order"))
    assert held.status == "on_hold"
    assert ws.work().requests == () and ws.request(first.id).waits_for == (held.id,)
    ws.release(held.id)
    assert {r.id for r in ws.work().requests} == {first.id, held.id}


def test_a_file_of_requests_is_taken_line_by_line(ws: Workspace) -> None:
    lines = [
        who(1),
        json.dumps({"external_id": "T-2", "subject": who(2), "regulation": "CCPA", "due": "12h"}),
        {"external_id": "T-3", "record": f"{MARK}-r3"},
        who(1),
        "nobody",
        {"external_id": "T-2", "subject": who(2), "regulation": "CCPA", "due": "12h"},
    ]
    done = ws.submit_each(lines, regulation="GDPR")
    assert [r.status for r in done.requests] == [
        "accepted",
        "accepted",
        "accepted",
        "duplicate",
        "not_found",
        "accepted",
    ]
    assert [r.regulation for r in done.requests[:3]] == ["GDPR", "CCPA", "GDPR"]
    assert done.requests[3].duplicate_of == done.requests[0].id
    assert done.requests[5].id == done.requests[1].id
    assert (done.accepted, done.duplicates, done.records) == (3, 1, 11)
    assert done.not_found == ("nobody",)
    assert len({g.number for g in ws.history().generations}) == 2, "one roll-back for all"
    assert len(ws.work().requests) == 3


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "{}",
        '{"subject": "a", "record": "b"}',
        '{"subject": "a", "more": 1}',
        '{"subject": null}',
        '{"subject": ["a"]}',
        {"subject": "a", "hold": "x"},
        {"subject": "a", "external_id": ""},
        {"subject": "a", "received": "tomorrow"},
        " padded",
        True,
    ],
)
def test_a_line_that_is_no_request_takes_nothing(ws: Workspace, line: Any) -> None:
    before = ws.status()
    with pytest.raises((UsageError, Exception)) as error:
        ws.submit_each([who(1), line])
    assert getattr(error.value, "exit_code", None) in (1, 2)
    assert ws.status() == before


@pytest.mark.parametrize(
    "fields",
    [
        {"received": "2999-01-01"},
        {"received": "yesterday"},
        {"received": 5},
        {"due": "soon"},
        {"due": "-1d"},
        {"due": 45},
        {"regulation": "x" * 65},
        {"regulation": "a\nb"},
        {"external_id": " T-1"},
        {"external_id": 7},
        {"hold": "  "},
    ],
)
def test_a_field_that_does_not_fit_is_refused(ws: Workspace, fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as error:
        ws.submit([who(1)], **fields)
    assert error.value.exit_code == 2 and error.value.remedy
    assert ws.requests().requests == ()


def test_due_follows_from_when_it_was_received(ws: Workspace) -> None:
    now = datetime.now(UTC)
    plain = one(ws.submit([who(1)]))
    assert abs(datetime.fromisoformat(plain.received) - now) < timedelta(minutes=5)
    assert datetime.fromisoformat(plain.due) - datetime.fromisoformat(plain.received) == timedelta(
        days=30
    )
    past = one(ws.submit([who(2)], received="2020-02-01T01:00+01:00", due="45d"))
    assert past.received == "2020-02-01T00:00:00.000+00:00"
    assert past.due == "2020-03-17T00:00:00.000+00:00" and past.overdue
    dated = one(ws.submit([who(3)], received="2020-02-01"))
    assert dated.received == past.received
    assert [r.id for r in ws.requests(overdue=True).requests] == [past.id, dated.id]
    ws.work()
    assert ws.requests(overdue=True).requests == ()


def test_requests_are_listed_by_state(ws: Workspace) -> None:
    ws.submit_each([who(1), who(1), "nobody", who(2), who(3)])
    first, _, _, second, third = ws.requests().requests
    ws.hold(first.id, "court order")
    ws.cancel(second.id, "withdrawn")
    ws.cancel(third.id, "no right to it", denied=True)
    found = {s: [r.id for r in ws.requests(s).requests] for s in STATES}
    assert {s: len(ids) for s, ids in found.items() if ids} == {
        "on_hold": 1,
        "duplicate": 1,
        "not_found": 1,
        "cancelled": 1,
        "denied": 1,
    }
    assert found["denied"] == [third.id]
    with pytest.raises(UsageError, match="no such state"):
        ws.requests("lost")


def test_a_dry_run_says_what_would_be_and_changes_nothing(ws: Workspace) -> None:
    ws.submit([who(1)], external_id="T-1")
    before, files = ws.status(), sorted(ws.context.store.list())
    dry = ws.submit_each([who(1), who(2), "nobody", who(2)], dry_run=True)
    assert (dry.status, dry.requests, dry.generation) == ("planned", (), None)
    assert (dry.accepted, dry.duplicates, dry.records) == (1, 2, 5)
    assert dry.not_found == ("nobody",) and dry.shards_affected
    with pytest.raises(UsageError):
        ws.submit([who(2)], external_id="T-1", dry_run=True)
    assert ws.status() == before and sorted(ws.context.store.list()) == files


def test_another_recipe_is_refused_before_anything_is_accepted(
    ws: Workspace, tmp_path: Path
) -> None:
    changed = Workspace.open(
        tmp_path / "ws",
        [*QUIET, "recipe.training.lr=0.2"],
        exact=True,
        environment={"SISA_SECRET_KEY": SECRET},
    )
    with changed, pytest.raises(ConfigurationError, match="sisa train"):
        changed.submit([who(1)])
    assert ws.requests().requests == ()


def test_no_id_or_pseudonym_stays_in_the_ledger(ws: Workspace, tmp_path: Path) -> None:
    ids = [who(n) for n in (1, 2, 3, 4)]
    ws.submit(ids[:1], external_id="T-1")
    ws.submit(ids[:1], external_id="T-2")
    ws.submit([ids[1]], hold="court order")
    ws.submit([ids[2]], external_id="T-3")
    ws.cancel("T-3", "withdrawn")
    found = keys.subject_keys(ws.context.ring, [i.encode() for i in ids])
    with ws.context.ledger.read() as connection:
        log = connection.exec_driver_sql("SELECT group_concat(body) FROM log").scalar()
    assert log.count("T-1") == 1 and MARK not in log
    assert not any(k.tobytes().hex() in log for k in found), "not even of those that are open"
    for request in ws.requests("on_hold").requests:
        ws.release(request.id)
    ws.work()
    assert ws.context.ledger.compact()
    stored = b"".join(p.read_bytes() for p in (tmp_path / "ws").glob("ledger.db*"))
    assert MARK.encode() not in stored
    assert not any(k.tobytes() in stored or k.tobytes().hex().encode() in stored for k in found)


def test_the_log_alone_tells_the_same_requests(ws: Workspace, tmp_path: Path) -> None:
    """What another ledger replays is what this one holds, pseudonyms left aside."""
    from data_index import changes
    from data_index.ledger import Ledger

    ws.forget([who(3)])
    done = ws.submit_each(
        [who(1), who(1), "nobody", {"subject": who(2), "external_id": "T-2"}, who(9)]
    )
    first = done.requests[0]
    ws.hold(first.id, "court order")
    ws.submit([who(4)], hold="another")
    ws.cancel(first.id, "withdrawn")
    ws.readmit([who(3)])
    ws.work()
    other = Ledger("sqlite:///replayed.db", tmp_path)
    with ws.context.ledger.read() as mine, other.write() as its:
        for entry in changes.entries(mine):
            changes.replay(its, entry)
    other.close()
    tables = ("requests", "tombstones", "events", "generations", "dataset", "settings", "epochs")
    for table in tables:
        said = []
        for path in (tmp_path / "ws" / "ledger.db", tmp_path / "replayed.db"):
            with sqlite3.connect(path) as connection:
                columns = [r[1] for r in connection.execute(f"PRAGMA table_info({table})")]
                kept = [c for c in columns if table != "generations" or c in ("number", "digest")]
                said.append(sorted(connection.execute(f"SELECT {', '.join(kept)} FROM {table}")))
        assert said[0] == said[1], table


def test_submissions_of_many_at_once_are_answered_once_each(opener: Opener) -> None:
    """Eight clients send sixty requests, a third of them twice, while work runs."""
    failures: list[BaseException] = []
    answers: dict[str, set[str]] = {}
    lock = threading.Lock()

    def client(number: int) -> None:
        try:
            mine = opener()
            for n in [*range(number, 40, 8), *range((number + 3) % 8, 20, 8)]:
                name = f"T-{n}"
                (request,) = mine.submit([who(n)], external_id=name).requests
                with lock:
                    answers.setdefault(name, set()).add(request.id)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    worker = opener()
    certified: list[str] = []
    while any(t.is_alive() for t in threads):
        certified += [r.id for r in worker.work().requests]
    for thread in threads:
        thread.join()
    certified += [r.id for r in worker.work().requests]
    assert failures == []
    assert len(answers) == 40 and all(len(ids) == 1 for ids in answers.values())
    there = worker.requests().requests
    assert sorted(r.external_id for r in there) == sorted(answers)
    assert {r.status for r in there} == {"certified"}
    assert sorted(certified) == sorted(r.id for r in there), "one certificate a request"
    assert worker.context.dataset().records == 0


def test_ten_thousand_ids_are_taken_in_seconds(tmp_path: Path) -> None:
    write(tmp_path / "rows.parquet", 24_000, 12_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SISA_SECRET_KEY", SECRET)
        columns = {"record_id": "id", "subject_id": "who", "target": "y"}
        size = {"shards": 4, "slices": 2, "epochs": 1, "learner": "logistic"}
        Workspace.init(tmp_path / "ws", tmp_path / "rows.parquet", **columns, **size)
        ws = Workspace.open(tmp_path / "ws", QUIET, exact=True)
    with ws:
        ws.ingest()
        started = time.monotonic()
        many = ws.submit_each(
            {"subject": who(n), "external_id": f"T-{n}"} for n in [*range(7000), *range(3000)]
        )
        each = time.monotonic() - started
        assert len(many.requests) == 10_000 and many.accepted == 7000
        started = time.monotonic()
        single = ws.submit([who(n) for n in range(2000, 12_000)])
        assert one(single).records == 20_000
        assert (each, time.monotonic() - started) < (60, 60), "many times what it takes"
        print(f"10,000 requests in {each:.1f} s, one of 10,000 ids in {single.accepted_seconds} s")


def command(folder: Path, *words: str, text: str | None = None, code: int = 0) -> dict[str, Any]:
    """Run a command there; what it printed."""
    arguments = ["-C", str(folder), "request", *words, "--output", "json"]
    for setting in QUIET:
        arguments += ["--set", setting]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SISA_SECRET_KEY", SECRET)
        patch.setattr(sys, "argv", ["sisa", *arguments])
        done = CliRunner().invoke(main, arguments, input=text)
    assert done.exit_code == code, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_commands_of_a_life(ws: Workspace, tmp_path: Path) -> None:
    run = lambda *words, **how: command(tmp_path / "ws", *words, **how)  # noqa: E731
    refused = run("submit", "--subject", who(1), code=2)["error"]
    assert "--yes" in refused["remedy"]
    run("submit", "--each", "--external-id", "T", "--subject", who(1), "--yes", code=2)
    assert run("submit", "--subject", who(1), "--dry-run")["status"] == "planned"
    run("submit", "--subject", who(1), "--external-id", "T-1", "--yes", "--due", "45d")
    lines = f'{who(2)}\n\n{{"external_id": "T-3", "record": "{MARK}-r3"}}\n'
    done = run("submit", "--each", "--file", "-", "--yes", "--regulation", "GDPR", text=lines)
    assert [r["status"] for r in done["requests"]] == ["accepted", "accepted"]
    (tmp_path / "ids").write_text(f"{who(4)}\n{who(5)}\n")
    both = run("submit", "--file", str(tmp_path / "ids"), "--yes", "--hold", "court order")
    assert both["requests"][0]["status"] == "on_hold" and both["records"] == 10
    assert run("hold", "T-1", "--reason", "order 7")["request"]["hold"] == "order 7"
    assert [r["external_id"] for r in run("list", "--state", "on_hold")["requests"]] == [
        "T-1",
        None,
    ]
    assert run("release", "T-1")["request"]["status"] == "accepted"
    assert run("cancel", "T-1", "--reason", "withdrawn")["request"]["status"] == "cancelled"
    denied = run("cancel", "T-3", "--denied", "--reason", "no right to it")
    assert denied["request"]["status"] == "denied"
    shown = run("show", "T-1")
    assert [e["what"] for e in shown["events"]] == ["accepted", "held", "released", "cancelled"]
    assert run("readmit", "--subject", "nobody")["not_found"] == ["nobody"]
    run("readmit", "--subject", who(2), code=2)
    run("show", "nothing", code=5)
    run("list", "--state", "lost", code=2)


@pytest.mark.parametrize("field", ["external_id", "regulation", "hold"])
def test_what_is_kept_for_ever_names_nobody(ws: Workspace, field: str) -> None:
    before = ws.status(), ws.requests(), len(list(ws.context.store.list("log")))
    for call in (
        lambda: ws.submit([who(1), who(2)], **{field: f"case {who(2)}."}),
        lambda: ws.submit([], [f"{MARK}-r17"], **{field: f"{MARK}-r17"}),
        lambda: ws.submit_each([who(1), {"subject": who(3)}], **{field: f"x{who(3)}x"}),
        lambda: ws.submit(["nobody-known"], **{field: "nobody-known"}),
    ):
        with pytest.raises(UsageError, match="names a person") as error:
            call()
        assert MARK not in str(error.value) and "nobody" not in str(error.value)
        assert error.value.exit_code == 2
    assert (ws.status(), ws.requests(), len(list(ws.context.store.list("log")))) == before
    assert one(ws.submit([who(1), "12345"], **{field: f"12345 {who(1).upper()}"})).records == 5


def test_reasons_name_nobody_of_an_open_request(ws: Workspace) -> None:
    ws.submit([who(1)], external_id="T-1")
    ws.submit([who(2)], external_id="T-2")
    before = ws.requests(), len(list(ws.context.store.list("log")))
    for name in ("T-1", "T-2"):
        for change in (ws.hold, ws.cancel, lambda n, r: ws.cancel(n, r, denied=True)):
            with pytest.raises(UsageError, match="names a person") as error:
                change(name, f"as {who(2)} asks")
            assert MARK not in str(error.value)
    assert (ws.requests(), len(list(ws.context.store.list("log")))) == before
    assert ws.hold("T-1", "court order").request.hold == "court order"


def test_an_id_in_another_normal_form_is_still_one(ws: Workspace) -> None:
    with pytest.raises(UsageError, match="names a person"):
        ws.submit(["Zo\u00eb Smith"], external_id="case Zoe\u0308 Smith")
