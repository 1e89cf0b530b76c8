"""The executor protocol, and the executor that trains in child processes.

One job per shard; paths go in, and what comes back is whether it worked: the digests stand in the
stage log. A job whose worker dies is done again, which is safe because its outputs are named by
their content and its finished stages are taken over.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from sisa import errors
from sisa.determinism import cpus
from sisa.errors import SisaError, WorkerError
from sisa.shard import ShardJob, train_shard

RETRIES = 3
"""How often a job is started again after its worker died."""

TICK = 0.5
"""Seconds between two calls of `tick`."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Executor(Protocol):
    """Where shards are trained."""

    def run(self, jobs: Sequence[ShardJob], tick: Callable[[], None]) -> Iterator[int]:
        """Do jobs, each at least once.

        Args:
            jobs: One a shard.
            tick: Called about twice a second while jobs run.

        Yields:
            The shard of each job that is done, as it is done.

        Raises:
            SisaError: What a job raised, or WorkerError if its worker died too often.
        """
        ...


def attempt(job: ShardJob) -> dict[str, str] | None:
    """Do a job in this process, and say what went wrong in a form that can cross processes.

    Returns:
        None, or code, message and remedy of the error.
    """
    try:
        train_shard(job)
    except SisaError as error:
        return {"code": error.code, "message": error.message, "remedy": error.remedy}
    except OSError as error:
        message = f"Shard {job.shard} failed: {error.strerror or type(error).__name__}."
        return {"code": WorkerError.code, "message": message, "remedy": "Check the store's disk."}
    except Exception as error:  # user code may raise anything
        message = f"Shard {job.shard} failed: {type(error).__name__} in {_place(error)}."
        return {"code": WorkerError.code, "message": message, "remedy": "See the learner's code."}
    return None


def _place(error: Exception) -> str:
    """File and line that raised it; its text is left out, for it may quote a row."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"line {last.lineno} of {Path(last.filename).name}"


def raise_error(error: Mapping[str, str]) -> None:
    """Raise again what `attempt` caught.

    Raises:
        SisaError: Of the same code.
    """
    kinds = {getattr(errors, name).code: getattr(errors, name) for name in errors.__all__}
    raise kinds.get(error["code"], WorkerError)(error["message"], error["remedy"])


def died(job: ShardJob) -> WorkerError:
    """The error for a job whose workers died more often than it may be retried."""
    return WorkerError(
        f"The worker of shard {job.shard} died {RETRIES + 1} times.",
        "Check memory and the machine; finished stages are kept, so try again.",
    )


@dataclass(frozen=True)
class ProcessExecutor:
    """Trains in child processes, so that the caller's torch settings stay as they are.

    Attributes:
        workers: How many at a time; None: one a processor.
    """

    workers: int | None = None

    def run(self, jobs: Sequence[ShardJob], tick: Callable[[], None]) -> Iterator[int]:
        """See `Executor.run`."""
        waiting: queue.SimpleQueue[ShardJob] = queue.SimpleQueue()
        for job in jobs:
            waiting.put(job)
        done: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()
        count = min(len(jobs), self.workers or cpus())
        crew = [_Worker(waiting, done) for _ in range(count)]
        try:
            for worker in crew:
                worker.thread.start()
            left = len(jobs)
            while left:
                try:
                    result = done.get(timeout=TICK)
                except queue.Empty:
                    tick()
                    continue
                if isinstance(result, BaseException):
                    raise result
                left -= 1
                yield result
        finally:
            for worker in crew:
                worker.stop()


class _Worker:
    """A thread that feeds one child process, and starts another when it dies."""

    def __init__(
        self,
        waiting: queue.SimpleQueue[ShardJob],
        done: queue.SimpleQueue[int | BaseException],
    ) -> None:
        self._waiting, self._done = waiting, done
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False
        self.thread = threading.Thread(target=self._feed, daemon=True)

    def stop(self) -> None:
        """End the child process, whatever it does."""
        self._stopped = True
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self.thread.is_alive():
            self.thread.join()

    def _feed(self) -> None:
        try:
            while not self._stopped:
                try:
                    job = self._waiting.get_nowait()
                except queue.Empty:
                    return
                self._do(job)
                self._done.put(job.shard)
        except BaseException as error:  # handed to the caller's thread
            self._done.put(error)

    def _do(self, job: ShardJob) -> None:
        for _ in range(RETRIES + 1):
            answer = self._ask(job)
            if answer is not None:
                if answer["error"]:
                    raise_error(answer["error"])
                return
            if self._stopped:
                return
        raise died(job)

    def _ask(self, job: ShardJob) -> dict[str, Any] | None:
        """The child's answer, or None if it died."""
        if self._process is None or self._process.poll() is not None:
            self._process = _start(job)
        to, back = _pipes(self._process)
        try:
            to.write(json.dumps(job.to_json()) + "\n")
            to.flush()
            line = back.readline()
        except (BrokenPipeError, ValueError):
            line = ""
        if not line:
            self._process.kill()
            self._process.wait()
            return None
        answer: dict[str, Any] = json.loads(line)
        return answer


def _start(job: ShardJob) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SISA_")}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    environment |= dict.fromkeys(THREAD_VARIABLES, str(job.recipe.training.threads))
    environment["PYTHONHASHSEED"] = "0"  # user code may walk a set of strings
    return subprocess.Popen(
        [sys.executable, "-m", "sisa.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,  # an interrupt is the caller's to answer
    )


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    if process.stdin is None or process.stdout is None:
        raise ValueError("a worker has no pipes")
    return process.stdin, process.stdout
