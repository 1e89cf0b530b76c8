"""The ledger commits once, for one writer, and destroys what it need not know any more."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from data_index import database, keys, leases, ledger, requests
from data_index.errors import BusyError, ConfigurationError, MovedOnError
from data_index.ledger import Ledger
from data_index.lineage import Selection
from data_index.storage import FileRef, sha256

URL = "sqlite:///ledger.db"
RING = keys.derive(bytes(range(32)))
FILE = FileRef("generations/a.json", "a" * 64, 1)
OTHER = FileRef("generations/b.json", "b" * 64, 2)


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self):
        self.now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def book(tmp_path, clock):
    found = Ledger(URL, tmp_path, clock)
    yield found
    found.close()


def subject_keys(*names):
    return keys.subject_keys(RING, [n.encode() for n in names])


def record_keys(*names):
    return keys.record_keys(RING, [n.encode() for n in names])


def accept(book, named):
    """Accept a request for a selection, with tombstones that are the keys backwards."""
    stones = np.concatenate([named.subjects, named.records])[:, ::-1]
    drafted = requests.draft(book.clock(), timedelta(days=30))
    drafted = replace(drafted, records=3, places=((0, 2), (4, 1)))
    with book.write() as connection:
        drafts = [requests.Draft(drafted, named, stones)]
        return requests.add(connection, drafts, 1, book.clock())[0]


ALICE = Selection(subject_keys("alice"), keys.empty())
BOB = Selection(keys.empty(), record_keys("r1", "r2"))


def test_a_new_ledger_is_empty(book):
    assert book.dataset() is None and book.generation() is None
    assert (book.requests(), book.generations(), book.outbox()) == ([], [], [])
    assert book.tombstones().shape == (0, 16)
    assert book.certificate_head() is None
    pending = book.pending()
    assert (pending.version, pending.requests, bool(pending.gone)) == (0, (), False)


def test_an_accepted_request_is_pending_until_it_is_certified(book, tmp_path):
    first, second = accept(book, ALICE), accept(book, BOB)
    assert (first.sequence, second.sequence) == (1, 2)
    assert first.places == ((0, 2), (4, 1))
    assert first.id.startswith("er_") and len(first.id) == 35
    assert (first.received, first.due) == (
        "2030-01-01T00:00:00.000+00:00",
        "2030-01-31T00:00:00.000+00:00",
    )
    book.close()
    again = Ledger(URL, tmp_path)
    pending = again.pending()
    assert pending.requests == (first, second) == tuple(again.requests())
    assert pending.version == 2
    assert pending.gone.subjects.tobytes() == ALICE.subjects.tobytes()
    assert sorted(map(bytes, pending.gone.records)) == sorted(map(bytes, BOB.records))
    with again.writer() as lease:
        again.set_status([first.id], "published", lease)
    assert len(again.pending().requests) == 2
    with again.writer() as lease:
        again.certify(first.id, FILE.path, b"certificate", lease)
    pending = again.pending()
    assert [r.id for r in pending.requests] == [second.id]
    assert len(pending.gone.subjects) == 0 and len(pending.gone.records) == 2
    assert pending.version == 2
    assert again.certificate_head() == sha256(b"certificate")
    assert again.requests()[0].certificate == FILE.path
    assert [what for _, what in again.events(first.id)] == ["accepted", "published", "certified"]
    again.close()


def test_tombstones_outlive_the_certificate_and_lead_to_it(book):
    request = accept(book, ALICE)
    with book.writer() as lease:
        book.certify(request.id, FILE.path, b"certificate", lease)
    stone = book.tombstones()
    assert stone.tobytes() == ALICE.subjects[:, ::-1].tobytes()
    assert book.requests_of(stone)[stone[0].tobytes()].id == request.id
    assert book.requests_of(np.zeros((1, 16), np.uint8)) == {}


def test_a_failed_acceptance_leaves_nothing(book):
    with pytest.raises(RuntimeError), book.write() as connection:
        drafted = requests.draft(book.clock(), timedelta(1))
        drafts = [requests.Draft(drafted, ALICE, ALICE.subjects)]
        requests.add(connection, drafts, 1, book.clock())
        raise RuntimeError
    assert book.requests() == [] and len(book.tombstones()) == 0 and not book.pending().gone


def ledger_bytes(folder):
    return b"".join(p.read_bytes() for p in sorted(folder.glob("ledger.db*")))


def test_certifying_destroys_the_pseudonyms_in_the_files(book, tmp_path):
    many = [f"person {n}" for n in range(300)]
    named = Selection(subject_keys(*many), record_keys("r1", "r2"))
    request = accept(book, named)
    everything = [bytes(k) for k in (*named.subjects, *named.records)]
    before = ledger_bytes(tmp_path)
    assert all(key in before for key in everything)
    with book.writer() as lease:
        book.certify(request.id, FILE.path, b"certificate", lease)
    assert book.compact()
    after = ledger_bytes(tmp_path)  # while the database is open
    assert not any(key in after for key in everything)
    book.close()
    assert not any(key in ledger_bytes(tmp_path) for key in everything)


def test_compacting_tells_when_a_reader_keeps_the_log(book, tmp_path):
    request = accept(book, ALICE)
    other = Ledger(URL, tmp_path)
    with other.read() as connection:
        assert requests.pending(connection).requests
        with book.writer() as lease:
            book.certify(request.id, FILE.path, b"certificate", lease)
        assert not book.compact()
    assert book.compact()
    assert ALICE.subjects.tobytes() not in ledger_bytes(tmp_path)
    other.close()


def submitted(book, *wanted):
    """Enter requests of a status each, over what they name, in one call."""
    drafts = []
    for status, named in wanted:
        drafted = replace(requests.draft(book.clock(), timedelta(days=30)), status=status)
        stones = np.concatenate([named.subjects, named.records])[:, ::-1]
        drafts.append(requests.Draft(drafted, named, stones))
    with book.write() as connection:
        return requests.add(connection, drafts, 1, book.clock())


def taken_back(book, request_id):
    with book.write() as connection:
        return requests.cancel(connection, request_id, "cancelled", "withdrawn", book.clock())


def test_what_is_noted_alters_no_requests(book):
    (first,) = submitted(book, ("accepted", ALICE))
    version = book.pending().version
    nobody = Selection.nothing()
    entered = submitted(book, ("not_found", nobody), ("duplicate", ALICE))
    assert [r.sequence for r in entered] == [2, 3]
    assert book.pending().version == version
    assert book.pending().requests == (first,)
    submitted(book, ("not_found", nobody), ("accepted", BOB))
    assert book.pending().version > version


def test_a_commit_may_mind_some_changes_only(book):
    (first,) = submitted(book, ("accepted", ALICE))
    version = book.pending().version
    submitted(book, ("accepted", BOB))
    with book.writer() as lease:
        with pytest.raises(MovedOnError):
            book.commit_dataset(FILE, lease, version)
        book.commit_dataset(FILE, lease, version, ("held",))
        with book.write() as connection:
            requests.hold(connection, first.id, "court order", book.clock())
        with pytest.raises(MovedOnError):
            book.commit_dataset(OTHER, lease, version, ("held",))
    assert book.dataset() == FILE
    assert book.pending().held.subjects.tobytes() == ALICE.subjects.tobytes()
    assert len(book.pending().held.records) == 0


def test_a_tombstone_stands_as_long_as_a_request_that_made_it(book):
    both = Selection(ALICE.subjects, BOB.records)
    first, second = submitted(book, ("accepted", ALICE), ("accepted", both))
    assert len(book.tombstones()) == 3
    assert taken_back(book, first.id) == ()
    assert len(book.tombstones()) == 3 and len(book.pending().gone.subjects) == 1
    assert taken_back(book, second.id) == ()
    assert len(book.tombstones()) == 0 and not book.pending().gone


def test_certifying_destroys_the_pseudonyms_in_duplicates_too(book, tmp_path):
    both = Selection(ALICE.subjects, BOB.records)
    first, _, copy = submitted(book, ("accepted", ALICE), ("accepted", BOB), ("duplicate", both))
    with book.writer() as lease:
        book.certify(first.id, FILE.path, b"certificate", lease)
    assert len(book.pending().gone.subjects) == 0
    assert len(book.pending().named_by({copy.id}).records) == 2, "the other one may be cancelled"
    assert book.compact() and ALICE.subjects.tobytes() not in ledger_bytes(tmp_path)


def test_requests_are_found_by_either_id(book):
    drafted = replace(requests.draft(book.clock(), timedelta(1)), external_id="T-1")
    with book.write() as connection:
        (made,) = requests.add(
            connection, [requests.Draft(drafted, ALICE, ALICE.subjects)], 1, book.clock()
        )
        assert requests.of_external(connection, [*map(str, range(30_000)), "T-1"]) == {"T-1": made}
    assert book.request(made.id) == book.request("T-1") == made
    assert book.request("T-2") is None


def test_another_format_version_is_refused(book, tmp_path):
    book.close()
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute("UPDATE settings SET value = '99' WHERE name = 'format'")
    with pytest.raises(ConfigurationError, match="another format version"):
        Ledger(URL, tmp_path)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqlite:///no/such/folder/ledger.db", "unable to open database file"),
        ("sqlite:////proc/ledger.db", "unable to open database file"),
        ("postgresql://host/db", "Only SQLite"),
        ("nonsense", "cannot be opened"),
        ("", "cannot be opened"),
    ],
)
def test_a_ledger_that_cannot_be_opened_is_refused(tmp_path, url, reason):
    with pytest.raises(ConfigurationError, match=reason):
        Ledger(url, tmp_path)


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "ledger.db").write_bytes(b"something else entirely" * 100)
    with pytest.raises(ConfigurationError, match="not a database"):
        Ledger(URL, tmp_path)
    assert (tmp_path / "ledger.db").read_bytes() == b"something else entirely" * 100


def test_a_ledger_that_cannot_be_written_is_told(book):
    with book.read() as connection:
        connection.exec_driver_sql("PRAGMA query_only=ON")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        accept(book, ALICE)


def test_a_damaged_ledger_is_told_without_what_was_to_be_written(book, tmp_path):
    book.close()
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'request_keys'"
        (page,) = connection.execute(query).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    with open(tmp_path / "ledger.db", "r+b") as file:
        file.seek((page - 1) * size)
        file.write(bytes(size))
    with pytest.raises(ConfigurationError, match=r"written: database disk .* malformed\.") as told:
        accept(book, ALICE)
    assert told.value.__suppress_context__


def test_a_ledger_that_others_hold_is_busy_for_readers_too(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "PATIENCE", 0.1)
    book = Ledger(URL, tmp_path)
    book.close()
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as holder:
        holder.execute("PRAGMA locking_mode=EXCLUSIVE")
        holder.execute("UPDATE settings SET value = value")
        for use in (book.read, book.write):
            with pytest.raises(BusyError, match="locked by others"), use():
                pass
        with pytest.raises(BusyError, match="locked by others"):
            Ledger(URL, tmp_path)


def test_generations_are_numbered_and_mirrored(book):
    with book.writer() as lease:
        assert book.publish(FILE, "d1", "train", 0, lease) == 1
        assert book.publish(OTHER, "d2", "erasure", 0, lease) == 2
    assert book.generation().manifest == OTHER
    assert [(g.number, g.digest, g.reason) for g in book.generations()] == [
        (1, "d1", "train"),
        (2, "d2", "erasure"),
    ]
    assert book.outbox() == [1, 2]
    book.delivered([1])
    assert book.outbox() == [2]
    with book.write() as connection:
        ledger.retire_generations(connection, {2})
    assert [g.manifest for g in book.generations()] == [None, OTHER]


def test_publishing_is_refused_when_a_request_came_in(book):
    sequence = book.pending().version
    with book.writer() as lease:
        request = accept(book, ALICE)
        with pytest.raises(MovedOnError, match="changed during the build"):
            book.publish(FILE, "d1", "train", sequence, lease)
        assert book.generations() == [] and book.outbox() == []
        assert book.publish(FILE, "d1", "train", book.pending().version, lease) == 1
        book.certify(request.id, FILE.path, b"certificate", lease)
        assert book.publish(OTHER, "d2", "train", book.pending().version, lease) == 2


def test_the_data_set_pointer_moves(book):
    with book.writer() as lease:
        book.commit_dataset(FILE, lease)
        assert book.dataset() == FILE
        book.commit_dataset(OTHER, lease)
    assert book.dataset() == OTHER


def test_a_second_writer_is_refused_and_told_who_writes(book, tmp_path):
    other = Ledger(URL, tmp_path, book.clock)
    with book.writer():
        with pytest.raises(BusyError, match=rf"Process {os.getpid()} on "), other.writer():
            pass
        with other.messenger():
            pass
    with other.writer():
        pass
    other.close()


def test_one_who_lost_the_lease_commits_nothing(book, tmp_path, clock):
    other = Ledger(URL, tmp_path, clock)
    with book.writer() as lost:
        clock.now += leases.LIFE + timedelta(seconds=1)
        with other.writer() as lease:
            assert lease.token > lost.token
            request = accept(book, ALICE)
            for late in (
                lambda: book.commit_dataset(FILE, lost),
                lambda: book.publish(FILE, "d", "late", 1, lost),
                lambda: book.certify(request.id, FILE.path, b"late", lost),
            ):
                with pytest.raises(BusyError, match="taken over"):
                    late()
            other.commit_dataset(OTHER, lease)
    assert (book.dataset(), book.generation(), book.certificate_head()) == (OTHER, None, None)
    assert book.requests()[0].status == "accepted"
    other.close()


def test_one_who_lost_the_lease_does_not_give_it_back_for_the_other(book, tmp_path, clock):
    other = Ledger(URL, tmp_path, clock)
    with book.writer():
        clock.now += leases.LIFE + timedelta(seconds=1)
        holder = other.writer()
        holder.__enter__()
    third = Ledger(URL, tmp_path, clock)
    with pytest.raises(BusyError), third.writer():
        pass
    holder.__exit__(None, None, None)
    with third.writer():
        pass
    other.close()
    third.close()


def test_a_lease_is_renewed_while_it_is_held(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(leases, "LIFE", timedelta(seconds=3))
    book, other = (Ledger(URL, tmp_path) for _ in range(2))
    with book.writer() as lease:
        end = time.monotonic() + 5
        while time.monotonic() < end:
            with pytest.raises(BusyError), other.writer():
                pass
            time.sleep(0.05)
        book.commit_dataset(FILE, lease)
    book.close()
    other.close()


HOLD = """
import sys, time
from pathlib import Path
from data_index.ledger import Ledger

book = Ledger("sqlite:///ledger.db", Path(sys.argv[1]))
with book.writer() as lease:
    print(lease.token, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lease until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.token = int(process.stdout.readline())
    yield process
    process.kill()
    process.communicate()


def test_the_writer_of_another_process_is_respected(holder, tmp_path):
    book = Ledger(URL, tmp_path)
    with pytest.raises(BusyError, match=rf"Process {holder.pid} on ") as error, book.writer():
        pass
    assert error.value.exit_code == 75
    holder.communicate()
    with book.writer() as lease:
        assert lease.token == holder.token + 1
    book.close()


@pytest.mark.parametrize("reaped", [True, False])
def test_the_lease_of_a_dead_process_is_taken_over_at_once(holder, tmp_path, reaped):
    """Also while its parent has not asked for its exit status, as in a container without init."""
    book = Ledger(URL, tmp_path)
    os.kill(holder.pid, signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    if reaped:
        holder.wait()
    started = time.monotonic()
    with book.writer() as lease:
        assert lease.token == holder.token + 1
    assert time.monotonic() - started < leases.LIFE.total_seconds() / 3
    book.close()


def test_a_process_number_used_again_is_not_the_holder(book, tmp_path):
    """The holder's number is ours, but it began at another time."""
    with book.write() as connection:
        connection.execute(
            leases.leases.insert().values(
                name="writer",
                holder=f"{leases._me().rpartition(' ')[0]} 1",
                token=7,
                expires="9999",
            )
        )
    with book.writer() as lease:
        assert lease.token == 8


def test_the_lease_of_another_machine_is_waited_for_until_it_ends(book, clock):
    with book.write() as connection:
        connection.execute(
            leases.leases.insert().values(
                name="writer",
                holder="elsewhere boot 1 1",
                token=7,
                expires=(clock.now + timedelta(seconds=10)).isoformat(),
            )
        )
    with pytest.raises(BusyError, match="Process 1 on elsewhere"), book.writer():
        pass
    clock.now += timedelta(seconds=11)
    with book.writer() as lease:
        assert lease.token == 8


def test_acceptances_of_many_at_once_are_all_kept_and_numbered(tmp_path):
    Ledger(URL, tmp_path).close()
    failures = []

    def submit(name):
        book = Ledger(URL, tmp_path)
        try:
            for n in range(5):
                accept(book, Selection(subject_keys(f"{name}-{n}"), keys.empty()))
        except Exception as error:
            failures.append(error)
        book.close()

    threads = [threading.Thread(target=submit, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    book = Ledger(URL, tmp_path)
    assert [r.sequence for r in book.requests()] == list(range(1, 31))
    assert len(book.tombstones()) == len(book.pending().gone.subjects) == 30
    book.close()
