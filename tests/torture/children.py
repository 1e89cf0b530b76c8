"""Forked children that run the real command line, and what became of them."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import pkgutil
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

LIMIT = 60.0
"""Seconds after which a child is said to hang."""

ENVIRONMENT = {
    "SISA_SECRET_KEY": "5a" * 32,
    "SISA__RUNTIME__TRACKING__URI": "null",
    "SISA__RUNTIME__EXECUTOR__KIND": "process",
    "SISA__RUNTIME__ERASURE__RESIDUE": "none",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "ARROW_IO_THREADS": "1",
}

Report = dict[str, Any]
Tell = Callable[[Report], None]

AVOIDED = (
    "sisa.tracking",
    "sisa.pyfunc",
    "sisa.mlflow_model",
    "sisa.learners.torch",
    "sisa.worker",
)


def warm() -> None:
    """Import everything that a command needs, so that no child has to; starts no thread."""
    os.environ.update(ENVIRONMENT)
    import pandas  # noqa: F401 - which pyarrow imports when it is first given a list
    import sqlalchemy.dialects.sqlite  # noqa: F401

    heavy = ("sisa.learners.mlp", "sisa.learners.cnn", "sisa.messenger")
    for package in ("data_index", "sisa", "sisa.learners"):
        for found in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            if not found.name.startswith((*AVOIDED, *heavy)):
                importlib.import_module(found.name)


@dataclass
class Outcome:
    """What became of a child.

    Attributes:
        reports: What it told before it ended, in order.
        signal: The signal that ended it, 0 if none did.
        hung: Whether it was ended because it took too long.
        seconds: How long it lived.
    """

    reports: list[Report]
    signal: int
    hung: bool
    seconds: float

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it, other than for its length."""
        return self.signal == signal.SIGKILL and not self.hung

    def of(self, kind: str) -> list[Any]:
        """All reports of a kind."""
        return [r[kind] for r in self.reports if kind in r]

    @property
    def faults(self) -> list[str]:
        """Tracebacks and hanging."""
        return [*self.of("traceback"), *(["it hangs"] if self.hung else [])]


def forked(
    act: Callable[[Tell], None], kill_after: float | None = None, limit: float = LIMIT
) -> Outcome:
    """Run something in a forked child; its reports outlive it whatever ends it.

    Args:
        act: Given a function that reports.
        kill_after: SIGKILL its group from outside after so many seconds.
        limit: Seconds after which it is said to hang.
    """
    meant = kill_after is not None
    return _Child(act).join(kill_after if kill_after is not None else limit, meant)


def forked_all(
    acts: Sequence[Callable[[Tell], None]], before_last: Callable[[], None], limit: float = 3600
) -> list[Outcome]:
    """Run many at once; the last one is told to come to an end when the others have."""
    children = [_Child(act) for act in acts]
    outcomes = [child.join(limit) for child in children[:-1]]
    before_last()
    return [*outcomes, children[-1].join(limit)]


class _Child:
    """One forked child."""

    def __init__(self, act: Callable[[Tell], None]) -> None:
        self._channel = os.memfd_create("reports")
        sys.stdout.flush()
        sys.stderr.flush()
        self._started = time.monotonic()
        self._id = os.fork()
        if self._id == 0:
            os.setsid()
            code = 1
            try:
                act(lambda report: _tell(self._channel, report))
                code = 0
            except BaseException:
                _tell(self._channel, {"traceback": traceback.format_exc()})
            finally:
                os._exit(code)

    def join(self, seconds: float, meant: bool = False) -> Outcome:
        """Wait for its end, or kill it after so many seconds; whether that is meant or a hang."""
        handle = os.pidfd_open(self._id)
        hung = False
        if not select.select([handle], [], [], seconds)[0]:
            hung = not meant
            os.kill(self._id, signal.SIGKILL)
        _, status = os.waitpid(self._id, 0)
        os.close(handle)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._id, signal.SIGKILL)  # the group that it led: workers that it left
        with open(self._channel, "rb") as file:
            file.seek(0)
            lines = file.read().split(b"\n")
        reports = [json.loads(line) for line in lines[:-1]]
        ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        return Outcome(reports, ended, hung, time.monotonic() - self._started)


def _tell(channel: int, report: Report) -> None:
    os.write(channel, json.dumps(report, default=str).encode() + b"\n")


@dataclass
class Inline:
    """Trains in the process that calls, as one would that has to be killed as a whole."""

    done: list[int] = field(default_factory=list)

    def run(self, jobs: Sequence[Any], tick: Callable[[], None]) -> Iterator[int]:
        """See `Executor.run`."""
        from sisa.executor import attempt, raise_error

        for job in jobs:
            error = attempt(job)
            if error:
                raise_error(error)
            tick()
            yield job.shard

    def survey(self, store: Any) -> Sequence[Any]:
        """See `Executor.survey`."""
        return ()

    def close(self) -> None:
        """Nothing is kept."""


def prepare(tell: Tell) -> None:
    """Train in this process, and report each acceptance as soon as it could be acknowledged."""
    import sisa.forget
    import sisa.opening
    import sisa.request

    made: Any = lambda *_: Inline()  # noqa: E731
    sisa.opening._executor = made
    whole = sisa.forget.accept

    def accept(*args: Any, **more: Any) -> Any:
        done = whole(*args, **more)
        for request in filter(None, done.requests):
            tell({"accepted": request.id})
            if request.external_id is not None:
                tell({"named": [request.external_id, request.id]})
        return done

    sisa.forget.accept = sisa.request.accept = accept
    acknowledge: Any = lambda request: tell({"accepted": request})  # noqa: E731
    sisa.forget.acknowledge = acknowledge  # type: ignore[attr-defined]


def command(tell: Tell, folder: Any, *words: str, may: bool = False) -> Report:
    """One call of the command line in this process, reported when it has answered.

    Args:
        tell: Reports.
        folder: The workspace.
        words: The command.
        may: Whether it may be refused.
    """
    from sisa.cli import main

    out, err = io.StringIO(), io.StringIO()
    arguments = ["-C", str(folder), *words, "--output", "json"]
    sys.argv = ["sisa", *arguments]
    code: Any = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code
    answer = json.loads(out.getvalue()) if out.getvalue().strip() else None
    report = {"words": words, "code": code, "answer": answer, "err": err.getvalue(), "may": may}
    tell({"command": report})
    return report
