"""The ledger: requests, tombstones, leases, pointers to the current data set and generation.

Its transaction is the only commit point: the files that a row names are durable before the row is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from data_index import requests
from data_index.database import Connection, Database
from data_index.errors import MovedOnError
from data_index.keys import Keys
from data_index.leases import Lease, holding
from data_index.requests import Pending, Request
from data_index.storage import FileRef
from data_index.tables import generations, outbox, pointer, settings, tombstones

Clock = Callable[[], datetime]


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
    """

    number: int
    digest: str
    time: str
    reason: str
    dataset: str | None
    manifest: FileRef | None


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

    Raises:
        ConfigurationError: The database cannot be opened or is of another format version.
    """

    def __init__(self, url: str, folder: Path, clock: Clock = utc_now) -> None:
        self.clock = clock
        self._database = Database(url, folder)
        self.read, self.write = self._database.read, self._database.write
        self.compact, self.close = self._database.compact, self._database.close

    def writer(self) -> AbstractContextManager[Lease]:
        """The lease of the one who may change the data set and train; renewed while it is held.

        Raises:
            BusyError: A live process holds it.
        """
        return holding(self.write, "writer", self.clock)

    def messenger(self) -> AbstractContextManager[Lease]:
        """The lease of the one who empties the outbox.

        Raises:
            BusyError: A live process holds it.
        """
        return holding(self.write, "messenger", self.clock)

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

    def commit_dataset(self, ref: FileRef, lease: Lease) -> None:
        """Make a data set current; all files that it names must be durable.

        Raises:
            BusyError: The lease was lost.
        """
        with self.write() as connection:
            lease.check(connection)
            connection.execute(pointer.delete())
            connection.execute(
                pointer.insert().values(path=ref.path, sha256=ref.sha256, size=ref.size)
            )

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
        self, manifest: FileRef, digest: str, reason: str, sequence: int, lease: Lease
    ) -> int:
        """Make a generation current; its manifest must be durable.

        Args:
            manifest: The manifest.
            digest: The generation's digest.
            reason: Why it came to be.
            sequence: The last request that its build left out; a later one refuses it.
            lease: The writer's.

        Returns:
            The generation's number.

        Raises:
            MovedOnError: A request was accepted since the build began.
            BusyError: The lease was lost.
        """
        with self.write() as connection:
            lease.check(connection)
            if requests.last_sequence(connection) != sequence:
                raise MovedOnError("An erasure request came in during the build.", "Build again.")
            return add_generation(connection, manifest, digest, reason, self.clock())

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

    def tombstones(self) -> Keys:
        """All tombstones, uint8 [n, 16]."""
        with self.read() as connection:
            return requests.stones(connection)

    def tombstone_epochs(self) -> set[int]:
        """Epochs that there are tombstones of."""
        with self.read() as connection:
            return set(connection.scalars(sa.select(tombstones.c.epoch).distinct()))

    def request_of(self, stone: bytes) -> Request | None:
        """The request that made a tombstone."""
        with self.read() as connection:
            return requests.of_tombstone(connection, stone)

    def set_status(self, ids: Sequence[str], status: str, lease: Lease, **values: Any) -> None:
        """Move requests on, with an event each.

        Raises:
            BusyError: The lease was lost.
        """
        with self.write() as connection:
            lease.check(connection)
            requests.move(connection, ids, status, self.clock(), **values)

    def certificate_head(self) -> str | None:
        """sha256 of the last certificate, None before the first."""
        with self.read() as connection:
            return certificate_head(connection)

    def certify(self, request_id: str, certificate: FileRef, lease: Lease) -> None:
        """Close a request: its certificate stands, and its pseudonyms are destroyed.

        Raises:
            BusyError: The lease was lost.
        """
        with self.write() as connection:
            lease.check(connection)
            now, path = self.clock(), certificate.path
            requests.move(connection, [request_id], "certified", now, certificate=path)
            requests.forget_keys(connection, request_id)
            connection.execute(settings.delete().where(settings.c.name == "certificate_head"))
            connection.execute(
                settings.insert().values(name="certificate_head", value=certificate.sha256)
            )

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
    query = sa.select(settings.c.value).where(settings.c.name == "certificate_head")
    return connection.scalar(query)


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
    connection: Connection, manifest: FileRef, digest: str, reason: str, now: datetime
) -> int:
    """Publish: a new number, and a place in the mirror's outbox."""
    current, dataset = current_generation(connection), current_dataset(connection)
    number = 1 if current is None else current.number + 1
    connection.execute(
        generations.insert().values(
            number=number,
            digest=digest,
            time=requests.iso(now),
            reason=reason,
            dataset=dataset and dataset.sha256,
            path=manifest.path,
            sha256=manifest.sha256,
            size=manifest.size,
        )
    )
    connection.execute(outbox.insert().values(number=number))
    return number


def retire_generations(connection: Connection, keep: set[int]) -> None:
    """Forget the manifests of all generations but those to keep."""
    connection.execute(
        generations.update()
        .where(generations.c.number.not_in(keep))
        .values(dataset=None, path=None, sha256=None, size=None)
    )


def _entry(row: Any) -> GenerationEntry:
    manifest = None if row.path is None else FileRef(row.path, row.sha256, row.size)
    return GenerationEntry(row.number, row.digest, row.time, row.reason, row.dataset, manifest)
