"""Erasure requests against their due dates, and what carrying them out cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from statistics import median

from data_index.ledger import GenerationEntry
from data_index.requests import Request
from sisa.report_results import BatchCost, Costs, RequestRow, RequestsReport, Touched
from sisa.states import state

CLOSED = ("certified", "duplicate", "not_found", "cancelled", "denied")
"""Statuses that nothing is left to do for; every other one counts as open."""

Timelines = Mapping[str, Sequence[tuple[str, str]]]
"""Time and kind of what happened, by request."""


def requests_report(
    requests: Sequence[Request], timelines: Timelines, now: datetime
) -> RequestsReport:
    """All requests as they stand at a time."""
    rows = tuple(_row(r, dict(_times(timelines.get(r.id, ()))), now) for r in requests)
    taken = [_seconds(r.received, r.certified) for r in rows if r.certified]
    return RequestsReport(
        total=len(rows),
        open=sum(r.status not in CLOSED for r in requests),
        overdue=sum(r.overdue for r in rows),
        late=sum(r.late for r in rows),
        by_state=dict(sorted(Counter(r.state for r in rows).items())),
        records=sum(r.records for r in rows if r.state == "certified"),
        median_seconds=round(median(taken), 3) if taken else None,
        longest_seconds=round(max(taken), 3) if taken else None,
        items=rows,
    )


def _times(timeline: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    """When each thing happened; of several times the last, as after a copy was restored."""
    return ((what, time) for time, what in timeline)


def _row(request: Request, times: Mapping[str, str], now: datetime) -> RequestRow:
    closed = request.status in CLOSED
    certified = times.get("certified") if request.status == "certified" else None
    due = datetime.fromisoformat(request.due)
    return RequestRow(
        id=request.id,
        state=state(request),
        reason=_reason(request, closed),
        retry=None if closed or request.hold else request.retry,
        received=request.received,
        accepted=times.get("accepted"),
        published=times.get("published"),
        certified=certified,
        due=request.due,
        overdue=not closed and now > due,
        late=certified is not None and datetime.fromisoformat(certified) > due,
        records=request.records,
        touched=tuple(Touched(shard=s, first_slice=f) for s, f in request.places),
    )


def _reason(request: Request, closed: bool) -> str | None:
    return request.reason if closed else request.hold or request.blocked or request.reason


def _seconds(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def costs(generations: Sequence[GenerationEntry], rebuilt_by: Mapping[str, int | None]) -> Costs:
    """What rebuilds for erasures cost: those made for them, and trainings that they joined.

    Args:
        generations: All generations.
        rebuilt_by: Generation after each certified request, by its id.
    """
    served = Counter(number for number in rebuilt_by.values() if number is not None)
    rebuilds = [
        g
        for g in generations
        if g.reason == "erasure" or (g.reason == "train" and served[g.number])
    ]
    batches = tuple(
        BatchCost(
            generation=g.number,
            time=g.time,
            requests=served[g.number],
            samples_trained=g.samples_trained,
            samples_full=g.samples_full,
        )
        for g in rebuilds
        if g.samples_trained is not None and g.samples_full is not None
    )
    trained, full = sum(b.samples_trained for b in batches), sum(b.samples_full for b in batches)
    return Costs(
        samples_trained=trained,
        samples_full=full,
        saved=round(1 - trained / full, 6) if full else None,
        unrecorded=len(rebuilds) - len(batches),
        batches=batches,
    )
