"""What went wrong with workers of Ray Train: one was lost and can be replaced, or it failed."""

from __future__ import annotations

from ray import exceptions
from ray.train.v2.api.exceptions import TrainingFailedError
from torch import distributed

from sisa.errors import SisaError, WorkerError

REMEDY = "Make the same call again: it goes on from its checkpoint."

SAID_OF_THE_LOST = (
    "timed out waiting",
    "connect timeout",
    "connectfullmesh",
    "connection closed",
    "connection refused",
    "connection reset",
    "broken pipe",
    "socket closed",
    "pair closure",
)
"""What gloo, which has no class of its own for it, says of a process that is gone."""

CLASSES_OF_THE_LOST = (
    "NCCLHangError",
    "PreemptionError",
    "WorkerGroupStartupFailedError",
    "WorkerGroupStartupTimeoutError",
    "WorkerHealthCheckFailedError",
    "WorkerHealthCheckTimeoutError",
)
"""What Ray Train calls it."""


class LostError(WorkerError):
    """A worker was lost, by no fault of what it was asked to do: another may do it."""


def ours(failure: TrainingFailedError, patience: int) -> SisaError:
    """The error for what went wrong in a worker: its own, where it is one of ours.

    Args:
        failure: What Ray Train raised.
        patience: Seconds that a worker waits for another.
    """
    first = getattr(failure, "controller_failure", failure)
    causes = list(getattr(failure, "worker_failures", {}).values()) or [first]
    for cause in causes:
        if isinstance(cause, SisaError):
            return cause
    if faults := [cause for cause in causes if not _lost(cause)]:
        return WorkerError(f"A worker failed: {_kinds(faults)}.", REMEDY)
    return LostError(f"A worker died or did not answer for {patience} s: {_kinds(causes)}.", REMEDY)


def _kinds(errors: list[Exception]) -> str:
    """Their classes, without what they say, which may quote an item."""
    return ", ".join(sorted({type(error).__name__ for error in errors}))


def _lost(cause: Exception) -> bool:
    """Whether Ray says that a worker was lost, or another worker that waited for it."""
    kind, said = type(cause), str(cause).lower() if isinstance(cause, RuntimeError) else ""
    by_ray = kind.__name__ in CLASSES_OF_THE_LOST and kind.__module__.startswith("ray.")
    known = isinstance(cause, distributed.DistError | exceptions.RayActorError)
    return known or by_ray or any(words in said for words in SAID_OF_THE_LOST)
