"""The ledger: requests, tombstones, leases, pointers to the current data set and generation.

Its transaction is the only commit point: the files that a row names are durable before the row is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from data_index import changes, envelope, requests
from data_index.database import Connection, Database
from data_index.errors import ExactnessError, MovedOnError, RestoredError
from data_index.keys import Keys
from data_index.leases import Lease, holding
from data_index.log import Log
from data_index.mirrored import Mirror
from data_index.requests import OPEN, Pending, Request
from data_index.storage import FileRef, sha256
from data_index.tables import epochs, generations, outbox, pointer, settings, tombstones
from data_index.tables import requests as requests_table

Clock = Callable[[], datetime]

_RETIRED = {"dataset": None, "path": None, "sha256": None, "size": None}


def utc_now() -> datetime:
    """The time, aware of its zone."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class GenerationEntry:
    """A published generation.

    Attributes:
        number: From 1, rising.
        digest: The generation's digest.
        time: When it was published, UTC.
        reason: Why it came to be.
        dataset: sha256 of the data set that was current then.
        manifest: Its manifest; None once it is retired.
        samples_trained: Samples that its build visited; None for a roll-back, which has none.
        samples_full: Samples that training everything would have visited; None likewise.
    """

    number: int
    digest: str
    time: str
    reason: str
    dataset: str | None
    manifest: FileRef | None
    samples_trained: int | None = None
    samples_full: int | None = None


@dataclass(frozen=True, slots=True)
class EpochEntry:
    """A live tombstone epoch.

    Attributes:
        number: From 1, rising.
        opened: When, UTC.
        closed: When another one followed, UTC; None for the last.
        tombstones: How many there are of it.
        waiting: How many of them are of open requests.
    """

    number: int
    opened: str
    closed: str | None
    tombstones: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Moment:
    """The ledger's pointers and requests, read together.

    Attributes:
        dataset: The current data set's manifest.
        generation: The current generation.
        pending: Requests whose rows are still in the files.
        tombstones: All tombstones, uint8 [n, 16].
    """

    dataset: FileRef | None
    generation: GenerationEntry | None
    pending: Pending
    tombstones: Keys


class Ledger:
    """One workspace's ledger.

    Args:
        url: SQLAlchemy URL; a relative SQLite file is below the folder.
        folder: The workspace.
        clock: Tells the time in UTC.
        log: The store's copy of the log; one who has none leaves it to the next who opens.

    Raises:
        ConfigurationError: The database cannot be opened or is of another format version.
    """

    def __init__(
        self, url: str, folder: Path, clock: Clock = utc_now, log: Log | None = None
    ) -> None:
        self.clock = clock
        self._log, self._written = log, 0
        self._database = Database(url, folder)
        self.read = self._database.read
        self.mirror = Mirror(self.read, self.write, clock)
        self.compact, self.close = self._database.compact, self._database.close

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that excludes all other writers; what it changed is then logged.

        Raises:
            BusyError: Others held the database too long.
            ConfigurationError: It cannot be written.
            ExactnessError: The log tells another history.
        """
        with self._database.write() as connection:
            yield connection
        if self._log is not None:
            with self.read() as connection:
                fresh = changes.entries(connection, self._written)
            if fresh:
                self._log.write(fresh)
                self._written = fresh[-1].number

    def settle(self) -> int:
        """Add to the store's log what it lacks.

        Returns:
            How many entries it has now.

        Raises:
            RestoredError: The ledger lacks entries of the log.
            ExactnessError: They tell different histories.
        """
        if self._log is None:
            return 0
        there = self._log.numbers()
        with self.read() as connection:
            last = changes.last_entry(connection)
            number = last.number if last else 0
            if there and there[-1] > number:
                raise RestoredError(
                    f"The ledger is older than the store: {there[-1] - number} entries of the log "
                    "are missing in it.",
                    "`sisa work` replays them.",
                )
            lacking = sorted({*range(1, number + 1)} - {*there})
            fresh = changes.some(connection, lacking)
            ends = changes.some(connection, there[-1:])
        for entry in ends:
            self._log.require(entry)
        self._log.write(fresh)
        self._written = number
        return number

    def catch_up(self, connection: Connection) -> int:
        """Replay, in a write transaction, what the log has and the ledger lacks.

        Returns:
            How many entries that were.

        Raises:
            ExactnessError: The log is damaged, or tells another history.
        """
        if self._log is None:
            return 0
        lacking = list(self._log.behind(changes.last_entry(connection)))
        for entry in lacking:
            changes.replay(connection, entry)
        return len(lacking)

    def check_log(self) -> int:
        """Hold the two copies of the log against each other. Returns how many entries they have.

        What a ledger without a log has noted meanwhile, as a messenger does, is added first; what
        comes while this looks is left to the next look.

        Raises:
            RestoredError: The ledger lacks entries of the log.
            ExactnessError: One is damaged, missing, or tells another history.
        """
        if self._log is None:
            return 0
        settled = self.settle()
        theirs = list(self._log.behind(None))
        with self.read() as connection:  # after the log: every entry is in the ledger first
            ours = changes.entries(connection)[: max(settled, len(theirs))]
        for entry, other in zip_longest(ours, theirs):
            if entry != other:
                number = (entry or other).number
                raise ExactnessError(f"Ledger and store differ in entry {number} of the log.")
        return len(ours)

    def writer(self) -> AbstractContextManager[Lease]:
        """The lease of the one who may change the data set and train; renewed while it is held.

        Raises:
            BusyError: A live process holds it.
        """
        return holding(self._database.write, "writer", self.clock)

    def messenger(self) -> AbstractContextManager[Lease]:
        """The lease of the one who empties the outbox.

        Raises:
            BusyError: A live process holds it.
        """
        return holding(self._database.write, "messenger", self.clock)

    def moment(self) -> Moment:
        """Both pointers and the pending requests, as they are at one moment."""
        with self.read() as connection:
            return Moment(
                current_dataset(connection),
                current_generation(connection),
                requests.pending(connection),
                requests.stones(connection),
            )

    def dataset(self) -> FileRef | None:
        """The current data set's manifest."""
        with self.read() as connection:
            return current_dataset(connection)

    def commit_dataset(
        self,
        ref: FileRef,
        lease: Lease,
        version: int | None = None,
        kinds: Sequence[str] = changes.OF_REQUESTS,
    ) -> None:
        """Make a data set current; all files that it names must be durable.

        Args:
            ref: Its manifest.
            lease: The writer's.
            version: Version of the requests that it takes into account; a later one refuses it.
            kinds: Changes of requests that matter to it.

        Raises:
            MovedOnError: Requests changed since.
            BusyError: The lease was lost.
        """
        with self.write() as connection:
            lease.check(connection)
            if version is not None and changes.version(connection, kinds) > version:
                raise MovedOnError("Erasure requests changed meanwhile.", "Try again.")
            changes.make(connection, self.clock(), "dataset", as_body(ref))

    def generation(self) -> GenerationEntry | None:
        """The current generation."""
        with self.read() as connection:
            return current_generation(connection)

    def generations(self) -> list[GenerationEntry]:
        """All generations, the first one first."""
        with self.read() as connection:
            rows = connection.execute(sa.select(generations).order_by(generations.c.number))
            return list(map(_entry, rows))

    def publish(
        self,
        manifest: FileRef,
        digest: str,
        reason: str,
        version: int,
        lease: Lease,
        along: Callable[[Connection], None] = lambda _: None,
        samples: tuple[int, int] | None = None,
    ) -> int:
        """Make a generation current; its manifest must be durable.

        Args:
            manifest: The manifest.
            digest: The generation's digest.
            reason: Why it came to be.
            version: Version of the requests that its build left out; a later one refuses it.
            lease: The writer's.
            along: What becomes true with it, in the same transaction.
            samples: What its build visited, and what training everything would.

        Returns:
            The generation's number.

        Raises:
            MovedOnError: Requests changed since the build began.
            BusyError: The lease was lost.
        """
        with self.write() as connection:
            lease.check(connection)
            if changes.version(connection) != version:
                raise MovedOnError("Erasure requests changed during the build.", "Build again.")
            along(connection)
            return add_generation(connection, manifest, digest, reason, self.clock(), samples)

    def change(
        self, enter: Callable[[Connection], None], version: int, lease: Lease | None = None
    ) -> None:
        """Let something become true of requests.

        Args:
            enter: Enters it.
            version: Version of the requests that it takes into account; a later one refuses it.
            lease: The writer's, if only the writer may.

        Raises:
            MovedOnError: Requests changed since.
            BusyError: The lease was lost.
        """
        with self.write() as connection:
            if lease is not None:
                lease.check(connection)
            if changes.version(connection) != version:
                raise MovedOnError("Erasure requests changed meanwhile.", "Try again.")
            enter(connection)

    def pending(self) -> Pending:
        """The accepted requests whose rows are still in the files."""
        with self.read() as connection:
            return requests.pending(connection)

    def requests(self) -> list[Request]:
        """All requests, the first one first."""
        with self.read() as connection:
            return requests.every(connection)

    def events(self, request_id: str) -> list[tuple[str, str]]:
        """Time and kind of all that happened to a request."""
        with self.read() as connection:
            return requests.history(connection, request_id)

    def timelines(self) -> dict[str, list[tuple[str, str]]]:
        """Time and kind of all that happened, by request."""
        with self.read() as connection:
            return requests.timelines(connection)

    def last_replay(self) -> dict[str, Any] | None:
        """What `record_replay` was told last, None before the first."""
        with self.read() as connection:
            query = sa.select(settings.c.value).where(settings.c.name == "last_replay")
            found = connection.scalar(query)
        return None if found is None else json.loads(found)

    def record_replay(self, outcome: dict[str, Any]) -> None:
        """Keep the outcome of a replay, in the place of the one before."""
        with self.write() as connection:
            connection.execute(settings.delete().where(settings.c.name == "last_replay"))
            value = json.dumps(outcome, sort_keys=True)
            connection.execute(settings.insert().values(name="last_replay", value=value))

    def tombstones(self) -> Keys:
        """All tombstones, uint8 [n, 16]."""
        with self.read() as connection:
            return requests.stones(connection)

    def live_epochs(self) -> tuple[int, ...]:
        """Numbers of the tombstone epochs that are not destroyed, rising."""
        with self.read() as connection:
            return live_epochs(connection)

    def open_epoch(self, number: int) -> None:
        """Make a tombstone epoch, whose key is durable, the one for new tombstones."""
        with self.write() as connection:
            if number not in live_epochs(connection):
                changes.make(connection, self.clock(), "epoch opened", {"number": number})

    def destroy_epochs(self, numbers: Sequence[int], lease: Lease) -> None:
        """Destroy the tombstones of epochs; their keys go afterwards.

        Raises:
            BusyError: The lease was lost.
        """
        with self.write() as connection:
            lease.check(connection)
            for number in numbers:
                changes.make(connection, self.clock(), "epoch destroyed", {"number": number})

    def epochs(self) -> list[EpochEntry]:
        """The tombstone epochs that are not destroyed, rising."""
        count = sa.func.count(tombstones.c.hash.distinct())
        waits = sa.func.count(sa.case((requests_table.c.status.in_(OPEN), 1)))
        query = (
            sa.select(epochs, count.label("tombstones"), waits.label("waiting"))
            .join_from(epochs, tombstones, epochs.c.number == tombstones.c.epoch, isouter=True)
            .join(requests_table, tombstones.c.request_id == requests_table.c.id, isouter=True)
            .where(epochs.c.destroyed.is_(None))
            .group_by(epochs.c.number)
            .order_by(epochs.c.number)
        )
        with self.read() as connection:
            rows = connection.execute(query)
            return [EpochEntry(r.number, r.opened, r.closed, r.tombstones, r.waiting) for r in rows]

    def add_signer(self, public: Ed25519PublicKey) -> None:
        """Have the signing key vouch in the log for the one that is to follow it."""
        body = {"public": envelope.public_pem(public).decode()}
        with self.write() as connection:
            changes.make(connection, self.clock(), "signer", body)

    def tombstones_of(self, request_id: str) -> Keys:
        """Tombstones of one request, uint8 [n, 16]."""
        with self.read() as connection:
            query = sa.select(tombstones.c.hash).where(tombstones.c.request_id == request_id)
            return requests.stack(connection.scalars(query))

    def requests_of(self, stones: Keys) -> dict[bytes, Request]:
        """The requests that tombstones come from, see `requests.of_tombstones`."""
        with self.read() as connection:
            return requests.of_tombstones(connection, stones)

    def request(self, name: str) -> Request | None:
        """The request of an id or an external id."""
        with self.read() as connection:
            return requests.of_name(connection, name)

    def set_status(self, ids: Sequence[str], status: str, lease: Lease, **values: Any) -> None:
        """Move requests on, with an event each.

        Raises:
            BusyError: The lease was lost.
        """
        with self.write() as connection:
            lease.check(connection)
            requests.move(connection, ids, status, self.clock(), **values)

    def block(self, ids: Sequence[str], reason: str, retry: str, lease: Lease) -> None:
        """Say what keeps requests from being certified, and when that is worth another try (UTC).

        Raises:
            BusyError: The lease was lost.
        """
        body = {"requests": list(ids), "reason": reason, "retry": retry}
        with self.write() as connection:
            lease.check(connection)
            changes.make(connection, self.clock(), "blocked", body)

    def certificate_head(self) -> str | None:
        """sha256 of the last certificate, None before the first."""
        with self.read() as connection:
            return certificate_head(connection)

    def last_certificate(self) -> tuple[str, str] | None:
        """Path and sha256 of the last certificate, None before the first."""
        with self.read() as connection:
            path, head = _setting(connection, "certificate_path"), certificate_head(connection)
            return None if path is None or head is None else (path, head)

    def certify(self, request_id: str, path: str, certificate: bytes, lease: Lease) -> None:
        """Close a request: its certificate stands, and its pseudonyms are destroyed.

        Args:
            request_id: The request.
            path: Of the certificate in the store, where it is durable.
            certificate: Its bytes, which the log keeps too, against the loss of the file.
            lease: The writer's.

        Raises:
            BusyError: The lease was lost.
        """
        body = {
            "request": request_id,
            "path": path,
            "sha256": sha256(certificate),
            "certificate": certificate.decode(),
        }
        with self.write() as connection:
            lease.check(connection)
            changes.make(connection, self.clock(), "certified", body)

    def outbox(self) -> list[int]:
        """Numbers of the generations that the mirror has not taken yet."""
        with self.read() as connection:
            return list(connection.scalars(sa.select(outbox.c.number).order_by(outbox.c.number)))

    def delivered(self, numbers: Sequence[int]) -> None:
        """Take generations out of the outbox."""
        with self.write() as connection:
            connection.execute(outbox.delete().where(outbox.c.number.in_(numbers)))


def certificate_head(connection: Connection) -> str | None:
    """sha256 of the last certificate, None before the first."""
    return _setting(connection, "certificate_head")


def current_dataset(connection: Connection) -> FileRef | None:
    """The current data set's manifest."""
    row = connection.execute(sa.select(pointer)).first()
    return None if row is None else FileRef(row.path, row.sha256, row.size)


def current_generation(connection: Connection) -> GenerationEntry | None:
    """The current generation."""
    query = sa.select(generations).order_by(generations.c.number.desc()).limit(1)
    row = connection.execute(query).first()
    return None if row is None else _entry(row)


def add_generation(
    connection: Connection,
    manifest: FileRef,
    digest: str,
    reason: str,
    now: datetime,
    samples: tuple[int, int] | None = None,
) -> int:
    """Publish: a new number, and a place in the mirror's outbox."""
    current, dataset = current_generation(connection), current_dataset(connection)
    number = 1 if current is None else current.number + 1
    trained, full = samples or (None, None)
    body = {
        "number": number,
        "digest": digest,
        "reason": reason,
        "dataset": dataset and dataset.sha256,
        "samples_trained": trained,
        "samples_full": full,
        **as_body(manifest),
    }
    changes.make(connection, now, "generation", body)
    return number


def as_body(ref: FileRef) -> dict[str, Any]:
    """A file as entries of the log name it."""
    return asdict(ref)


def live_epochs(connection: Connection) -> tuple[int, ...]:
    """Numbers of the tombstone epochs that are not destroyed, rising."""
    live = sa.select(epochs.c.number).where(epochs.c.destroyed.is_(None))
    return tuple(connection.scalars(live.order_by(epochs.c.number)))


def retire_generation(connection: Connection, number: int) -> None:
    """Forget the manifest of one generation."""
    connection.execute(generations.update().where(generations.c.number == number).values(_RETIRED))


def retire_generations(connection: Connection, keep: set[int]) -> None:
    """Forget the manifests of all generations but those to keep."""
    connection.execute(
        generations.update().where(generations.c.number.not_in(keep)).values(_RETIRED)
    )


def _setting(connection: Connection, name: str) -> str | None:
    return connection.scalar(sa.select(settings.c.value).where(settings.c.name == name))


def _entry(row: Any) -> GenerationEntry:
    manifest = None if row.path is None else FileRef(row.path, row.sha256, row.size)
    return GenerationEntry(
        row.number,
        row.digest,
        row.time,
        row.reason,
        row.dataset,
        manifest,
        row.samples_trained,
        row.samples_full,
    )
