"""The batching window: until when accepted requests wait for more, and why no longer.

Requests that are carried out together cost less than one after the other, because each shard is
trained once, from the earliest slice that any of them touches. The window governs a service and
`sisa work --every`; `sisa forget` and `sisa work` finish at once. All of it is a function of what
the ledger and the current generation say; no row is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from data_index.requests import OPEN, Request, first_of
from sisa import config, tempo
from sisa.config import Erasure
from sisa.context import Context
from sisa.generation import Generation, quorate

Reason = Literal["unfinished", "due", "max_wait", "depth", "quorum", "retry"]

SAFETY = 2
"""How many times the estimated training time is set aside before a due date."""

MARGIN = timedelta(minutes=1)
"""Set aside besides, for starting workers, rewriting, purging and the certificate."""


@dataclass(frozen=True, slots=True)
class Window:
    """When open requests are carried out.

    Attributes:
        opens: When the oldest of them was accepted, UTC.
        closes: When they are carried out, UTC; not after `now` if that is due at once.
        reason: What closes it: `due`, the earliest due date less what carrying out takes;
            `max_wait`, the longest that a request waits; `depth`, too much is rolled back;
            `quorum`, too few votes, or one more could make it too few; `unfinished`, what was
            begun is finished at once; `retry`, what was blocked is tried again.
        requests: Ids of the requests, the oldest first; none that is on hold.
    """

    opens: datetime
    closes: datetime
    reason: Reason
    requests: tuple[str, ...]

    def closed(self, now: datetime) -> bool:
        """Whether the requests are to be carried out now."""
        return self.closes <= now


def window(
    requests: Sequence[Request],
    served: Generation | None,
    rules: Erasure,
    duration: timedelta,
    now: datetime,
) -> Window | None:
    """The window of what is open.

    Args:
        requests: Open and closed ones, in any order.
        served: The current generation; None before the first training.
        rules: The settings.
        duration: What carrying out all that is open takes, as far as it is known.
        now: The time, UTC.

    Returns:
        The window at the first of what closes it; None if nothing waits.
    """
    mine = [r for r in requests if r.status in OPEN and r.hold is None]
    if not mine:
        return None
    found: list[tuple[datetime, Reason]] = []
    for request in mine:
        if request.retry is not None:
            found.append((_time(request.retry), "retry"))
        elif request.status != "accepted":
            found.append((now, "unfinished"))
        else:
            found.append((_time(request.due) - duration, "due"))
            found.append((_time(request.received) + config.period(rules.max_wait), "max_wait"))
    waits = any(r.retry is None and r.status == "accepted" for r in mine)
    if waits and served is not None:
        found += [(now, reason) for reason in _weakened(served, rules)]
    closes, reason = min(found, key=lambda f: f[0])
    ordered = sorted(mine, key=lambda r: r.sequence)
    opens = min(_time(r.received) for r in mine)
    return Window(opens, closes, reason, tuple(r.id for r in ordered))


def current(context: Context) -> Window | None:
    """The window of a workspace as it is now."""
    moment = context.ledger.moment()
    found = context.current()
    served = found[1] if found else None
    rules, now = context.config.runtime.erasure, context.ledger.clock()
    return window(moment.pending.requests, served, rules, _duration(context), now)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _weakened(served: Generation, rules: Erasure) -> list[Reason]:
    found: list[Reason] = []
    if not quorate(len(served.voting) - 1, served.recipe, rules.quorum):
        found.append("quorum")
    if served.depth < rules.min_depth:
        found.append("depth")
    return found


def _duration(context: Context) -> timedelta:
    """What carrying out all that is open takes: twice the estimate, and a minute."""
    waiting = [r for r in context.ledger.pending().requests if r.status == "accepted"]
    places = first_of(place for r in waiting for place in r.places)
    if not places or context.current() is None:
        return MARGIN
    partitions = context.dataset().partitions
    work = tempo.sum_of(
        tempo.behind(
            context.config.recipe, {p.slice: p.rows for p in partitions if p.shard == shard}, first
        )
        for shard, first in places
    )
    estimate = tempo.measured(context).seconds(work, tempo.workers(context))
    return timedelta(seconds=SAFETY * estimate) + MARGIN
