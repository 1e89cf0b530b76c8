"""Documents of erasure requests: what they are, what happened to them, what is done with one."""

from __future__ import annotations

from typing import Literal

from sisa.results.base import Result


class RequestState(Result):
    """An erasure request."""

    id: str
    """Id of the request."""

    external_id: str | None
    """Its name in the system that it came from; null if it has none."""

    status: str
    """Where it stands: `accepted`, `published` or `certified`, `on_hold` or `blocked` if something
    keeps an open one from going on, or `duplicate`, `not_found`, `cancelled`, `denied`."""

    regulation: str | None
    """What it is made under; null if that was not said."""

    received: str
    """When it was received, ISO 8601 in UTC."""

    due: str
    """When it is due, ISO 8601 in UTC."""

    overdue: bool
    """Whether it is open and past due."""

    records: int
    """Count of records that its ids stood for."""

    shards_affected: tuple[int, ...]
    """Shards that hold such a record, from 0."""

    hold: str | None
    """Why its records must not be destroyed yet; null if it is not on hold."""

    blocked: str | None
    """What keeps it from being certified; null if nothing does."""

    retry: str | None
    """When that is worth another try, ISO 8601 in UTC; null if nothing keeps it."""

    reason: str | None
    """Why it was cancelled or denied; null otherwise."""

    duplicate_of: str | None
    """Id of the request that erases the same already; null if it is no duplicate."""

    certificate: str | None
    """Path of its certificate; null until there is one."""


class Requests(Result):
    """`sisa request list`."""

    requests: tuple[RequestState, ...]
    """The requests, the oldest first."""


class RequestEvent(Result):
    """Something that happened to a request."""

    time: str
    """When, ISO 8601 in UTC."""

    what: str
    """A status that it came to, or `held`, `released`, `readmitted`, `reopened`."""


class RequestPlace(Result):
    """A shard that a request touches."""

    shard: int
    """The shard, from 0."""

    first_slice: int
    """The first slice of it that is touched, from 1."""


class RequestStep(Result):
    """A step of an erasure."""

    name: Literal["rolled_back", "rebuilt", "rewritten", "purged", "certified"]
    """The step."""

    done: bool
    """Whether it is done, by what exists now."""


class RequestShown(Result):
    """`sisa request show`."""

    request: RequestState
    """The request."""

    events: tuple[RequestEvent, ...]
    """What happened to it, the oldest first."""

    places: tuple[RequestPlace, ...]
    """The shards that it touches."""

    generation_before: int | None
    """Number of the generation at its acceptance; null if there was none."""

    steps: tuple[RequestStep, ...]
    """The steps of its erasure in their order; empty if there is nothing to be carried out."""

    waits_for: tuple[str, ...]
    """Ids of requests on hold that name some of the same records, so that these stay."""


class RequestHeld(Result):
    """`sisa request hold`."""

    request: RequestState
    """The request as it is now."""


class RequestReleased(Result):
    """`sisa request release`."""

    request: RequestState
    """The request as it is now."""


class RequestCancelled(Result):
    """`sisa request cancel`."""

    request: RequestState
    """The request as it is now."""

    standing: tuple[str, ...]
    """Ids of requests that were duplicates of it and are to be carried out themselves now."""

    samples_trained: int
    """Samples that this call visited; 0 if the checkpoints of before were all there."""

    generation: int | None
    """Number of the current generation; null before the first training."""

    digest: str | None
    """Its digest, sha256 in hex; null like the generation."""


class Readmitted(Result):
    """`sisa request readmit`."""

    readmitted: int
    """Count of ids that may be ingested again."""

    not_found: tuple[str, ...]
    """Ids of the call that were not erased, as they were given; stored nowhere."""
