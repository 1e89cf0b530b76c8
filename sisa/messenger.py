"""A child process that empties the outbox: it imports MLflow so that its parent need not.

Standard input: the order as one JSON line, then `publish` whenever something was published, `purge`
when retired generations must leave the mirror, and `finish` when nothing more will be; its end
means that the parent is gone. Standard output: JSON lines with warnings, and one for each `purge`:
what was purged, or why that cannot be done now.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, Any

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    retry_if_result,
    sleep_using_event,
    stop_any,
    stop_when_event_set,
    wait_exponential,
    wait_fixed,
)

from sisa import mirror_purge, tracking
from sisa.config import Tracking
from sisa.errors import BusyError, SisaError
from sisa.outbox import FINISH, PURGE, Order
from sisa.tracking import Source

FIRST, LONGEST = 1.0, 60.0
"""Seconds until a mirror that is down is tried again: the first time, and at most."""


@dataclass(frozen=True)
class _Signals:
    """What the parent wants: to be up and doing, to purge, and to come to an end."""

    wake: threading.Event = field(default_factory=threading.Event)
    purge: threading.Event = field(default_factory=threading.Event)
    finish: threading.Event = field(default_factory=threading.Event)

    def listen(self) -> None:
        """Follow standard input to its end."""
        for line in sys.stdin:
            word = line.strip()
            if word == FINISH:
                self.finish.set()
            if word == PURGE:
                self.purge.set()
            self.wake.set()
        os._exit(0)


def main() -> None:
    """Deliver until the parent finishes or is gone."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what MLflow prints must not reach the answers
    order = Order.from_json(json.loads(sys.stdin.readline()))
    signals = _Signals()
    threading.Thread(target=signals.listen, daemon=True).start()
    loading = ThreadPoolExecutor(1).submit(tracking.load)
    messenger = _Messenger(order.tracking, order.open(), answers, loading.result)
    while True:
        finishing, purging = signals.finish.is_set(), signals.purge.is_set()
        messenger.empty(signals)
        if purging:
            signals.purge.clear()
            messenger.purge()
        if finishing:
            messenger.tell()
            break
        if not (signals.finish.is_set() or signals.purge.is_set()):
            signals.wake.wait()
    answers.flush()
    os._exit(0)  # an import that nobody waits for is not waited for


class _Messenger:
    """Empties the outbox, as often as it takes."""

    def __init__(self, section: Tracking, source: Source, answers: IO[str], loaded: Any) -> None:
        self._section, self._source = section, source
        self._answers, self._loaded = answers, loaded
        self._complaint: str | None = None
        self._told = False

    def empty(self, signals: _Signals) -> None:
        """Try until nothing waits, or until the parent wants something else."""
        again = Retrying(
            retry=retry_if_result(bool),
            wait=wait_exponential(FIRST, max=LONGEST),
            stop=stop_any(stop_when_event_set(signals.finish), stop_when_event_set(signals.purge)),
            sleep=sleep_using_event(signals.wake),
            before=lambda _: signals.wake.clear(),
            before_sleep=self._failed,
            retry_error_callback=_give_up,
        )
        again(self._attempt)

    def tell(self) -> None:
        """Report the last failure, unless it goes on from one that was reported."""
        if self._complaint and not self._told:
            self._answer({"warning": self._complaint})
            self._told = True

    def purge(self) -> None:
        """Purge what is retired, once the champion is current, and answer."""
        patient = Retrying(retry=retry_if_exception_type(BusyError), wait=wait_fixed(0.2))
        try:
            if self._source.ledger.outbox():
                self._answer({"unpurged": self._complaint or "A generation waits in the outbox."})
                self._told = True
            else:
                self._answer({"purged": patient(self._purge).to_json()})
        except SisaError as error:
            self._answer({"unpurged": f"{error.message.rstrip('.')}."})

    def _purge(self) -> mirror_purge.MirrorPurge:
        with self._source.ledger.messenger():
            return mirror_purge.purge(self._section, self._source, self._loaded)

    def _answer(self, body: dict[str, Any]) -> None:
        self._answers.write(json.dumps(body) + "\n")
        self._answers.flush()

    def _failed(self, state: RetryCallState) -> None:
        """A first failure is passed over: a purge may have swept what was being read."""
        if state.attempt_number > 1:
            self.tell()

    def _attempt(self) -> bool:
        """Whether something is still waiting after a try."""
        waiting = bool(self._source.ledger.outbox())
        if waiting:
            patient = Retrying(retry=retry_if_exception_type(BusyError), wait=wait_fixed(0.2))
            patient(self._deliver)
            waiting = bool(self._source.ledger.outbox())
        if not waiting:
            self._complaint, self._told = None, False
        return waiting

    def _deliver(self) -> None:
        with self._source.ledger.messenger():
            tracking.drain(self._section, self._source, self._complain, self._loaded)

    def _complain(self, text: str) -> None:
        self._complaint = text


def _give_up(_: RetryCallState) -> None:
    """What is not delivered waits for the next messenger."""


if __name__ == "__main__":
    try:
        main()
    except SisaError as error:  # the ledger is gone, or others hold it for too long
        sys.exit(str(error))
