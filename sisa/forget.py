"""The erasure workflow: accept and roll back at once; then build, publish, rewrite, purge, certify.

What follows acceptance is done by whoever runs `work`, as often as it takes: every step looks at
what exists and is safe to repeat. A request that is on hold is built without and stays.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from data_index import lineage, rewrite
from data_index.leases import Lease
from data_index.lineage import Selection
from data_index.requests import Pending, Request
from sisa import certificate, closing, lookup, plan, purge
from sisa.accept import Accepted, accept
from sisa.build import Cost
from sisa.context import Context
from sisa.errors import BlockedError, BusyError, MovedOnError, SisaError
from sisa.lookup import Id, Named
from sisa.publish import Published, build_and_publish
from sisa.results import Forgotten, Worked
from sisa.states import request_state, state
from sisa.submission import Submission


def forget(
    context: Context, subjects: Sequence[Id], records: Sequence[Id], wait: bool = True
) -> Forgotten:
    """Accept an erasure and, unless told not to wait, carry it out.

    Raises:
        ConfigurationError: The recipe was changed since the current generation was trained.
    """
    started = time.monotonic()
    done = accept(context, [Submission(tuple(subjects), tuple(records))], started, note=False)
    named = lookup.named(done.found)
    unfinished = done.request is not None or any(r.status != "certified" for r in named.earlier)
    try:
        worked = work(context) if wait else None
        return _reply(context, done, named, worked)
    except BusyError:
        return _reply(context, done, named, None, blocked=unfinished)
    except SisaError as error:
        if unfinished:
            error.remedy += " The erasure is accepted; `sisa work` finishes it."
        raise


def dry_run(context: Context, subjects: Sequence[Id], records: Sequence[Id]) -> Forgotten:
    """What `forget` would do and cost; changes nothing."""
    named = lookup.look_up(context, subjects, records)
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


def work(context: Context, once: bool = False) -> Worked:
    """Carry out all that is accepted, and whatever a crash left undone.

    Args:
        context: The workspace.
        once: Leave what is accepted after the last publication to the next window.

    Raises:
        BusyError: Another process is writing.
    """
    spent = Cost()
    context.signing.signer()
    with context.ledger.writer() as lease:
        finished = certificate.complete(context, lease)
        taken: Pending | None = None
        blocked: BlockedError | None = None
        while True:
            pending = context.ledger.pending()
            if not pending.requests or (taken and taken.version == pending.version):
                break
            taken, cost, blocked = _carry_out(context, lease, pending, finished)
            spent = cost.after(spent)
            if once or blocked:
                break
        if taken is None:
            purge.purge(context, lease)
            _purge_mirror(context)
    if not context.ledger.compact():
        context.report.warn(
            "Somebody is reading the ledger, whose log may hold pseudonyms until `sisa work` "
            "is run again."
        )
    entry, now = context.ledger.generation(), context.ledger.clock()
    done = {*finished}
    return Worked(
        requests=tuple(request_state(r, now) for r in context.ledger.requests() if r.id in done),
        waiting=tuple(request_state(r, now) for r in context.ledger.pending().requests),
        samples_trained=spent.visited,
        samples_full=spent.full,
        generation=entry and entry.number,
        digest=entry and entry.digest,
        blocked=blocked and blocked.message,
    )


def _carry_out(
    context: Context, lease: Lease, pending: Pending, finished: list[str]
) -> tuple[Pending, Cost, BlockedError | None]:
    """Build, publish, rewrite, purge, certify.

    Returns:
        The requests that the build left out, what it cost, and what keeps them from being
        certified.
    """
    published = _published(context, lease)
    taken = published.pending if published else pending
    if published:
        new = [r.id for r in taken.requests if r.status == "accepted"]
        context.ledger.set_status(new, "published", lease)
    closing.note_rows(context, lease, taken)
    erased = _rewrite(context, lease, taken)
    cost = published.built.cost if published else Cost()
    try:
        closing.close(context, lease, erased, published)
    except BlockedError as error:
        context.report.warn(str(error))
        return taken, cost, error
    finished += [r.id for r in erased]
    return taken, cost, None


def _purge_mirror(context: Context) -> None:
    """No certificate waits for it: a mirror that is down is purged next time."""
    try:
        context.purge_mirror()
    except BlockedError as error:
        context.report.warn(str(error))


def _published(context: Context, lease: Lease) -> Published | None:
    """Rebuild without the forgotten; None if nothing was ever trained."""
    if context.ledger.generation() is None:
        return None
    current = context.current()  # none after a restore that lost it
    if current is not None:
        context.require_trained_recipe(current[1])
    return build_and_publish(context, lease, "erasure")


def _rewrite(context: Context, lease: Lease, taken: Pending) -> tuple[Request, ...]:
    """Write the data set without the rows and make it current; those on hold keep theirs.

    Returns:
        Requests of which no row is left.
    """
    ids = {r.id for r in taken.requests}
    while True:
        now = context.ledger.pending()
        free = [r for r in now.requests if r.id in ids and r.hold is None]
        going = now.named_by({r.id for r in free})
        before = context.dataset()
        after = rewrite.without(
            context.store, context.ring, context.columns, before, going, now.held
        )
        try:
            if after is not before:
                manifest = after.save(context.store)
                context.store.flush()
                context.ledger.commit_dataset(manifest, lease, now.version, ("held",))
        except MovedOnError:
            continue  # a hold came meanwhile: it is respected
        left = lineage.find(context.store, after.by_record, after.by_subject, going)
        if left.num_rows == 0:
            return tuple(free)
        return tuple(r for r in free if not now.named_by({r.id}).mask(left).any())


def _reply(
    context: Context,
    done: Accepted,
    named: Named,
    worked: Worked | None,
    blocked: bool = False,
) -> Forgotten:
    mine = done.request or (named.earlier[-1] if named.earlier else None)
    mine = mine and context.ledger.request(mine.id)
    entry = context.ledger.generation()
    return Forgotten(
        request_id=mine and mine.id,
        status="not_found" if mine is None else _status(mine, blocked),
        records_erased=named.rows.num_rows,
        shards_affected=named.shards,
        accepted_seconds=round(done.seconds, 6),
        rolled_back_seconds=_rolled_back(context, done),
        samples_trained=worked.samples_trained if worked else 0,
        samples_full=_full(context, worked),
        generation=entry and entry.number,
        digest=entry and entry.digest,
        certificate=mine and mine.certificate and str(context.store.path(mine.certificate)),
        not_found=named.unknown,
    )


def _rolled_back(context: Context, done: Accepted) -> float | None:
    """When serving no longer had the influence: at acceptance, or with the group since then."""
    if done.rolled_back:
        return round(done.seconds, 6)
    if done.request is None or done.request.id not in done.fresh:
        return None
    before = done.request.generation_before or 0
    since = (g for g in context.ledger.generations() if g.number > before)
    with_group = next((g for g in since if g.reason == "roll-back"), None)
    if with_group is None:
        return None
    waited = datetime.fromisoformat(with_group.time) - datetime.fromisoformat(done.request.received)
    return round(done.seconds + max(0.0, waited.total_seconds()), 6)


def _full(context: Context, worked: Worked | None) -> int:
    """What training everything would visit, as the build found it or, without one, a walk."""
    if worked is not None and worked.requests:
        return worked.samples_full
    return context.steady(lambda: plan.forecast(context, Selection.nothing()).cost.full)


def _status(
    request: Request, blocked: bool
) -> Literal["accepted", "blocked", "certified", "on_hold"]:
    if request.status == "certified":
        return "certified"
    if state(request) == "on_hold":
        return "on_hold"
    return "blocked" if blocked or state(request) == "blocked" else "accepted"
