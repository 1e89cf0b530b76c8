"""The log tells one history, and nobody who lacks the signing key tells another."""

from __future__ import annotations

import base64
import json
import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from data_index import changes, envelope, keys, requests, tables
from data_index.envelope import Signer
from data_index.errors import ExactnessError, RestoredError
from data_index.ledger import Ledger
from data_index.lineage import Selection
from data_index.log import PAYLOAD, Log
from data_index.mirrored import MirrorPlace
from data_index.storage import FileRef, Store

RING = keys.derive(bytes(range(32)))
SIGNER = Signer(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER = Signer(Ed25519PrivateKey.from_private_bytes(bytes(32)))
NOW = datetime(2030, 1, 1, tzinfo=UTC)
FILE = FileRef("generations/a.json", "a" * 64, 1)
DATA = FileRef("datasets/b.json", "b" * 64, 2)
PLACE = MirrorPlace("sqlite:///mlflow.db", "sisa", "sisa")
STONES = np.arange(32, dtype=np.uint8).reshape(2, 16)

REPLAYED = sorted(
    table.name
    for table in tables.metadata.tables.values()
    if table.name not in ("leases", "request_keys", "scan_sets")
)
"""What a replay gives back: all but who is at work and what must not be logged."""


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def signed(store, signer=SIGNER, *former):
    return Log(store, lambda: signer, lambda: {s.key_id: s.public for s in (signer, *former)})


def opened(store, name="ledger.db", signer=SIGNER):
    log = signed(store, signer, *([SIGNER] if signer is OTHER else []))
    return Ledger(f"sqlite:///{name}", store.root.parent, lambda: NOW, log)


def accept(book, *names):
    named = Selection(keys.subject_keys(RING, [n.encode() for n in names]), keys.empty())
    drafted = replace(requests.draft(NOW, timedelta(days=30)), records=3, places=((0, 2), (4, 1)))
    draft = requests.Draft(drafted, named, named.subjects[:, ::-1])
    with book.write() as connection:
        return requests.add(connection, [draft], 1, NOW)[0]


def nobody():
    """A request that names nobody who is known."""
    drafted = replace(requests.draft(NOW, timedelta(days=30)), status="not_found")
    return requests.Draft(drafted, Selection.nothing(), keys.empty())


def history(book):
    """One of everything that can happen."""
    book.open_epoch(1)
    with book.writer() as lease:
        book.commit_dataset(DATA, lease)
        book.publish(FILE, "d1", "train", book.pending().version, lease)
        book.publish(FILE, "d2", "train", book.pending().version, lease)
    book.mirror.mark()
    book.mirror.intend(1, PLACE, "mlartifacts")
    book.mirror.intend(2, PLACE, "mlartifacts")
    book.mirror.purged(book.mirror.superseded(), {"runs": 4})
    first, second, third = (accept(book, n) for n in ("alice", "bob", "carol"))
    with book.writer() as lease:
        book.set_status([first.id], "published", lease)
        book.block([first.id], "the mirror is down", "2030-01-01T01:00:00.000+00:00", lease)
        book.certify(first.id, "certificates/1.json", b"certificate", lease)
    with book.write() as connection:
        requests.hold(connection, second.id, "lawsuit", NOW)
        requests.release(connection, second.id, NOW)
        requests.add(connection, [nobody()], 1, NOW)
        requests.cancel(connection, second.id, "cancelled", "withdrawn", NOW)
        requests.readmit(connection, requests.stones(connection)[:1], NOW)
        changes.make(connection, NOW, "reopened", {"requests": [third.id]})
    book.open_epoch(2)
    book.add_signer(OTHER.public)
    place = MirrorPlace("sqlite:///mlflow.db", "sisa", "sisa")
    assert book.mirror.mark()
    book.mirror.intend(1, place, "mlartifacts")
    book.mirror.purged([], {"runs": 2})
    with book.writer() as lease:
        book.destroy_epochs([1], lease)


def dump(book):
    with book.read() as connection:
        return {
            name: connection.execute(sa.select(tables.metadata.tables[name])).all()
            for name in REPLAYED
        }


def replayed(book):
    with book.write() as connection:
        book.catch_up(connection)
    return dump(book)


def test_every_change_is_in_both_copies(store):
    book = opened(store)
    history(book)
    with book.read() as connection:
        ours = changes.entries(connection)
    assert {e.kind for e in ours} == set(changes._APPLY)
    log = signed(store)
    assert list(log.behind(None)) == ours
    assert log.numbers() == [e.number for e in ours] == list(range(1, len(ours) + 1))


def test_a_lost_ledger_is_written_again_from_the_log(store):
    book = opened(store)
    history(book)
    assert replayed(opened(store, "new.db")) == dump(book)


def test_what_a_messenger_without_a_log_notes_is_logged_by_the_next_who_opens(store):
    book = opened(store)
    with book.writer() as lease:
        book.publish(FILE, "d1", "train", book.pending().version, lease)
    mark = book.mirror.mark()
    Ledger("sqlite:///ledger.db", store.root.parent).mirror.intend(1, PLACE, "mlartifacts")
    opened(store).settle()
    lost = opened(store, "new.db")
    assert dump(book) == replayed(lost) and lost.mirror.mark() == mark
    with lost.writer() as lease:
        lost.publish(FILE, "d2", "train", lost.pending().version, lease)
    assert [(e.number, e.place) for e in lost.mirror.superseded()] == [(1, PLACE)]


def test_what_a_messenger_notes_beside_an_open_ledger_is_no_difference(store):
    book = opened(store)
    with book.writer() as lease:
        book.publish(FILE, "d1", "train", book.pending().version, lease)
    before = book.check_log()
    Ledger("sqlite:///ledger.db", store.root.parent).mirror.intend(1, PLACE, "mlartifacts")
    assert book.check_log() == before + 1
    assert len(signed(store).numbers()) == before + 1


@pytest.mark.parametrize("length", range(1, 19))
def test_an_old_ledger_catches_up_from_wherever_it_was(store, length):
    book = opened(store)
    history(book)
    with book.read() as connection:
        ours = changes.entries(connection)
    old = Ledger("sqlite:///old.db", store.root.parent)
    with old.write() as connection:
        for entry in ours[:length]:
            changes.replay(connection, entry)
    old.close()
    again = opened(store, "old.db")
    with pytest.raises(RestoredError, match=rf"{len(ours) - length} entries of the log"):
        again.settle()
    assert replayed(again) == dump(book)
    again.settle()


def test_nothing_of_a_request_but_its_tombstones_is_logged(store):
    book = opened(store)
    accept(book, "alice")
    key = keys.subject_keys(RING, [b"alice"])[0].tobytes()
    for path in store.list("log"):
        text = base64.b64decode(json.loads(store.read_unchecked(path))["payload"]).decode()
        assert "alice" not in text and key.hex() not in text
        assert key[::-1].hex() in text, "the tombstone"


def test_what_a_crash_kept_from_the_log_is_added_when_it_is_opened(store):
    bare = Ledger("sqlite:///ledger.db", store.root.parent)
    accept(bare, "alice")
    bare.close()
    assert signed(store).numbers() == []
    opened(store).settle()
    assert signed(store).numbers() == [1]


@pytest.mark.parametrize("gone", [1, 4, 13, 14])
def test_an_entry_that_was_taken_away_is_written_again(store, gone):
    book = opened(store)
    history(book)
    path = f"log/{gone:010d}.json"
    before = store.read_unchecked(path)
    store.delete([path])
    opened(store).settle()
    assert store.read_unchecked(path) == before


def test_a_gap_is_not_jumped_over(store):
    history(opened(store))
    store.delete(["log/0000000004.json"])
    with pytest.raises(ExactnessError, match=r"0000000004|missing"):
        replayed(opened(store, "new.db"))


def test_two_histories_are_told_apart(store):
    book = opened(store)
    accept(book, "alice")
    book.close()
    shutil.copy(store.root.parent / "ledger.db", store.root.parent / "fork.db")
    accept(opened(store), "bob")
    fork = Ledger("sqlite:///fork.db", store.root.parent, lambda: NOW)
    accept(fork, "carol")
    fork.close()
    with pytest.raises(ExactnessError, match="different histories from entry 2"):
        opened(store, "fork.db").settle()
    longer = Ledger("sqlite:///fork.db", store.root.parent, lambda: NOW)
    accept(longer, "dave")
    longer.close()
    with pytest.raises(ExactnessError, match="different histories from entry 2"):
        opened(store, "fork.db").settle()
    accept(opened(store), "erin")
    accept(opened(store), "frank")
    with pytest.raises(ExactnessError, match="different histories from entry 4"):
        replayed(opened(store, "fork.db"))


def test_two_who_write_at_once_leave_one_history(store):
    """Each writes what the other has committed as well; the bytes are the same."""
    one, other = opened(store), opened(store)
    one.settle(), other.settle()
    for i in range(4):
        accept((one, other)[i % 2], f"s{i}")
    assert signed(store).numbers() == [1, 2, 3, 4]
    opened(store).settle()


def flipped(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_single_bit_of_an_entry_counts(store):
    accept(opened(store), "alice")
    path = store.path("log/0000000001.json")
    good = path.read_bytes()
    log = signed(store)
    for bit in range(len(good) * 8):
        path.write_bytes(flipped(good, bit))
        with pytest.raises(ExactnessError):
            log.read(1)
    path.write_bytes(good)
    assert log.read(1).kind == "accepted"


@pytest.mark.parametrize(
    "how", ["another key", "another number", "another previous", "swapped", "no entry"]
)
def test_a_forged_entry_is_refused(store, how):
    book = opened(store)
    history(book)
    first, second = store.path("log/0000000001.json"), store.path("log/0000000002.json")
    entry = signed(store).read(2)
    signer = SIGNER
    if how == "another key":
        signer = Signer(Ed25519PrivateKey.generate())
    elif how == "another number":
        entry = replace(entry, number=3)
    elif how == "another previous":
        entry = replace(entry, previous="0" * 64)
    payload = b"[]" if how == "no entry" else entry.payload
    second.write_bytes(envelope.sign(PAYLOAD, payload, signer))
    if how == "swapped":
        first.write_bytes(second.read_bytes())
    with pytest.raises(ExactnessError):
        replayed(opened(store, "new.db"))


def test_a_key_that_the_log_vouches_for_may_sign_what_follows(store):
    history(opened(store))
    before = len(signed(store).numbers())
    accept(opened(store, signer=OTHER), "dave")
    assert len(signed(store).numbers()) == before + 1
    replayed(opened(store, "new.db"))
    stranger = Signer(Ed25519PrivateKey.generate())
    with pytest.raises(ExactnessError, match="not trusted"):
        accept(opened(store, signer=stranger), "erin")
    number = signed(store).numbers()[-1]
    entry = replace(signed(store, OTHER).read(number), number=number + 1)
    path = store.path(f"log/{number + 1:010d}.json")
    path.write_bytes(envelope.sign(PAYLOAD, entry.payload, stranger))
    with pytest.raises(ExactnessError, match="not trusted"):
        replayed(opened(store, "newer.db"))


def test_an_acceptance_that_cannot_be_logged_is_not_acknowledged_but_stands(store, monkeypatch):
    book = opened(store)
    accept(book, "alice")

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Store, "put_new", full)
    with pytest.raises(OSError, match="No space"):
        accept(book, "bob")
    monkeypatch.undo()
    assert len(book.requests()) == 2
    opened(store).settle()
    assert signed(store).numbers() == [1, 2]
