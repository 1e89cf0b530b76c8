"""The parent's half of the mirror: a messenger that works while this process trains and serves."""

from __future__ import annotations

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_index.ledger import Ledger
from data_index.storage import Store
from sisa import mirror_reach, tracking
from sisa.config import Tracking
from sisa.errors import BlockedError, WorkerError
from sisa.mirror_purge import MirrorPurge
from sisa.tracking import Source

BUDGET = 60.0
"""Seconds that closing waits for what was published; the rest is left to the next messenger."""

PATIENCE = 300.0
"""Seconds that a purge may take; a mirror that is down answers within one or two."""

RETRY = 900.0
"""Seconds after which a purge that was not possible is to be tried again."""

NICE = 10
"""Priority of the messenger: training and acceptance go first."""

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nothing about a workspace goes to third parties
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",  # files of the current folder are no part of a model
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}
"""For MLflow, where the user has not chosen."""

PUBLISH, PURGE, FINISH = "publish", "purge", "finish"
"""What is said to a messenger after its order."""


@dataclass(frozen=True)
class Order:
    """What a messenger is told: settled settings and places, no secret.

    Attributes:
        folder: The workspace.
        store: Its store.
        ledger: URL of its ledger.
        tracking: Where the mirror is.
        quorum: Share of shards that must vote before a model predicts.
        import_paths: Where user modules are found.
    """

    folder: str
    store: str
    ledger: str
    tracking: Tracking
    quorum: float
    import_paths: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As one JSON line holds it."""
        return {**vars(self), "tracking": self.tracking.model_dump(mode="json")}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Order:
        """The inverse of `to_json`."""
        section = Tracking.model_validate(body["tracking"])
        return cls(**{**body, "tracking": section, "import_paths": tuple(body["import_paths"])})

    def open(self) -> Source:
        """Open ledger and store."""
        folder = Path(self.folder)
        return Source(
            folder, Ledger(self.ledger, folder), Store(self.store), self.quorum, self.import_paths
        )


class Outbox:
    """Has the outbox of one workspace emptied; without a mirror it starts nothing.

    Args:
        order: What the messenger is told.
        ledger: Tells what is waiting.
        warn: Shows a sentence to the user.
    """

    def __init__(self, order: Order, ledger: Ledger, warn: Callable[[str], None]) -> None:
        self._order, self._ledger, self._warn = order, ledger, warn
        self._lock = threading.Lock()
        self._messenger: _Child | None = None

    def begin(self) -> None:
        """Start the messenger, so that it gets ready while something is made to be published."""
        if self._order.tracking.uri is None:
            self._ledger.delivered(self._ledger.outbox())
            return
        self._ledger.mirror.mark()  # in the log before anything carries it; a messenger has none
        self._start()

    def _start(self) -> None:
        with self._lock:
            if self._messenger is None:
                atexit.register(self.close)
            if self._messenger is None or self._messenger.dead:
                try:
                    self._messenger = _Child(self._order, self._warn)
                except OSError as error:  # no memory, no process: training goes on without
                    self._warn(f"No messenger to MLflow could be started: {error.strerror}.")

    def catch_up(self) -> None:
        """Start the messenger if something waits, whoever published it."""
        if self._ledger.outbox():
            self.published()

    def published(self) -> None:
        """Have delivered what was just published, without waiting for it."""
        self.begin()
        with self._lock:
            if self._messenger is not None:
                self._messenger.say(PUBLISH)

    def purge(self, seconds: float = PATIENCE) -> MirrorPurge:
        """Have destroyed what mirrors hold of retired generations, and wait for it.

        Args:
            seconds: How long to wait.

        Returns:
            What was destroyed, and what a server keeps; all of it was listed again.

        Raises:
            BlockedError: It cannot be done now.
        """
        if not self._ledger.mirror.superseded():
            mode = mirror_reach.kind(self._order.tracking)
            return MirrorPurge(mode=mode, left=self._ledger.mirror.left())
        self._start()
        with self._lock:
            messenger = self._messenger
        answer = "No messenger could be started." if messenger is None else messenger.ask(seconds)
        if isinstance(answer, MirrorPurge):
            return answer
        raise BlockedError(
            f"What was mirrored of retired generations cannot be purged now: {answer}",
            "Bring the mirror back and run `sisa work`.",
            RETRY,
        )

    def close(self) -> None:
        """Wait until what was published is delivered, or the messenger has given up."""
        with self._lock:
            messenger, self._messenger = self._messenger, None
        if messenger is None:
            return
        atexit.unregister(self.close)
        failure = messenger.finish(BUDGET if self._ledger.outbox() else 0)
        if failure and (left := len(self._ledger.outbox())):
            uri = str(self._order.tracking.uri)
            self._warn(tracking.complaint(uri, WorkerError(failure), left))


class _Child:
    """One messenger process and the thread that hears its warnings."""

    def __init__(self, order: Order, warn: Callable[[str], None]) -> None:
        own = {k: v for k, v in os.environ.items() if not k.startswith("SISA_")}  # no secret
        aside = {os.path.realpath(p) for p in order.import_paths}  # user modules must not shadow
        paths = [p for p in map(os.path.realpath, sys.path) if p not in aside]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sisa.messenger"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**ENVIRONMENT, **own, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # an interrupt is the caller's to answer
        )
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, NICE)
        self._warn = warn
        self._answers: queue.SimpleQueue[MirrorPurge | str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._hear, daemon=True)
        self._thread.start()
        self.say(json.dumps(order.to_json()))

    @property
    def dead(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def say(self, line: str) -> None:
        """Send a line; one that has died is not spoken to."""
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()

    def ask(self, seconds: float) -> MirrorPurge | str:
        """Have retired generations purged. Returns what became of it, or why not."""
        self.say(PURGE)
        try:
            return self._answers.get(timeout=seconds)
        except queue.Empty:
            self._process.kill()  # an answer that comes late would be taken for the next one's
            return f"It takes more than {seconds:g} s."

    def finish(self, seconds: float) -> str | None:
        """Let it come to an end. Returns why it did not do so by itself, if so."""
        try:
            self.say(FINISH)
            code = self._process.wait(seconds)
            return f"its messenger ended with code {code}" if code else None
        except subprocess.TimeoutExpired:
            return f"it takes more than {seconds:g} s"
        finally:
            self._process.kill()
            self._process.wait()
            self._thread.join()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()

    def _hear(self) -> None:
        if self._process.stdout is not None:
            for line in self._process.stdout:
                self._take(json.loads(line))
        self._answers.put("Its messenger has ended.")

    def _take(self, body: dict[str, Any]) -> None:
        if "warning" in body:
            self._warn(body["warning"])
        elif "purged" in body:
            self._answers.put(MirrorPurge.from_json(body["purged"]))
        else:
            self._answers.put(body["unpurged"])
