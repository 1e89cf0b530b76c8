"""`sisa work --every`: carry out what is open when its window closes, round by round.

Every round opens the workspace anew, so that settings, keys and what others did are as they are.
Nothing of the work is kept between two rounds: one that is cut off anywhere is finished by the next
one, or by `sisa work`.
"""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential

from data_index.requests import iso
from sisa import config
from sisa.context import Reporter
from sisa.errors import ConfigurationError, ExactnessError, NotFoundError, SisaError, UsageError
from sisa.results import Fault, Round, WindowState, Worked
from sisa.stage_log import StageRecord
from sisa.states import request_state

if TYPE_CHECKING:
    from sisa.workspace import Workspace

FIRST, LONGEST = 1.0, 300.0
"""Seconds until a round that failed is tried again: the first time, and at most."""


class Clock(Protocol):
    """Tells the time and lets it pass."""

    def now(self) -> datetime:
        """The time, UTC."""
        ...

    def wait(self, seconds: float) -> None:
        """Let so much time pass, or less if the rounds are to end."""
        ...


class Interrupted(BaseException):
    """The rounds are to end: raised between two stages of a build."""


@dataclass(frozen=True)
class Stop:
    """Whether the rounds are to end; a clock that wakes up when they are."""

    told: threading.Event = field(default_factory=threading.Event)

    def now(self) -> datetime:
        """See `Clock.now`."""
        return datetime.now(UTC)

    def wait(self, seconds: float) -> None:
        """See `Clock.wait`."""
        self.told.wait(seconds)

    def between_stages(self, report: Reporter) -> Reporter:
        """A reporter that ends a build after a stage has become durable."""

        def stage(record: StageRecord, stages: int) -> None:
            report.stage(record, stages)
            if self.told.is_set():
                raise Interrupted

        return replace(report, stage=stage)


@contextmanager
def signals(stop: Stop) -> Iterator[None]:
    """The first SIGTERM or SIGINT asks for the end; a second one acts as it always did."""

    def told(number: int, _: object) -> None:
        stop.told.set()
        signal.signal(number, before[number])

    kinds = (signal.SIGTERM, signal.SIGINT)
    before = {int(kind): signal.signal(kind, told) for kind in kinds}
    try:
        yield
    finally:
        for kind in kinds:
            signal.signal(kind, before[kind])


@dataclass(frozen=True, slots=True)
class Schedule:
    """When rounds are made.

    Attributes:
        every: Longest time from one round to the next; one is made earlier if a window closes.
        duration: Time after which no further round begins, None for no end.
        times: Number of rounds, None for no end.
    """

    every: timedelta
    duration: timedelta | None = None
    times: int | None = None

    @classmethod
    def parse(cls, every: str, duration: str | None = None, times: int | None = None) -> Schedule:
        """Read times such as `10m`.

        Raises:
            UsageError: One is not written like that, or rounds follow each other at once.
        """
        found = config.period(every)
        if not found:
            raise UsageError("Rounds need time between them.", "Write --every 10m, for instance.")
        return cls(found, config.period(duration) if duration else None, times)

    def over(self, rounds: int, started: datetime, now: datetime) -> bool:
        """Whether no further round begins."""
        late = self.duration is not None and now - started >= self.duration
        return late or (self.times is not None and rounds >= self.times)


def run(
    opened: Callable[[], Workspace],
    schedule: Schedule,
    stop: Stop,
    tell: Callable[[Round], None],
    warn: Callable[[str], None],
    clock: Clock | None = None,
) -> Worked:
    """Make rounds until the schedule is over or the end is asked for.

    Args:
        opened: Opens the workspace.
        schedule: When.
        stop: Asks for the end.
        tell: Called with each round.
        warn: Called with one sentence when a round fails in a way that may pass.
        clock: The time; that of `stop` by default.

    Returns:
        What all rounds have done together.

    Raises:
        ExactnessError: Stored bytes are not what they must be.
        SisaError: The first round failed because of the call or the configuration.
        OSError: The store's disk failed.
    """
    clock = clock or stop
    rounds, started = _Rounds(opened, schedule, stop, warn, clock), clock.now()
    done: list[Round] = []
    while not stop.told.is_set() and not schedule.over(len(done), started, clock.now()):
        until = clock.now() + schedule.every
        try:
            made = rounds.make(len(done) + 1, until)
        except Interrupted:
            break
        done.append(made)
        tell(made)
        if not schedule.over(len(done), started, clock.now()):
            end = until if schedule.duration is None else min(until, started + schedule.duration)
            pause = (min(end, rounds.wake(made, until)) - clock.now()).total_seconds()
            if pause > 0:
                clock.wait(pause)
    return _together(done, stop.told.is_set())


@dataclass
class _Rounds:
    opened: Callable[[], Workspace]
    schedule: Schedule
    stop: Stop
    warn: Callable[[str], None]
    clock: Clock
    clean: bool = False
    said: str = ""
    tried: frozenset[str] = frozenset()

    def make(self, number: int, until: datetime) -> Round:
        """One round; what may pass is tried again until the next one is due."""
        backoff = wait_exponential(FIRST, max=LONGEST)

        def wait(state: RetryCallState) -> float:
            return min(backoff(state), max(0.0, (until - self.clock.now()).total_seconds()))

        again = Retrying(
            retry=retry_if_exception(lambda error: _passes(error, number == 1)),
            wait=wait,
            stop=lambda _: self.stop.told.is_set() or self.clock.now() >= until,
            sleep=self.clock.wait,
            before_sleep=self._before_sleep,
            reraise=True,
        )
        try:
            return again(self._attempt, number)
        except (SisaError, OSError) as error:
            if not _passes(error, number == 1):
                raise
            if self.stop.told.is_set():
                raise Interrupted from None
            self._failed(error)
            return Round(
                round=number, time=iso(self.clock.now()), state="failed", error=_fault(error)
            )

    def wake(self, made: Round, until: datetime) -> datetime:
        """When the next round is made: when the window closes, unless that was just tried."""
        if made.window is None or set(made.window.requests) <= self.tried:
            return until
        return _closes(made.window)

    def _attempt(self, number: int) -> Round:
        with self.opened() as workspace:
            workspace.catch_up()
            window, worked = workspace.window(), None
            closed = window is not None and _closes(window) <= self.clock.now()
            self.tried = frozenset(window.requests) if window and closed else frozenset()
            if closed or (window is None and not self.clean):
                worked = workspace.work(once=True)
                window = workspace.window()
            ledger = workspace.context.ledger
            entry, now = ledger.generation(), ledger.clock()
            waiting = tuple(request_state(r, now) for r in ledger.pending().requests)
        self.clean, self.said = True, ""
        finished = worked.requests if worked else ()
        return Round(
            round=number,
            time=iso(self.clock.now()),
            state="worked" if finished else ("waiting" if window else "idle"),
            requests=finished,
            waiting=waiting,
            samples_trained=worked.samples_trained if worked else 0,
            samples_full=worked.samples_full if worked else 0,
            generation=entry and entry.number,
            digest=entry and entry.digest,
            window=window,
        )

    def _before_sleep(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if error is not None:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        """Say what went wrong, once as long as it is the same."""
        self.clean = False  # whatever was cut off is looked for
        text = _sentence(error)
        if text != self.said:
            self.said = text
            self.warn(f"{text} It is tried again.")


def _passes(error: BaseException, first: bool) -> bool:
    """Whether an error may be gone when the round is made again."""
    if isinstance(error, OSError):
        return error.errno != errno.EIO  # pages that were not written are not written later either
    if first and isinstance(error, (ConfigurationError, NotFoundError)):
        return False
    return isinstance(error, SisaError) and not isinstance(error, (ExactnessError, UsageError))


def _sentence(error: BaseException) -> str:
    if isinstance(error, SisaError):
        return error.message
    named = error.strerror if isinstance(error, OSError) else None
    return f"{named or type(error).__name__}."


def _fault(error: SisaError | OSError) -> Fault:
    if isinstance(error, SisaError):
        return Fault(code=error.code, message=error.message, remedy=error.remedy)
    return Fault(code=SisaError.code, message=_sentence(error), remedy="")


def _closes(window: WindowState) -> datetime:
    return datetime.fromisoformat(window.closes)


def _together(done: list[Round], interrupted: bool) -> Worked:
    last = next((r for r in reversed(done) if r.state != "failed"), None)
    full = [r.samples_full for r in done if r.samples_full]
    return Worked(
        requests=tuple(request for r in done for request in r.requests),
        waiting=last.waiting if last else (),
        samples_trained=sum(r.samples_trained for r in done),
        samples_full=full[-1] if full else 0,
        generation=last and last.generation,
        digest=last and last.digest,
        rounds=len(done),
        interrupted=interrupted,
    )
