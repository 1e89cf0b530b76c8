"""Erasure requests in the ledger: what they hold, and how they move on.

A request names keyed pseudonyms only, and those only until it is certified.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import sqlalchemy as sa

from data_index import changes, keys
from data_index.database import Connection
from data_index.keys import Keys
from data_index.lineage import Selection
from data_index.tables import events, request_keys, requests, tombstones

OPEN = ("accepted", "published")
"""Statuses of requests that are to be carried out."""

Places = tuple[tuple[int, int], ...]
"""Shards, each with the first slice of it that is meant."""


Held = tuple[int, int, int, int, str]
"""A partition with erased rows: shard, slice, how many of them, all its rows, logical digest."""


def touches(places: Places, shard: int, slice_: int) -> bool:
    """Whether a slice of a shard is at or behind what places name."""
    return any(s == shard and slice_ >= first for s, first in places)


def first_of(pairs: Iterable[tuple[int, int]]) -> Places:
    """Each shard with the first slice of it among pairs of shard and slice."""
    first: dict[int, int] = {}
    for shard, slice_ in pairs:
        first[shard] = min(slice_, first.get(shard, slice_))
    return tuple(sorted(first.items()))


@dataclass(frozen=True, slots=True)
class Request:
    """An erasure request.

    Attributes:
        id: `er_` and 32 hex digits.
        sequence: Its place among all requests, from 1.
        status: One of `OPEN`, or `certified`, `duplicate`, `not_found`, `cancelled`, `denied`.
        received: UTC, ISO 8601.
        due: UTC, ISO 8601.
        records: Number of records that it erases.
        subjects: Number of ids it named and that had rows.
        places: Shards it touches, each with the first slice of it that it touches.
        generation_before: Number of the generation at acceptance, None if there was none.
        certificate: Path of its certificate in the store, or None.
        external_id: Its name in the system that it came from, or None.
        body: Number of a tombstone epoch, and keyed digest under its key of what came under that
            name; or None.
        regulation: What it is made under, or None.
        duplicate_of: The request that erases the same already, or None.
        reason: Why it was cancelled or denied, or None.
        hold: Why its rows must not be destroyed yet, or None.
        blocked: What keeps it from being certified, or None.
        retry: When that is worth another try, UTC, or None.
        before: The partitions that held its rows, as they were at acceptance.
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
    external_id: str | None = None
    body: str | None = None
    regulation: str | None = None
    duplicate_of: str | None = None
    reason: str | None = None
    hold: str | None = None
    blocked: str | None = None
    retry: str | None = None
    before: tuple[Held, ...] = ()


@dataclass(frozen=True, slots=True)
class Pending:
    """Accepted requests whose rows are still in the files.

    Attributes:
        gone: What they name, and what duplicates of them do; no build sees it.
        version: Number of the last entry of the log that altered requests, 0 before the first.
        requests: The requests.
        by_subject: Ids of the requests that name each of the subjects of `gone`.
        by_record: The same for its records.
    """

    gone: Selection
    version: int
    requests: tuple[Request, ...]
    by_subject: tuple[str, ...] = ()
    by_record: tuple[str, ...] = ()

    def named_by(self, ids: Collection[str]) -> Selection:
        """What some of them name."""
        return self._where(lambda owner: owner in ids)

    def without(self, ids: Collection[str]) -> Selection:
        """What all but some of them name."""
        return self._where(lambda owner: owner not in ids)

    @property
    def held(self) -> Selection:
        """What those name that are on hold."""
        return self.named_by({r.id for r in self.requests if r.hold is not None})

    def _where(self, wanted: Callable[[str], bool]) -> Selection:
        subjects = np.fromiter(map(wanted, self.by_subject), bool, len(self.by_subject))
        records = np.fromiter(map(wanted, self.by_record), bool, len(self.by_record))
        return Selection(self.gone.subjects[subjects], self.gone.records[records])


@dataclass(frozen=True, slots=True)
class Draft:
    """A request before it is entered: itself without its sequence, what it names, tombstones."""

    request: Request
    named: Selection
    stones: Keys


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
    connection: Connection, drafts: Sequence[Draft], epoch: int, now: datetime
) -> tuple[Request, ...]:
    """Enter requests: themselves, what they name, tombstones and events, all at once.

    Args:
        connection: A write transaction.
        drafts: The requests.
        epoch: The epoch that their tombstones were made under.
        now: The time.

    Returns:
        The requests in the same order, numbered.
    """
    first = _next(connection)
    made = tuple(replace(d.request, sequence=first + i) for i, d in enumerate(drafts))
    both = list(zip(made, drafts, strict=True))
    accepted = [(r, d) for r, d in both if r.status in OPEN]
    noted = [(r, d) for r, d in both if r.status not in OPEN]
    for kind, some in (("accepted", accepted), ("noted", noted)):
        if some:
            body = {
                "requests": [asdict(r) for r, _ in some],
                "epoch": epoch,
                "tombstones": [[s.tobytes().hex() for s in d.stones] for _, d in some],
            }
            changes.make(connection, now, kind, body)
    rows = [row for request, drafted in both for row in _key_rows(request.id, drafted.named)]
    if rows:
        connection.execute(request_keys.insert().prefix_with("OR IGNORE"), rows)
    return made


def enter_keys(connection: Connection, request_id: str, named: Selection) -> None:
    """Keep the pseudonyms that a request names until it is closed; these are never logged."""
    rows = _key_rows(request_id, named)
    if rows:
        connection.execute(request_keys.insert().prefix_with("OR IGNORE"), rows)


def _key_rows(request_id: str, named: Selection) -> list[dict[str, Any]]:
    return [
        {"request_id": request_id, "kind": kind, "key": key.tobytes()}
        for kind, found in (("subject", named.subjects), ("record", named.records))
        for key in found
    ]


def move(
    connection: Connection, ids: Sequence[str], status: str, now: datetime, **values: Any
) -> None:
    """Set the status of requests, with an event each."""
    if ids:
        body = {"requests": list(ids), "status": status, "values": values}
        changes.make(connection, now, "moved", body)


def hold(connection: Connection, request_id: str, reason: str, now: datetime) -> None:
    """Let nothing of a request be destroyed."""
    changes.make(connection, now, "held", {"requests": [request_id], "reason": reason})


def release(connection: Connection, request_id: str, now: datetime) -> None:
    """End a hold."""
    changes.make(connection, now, "released", {"requests": [request_id]})


def cancel(
    connection: Connection, request_id: str, status: str, reason: str, now: datetime
) -> tuple[str, ...]:
    """Take a request back, with its tombstones.

    Args:
        connection: A write transaction.
        request_id: The request.
        status: `cancelled` or `denied`.
        reason: Why.
        now: The time.

    Returns:
        Duplicates that must be carried out now, because nobody else erases what they name.
    """
    covered = _named(connection, OPEN, request_id)
    owner = {key: of for of, found in covered.items() for key in found}
    its = requests.c.duplicate_of == request_id
    copies = {*connection.scalars(sa.select(requests.c.id).where(its))}
    standing: list[str] = []
    duplicates: dict[str, str] = {}
    for other, found in _named(connection, ("duplicate",), request_id).items():
        if not found <= owner.keys():
            standing.append(other)
            owner |= dict.fromkeys(found - owner.keys(), other)
        elif other in copies:
            duplicates[other] = owner[min(found)]
    body = {
        "requests": [request_id],
        "status": status,
        "reason": reason,
        "standing": standing,
        "duplicates": duplicates,
    }
    changes.make(connection, now, "cancelled", body)
    return tuple(standing)


def _named(connection: Connection, statuses: Sequence[str], but: str) -> dict[str, set[bytes]]:
    """Keys that requests of some statuses name, the first one first, without one request."""
    query = (
        sa.select(requests.c.id, request_keys.c.key)
        .join_from(request_keys, requests)
        .where(requests.c.status.in_(statuses), requests.c.id != but)
        .order_by(requests.c.sequence)
    )
    found: dict[str, set[bytes]] = {}
    for request_id, key in connection.execute(query):
        found.setdefault(request_id, set()).add(key)
    return found


def readmit(connection: Connection, found: Keys, now: datetime) -> None:
    """Lift tombstones, uint8 [n, 16]."""
    stones = sorted({s.tobytes().hex() for s in found})
    changes.make(connection, now, "readmitted", {"tombstones": stones})


def pending(connection: Connection) -> Pending:
    """The accepted requests whose rows are still in the files."""
    found = connection.execute(
        sa.select(requests).where(requests.c.status.in_(OPEN)).order_by(requests.c.sequence)
    )
    named = connection.execute(sa.select(request_keys)).all()
    subjects = [row for row in named if row.kind == "subject"]
    records = [row for row in named if row.kind == "record"]
    return Pending(
        Selection(stack(row.key for row in subjects), stack(row.key for row in records)),
        changes.version(connection),
        tuple(map(_request, found)),
        tuple(row.request_id for row in subjects),
        tuple(row.request_id for row in records),
    )


def every(connection: Connection) -> list[Request]:
    """All requests, the first one first."""
    rows = connection.execute(sa.select(requests).order_by(requests.c.sequence))
    return list(map(_request, rows))


def of_name(connection: Connection, name: str) -> Request | None:
    """The request of an id or, if there is none, of an external id."""
    for column in (requests.c.id, requests.c.external_id):
        row = connection.execute(sa.select(requests).where(column == name)).first()
        if row is not None:
            return _request(row)
    return None


def of_external(connection: Connection, names: Iterable[str]) -> dict[str, Request]:
    """The requests of external ids, by these."""
    found: dict[str, Request] = {}
    for part in changes.parts(names):
        for row in connection.execute(sa.select(requests).where(requests.c.external_id.in_(part))):
            found[row.external_id] = _request(row)
    return found


def of_tombstones(connection: Connection, found: Keys) -> dict[bytes, Request]:
    """The request that each tombstone comes from, of several the first.

    Args:
        connection: A transaction.
        found: Hashes, uint8 [n, 16]; those that are no tombstones are left out.
    """
    named: dict[bytes, Request] = {}
    for part in changes.parts(s.tobytes() for s in found):
        query = sa.select(tombstones.c.hash, requests).join_from(tombstones, requests)
        query = query.where(tombstones.c.hash.in_(part), requests.c.status != "duplicate")
        for row in connection.execute(query.order_by(requests.c.sequence.desc())):
            values = row._asdict()
            stone = values.pop("hash")
            named[stone] = _from(values)
    return named


def stones(connection: Connection) -> Keys:
    """All tombstones, uint8 [n, 16]."""
    return stack(connection.scalars(sa.select(tombstones.c.hash).distinct()))


def history(connection: Connection, request_id: str) -> list[tuple[str, str]]:
    """Time and kind of all that happened to a request."""
    query = sa.select(events).where(events.c.request_id == request_id).order_by(events.c.id)
    return [(row.time, row.what) for row in connection.execute(query)]


def timelines(connection: Connection) -> dict[str, list[tuple[str, str]]]:
    """The same of every request, by its id."""
    found: dict[str, list[tuple[str, str]]] = {}
    for row in connection.execute(sa.select(events).order_by(events.c.id)):
        found.setdefault(row.request_id, []).append((row.time, row.what))
    return found


def iso(time: datetime) -> str:
    """A time as it is stored and shown: UTC, ISO 8601, milliseconds."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds")


def stack(found: Iterable[bytes]) -> Keys:
    """Keys from their bytes, uint8 [n, 16]."""
    return np.frombuffer(b"".join(found), dtype=np.uint8).reshape(-1, keys.KEY_BYTES)


def _next(connection: Connection) -> int:
    return (connection.scalar(sa.select(sa.func.max(requests.c.sequence))) or 0) + 1


def _request(row: Any) -> Request:
    return _from(row._asdict())


def _from(values: dict[str, Any]) -> Request:
    places = tuple((shard, slice_) for shard, slice_ in json.loads(values.pop("places")))
    before = tuple((h[0], h[1], h[2], h[3], h[4]) for h in json.loads(values.pop("before")))
    return Request(**values, places=places, before=before)
