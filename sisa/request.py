"""The life of erasure requests: submitted, looked at, held, released, cancelled, readmitted.

What is submitted takes effect in serving at once; `sisa work` carries it out. Until the rows of a
request are rewritten it can be held or taken back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pyarrow as pa

from data_index import keys, ledger, lineage, requests
from data_index.database import Connection
from data_index.lineage import Selection
from data_index.requests import OPEN, Pending, Request
from sisa import closing, lookup, purge
from sisa.accept import Accepted, accept
from sisa.context import Context
from sisa.errors import BusyError, MovedOnError, NotFoundError, UsageError
from sisa.free_text import require_nameless
from sisa.lookup import Id
from sisa.publish import Cancel, Published, build_and_publish
from sisa.results import (
    Readmitted,
    RequestCancelled,
    RequestEvent,
    RequestPlace,
    Requests,
    RequestShown,
    RequestState,
    RequestStep,
    Submitted,
)
from sisa.states import STATES, overdue, request_state, state
from sisa.submission import Submission, text

ATTEMPTS = 100
"""How often a change is tried again because requests or data moved meanwhile."""


def submit(context: Context, submissions: Sequence[Submission], dry_run: bool) -> Submitted:
    """Accept requests and roll serving back; nothing is carried out.

    Raises:
        UsageError: A submission names no id, or an external id stands for something else already.
        ConfigurationError: The recipe was changed since the current generation was trained.
    """
    done = accept(context, submissions, time.monotonic(), dry_run=dry_run)
    entered = [r for r in done.requests if r is not None]
    fresh = {r.id: r for r in entered if r.id in done.fresh}
    mine = [r for r in fresh.values() if r.status in OPEN]
    entry, now = None if dry_run else context.ledger.generation(), context.ledger.clock()
    seconds = None if dry_run else round(done.seconds, 6)
    return Submitted(
        status="planned" if dry_run else "accepted",
        requests=() if dry_run else tuple(request_state(r, now) for r in entered),
        accepted=len(mine),
        duplicates=sum(r.status == "duplicate" for r in fresh.values()),
        known=len(entered) - len(fresh),
        records=sum(r.records for r in mine),
        shards_affected=tuple(sorted({shard for r in mine for shard, _ in r.places})),
        accepted_seconds=seconds,
        rolled_back_seconds=seconds,
        generation=entry and entry.number,
        digest=entry and entry.digest,
        not_found=_unknown(done),
    )


def _unknown(done: Accepted) -> tuple[str, ...]:
    """Ids that are not known, those of submissions that were answered already left aside."""
    fresh = [i for i, r in enumerate(done.requests) if r is not None and r.id in done.fresh]
    found = done.found.of(fresh)
    return tuple(found.ids.text[~found.known])


def listed(context: Context, wanted: str | None, late: bool) -> Requests:
    """The requests, all or those of a state or past due.

    Raises:
        UsageError: There is no such state.
    """
    if wanted is not None and wanted not in STATES:
        raise UsageError("There is no such state.", f"The states are {', '.join(STATES)}.")
    now = context.ledger.clock()
    return Requests(
        requests=tuple(
            request_state(r, now)
            for r in context.ledger.requests()
            if wanted in (None, state(r)) and (overdue(r, now) or not late)
        )
    )


def show(context: Context, name: str) -> RequestShown:
    """All about one request.

    Raises:
        NotFoundError: There is none of that id or external id.
    """
    request = _of(context, name)
    pending = context.ledger.pending()
    left = _rows(context, pending, request)
    return RequestShown(
        request=request_state(request, context.ledger.clock()),
        events=tuple(
            RequestEvent(time=when, what=what) for when, what in context.ledger.events(request.id)
        ),
        places=tuple(RequestPlace(shard=s, first_slice=r) for s, r in request.places),
        generation_before=request.generation_before,
        steps=tuple(_steps(context, request, left.num_rows == 0)),
        waits_for=tuple(
            r.id
            for r in pending.requests
            if r.hold is not None
            and r.id != request.id
            and request.status in OPEN
            and pending.named_by({r.id}).mask(left).any()
        ),
    )


def _steps(context: Context, request: Request, rewritten: bool) -> Iterator[RequestStep]:
    """What is done, by what exists."""
    if request.status not in (*OPEN, "certified"):
        return
    certified = request.status == "certified"
    rebuilt = request.status != "accepted" or context.ledger.generation() is None
    yield RequestStep(name="rolled_back", done=True)
    yield RequestStep(name="rebuilt", done=certified or rebuilt)
    yield RequestStep(name="rewritten", done=certified or rewritten)
    purged = certified or (
        rewritten and rebuilt and not context.steady(lambda: purge.unreachable(context))
    )
    yield RequestStep(name="purged", done=purged)
    yield RequestStep(name="certified", done=certified)


def hold(context: Context, name: str, reason: str) -> RequestState:
    """Let nothing of an open request be destroyed until it is released.

    Raises:
        NotFoundError: There is none of that id or external id.
        UsageError: It is not open, its rows are rewritten already, or the reason names a person.
    """
    because = _reason(context, reason)

    def change(request: Request) -> Callable[[Connection], None] | None:
        _require_open(request, "hold")
        if request.hold == because:
            return None
        return lambda c: requests.hold(c, request.id, because, context.ledger.clock())

    return _changed(context, name, change, "put on hold")


def release(context: Context, name: str) -> RequestState:
    """End a hold; one that is not on hold stays as it is.

    Raises:
        NotFoundError: There is none of that id or external id.
        UsageError: It is not open.
    """

    def change(request: Request) -> Callable[[Connection], None] | None:
        _require_open(request, "release")
        if request.hold is None:
            return None
        return lambda c: requests.release(c, request.id, context.ledger.clock())

    return _changed(context, name, change, None)


def _changed(
    context: Context,
    name: str,
    change: Callable[[Request], Callable[[Connection], None] | None],
    while_stored: str | None,
) -> RequestState:
    """Change a request, if need be only while its rows are stored."""
    for _ in range(ATTEMPTS):
        dataset, pending = context.ledger.dataset(), context.ledger.pending()
        request = _of(context, name)
        enter = change(request)
        if enter is None:
            break
        if while_stored:
            _require_stored(context, pending, request, while_stored)
        with context.ledger.write() as connection:
            if requests.pending(connection).version != pending.version:
                continue
            if ledger.current_dataset(connection) != dataset:
                continue
            enter(connection)
        break
    else:
        raise BusyError("Erasure requests moved on too fast.", "Try again.")
    return request_state(_of(context, name), context.ledger.clock())


def cancel(context: Context, name: str, reason: str, denied: bool) -> RequestCancelled:
    """Take a request back before its rows are rewritten: the generation of before returns.

    Lifting its tombstones and publishing are one transaction.

    Raises:
        NotFoundError: There is none of that id or external id.
        UsageError: It is finished, its rows are rewritten already, or the reason names a person.
        BusyError: Another process is writing.
    """
    status, because = "denied" if denied else "cancelled", _reason(context, reason)
    standing: list[str] = []
    with context.ledger.writer() as lease:
        request = _of(context, name)
        if request.status == status:
            return _cancelled(context, request, standing, None)
        _require_open(request, "cancel", "duplicate")
        _require_stored(context, context.ledger.pending(), request, "cancelled")

        def enter(connection: Connection) -> None:
            now = context.ledger.clock()
            standing[:] = requests.cancel(connection, request.id, status, because, now)

        current = context.current()
        if current is not None:
            context.require_trained_recipe(current[1])
            published = build_and_publish(context, lease, "cancelled", Cancel(request.id, enter))
            return _cancelled(context, request, standing, published)
        for _ in range(ATTEMPTS):
            try:
                context.ledger.change(enter, context.ledger.pending().version, lease)
            except MovedOnError:
                continue
            return _cancelled(context, request, standing, None)
    raise BusyError("Erasure requests moved on too fast.", "Try again.")


def _cancelled(
    context: Context, request: Request, standing: list[str], published: Published | None
) -> RequestCancelled:
    entry = context.ledger.generation()
    return RequestCancelled(
        request=request_state(_of(context, request.id), context.ledger.clock()),
        standing=tuple(standing),
        samples_trained=published.built.cost.visited if published else 0,
        generation=entry and entry.number,
        digest=entry and entry.digest,
    )


def readmit(context: Context, subjects: Sequence[Id], records: Sequence[Id]) -> Readmitted:
    """Lift the tombstones of ids, so that the next ingest takes their rows again.

    Raises:
        UsageError: No id is given, or an open request names one.
        BusyError: Requests moved on too fast.
    """
    ids = lookup.identify(context, [(subjects, records)])
    for _ in range(ATTEMPTS):
        pending = context.ledger.pending()
        gone = pending.gone
        if (
            keys.contains(gone.subjects, ids.keys).any()
            or keys.contains(gone.records, ids.keys).any()
        ):
            raise UsageError(
                "An open request names one of these ids.", "Cancel that request instead."
            )
        stones = context.ledger.tombstones()
        met = context.epochs.meets(stones, ids.keys)
        hashes = context.epochs.hashes(ids.keys[met])
        lifted = hashes[keys.contains(stones, hashes)]
        try:
            if len(lifted):
                enter = partial(requests.readmit, found=lifted, now=context.ledger.clock())
                context.ledger.change(enter, pending.version)
        except MovedOnError:
            continue
        count = len({k.tobytes() for k in ids.keys[met]})
        return Readmitted(readmitted=count, not_found=tuple(ids.text[~met]))
    raise BusyError("Erasure requests moved on too fast.", "Try again.")


def _of(context: Context, name: str) -> Request:
    found = context.ledger.request(name)
    if found is None:
        raise NotFoundError(
            "There is no request of this id or external id.", "`sisa request list` names them."
        )
    return found


def _reason(context: Context, given: str) -> str:
    found = text("reason", given)
    if found is None:
        raise UsageError("No reason is given.", "Say why.")
    named = (i.decode() for s in closing.open_sets(context).values() for i in s.ids)
    require_nameless("reason", [found], named)
    return found


def _require_open(request: Request, verb: str, *also: str) -> None:
    if request.status in (*OPEN, *also):
        return
    if request.status == "duplicate":
        remedy = f"It is a duplicate of {request.duplicate_of}: {verb} that one."
    else:
        remedy = "Only an open request can be."
    raise UsageError(f"The request cannot be changed: its state is {request.status}.", remedy)


def _require_stored(context: Context, pending: Pending, request: Request, what: str) -> None:
    if _rows(context, pending, request).num_rows == 0:
        raise UsageError(
            f"The request cannot be {what}: its records are rewritten already.",
            "After its certificate `sisa request readmit` lets them be ingested again.",
        )


def _rows(context: Context, pending: Pending, request: Request) -> pa.Table:
    """Lineage rows of a request that are still stored."""

    def read() -> pa.Table:
        dataset = context.dataset()
        named: Selection = pending.named_by({request.id})
        return lineage.find(context.store, dataset.by_record, dataset.by_subject, named)

    return context.steady(read)
