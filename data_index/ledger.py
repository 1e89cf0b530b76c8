"""The ledger: requests, tombstones, leases, pointers to the current data set and generation.

One SQL database. Its transaction is the only commit point: the files that a row names are durable
before the row is. Requests hold keyed pseudonyms only, and those only until they are certified.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, OperationalError

from data_index import keys
from data_index.errors import BusyError, ConfigurationError, MovedOnError
from data_index.keys import Keys
from data_index.leases import Lease, holding
from data_index.lineage import Selection
from data_index.schema import FORMAT
from data_index.storage import FileRef
from data_index.tables import (
    events,
    generations,
    metadata,
    outbox,
    pointer,
    request_keys,
    requests,
    settings,
    tombstones,
)

Connection = sa.Connection
Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The time, aware of its zone."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class GenerationEntry:
    """A published generation; once retired, number, digest, time and reason are all there is."""

    number: int
    digest: str
    time: str
    reason: str
    manifest: FileRef | None


@dataclass(frozen=True, slots=True)
class Request:
    """An erasure request.

    Attributes:
        id: `er_` and 32 hex digits.
        sequence: Its place among all accepted requests, from 1.
        status: `accepted`, `published` or `certified`.
        received: UTC, ISO 8601.
        due: UTC, ISO 8601.
        records: Number of records that it erases.
        subjects: Number of ids it named and that were known.
        places: Shards it touches, each with the first slice of it that it touches.
        generation_before: Number of the generation at acceptance, None if there was none.
        certificate: Path of its certificate in the store, or None.
    """

    id: str
    sequence: int
    status: str
    received: str
    due: str
    records: int
    subjects: int
    places: tuple[tuple[int, int], ...]
    generation_before: int | None
    certificate: str | None


@dataclass(frozen=True, slots=True)
class Pending:
    """Accepted requests whose rows are still in the files.

    Attributes:
        gone: What they name; no build sees it.
        sequence: Sequence of the last request ever accepted, 0 before the first.
        requests: The requests.
    """

    gone: Selection
    sequence: int
    requests: tuple[Request, ...]


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
        try:
            self.engine = _engine(url, folder)
            with self.engine.begin() as connection:
                metadata.create_all(connection)
                found = connection.scalar(
                    sa.select(settings.c.value).where(settings.c.name == "format")
                )
                if found is None:
                    connection.execute(settings.insert().values(name="format", value=str(FORMAT)))
        except (DBAPIError, sa.exc.ArgumentError, sa.exc.NoSuchModuleError) as error:
            reason = str(getattr(error, "orig", error)).splitlines()[0]
            raise ConfigurationError(
                f"The ledger cannot be opened: {reason}.", "Check runtime.ledger."
            ) from None
        if found not in (None, str(FORMAT)):
            raise ConfigurationError(
                "The ledger was written in another format version.", "Use the sisa that wrote it."
            )

    def close(self) -> None:
        """Give back all connections."""
        self.engine.dispose()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that excludes all other writers from its beginning.

        Raises:
            BusyError: Others held the database too long.
            ConfigurationError: It cannot be written.
        """
        try:
            with self.engine.connect() as bare:
                connection = bare.execution_options(write=True)
                with connection.begin():
                    yield connection
        except OperationalError as error:
            if "locked" in str(error.orig):
                raise BusyError("The ledger is locked by others.", "Try again.") from None
            raise ConfigurationError(
                f"The ledger cannot be written: {error.orig}.", "Check runtime.ledger and its disk."
            ) from None

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

    def dataset(self) -> FileRef | None:
        """The current data set's manifest."""
        with self.engine.connect() as connection:
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
        with self.engine.connect() as connection:
            return current_generation(connection)

    def generations(self) -> list[GenerationEntry]:
        """All generations, the first one first."""
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(generations).order_by(generations.c.number))
            return [_entry(row) for row in rows]

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
            if last_sequence(connection) != sequence:
                raise MovedOnError("An erasure request came in during the build.", "Build again.")
            return add_generation(connection, manifest, digest, reason, self.clock())

    def pending(self) -> Pending:
        """The accepted requests whose rows are still in the files."""
        with self.engine.connect() as connection:
            return pending(connection)

    def requests(self) -> list[Request]:
        """All requests, the first one first."""
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(requests).order_by(requests.c.sequence))
            return [_request(row) for row in rows]

    def tombstones(self) -> Keys:
        """All tombstones, uint8 [n, 16]."""
        with self.engine.connect() as connection:
            return _stack(connection.scalars(sa.select(tombstones.c.hash)))

    def request_of(self, stone: bytes) -> Request | None:
        """The request that made a tombstone."""
        with self.engine.connect() as connection:
            row = connection.execute(
                sa.select(requests).join(tombstones).where(tombstones.c.hash == stone)
            ).first()
            return None if row is None else _request(row)

    def set_status(self, ids: Sequence[str], status: str, **values: Any) -> None:
        """Move requests on, with an event each."""
        with self.write() as connection:
            move_requests(connection, ids, status, self.clock(), **values)

    def certificate_head(self) -> str | None:
        """sha256 of the last certificate, None before the first."""
        with self.engine.connect() as connection:
            return certificate_head(connection)

    def certify(self, request_id: str, certificate: FileRef, lease: Lease) -> None:
        """Close a request: its certificate stands, and its pseudonyms are destroyed.

        Raises:
            BusyError: The lease was lost.
        """
        with self.write() as connection:
            lease.check(connection)
            now = self.clock()
            move_requests(connection, [request_id], "certified", now, certificate=certificate.path)
            connection.execute(request_keys.delete().where(request_keys.c.request_id == request_id))
            connection.execute(settings.delete().where(settings.c.name == "certificate_head"))
            connection.execute(
                settings.insert().values(name="certificate_head", value=certificate.sha256)
            )
        self.compact()

    def events(self, request_id: str) -> list[tuple[str, str]]:
        """Time and kind of all that happened to a request."""
        with self.engine.connect() as connection:
            rows = connection.execute(
                sa.select(events).where(events.c.request_id == request_id).order_by(events.c.id)
            )
            return [(row.time, row.what) for row in rows]

    def compact(self) -> None:
        """Write the log of the database back into its file, so that no deleted row stays in it."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def outbox(self) -> list[int]:
        """Numbers of the generations that the mirror has not taken yet."""
        with self.engine.connect() as connection:
            return list(connection.scalars(sa.select(outbox.c.number).order_by(outbox.c.number)))

    def delivered(self, numbers: Sequence[int]) -> None:
        """Take generations out of the outbox."""
        with self.write() as connection:
            connection.execute(outbox.delete().where(outbox.c.number.in_(numbers)))


def certificate_head(connection: Connection) -> str | None:
    """sha256 of the last certificate, None before the first."""
    return connection.scalar(
        sa.select(settings.c.value).where(settings.c.name == "certificate_head")
    )


def retire_generations(connection: Connection, keep: set[int]) -> None:
    """Forget the manifests of all generations but those to keep."""
    connection.execute(
        generations.update()
        .where(generations.c.number.not_in(keep))
        .values(path=None, sha256=None, size=None)
    )


def current_dataset(connection: Connection) -> FileRef | None:
    """The current data set's manifest."""
    row = connection.execute(sa.select(pointer)).first()
    return None if row is None else FileRef(row.path, row.sha256, row.size)


def current_generation(connection: Connection) -> GenerationEntry | None:
    """The current generation."""
    row = connection.execute(
        sa.select(generations).order_by(generations.c.number.desc()).limit(1)
    ).first()
    return None if row is None else _entry(row)


def add_generation(
    connection: Connection, manifest: FileRef, digest: str, reason: str, now: datetime
) -> int:
    """Publish: a new number, and a place in the mirror's outbox."""
    current = current_generation(connection)
    number = 1 if current is None else current.number + 1
    connection.execute(
        generations.insert().values(
            number=number,
            digest=digest,
            time=_iso(now),
            reason=reason,
            path=manifest.path,
            sha256=manifest.sha256,
            size=manifest.size,
        )
    )
    connection.execute(outbox.insert().values(number=number))
    return number


def last_sequence(connection: Connection) -> int:
    """Sequence of the last request ever accepted, 0 before the first."""
    return connection.scalar(sa.select(sa.func.max(requests.c.sequence))) or 0


def pending(connection: Connection) -> Pending:
    """The accepted requests whose rows are still in the files."""
    found = connection.execute(
        sa.select(requests).where(requests.c.status != "certified").order_by(requests.c.sequence)
    )
    named = connection.execute(sa.select(request_keys.c.kind, request_keys.c.key)).all()
    gone = Selection(
        _stack(row.key for row in named if row.kind == "subject"),
        _stack(row.key for row in named if row.kind == "record"),
    )
    return Pending(gone, last_sequence(connection), tuple(_request(row) for row in found))


def add_request(
    connection: Connection, draft: Request, named: Selection, stones: Keys, now: datetime
) -> Request:
    """Accept: the request, what it names, its tombstones and the event, all at once."""
    request = replace(draft, sequence=last_sequence(connection) + 1)
    connection.execute(
        requests.insert().values(
            id=request.id,
            sequence=request.sequence,
            status=request.status,
            received=request.received,
            due=request.due,
            records=request.records,
            subjects=request.subjects,
            places=json.dumps(request.places),
            generation_before=request.generation_before,
        )
    )
    for kind, found in (("subject", named.subjects), ("record", named.records)):
        if len(found):
            connection.execute(
                request_keys.insert(),
                [{"request_id": request.id, "kind": kind, "key": k.tobytes()} for k in found],
            )
    connection.execute(
        tombstones.insert(), [{"hash": s.tobytes(), "request_id": request.id} for s in stones]
    )
    _event(connection, request.id, request.status, now)
    return request


def move_requests(
    connection: Connection, ids: Sequence[str], status: str, now: datetime, **values: Any
) -> None:
    """Set the status of requests, with an event each."""
    connection.execute(
        requests.update().where(requests.c.id.in_(ids)).values(status=status, **values)
    )
    for request_id in ids:
        _event(connection, request_id, status, now)


def new_request(now: datetime, due: timedelta) -> Request:
    """A request that names nothing yet."""
    return Request(
        id=f"er_{uuid.uuid4().hex}",
        sequence=0,
        status="accepted",
        received=_iso(now),
        due=_iso(now + due),
        records=0,
        subjects=0,
        places=(),
        generation_before=None,
        certificate=None,
    )


def _event(connection: Connection, request_id: str, what: str, now: datetime) -> None:
    connection.execute(events.insert().values(request_id=request_id, time=_iso(now), what=what))


def _iso(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds")


def _entry(row: Any) -> GenerationEntry:
    manifest = None if row.path is None else FileRef(row.path, row.sha256, row.size)
    return GenerationEntry(row.number, row.digest, row.time, row.reason, manifest)


def _request(row: Any) -> Request:
    return Request(
        row.id,
        row.sequence,
        row.status,
        row.received,
        row.due,
        row.records,
        row.subjects,
        tuple((shard, slice_) for shard, slice_ in json.loads(row.places)),
        row.generation_before,
        row.certificate,
    )


def _stack(found: Any) -> Keys:
    joined = b"".join(found)
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, keys.KEY_BYTES)


def _engine(url: str, folder: Path) -> sa.Engine:
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        raise ConfigurationError(
            f"The ledger cannot be a {parsed.get_backend_name()} database.",
            "Only SQLite is supported: set runtime.ledger to sqlite:///FILE.",
        )
    if parsed.database and not Path(parsed.database).is_absolute():
        parsed = parsed.set(database=str(folder / parsed.database))
    engine = sa.create_engine(parsed, connect_args={"timeout": 30})

    @sa.event.listens_for(engine, "connect")
    def _connect(dbapi: Any, _: Any) -> None:
        dbapi.isolation_level = None
        cursor = dbapi.cursor()
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "secure_delete=ON",
            "foreign_keys=ON",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine
