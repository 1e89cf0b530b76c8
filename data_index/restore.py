"""Bring ledger and store together again after an older copy of one of them was restored.

The ledger catches up with the log; a data set whose files are gone gives way to the newest one that
is all there; and requests whose rows are back in the files are opened again. All of it is one
transaction, so that nothing is built in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa

from data_index import changes, keys, ledger, lineage, requests
from data_index.database import Connection
from data_index.dataset import DataSet
from data_index.errors import ExactnessError, RestoredError
from data_index.keys import Keyring, Keys
from data_index.leases import Lease
from data_index.ledger import Ledger, Moment
from data_index.lineage import Selection
from data_index.schema import RECORD_KEY, SUBJECT_KEY
from data_index.storage import FileRef, Store
from data_index.tables import generations, tombstones
from data_index.tombstones import Epochs


@dataclass(frozen=True, slots=True)
class Restored:
    """What was done.

    Attributes:
        entries: Entries of the log that the ledger lacked.
        older: Whether an older data set had to be taken: what was ingested since is missing.
        reopened: Requests whose rows had come back.
    """

    entries: int
    older: bool
    reopened: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """What was done, in a sentence or two."""
        text = (
            f"An older copy was restored: {self.entries} entries of the log were replayed and "
            f"{len(self.reopened)} requests opened again."
        )
        more = " What was ingested since that copy is missing: ingest it again."
        return text + more if self.older else text


def require_whole(book: Ledger, store: Store) -> None:
    """Refuse a ledger that lacks what the log has, or that points to what the store lacks.

    Raises:
        RestoredError: An older copy was restored; `sisa work` brings both together.
        ExactnessError: Ledger and log belong to different histories.
    """
    book.settle()
    before, lacking = None, _lacking(book.moment(), store)
    while lacking and lacking != before:  # what was current may have been swept since it was read
        before, lacking = lacking, _lacking(book.moment(), store)
    if lacking:
        raise RestoredError(
            f"{lacking[0].path} is missing from the store, but the ledger names it.",
            "Check runtime.store; if an older copy of it was restored, run `sisa work`.",
        )


def _lacking(moment: Moment, store: Store) -> tuple[FileRef, ...]:
    """Manifests that the ledger points to and the store lacks."""
    manifest = moment.generation.manifest if moment.generation else None
    return tuple(
        ref for ref in (moment.dataset, manifest) if ref is not None and not store.holds(ref)
    )


def restore(book: Ledger, store: Store, ring: Keyring, lease: Lease) -> Restored:
    """Bring both together.

    Raises:
        ExactnessError: The log cannot be trusted, no data set is all there, or the key of a
            tombstone epoch is missing.
        BusyError: The lease was lost.
    """
    with book.write() as connection:
        lease.check(connection)
        entries = book.catch_up(connection)
        _certificates(connection, store)
        _retire(connection, store)
        older = _fall_back(book, connection, store)
        reopened = _reopen(book, connection, store, ring)
    return Restored(entries, older, reopened)


def _certificates(connection: Connection, store: Store) -> None:
    """Write what is lacking in the chain, as the log kept it."""
    for body in (e.body for e in changes.entries(connection) if e.kind == "certified"):
        store.put_new(body["path"], body["certificate"].encode())


def _retire(connection: Connection, store: Store) -> None:
    """Let go of manifests that are not there."""
    live = sa.select(generations).where(generations.c.path.is_not(None))
    for row in connection.execute(live).all():
        if not store.holds(FileRef(row.path, row.sha256, row.size)):
            ledger.retire_generation(connection, row.number)


def _fall_back(book: Ledger, connection: Connection, store: Store) -> bool:
    """Take the newest data set that is all there, if the current one is not."""
    refs = [FileRef.from_json(e.body) for e in changes.entries(connection) if e.kind == "dataset"]
    for older, ref in enumerate(reversed(refs)):
        if _whole(store, ref):
            if older:
                changes.make(connection, book.clock(), "dataset", ledger.as_body(ref))
            return bool(older)
    if refs:
        raise ExactnessError(
            "The store holds none of the data sets that the log names.",
            "Check runtime.store, or restore it from a backup.",
        )
    return False


def _whole(store: Store, ref: FileRef) -> bool:
    return store.intact(ref) and all(map(store.holds, DataSet.load(store, ref).files()))


def _reopen(book: Ledger, connection: Connection, store: Store, ring: Keyring) -> tuple[str, ...]:
    """Let every request whose rows are in the files name them, and open those that were closed."""
    ref = ledger.current_dataset(connection)
    stones = requests.stones(connection)
    if ref is None or len(stones) == 0:
        return ()
    epochs = Epochs.open(store, ring, ledger.live_epochs(connection))
    named: dict[str, list[Selection]] = {}
    for found in _met(store, DataSet.load(store, ref), epochs, stones):
        for request_id, selection in _owners(connection, epochs, found):
            named.setdefault(request_id, []).append(selection)
    closed = [
        r.id
        for r in requests.every(connection)
        if r.id in named and r.status not in (*requests.OPEN, "duplicate")
    ]
    if closed:
        changes.make(connection, book.clock(), "reopened", {"requests": closed})
    for request_id, parts in named.items():
        for part in parts:
            requests.enter_keys(connection, request_id, part)
    return tuple(closed)


def _met(store: Store, dataset: DataSet, epochs: Epochs, stones: Keys) -> Iterator[Selection]:
    """Keys in the data set that meet a tombstone, by row group of its lineage."""
    for table in lineage.scan(store, dataset.by_record):
        found = Selection(
            *(
                column[epochs.meets(stones, column)]
                for column in (
                    np.unique(keys.from_arrow(table[SUBJECT_KEY]), axis=0),
                    keys.from_arrow(table[RECORD_KEY]),
                )
            )
        )
        if found:
            yield found


def _owners(
    connection: Connection, epochs: Epochs, found: Selection
) -> Iterator[tuple[str, Selection]]:
    """The requests that erased keys, each with those of them that it named."""
    for kind, column in (("subject", found.subjects), ("record", found.records)):
        for secret in epochs.secrets:
            hashes = keys.tombstone_hashes(secret, column)
            for key, stone in zip(column, hashes, strict=True):
                query = sa.select(tombstones.c.request_id).where(tombstones.c.hash == bytes(stone))
                one, none = key.reshape(1, -1), keys.empty()
                for owner in connection.scalars(query).all():
                    yield owner, Selection(one, none) if kind == "subject" else Selection(none, one)
