"""The window that open requests wait in, and the rounds of `sisa work --every`."""

from __future__ import annotations

from typing import Literal

from sisa.results.base import Fault, Result
from sisa.results.requests import RequestState


class WindowState(Result):
    """Until when open requests wait for more."""

    opens: str
    """When the oldest of them was accepted, ISO 8601 in UTC."""

    closes: str
    """When a service or `sisa work --every` carries them out, ISO 8601 in UTC."""

    reason: Literal["unfinished", "due", "max_wait", "depth", "quorum", "retry"]
    """What closes it: a due date less what carrying out takes, the longest wait, too much that is
    rolled back, a quorum in danger, something that was begun, or another try of what is blocked."""

    requests: tuple[str, ...]
    """Ids of the requests, the oldest first; none that is on hold."""


class Round(Result):
    """One round of `sisa work --every`: a line of what it prints before its document."""

    round: int
    """Number of the round, from 1."""

    time: str
    """When it ended, ISO 8601 in UTC."""

    state: Literal["idle", "waiting", "worked", "failed"]
    """`idle` if nothing is open, `waiting` until the window closes, `worked` if requests were
    finished, `failed` if it is tried again in the next round."""

    requests: tuple[RequestState, ...] = ()
    """Requests that it finished."""

    waiting: tuple[RequestState, ...] = ()
    """Requests that are open when it ends, those on hold included."""

    samples_trained: int = 0
    """Samples that it visited."""

    samples_full: int = 0
    """Samples that training everything would visit; 0 if nothing was finished."""

    generation: int | None = None
    """Number of the current generation; null before the first training or if the round failed."""

    digest: str | None = None
    """Its digest, sha256 in hex; null like the generation."""

    window: WindowState | None = None
    """The window of what is still open; null if nothing is."""

    error: Fault | None = None
    """Why the round failed; null if it did not."""
