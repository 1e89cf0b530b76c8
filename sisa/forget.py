"""The erasure workflow: accept and roll back at once; then build, publish, rewrite, purge, certify.

Acceptance is one transaction: the request, its tombstones and the rolled-back generation become
true together. What follows is done by whoever runs `work`, as often as it takes: every step looks
at what exists and is safe to repeat.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal

import numpy as np
import pyarrow as pa

from data_index import keys, ledger, lineage, requests, rewrite
from data_index.database import Connection
from data_index.keys import Keys
from data_index.leases import Lease
from data_index.ledger import GenerationEntry
from data_index.lineage import Selection
from data_index.requests import Pending, Places, Request, touches
from data_index.schema import RECORD_KEY, SUBJECT_KEY
from sisa import certificate, plan, purge
from sisa.context import Context
from sisa.errors import BusyError, SisaError, UsageError
from sisa.generation import Generation
from sisa.publish import Published, build_and_publish
from sisa.results import Forgotten, RequestState, Worked

Id = str | int


@dataclass(frozen=True)
class Named:
    """The ids of a call, looked up.

    Attributes:
        new: Those that have rows and are named for the first time.
        rows: Lineage rows that go with them.
        earlier: Requests that named some of the others before.
        unknown: Ids that are in neither; echoed to the caller and kept nowhere.
    """

    new: Selection
    rows: pa.Table
    earlier: tuple[Request, ...]
    unknown: tuple[str, ...]

    @property
    def places(self) -> Places:
        """The shards that the rows sit in, each with their first slice there."""
        first: dict[int, int] = {}
        pairs = zip(self.rows["shard"].to_pylist(), self.rows["slice"].to_pylist(), strict=True)
        for shard, slice_ in pairs:
            first[shard] = min(slice_, first.get(shard, slice_))
        return tuple(sorted(first.items()))

    @property
    def shards(self) -> tuple[int, ...]:
        """The shards that the rows sit in."""
        return tuple(shard for shard, _ in self.places)


@dataclass(frozen=True)
class Accepted:
    """What acceptance did; `request` is None if there was nothing new to accept."""

    named: Named
    request: Request | None
    accepted_seconds: float
    rolled_back_seconds: float


def look_up(context: Context, subjects: Sequence[Id], records: Sequence[Id]) -> Named:
    """Find what ids stand for, in the data and among the tombstones.

    Without a subject column a subject is its record.

    Raises:
        UsageError: No id is given, or one is neither text nor an integer.
        DataError: An id is empty or padded.
    """
    if not subjects and not records:
        raise UsageError("No id is given.", "Name a subject or a record.")
    if context.columns.subject_id is None:
        subjects, records = (), (*subjects, *records)
    subject_keys = keys.subject_keys(context.ring, _canonical(subjects))
    record_keys = keys.record_keys(context.ring, _canonical(records))
    wanted = Selection(subject_keys, record_keys)
    moment = context.ledger.moment()
    dataset = context.load_dataset(moment.dataset)
    stones = moment.tombstones
    subject_met = context.epochs.meets(stones, subject_keys)
    record_met = context.epochs.meets(stones, record_keys)
    rows = lineage.find(context.store, dataset.by_record, dataset.by_subject, wanted)
    subject_there = keys.contains(keys.from_arrow(rows[SUBJECT_KEY]), subject_keys) & ~subject_met
    record_there = keys.contains(keys.from_arrow(rows[RECORD_KEY]), record_keys) & ~record_met
    new = Selection(_unique(subject_keys[subject_there]), _unique(record_keys[record_there]))
    rows = rows.filter(pa.array(new.mask(rows) & ~moment.pending.gone.mask(rows)))
    unknown = [
        *(str(i) for i, hit in zip(subjects, subject_there | subject_met, strict=True) if not hit),
        *(str(i) for i, hit in zip(records, record_there | record_met, strict=True) if not hit),
    ]
    met = np.concatenate([subject_keys[subject_met], record_keys[record_met]])
    return Named(new, rows, _earlier(context, met), tuple(unknown))


def forget(
    context: Context, subjects: Sequence[Id], records: Sequence[Id], wait: bool = True
) -> Forgotten:
    """Accept an erasure and, unless told not to wait, carry it out.

    Raises:
        ConfigurationError: The recipe was changed since the current generation was trained.
    """
    started = time.monotonic()
    done = accept(context, subjects, records, started)
    unfinished = done.request is not None or any(
        r.status != "certified" for r in done.named.earlier
    )
    try:
        worked = work(context) if wait else None
        return _reply(context, done, worked)
    except BusyError:
        return _reply(context, done, None, blocked=unfinished)
    except SisaError as error:
        if unfinished:
            error.remedy += " The erasure is accepted; `sisa work` finishes it."
        raise


def dry_run(context: Context, subjects: Sequence[Id], records: Sequence[Id]) -> Forgotten:
    """What `forget` would do and cost; changes nothing."""
    named = look_up(context, subjects, records)
    cost = plan.forecast(context, named.new).cost
    return Forgotten(
        request_id=None,
        status="planned",
        records_erased=named.rows.num_rows,
        shards_affected=named.shards,
        accepted_seconds=None,
        rolled_back_seconds=None,
        samples_trained=cost.trained,
        samples_full=cost.full,
        generation=None,
        digest=None,
        certificate=None,
        not_found=named.unknown,
    )


def accept(
    context: Context, subjects: Sequence[Id], records: Sequence[Id], started: float
) -> Accepted:
    """Accept durably, and roll serving back in the same transaction."""
    while True:
        moment = context.ledger.moment()
        named = context.steady(lambda: _ready(context, subjects, records))
        if not named.new:
            spent = time.monotonic() - started
            return Accepted(named, None, spent, spent)
        with context.ledger.write() as connection:
            now = ledger.current_dataset(connection), requests.last_sequence(connection)
            if now != (moment.dataset, moment.pending.sequence):
                continue  # data or requests moved between look-up and transaction: look again
            request = _enter(context, connection, named)
        spent = time.monotonic() - started
        return Accepted(named, request, spent, spent)


def _ready(context: Context, subjects: Sequence[Id], records: Sequence[Id]) -> Named:
    """The ids, looked up, once it is clear that the models could be built again."""
    current = context.current()
    if current is not None:
        context.require_trained_recipe(current[1])
    return look_up(context, subjects, records)


def work(context: Context) -> Worked:
    """Carry out all that is accepted, and whatever a crash left undone.

    Raises:
        BusyError: Another process is writing.
    """
    samples = 0
    finished: list[str] = []
    with context.ledger.writer() as lease:
        while True:
            pending = context.ledger.pending()
            if not pending.requests:
                break
            samples += _carry_out(context, lease, pending, finished)
        if not finished:
            purge.purge(context, lease)
    if not context.ledger.compact():
        context.report.warn(
            "Somebody is reading the ledger, whose log may hold pseudonyms until `sisa work` "
            "is run again."
        )
    entry = context.ledger.generation()
    return Worked(
        requests=tuple(request_state(r) for r in context.ledger.requests() if r.id in finished),
        samples_trained=samples,
        generation=entry and entry.number,
        digest=entry and entry.digest,
    )


def request_state(request: Request) -> RequestState:
    """A request as documents show it."""
    return RequestState(
        id=request.id,
        status=request.status,
        received=request.received,
        due=request.due,
        records=request.records,
        shards_affected=tuple(shard for shard, _ in request.places),
        certificate=request.certificate,
    )


def _canonical(ids: Sequence[Id]) -> list[bytes]:
    if any(isinstance(i, bool) or not isinstance(i, (str, int)) for i in ids):
        raise UsageError("An id is neither text nor an integer.", "Name ids as the sources do.")
    return keys.canonical_ids(pa.array([str(i) for i in ids], pa.string()), "The call")


def _unique(found: Keys) -> Keys:
    return np.unique(found, axis=0) if len(found) else found


def _earlier(context: Context, met: Keys) -> tuple[Request, ...]:
    found: dict[str, Request] = {}
    for secret in context.epochs.secrets:
        for stone in keys.tombstone_hashes(secret, met):
            request = context.ledger.request_of(stone.tobytes())
            if request is not None:
                found[request.id] = request
    return tuple(sorted(found.values(), key=lambda r: r.sequence))


def _enter(context: Context, connection: Connection, named: Named) -> Request:
    """The acceptance, inside its transaction."""
    now = context.ledger.clock()
    entry = ledger.current_generation(connection)
    draft = replace(
        requests.draft(now, _due(context.config.runtime.erasure.due)),
        records=named.rows.num_rows,
        subjects=len(named.new.subjects) + len(named.new.records),
        places=named.places,
        generation_before=entry.number if entry else None,
    )
    erased = np.concatenate([named.new.subjects, named.new.records])
    stones = context.epochs.tombstones(erased)
    epoch = context.epochs.numbers[-1]
    request = requests.add(connection, draft, named.new, stones, epoch, now)
    if entry is not None:
        _roll_back(context, connection, entry, named)
    return request


def _roll_back(
    context: Context, connection: Connection, entry: GenerationEntry, named: Named
) -> None:
    """Publish each affected constituent at its last checkpoint that never saw the rows."""
    if entry.manifest is None:
        return
    current = Generation.load(context.store, entry.manifest)
    first = dict(named.places)
    rolled = replace(
        current,
        constituents=tuple(
            c.before(first[c.shard]) if c.shard in first else c for c in current.constituents
        ),
        partitions=tuple(p for p in current.partitions if not touches(named.places, p[0], p[1])),
        reason="roll-back",
        certificate_head=ledger.certificate_head(connection),
    )
    if rolled.same_as(current):
        return
    manifest = rolled.save(context.store)
    context.store.flush()
    now = context.ledger.clock()
    ledger.add_generation(connection, manifest, rolled.digest, rolled.reason, now)


def _carry_out(context: Context, lease: Lease, pending: Pending, finished: list[str]) -> int:
    """Build, publish, rewrite, purge, certify. Returns the samples trained."""
    published = _published(context, lease)
    taken = published.pending if published else pending
    ids = [r.id for r in taken.requests]
    if published:
        new = [r.id for r in taken.requests if r.status == "accepted"]
        context.ledger.set_status(new, "published", lease)
    _rewrite(context, lease, taken)
    swept = purge.purge(context, lease)
    for request in taken.requests:
        certificate.issue(context, lease, request, published, swept)
    finished += ids
    return published.built.cost.trained if published else 0


def _published(context: Context, lease: Lease) -> Published | None:
    """Rebuild without the forgotten; None if nothing was ever trained."""
    current = context.current()
    if current is None:
        return None
    context.require_trained_recipe(current[1])
    return build_and_publish(context, lease, "erasure")


def _rewrite(context: Context, lease: Lease, taken: Pending) -> None:
    """Write the data set without the rows and make it current."""
    before = context.dataset()
    after = rewrite.without(context.store, context.ring, context.columns, before, taken.gone)
    if after is before:
        return
    manifest = after.save(context.store)
    context.store.flush()
    context.ledger.commit_dataset(manifest, lease)


def _reply(
    context: Context, done: Accepted, worked: Worked | None, blocked: bool = False
) -> Forgotten:
    named = done.named
    mine = done.request or (named.earlier[-1] if named.earlier else None)
    mine = mine and next(r for r in context.ledger.requests() if r.id == mine.id)
    entry = context.ledger.generation()
    return Forgotten(
        request_id=mine and mine.id,
        status="not_found" if mine is None else _status(mine, blocked),
        records_erased=named.rows.num_rows,
        shards_affected=named.shards,
        accepted_seconds=round(done.accepted_seconds, 6),
        rolled_back_seconds=round(done.rolled_back_seconds, 6),
        samples_trained=worked.samples_trained if worked else 0,
        samples_full=plan.forecast(context, Selection.nothing()).cost.full,
        generation=entry and entry.number,
        digest=entry and entry.digest,
        certificate=mine and mine.certificate and str(context.store.path(mine.certificate)),
        not_found=named.unknown,
    )


def _status(request: Request, blocked: bool) -> Literal["accepted", "blocked", "certified"]:
    if request.status == "certified":
        return "certified"
    return "blocked" if blocked else "accepted"


def _due(text: str) -> timedelta:
    number = int(text[:-1])
    return timedelta(days=number) if text.endswith("d") else timedelta(hours=number)
