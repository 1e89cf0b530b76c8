"""The document of `sisa plan`: prices of erasures, of waiting, and of a rate."""

from __future__ import annotations

from typing import ClassVar

from sisa.results.base import Result
from sisa.results.rounds import WindowState


class Price(Result):
    """What some training costs."""

    samples: int
    """Samples that it visits; a record counts once per epoch."""

    seconds: float
    """Estimated wall-clock seconds."""


class Waiting(Result):
    """What it saves to carry out the open requests and the ids of a call together."""

    open: Price
    """The open requests, carried out now."""

    alone: Price
    """The ids of the call, as if nothing else were open."""

    together: Price
    """All of them at once."""

    one_after_other: Price
    """The open requests first, the ids of the call after that."""

    saved_by_waiting: Price
    """One after the other, less together."""


class Choice(Result):
    """Numbers of shards and slices, and what erasures at a rate would cost with them."""

    shards: int
    """Number of shards."""

    slices: int
    """Number of slices of a shard."""

    samples: float
    """Samples a day that retraining is expected to visit."""

    seconds: float
    """Seconds a day that one worker is expected to train; 0 if nothing was ever trained."""

    steps: int
    """About how many optimizer steps a first stage takes: under 20 it costs accuracy and time."""

    present: bool
    """Whether it is what the recipe has."""


class Planned(Result):
    """`sisa plan`: what an erasure will cost, or with `--rate` what a day of them will."""

    either: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("records", "shards_affected", "stages", "samples", "seconds", "not_found", "waiting"),
        (
            "rate",
            "requests_per_batch",
            "samples_per_day",
            "seconds_per_day",
            "best",
            "choices",
        ),
    )

    records: int | None = None
    """Count of records that would be erased."""

    shards_affected: tuple[int, ...] | None = None
    """Shards that hold such a record, from 0."""

    stages: int | None = None
    """Count of stages that would be trained again."""

    samples: int | None = None
    """Samples that retraining would visit, what is open already included; a record counts once per
    epoch."""

    seconds: float | None = None
    """Estimated wall-clock seconds of retraining."""

    not_found: tuple[str, ...] | None = None
    """Ids of the call that are not known, as they were given."""

    waiting: Waiting | None = None
    """What waiting for each other saves."""

    rate: float | None = None
    """Requests a day."""

    requests_per_batch: float | None = None
    """Mean number of requests that are carried out together."""

    samples_per_day: float | None = None
    """Samples a day that retraining is expected to visit, with the shards and slices there are."""

    seconds_per_day: float | None = None
    """Seconds a day that one worker is expected to train."""

    best: Choice | None = None
    """The choice that costs least."""

    choices: tuple[Choice, ...] | None = None
    """Choices whose stages are not too small, and the present one; the cheapest first."""

    samples_full: int
    """Samples that retraining everything would visit."""

    window: WindowState | None = None
    """The window of the requests that are open now; null if none is."""
