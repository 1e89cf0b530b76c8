"""Erasure requests in the ledger: what they hold, and how they move on.

A request names keyed pseudonyms only, and those only until it is certified.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import sqlalchemy as sa

from data_index import keys
from data_index.database import Connection
from data_index.keys import Keys
from data_index.lineage import Selection
from data_index.tables import events, request_keys, requests, tombstones

Places = tuple[tuple[int, int], ...]
"""Shards, each with the first slice of it that is meant."""


def touches(places: Places, shard: int, slice_: int) -> bool:
    """Whether a slice of a shard is at or behind what places name."""
    return any(s == shard and slice_ >= first for s, first in places)


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
    places: Places
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


def draft(now: datetime, due: timedelta) -> Request:
    """A request that names nothing yet."""
    return Request(
        id=f"er_{uuid.uuid4().hex}",
        sequence=0,
        status="accepted",
        received=iso(now),
        due=iso(now + due),
        records=0,
        subjects=0,
        places=(),
        generation_before=None,
        certificate=None,
    )


def add(
    connection: Connection,
    drafted: Request,
    named: Selection,
    stones: Keys,
    epoch: int,
    now: datetime,
) -> Request:
    """Accept: the request, what it names, its tombstones and the event, all at once.

    Args:
        connection: A write transaction.
        drafted: The request without its sequence.
        named: The subjects and records.
        stones: Their tombstones, uint8 [n, 16].
        epoch: The epoch that these were made under.
        now: The time.
    """
    request = replace(drafted, sequence=last_sequence(connection) + 1)
    values = {name: getattr(request, name) for name in requests.c.keys()}  # noqa: SIM118
    connection.execute(requests.insert().values(values | {"places": json.dumps(request.places)}))
    for kind, found in (("subject", named.subjects), ("record", named.records)):
        rows = [{"request_id": request.id, "kind": kind, "key": k.tobytes()} for k in found]
        if rows:
            connection.execute(request_keys.insert(), rows)
    connection.execute(
        tombstones.insert(),
        [{"hash": s.tobytes(), "epoch": epoch, "request_id": request.id} for s in stones],
    )
    _event(connection, request.id, request.status, now)
    return request


def move(
    connection: Connection, ids: Sequence[str], status: str, now: datetime, **values: Any
) -> None:
    """Set the status of requests, with an event each."""
    connection.execute(
        requests.update().where(requests.c.id.in_(ids)).values(status=status, **values)
    )
    for request_id in ids:
        _event(connection, request_id, status, now)


def forget_keys(connection: Connection, request_id: str) -> None:
    """Destroy the pseudonyms of a request."""
    connection.execute(request_keys.delete().where(request_keys.c.request_id == request_id))


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
        stack(row.key for row in named if row.kind == "subject"),
        stack(row.key for row in named if row.kind == "record"),
    )
    return Pending(gone, last_sequence(connection), tuple(map(_request, found)))


def every(connection: Connection) -> list[Request]:
    """All requests, the first one first."""
    rows = connection.execute(sa.select(requests).order_by(requests.c.sequence))
    return list(map(_request, rows))


def of_tombstone(connection: Connection, stone: bytes) -> Request | None:
    """The request that made a tombstone."""
    query = sa.select(requests).join(tombstones).where(tombstones.c.hash == stone)
    row = connection.execute(query).first()
    return None if row is None else _request(row)


def stones(connection: Connection) -> Keys:
    """All tombstones, uint8 [n, 16]."""
    return stack(connection.scalars(sa.select(tombstones.c.hash)))


def history(connection: Connection, request_id: str) -> list[tuple[str, str]]:
    """Time and kind of all that happened to a request."""
    query = sa.select(events).where(events.c.request_id == request_id).order_by(events.c.id)
    return [(row.time, row.what) for row in connection.execute(query)]


def iso(time: datetime) -> str:
    """A time as it is stored and shown: UTC, ISO 8601, milliseconds."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds")


def stack(found: Iterable[bytes]) -> Keys:
    """Keys from their bytes, uint8 [n, 16]."""
    return np.frombuffer(b"".join(found), dtype=np.uint8).reshape(-1, keys.KEY_BYTES)


def _event(connection: Connection, request_id: str, what: str, now: datetime) -> None:
    connection.execute(events.insert().values(request_id=request_id, time=iso(now), what=what))


def _request(row: Any) -> Request:
    values = row._asdict()
    places = tuple((shard, slice_) for shard, slice_ in json.loads(values.pop("places")))
    return Request(**values, places=places)
