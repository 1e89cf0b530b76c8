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
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from data_index.storage import Store
from sisa import errors
from sisa.determinism import cpus
from sisa.errors import SisaError, WorkerError
from sisa.shard import ShardJob, train_shard

RETRIES = 3
"""How often a job is started again after its worker died."""

TICK = 0.5
"""Seconds between two calls of `tick`."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Node:
    """A machine that shards may be trained on.

    Attributes:
        sees: Whether it sees the store.
        environment: What bits may depend on there, as far as it is known without training.
    """

    sees: bool
    environment: dict[str, Any]


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

    def survey(self, store: Store) -> Sequence[Node]:
        """Look at the machines that shards may be trained on, other than this one alone.

        Args:
            store: Must be seen by all.
        """
        ...

    def close(self) -> None:
        """Give back what is kept between two runs."""
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


@dataclass
class ProcessExecutor:
    """Trains in child processes, so that the caller's torch settings stay as they are.

    Importing torch takes a second or two, so the children are kept for the next run.

    Attributes:
        workers: How many at a time; None: one a processor.
    """

    workers: int | None = None
    _crew: list[_Worker] = field(default_factory=list, init=False)

    def run(self, jobs: Sequence[ShardJob], tick: Callable[[], None]) -> Iterator[int]:
        """See `Executor.run`."""
        count = min(len(jobs), self.workers or cpus())
        self._crew += [_Worker() for _ in range(count - len(self._crew))]
        waiting: queue.SimpleQueue[ShardJob] = queue.SimpleQueue()
        for job in jobs:
            waiting.put(job)
        done: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()
        for worker in self._crew[:count]:
            worker.start(waiting, done)
        try:
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
        except BaseException:  # whatever is under way is of no use
            self.close()
            raise

    def close(self) -> None:
        """End all children."""
        for worker in self._crew:
            worker.stop()
        self._crew.clear()

    def survey(self, store: Store) -> Sequence[Node]:
        """See `Executor.survey`: there is none but this machine."""
        return ()


class _Worker:
    """A thread a run that feeds one child process, and starts another when it dies."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._training = ""
        self._stopped = False
        self._thread: threading.Thread | None = None

    def start(
        self,
        waiting: queue.SimpleQueue[ShardJob],
        done: queue.SimpleQueue[int | BaseException],
    ) -> None:
        """Do jobs until none waits."""
        self._thread = threading.Thread(target=self._feed, args=(waiting, done), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the child process, whatever it does."""
        self._stopped = True
        while self._thread is not None and self._thread.is_alive():
            if self._process is not None:  # perhaps another one by now
                self._process.kill()
            self._thread.join(TICK)
        self._end()

    def _feed(
        self,
        waiting: queue.SimpleQueue[ShardJob],
        done: queue.SimpleQueue[int | BaseException],
    ) -> None:
        try:
            while not self._stopped:
                try:
                    job = waiting.get_nowait()
                except queue.Empty:
                    return
                self._do(job)
                done.put(job.shard)
        except BaseException as error:  # handed to the caller's thread
            done.put(error)

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
        process = self._child(job)
        to, back = _pipes(process)
        try:
            to.write(json.dumps(job.to_json()) + "\n")
            to.flush()
            line = back.readline()
        except (BrokenPipeError, ValueError):
            line = ""
        if not line:
            self._end()
            return None
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _child(self, job: ShardJob) -> subprocess.Popen[str]:
        """A child that has imported nothing but the code that the job's stage keys stand for."""
        if self._process is not None and self._training != job.training:
            self._end()
        if self._process is None or self._process.poll() is not None:
            self._process, self._training = _start(job), job.training
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in _pipes(self._process):
                with suppress(BrokenPipeError):  # what is buffered for a dead child
                    pipe.close()
            self._process = None


def environment(threads: int) -> dict[str, str]:
    """What a child process that trains gets: our import path, its threads, no secret."""
    found = {k: v for k, v in os.environ.items() if not k.startswith("SISA_")}
    found["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    found |= dict.fromkeys(THREAD_VARIABLES, str(threads))
    found["PYTHONHASHSEED"] = "0"  # user code may walk a set of strings
    return found


def _start(job: ShardJob) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sisa.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(job.recipe.training.threads),
        start_new_session=True,  # an interrupt is the caller's to answer
    )


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    if process.stdin is None or process.stdout is None:
        raise ValueError("a worker has no pipes")
    return process.stdin, process.stdout
