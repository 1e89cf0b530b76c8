"""The executor that trains on Ray, one task a shard: paths go in, comes back whether it worked.

No row passes through Ray's object store or its logs: a task reads its partitions from the store and
writes its checkpoints there.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import secrets
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.connect import Connection, connect
from data_index.storage import TEMPORARY, FileRef, Store
from sisa.config import ExecutorSection
from sisa.determinism import fingerprint, pin_threads
from sisa.errors import ConfigurationError, SisaError, WorkerError
from sisa.executor import RETRIES, TICK, Node, attempt, died, raise_error
from sisa.shard import ShardJob

LINGER = 10.0
"""Seconds to wait for cancelled tasks to be gone, so that nothing writes after we have left."""

PROBE = 60.0
"""Seconds that a node has to say whether it sees the store."""

LOST = "lost"
"""Code of what a task answers whose node does not see the store."""


@dataclass(frozen=True)
class RayExecutor:
    """Trains on Ray: on the one at the address, or on one started for the time of a run.

    Attributes:
        section: Address, number of tasks at a time, and what each takes.
        folder: The workspace.
    """

    section: ExecutorSection
    folder: Path

    def run(self, jobs: Sequence[ShardJob], tick: Callable[[], None]) -> Iterator[int]:
        """See `sisa.executor.Executor.run`.

        Raises:
            BusyError: No Ray answers at the address.
            ConfigurationError: No node is large enough, or nodes do not see the store.
        """
        if not jobs:
            return
        with connect(self.section, self.folder) as connection:
            nodes = _fitting(self.section)
            with contextlib.ExitStack() as stack:
                roots = () if connection.own else sorted({r for j in jobs for r in _roots(j)})
                marks = [stack.enter_context(_mark(Store(root))) for root in roots]
                _require_sight(nodes, marks)
                flights = _Flights(self.section, marks, _workers(connection))
                yield from _run(flights, jobs, tick)

    def survey(self, store: Store) -> tuple[Node, ...]:
        """See `sisa.executor.Executor.survey`; none if Ray would be started on this machine.

        Raises:
            BusyError: No Ray answers at the address.
            ConfigurationError: No node is large enough.
        """
        with connect(self.section, self.folder) as connection:
            nodes = _fitting(self.section)
            if connection.own:
                return ()
            with _mark(store) as mark:
                found = _looks(nodes, [mark])
        return tuple(Node(look["sees"], look["environment"]) for look in found if look)

    def close(self) -> None:
        """Nothing is kept: a Ray of our own is ended with each run."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A random file in a store, by which a node shows that it sees the same store.

    Attributes:
        store: Folder of the store.
        file: The file.
    """

    store: str
    file: FileRef

    def to_json(self) -> dict[str, Any]:
        """As it is handed to a task."""
        return {"store": self.store, "file": asdict(self.file)}


@dataclass
class _Flights:
    """The tasks under way."""

    section: ExecutorSection
    marks: Sequence[Mark]
    workers: dict[str, Any]
    tasks: dict[Any, tuple[ShardJob, int]] = field(default_factory=dict)

    def start(self, job: ShardJob, number: int) -> None:
        """Submit one attempt at a job, the first having number 0."""
        # Ray's own retries would have no end when memory runs out; see `task_oom_retries`.
        task = _remote(work).options(
            num_cpus=self.section.cpus_per_shard,
            num_gpus=self.section.gpus_per_shard,
            max_retries=0,
            **self.workers,
        )
        body = {"job": job.to_json(), "marks": [m.to_json() for m in self.marks]}
        self.tasks[task.remote(_hidden(), json.dumps(body))] = job, number

    def cancel(self) -> None:
        """Kill the workers of all tasks and see them gone."""
        for ref in self.tasks:
            ray.cancel(ref, force=True)
        if self.tasks:
            ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=LINGER)


def work(body: str) -> dict[str, str] | None:
    """Do a job in a worker of Ray.

    What user code prints goes nowhere: Ray keeps it in log files that outlive an erasure.

    Args:
        body: JSON of a job and of the marks to be seen first.

    Returns:
        None, or code, message and remedy of the error.
    """
    found = json.loads(body)
    if not sees(json.dumps(found["marks"])):
        return {"code": LOST, "message": "", "remedy": ""}
    with _silence():
        return attempt(ShardJob.from_json(found["job"]))


def look(body: str) -> dict[str, Any]:
    """What this node is like: whether it sees the same stores as the caller, and its environment.

    Args:
        body: JSON of marks.
    """
    pin_threads(1)
    found = fingerprint(uses_torch=False) | {"torch": importlib.metadata.version("torch")}
    return {"sees": sees(body), "environment": found}


def sees(body: str) -> bool:
    """Whether this node sees the same stores as the caller.

    Args:
        body: JSON of marks.
    """
    marks = (Mark(m["store"], FileRef.from_json(m["file"])) for m in json.loads(body))
    for mark in marks:
        try:
            Store(mark.store).read(mark.file)
        except (SisaError, OSError):
            return False
    return True


def _run(flights: _Flights, jobs: Sequence[ShardJob], tick: Callable[[], None]) -> Iterator[int]:
    """Keep as many tasks under way as there may be until all are done."""
    waiting = deque(jobs)
    most = flights.section.workers or len(jobs)
    try:
        while waiting or flights.tasks:
            while waiting and len(flights.tasks) < most:
                flights.start(waiting.popleft(), 0)
            ready, _ = ray.wait(list(flights.tasks), timeout=TICK)
            if not ready:
                tick()
            for ref in ready:
                job, number = flights.tasks.pop(ref)
                if _done(ref):
                    yield job.shard
                elif number < RETRIES:
                    flights.start(job, number + 1)
                else:
                    raise died(job)
    finally:
        flights.cancel()


def _done(ref: Any) -> bool:
    """Whether a task was done; False if its worker or node died.

    Raises:
        SisaError: What the job raised.
    """
    try:
        error = ray.get(ref)
    except exceptions.RayTaskError as failure:  # `work` raises nothing, so it was not reached
        raise _not_ours(failure) from failure
    except exceptions.RayError:
        return False
    if error:
        if error["code"] == LOST:
            raise _unseen(1)
        raise_error(error)
    return True


def _workers(connection: Connection) -> dict[str, Any]:
    """Options by which a run gets workers that no other run has used.

    A used worker holds the user's modules as they were, which need not be those that the stage keys
    name. Ray hands workers on only among tasks of the same runtime environment.
    """
    if connection.own:
        return {}
    return {"runtime_env": {"env_vars": {"SISA_RUN": secrets.token_hex(8), "PYTHONHASHSEED": "0"}}}


def _fitting(section: ExecutorSection) -> list[str]:
    """Ids of the nodes that can hold a task.

    Raises:
        ConfigurationError: There is none; Ray would wait for one for ever.
    """
    cpus, gpus = section.cpus_per_shard, section.gpus_per_shard
    found = [
        str(node["NodeID"])
        for node in ray.nodes()
        if node["Alive"]
        and node["Resources"].get("CPU", 0) >= cpus
        and node["Resources"].get("GPU", 0) >= gpus
    ]
    if not found:
        wanted = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        raise ConfigurationError(
            f"No node of Ray has the {wanted} that a shard takes.",
            "Lower cpus_per_shard or gpus_per_shard in runtime.executor, or add a node.",
        )
    return found


def _roots(job: ShardJob) -> tuple[str, str]:
    return job.store, job.output


@contextlib.contextmanager
def _mark(store: Store) -> Iterator[Mark]:
    """Put a mark into a store for the time of a run: nodes may join later."""
    file = store.put(TEMPORARY, ".mark", secrets.token_bytes(32))
    try:
        yield Mark(str(store.root), file)
    finally:
        store.delete([file.path])


def _require_sight(nodes: Sequence[str], marks: Sequence[Mark]) -> None:
    """See whether every node sees the stores, before anything is trained.

    Raises:
        ConfigurationError: Some do not.
    """
    if not marks:
        return
    # A node that is gone or out of order says nothing; a shard that runs there looks again.
    unseen = sum(not found["sees"] for found in _looks(nodes, marks) if found)
    if unseen:
        raise _unseen(unseen, len(nodes))


def _looks(nodes: Sequence[str], marks: Sequence[Mark]) -> list[dict[str, Any] | None]:
    """What each node is like, None where it does not answer."""
    body = json.dumps([m.to_json() for m in marks])
    refs = [
        _remote(look)
        .options(
            num_cpus=0,  # a node that is busy can answer, too
            max_retries=RETRIES,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        .remote(_hidden(), body)
        for node in nodes
    ]
    return [_answer(ref) for ref in refs]


def _answer(ref: Any) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = ray.get(ref, timeout=PROBE)
    except exceptions.RayTaskError as failure:
        raise _not_ours(failure) from failure
    except exceptions.RayError:
        return None
    return found


def _unseen(nodes: int, of: int | None = None) -> ConfigurationError:
    return ConfigurationError(
        f"{nodes} {f'of {of} nodes' if of else 'node'} of Ray cannot see the store folder.",
        "Put runtime.store on storage that all nodes mount at the same path.",
    )


def _not_ours(failure: exceptions.RayTaskError) -> SisaError:
    """The error for a worker that did not get as far as our code."""
    if isinstance(failure.cause, ImportError):
        return ConfigurationError(
            f"A worker of Ray cannot import this package: {failure.cause}.",
            "Install the same version of it on every node.",
        )
    return WorkerError(f"A worker of Ray failed: {failure.cause!r}.", "See the logs of Ray.")


@functools.cache
def _remote(function: Callable[[str], Any]) -> Any:
    """A remote function that calls a function of this module with its second argument.

    Ray puts the caller's folder first on the workers' import path, where a folder with a name like
    `cluster` would be taken for ours. What the caller cannot import from, its workers must not
    either; so what is sent is nested, which travels by value, and imports only then.
    """
    module, name = function.__module__, function.__name__

    def call(hidden: str | None, body: str) -> Any:
        import importlib
        import sys

        sys.path[:] = [p for p in sys.path if p != hidden]
        return getattr(importlib.import_module(module), name)(body)

    return ray.remote(call)


def _hidden() -> str | None:
    """The current folder, unless modules are imported from it."""
    here = str(Path.cwd())
    return None if {"", here} & set(sys.path) else here


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Send standard output and error of this process nowhere."""
    kept = {number: os.dup(number) for number in (1, 2)}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in kept:
            os.dup2(nowhere, number)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(ValueError):  # user code may have closed it
                stream.flush()
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
