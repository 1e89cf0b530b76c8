"""Documents of the commands that accept erasures and carry them out."""

from __future__ import annotations

from typing import Literal

from sisa.results.base import Result
from sisa.results.requests import RequestState


class Forgotten(Result):
    """`sisa forget`."""

    request_id: str | None
    """Id of the erasure request; null for a dry run, or if nothing was to be erased."""

    status: Literal["planned", "accepted", "blocked", "certified", "not_found", "on_hold"]
    """`certified` is done, `accepted` is rolled back and waits for `sisa work`, `blocked` waits
    for another process, `on_hold` waits for its release, `planned` is a dry run, `not_found` means
    that no id is known."""

    records_erased: int
    """Count of records that the request covers."""

    shards_affected: tuple[int, ...]
    """Shards that hold such a record, from 0."""

    accepted_seconds: float | None
    """Seconds from entering the command to the request being durable; null if nothing was
    accepted."""

    rolled_back_seconds: float | None
    """Seconds from entering the command until serving no longer had the influence; null if nothing
    was rolled back."""

    samples_trained: int
    """Samples that retraining visited, or would visit in a dry run; a record counts once per
    epoch."""

    samples_full: int
    """Samples that retraining everything would visit."""

    generation: int | None
    """Number of the generation that is current now; null in a dry run or before the first
    training."""

    digest: str | None
    """Its digest, sha256 in hex; null like the generation."""

    certificate: str | None
    """Path of the certificate; null until there is one."""

    not_found: tuple[str, ...]
    """Ids of the call that are not known, as they were given; stored nowhere."""

    @property
    def exit_code(self) -> int:
        """75 if another process is writing: the request is accepted, and waits."""
        return 75 if self.status == "blocked" else 0


class Submitted(Result):
    """`sisa request submit`."""

    status: Literal["planned", "accepted"]
    """`accepted` if the requests are durable, `planned` in a dry run."""

    requests: tuple[RequestState, ...]
    """The request of each submission, in their order; empty in a dry run."""

    accepted: int
    """Count of requests that this call made and that are to be carried out."""

    duplicates: int
    """Count of requests that this call made and that erase nothing more."""

    known: int
    """Count of submissions that were answered with a request there was."""

    records: int
    """Count of records that the accepted requests stand for."""

    shards_affected: tuple[int, ...]
    """Shards that hold such a record, from 0."""

    accepted_seconds: float | None
    """Seconds from entering the command to the requests being durable; null in a dry run."""

    rolled_back_seconds: float | None
    """Seconds from entering the command until serving no longer had the influence; null in a dry
    run."""

    generation: int | None
    """Number of the current generation; null in a dry run or before the first training."""

    digest: str | None
    """Its digest, sha256 in hex; null like the generation."""

    not_found: tuple[str, ...]
    """Ids of the call that are not known, as they were given; stored nowhere."""


class Worked(Result):
    """`sisa work`: the requests that it finished."""

    requests: tuple[RequestState, ...]
    """Requests that this call finished."""

    waiting: tuple[RequestState, ...]
    """Requests that are still open, such as those on hold."""

    samples_trained: int
    """Samples that this call visited."""
    samples_full: int
    """Samples that training everything would visit; 0 if nothing was finished."""

    generation: int | None
    """Number of the current generation; null before the first training."""

    digest: str | None
    """Its digest, sha256 in hex; null like the generation."""

    rounds: int | None = None
    """Count of rounds; null without `--every`."""

    interrupted: bool = False
    """Whether rounds ended because of a signal: the next call goes on."""

    blocked: str | None = None
    """What keeps requests from being certified, all else of them being done; null if nothing."""

    @property
    def exit_code(self) -> int:
        """130 if it was interrupted, 75 if requests are blocked."""
        return 130 if self.interrupted else 75 if self.blocked else 0
