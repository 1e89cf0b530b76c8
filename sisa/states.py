"""The state of a request as documents show it."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, get_args

from data_index.requests import OPEN, Request
from sisa.results import RequestState

State = Literal[
    "accepted",
    "published",
    "certified",
    "on_hold",
    "blocked",
    "duplicate",
    "not_found",
    "cancelled",
    "denied",
]

STATES: tuple[str, ...] = get_args(State)


def state(request: Request) -> str:
    """One of `STATES`: its status, unless something keeps an open one from going on."""
    if request.status in OPEN and request.hold is not None:
        return "on_hold"
    if request.status in OPEN and request.blocked is not None:
        return "blocked"
    return request.status


def overdue(request: Request, now: datetime) -> bool:
    """Whether it is open past its due time."""
    return request.status in OPEN and datetime.fromisoformat(request.due) < now


def request_state(request: Request, now: datetime) -> RequestState:
    """A request as documents show it."""
    return RequestState(
        id=request.id,
        external_id=request.external_id,
        status=state(request),
        regulation=request.regulation,
        received=request.received,
        due=request.due,
        overdue=overdue(request, now),
        records=request.records,
        shards_affected=tuple(shard for shard, _ in request.places),
        hold=request.hold,
        blocked=request.blocked,
        retry=request.retry,
        reason=request.reason,
        duplicate_of=request.duplicate_of,
        certificate=request.certificate,
    )
