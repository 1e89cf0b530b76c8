"""Changes of the ledger that must outlive it: each is made by one function, live and in a replay.

A change is a kind and a JSON body without any id or pseudonym. Making one inside a transaction puts
it in force and enters it into the ledger's copy of the log; `data_index/log.py` writes the other
copy, the numbered signed objects in the store. Replaying an entry calls the same function.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, TypeVar

import sqlalchemy as sa

from data_index.errors import ExactnessError
from data_index.storage import canonical_json, sha256
from data_index.tables import (
    epochs,
    events,
    generations,
    log,
    mirrored,
    outbox,
    pointer,
    request_keys,
    requests,
    scan_sets,
    settings,
    tombstones,
)

Body = dict[str, Any]
T = TypeVar("T")

MANY = 10_000
"""How many values stand in one statement at most."""

OF_REQUESTS = (
    "accepted",
    "held",
    "released",
    "cancelled",
    "readmitted",
    "reopened",
    "epoch opened",
    "epoch destroyed",
)
"""Kinds that alter what a build leaves out, what may be rewritten, or what tombstones mean."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the log.

    Attributes:
        number: From 1, without a gap.
        time: UTC, ISO 8601.
        kind: What changed.
        body: How.
        previous: sha256 of the entry before it, empty for the first.
    """

    number: int
    time: str
    kind: str
    body: Body
    previous: str

    @property
    def payload(self) -> bytes:
        """What is signed."""
        return canonical_json(_values(self))

    @property
    def digest(self) -> str:
        """sha256 of the payload, hex: what the next entry names."""
        return sha256(self.payload)

    @classmethod
    def parse(cls, payload: bytes) -> Entry:
        """From its payload.

        Raises:
            ExactnessError: It is no entry.
        """
        try:
            return cls(**json.loads(payload))
        except (ValueError, TypeError):
            raise ExactnessError("An entry of the log cannot be read.") from None


def make(connection: sa.Connection, now: datetime, kind: str, body: Body) -> Entry:
    """Make a change, inside a write transaction, and enter it into the log."""
    last = last_entry(connection)
    time = now.astimezone(UTC).isoformat(timespec="milliseconds")
    number, previous = (last.number + 1, last.digest) if last else (1, "")
    entry = Entry(number, time, kind, json.loads(canonical_json(body)), previous)
    replay(connection, entry)
    return entry


def replay(connection: sa.Connection, entry: Entry) -> None:
    """Put an entry in force, in its place at the end of the ledger's log."""
    _APPLY[entry.kind](connection, entry.body, entry.time)
    values = _values(entry) | {"body": canonical_json(entry.body).decode()}
    connection.execute(log.insert().values(values))


def entries(connection: sa.Connection, after: int = 0) -> list[Entry]:
    """The ledger's copy of the log behind a number."""
    query = sa.select(log).where(log.c.number > after).order_by(log.c.number)
    return list(map(_entry, connection.execute(query)))


def some(connection: sa.Connection, numbers: Sequence[int]) -> list[Entry]:
    """Entries of the ledger's copy by their numbers."""
    query = sa.select(log).where(log.c.number.in_(numbers)).order_by(log.c.number)
    return list(map(_entry, connection.execute(query)))


def last_entry(connection: sa.Connection) -> Entry | None:
    """The end of the ledger's copy of the log."""
    row = connection.execute(sa.select(log).order_by(log.c.number.desc()).limit(1)).first()
    return None if row is None else _entry(row)


def version(connection: sa.Connection, kinds: Sequence[str] = OF_REQUESTS) -> int:
    """Number of the last entry of some kinds, by default of those that alter requests; 0 if none.

    Requests that are `noted` alter nothing: nobody is known, or others erase the same.
    """
    query = sa.select(sa.func.max(log.c.number)).where(log.c.kind.in_(kinds))
    return connection.scalar(query) or 0


def _values(entry: Entry) -> dict[str, Any]:
    return {field.name: getattr(entry, field.name) for field in fields(entry)}


def _entry(row: Any) -> Entry:
    return Entry(**row._asdict() | {"body": json.loads(row.body)})


def _dataset(connection: sa.Connection, body: Body, time: str) -> None:
    """The current data set: path, sha256 and size of its manifest."""
    connection.execute(pointer.delete())
    connection.execute(pointer.insert().values(body))


def _generation(connection: sa.Connection, body: Body, time: str) -> None:
    """A further generation, current from now on: the columns of the table."""
    connection.execute(generations.insert().values(body | {"time": time}))
    connection.execute(outbox.insert().values(number=body["number"]))


def _accepted(connection: sa.Connection, body: Body, time: str) -> None:
    """Requests of one call: columns of the table; epoch; tombstones in hex, a list a request."""
    drafted: list[Body] = body["requests"]
    rows = [
        values | {name: json.dumps(values[name]) for name in ("places", "before")}
        for values in drafted
    ]
    connection.execute(requests.insert(), rows)
    stones = [
        {"hash": bytes.fromhex(stone), "epoch": body["epoch"], "request_id": values["id"]}
        for values, named in zip(drafted, body["tombstones"], strict=True)
        for stone in named
    ]
    if stones:
        connection.execute(tombstones.insert(), stones)
    for status in sorted({values["status"] for values in drafted}):
        _event(connection, [v["id"] for v in drafted if v["status"] == status], status, time)
    _event(connection, [v["id"] for v in drafted if v["hold"]], "held", time)


def _moved(connection: sa.Connection, body: Body, time: str) -> None:
    """Requests that come to a status, with what else goes with it: ids, status, values."""
    _set(connection, body["requests"], status=body["status"], **body.get("values", {}))
    _event(connection, body["requests"], body["status"], time)


def _certified(connection: sa.Connection, body: Body, time: str) -> None:
    """A request that is closed by a certificate, the new head: id, path, sha256 and bytes."""
    only = [body["request"]]
    values = {"certificate": body["path"], "hold": None, "blocked": None, "retry": None}
    _set(connection, only, status="certified", **values)
    _destroy_copies(connection, body["request"])
    _destroy_pseudonyms(connection, only)
    for name, value in (("certificate_head", body["sha256"]), ("certificate_path", body["path"])):
        connection.execute(settings.delete().where(settings.c.name == name))
        connection.execute(settings.insert().values(name=name, value=value))
    _event(connection, only, "certified", time)


def _held(connection: sa.Connection, body: Body, time: str) -> None:
    """A legal hold on requests: ids and reason."""
    _set(connection, body["requests"], hold=body["reason"])
    _event(connection, body["requests"], "held", time)


def _released(connection: sa.Connection, body: Body, time: str) -> None:
    """The end of a legal hold: ids."""
    _set(connection, body["requests"], hold=None)
    _event(connection, body["requests"], "released", time)


def _blocked(connection: sa.Connection, body: Body, time: str) -> None:
    """What keeps requests from being certified: ids, reason, and when to try again."""
    _set(connection, body["requests"], blocked=body["reason"], retry=body["retry"])
    _event(connection, body["requests"], "blocked", time)


def _cancelled(connection: sa.Connection, body: Body, time: str) -> None:
    """Requests that are not carried out, and their tombstones: ids, status and reason.

    Duplicates that they leave alone stand by themselves then, or become duplicates of such a one.
    """
    ids = body["requests"]
    values = {"reason": body["reason"], "hold": None, "blocked": None, "retry": None}
    _set(connection, ids, status=body["status"], **values)
    _destroy_pseudonyms(connection, ids)
    for part in parts(ids):
        connection.execute(tombstones.delete().where(tombstones.c.request_id.in_(part)))
    _event(connection, ids, body["status"], time)
    _set(connection, body["standing"], status="accepted", duplicate_of=None)
    _event(connection, body["standing"], "accepted", time)
    for request_id, other in body["duplicates"].items():
        _set(connection, [request_id], duplicate_of=other)


def _readmitted(connection: sa.Connection, body: Body, time: str) -> None:
    """Tombstones lifted because consent was given again: hashes in hex."""
    ids: set[str] = set()
    for part in parts([bytes.fromhex(h) for h in body["tombstones"]]):
        found = tombstones.c.hash.in_(part)
        ids |= {*connection.scalars(sa.select(tombstones.c.request_id).where(found))}
        connection.execute(tombstones.delete().where(found))
    _event(connection, sorted(ids), "readmitted", time)


def _reopened(connection: sa.Connection, body: Body, time: str) -> None:
    """Requests whose rows came back with a restored copy: ids."""
    _set(connection, body["requests"], status="accepted", certificate=None)
    _event(connection, body["requests"], "reopened", time)


def _epoch_opened(connection: sa.Connection, body: Body, time: str) -> None:
    """A tombstone epoch that is the last one from now on: its number."""
    connection.execute(epochs.update().where(epochs.c.closed.is_(None)).values(closed=time))
    connection.execute(epochs.insert().values(number=body["number"], opened=time))


def _epoch_destroyed(connection: sa.Connection, body: Body, time: str) -> None:
    """The end of a tombstone epoch, whose tombstones mean nothing any more: its number."""
    number = body["number"]
    connection.execute(tombstones.delete().where(tombstones.c.epoch == number))
    connection.execute(epochs.update().where(epochs.c.number == number).values(destroyed=time))


def _mirror_named(connection: sa.Connection, body: Body, time: str) -> None:
    """The name that mirrors know this workspace by: its mark."""
    connection.execute(settings.insert().values(name="mirror_mark", value=body["mark"]))


def _mirrored(connection: sa.Connection, body: Body, time: str) -> None:
    """A delivery that is about to begin: generation, place, and where its artefacts go."""
    connection.execute(mirrored.insert().values(body))


def _mirror_purged(connection: sa.Connection, body: Body, time: str) -> None:
    """What is gone from a mirror: generations with their places; and all rows that are left."""
    for gone in body["gone"]:
        found = sa.and_(*(mirrored.c[name] == value for name, value in gone.items()))
        connection.execute(mirrored.delete().where(found))
    connection.execute(settings.delete().where(settings.c.name == "mirror_left"))
    value = json.dumps(body["left"], sort_keys=True)
    connection.execute(settings.insert().values(name="mirror_left", value=value))


def _signer(connection: sa.Connection, body: Body, time: str) -> None:
    """A further signing key, whose public half the one before vouches for; nothing is kept here."""


def parts(values: Iterable[T]) -> Iterator[list[T]]:
    """Lists short enough to stand in one statement."""
    whole = list(values)
    for start in range(0, len(whole), MANY):
        yield whole[start : start + MANY]


def _set(connection: sa.Connection, ids: Iterable[str], **values: Any) -> None:
    for part in parts(ids):
        connection.execute(requests.update().where(requests.c.id.in_(part)).values(values))


def _destroy_copies(connection: sa.Connection, request_id: str) -> None:
    """Pseudonyms in duplicates that are those of a request."""
    duplicates = sa.select(requests.c.id).where(requests.c.status == "duplicate")
    named = sa.select(request_keys.c.key).where(request_keys.c.request_id == request_id)
    connection.execute(
        request_keys.delete().where(
            request_keys.c.request_id.in_(duplicates), request_keys.c.key.in_(named)
        )
    )


def _destroy_pseudonyms(connection: sa.Connection, ids: list[str]) -> None:
    for table in (request_keys, scan_sets):
        for part in parts(ids):
            connection.execute(table.delete().where(table.c.request_id.in_(part)))


def _event(connection: sa.Connection, ids: list[str], what: str, time: str) -> None:
    rows = [{"request_id": request_id, "time": time, "what": what} for request_id in ids]
    if rows:
        connection.execute(events.insert(), rows)


_APPLY: dict[str, Callable[[sa.Connection, Body, str], None]] = {
    "dataset": _dataset,
    "generation": _generation,
    "accepted": _accepted,
    "noted": _accepted,
    "moved": _moved,
    "certified": _certified,
    "held": _held,
    "released": _released,
    "blocked": _blocked,
    "cancelled": _cancelled,
    "readmitted": _readmitted,
    "reopened": _reopened,
    "epoch opened": _epoch_opened,
    "epoch destroyed": _epoch_destroyed,
    "mirror named": _mirror_named,
    "mirrored": _mirrored,
    "mirror purged": _mirror_purged,
    "signer": _signer,
}
