"""Is a stage of this learner a function of state, records and plan alone? Two child processes try.

Both take the same dry step from the same state. The second one takes it once; the first repeats
it, waits, and takes another step between. Equal bits throughout are what every reuse of a stage and
every replay builds on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sisa.config import Recipe
from sisa.executor import environment
from sisa.results import Finding

PATIENCE = 120.0
"""Seconds after which a dry step is given up."""

SHOWN = 3
"""Names of arrays that a finding gives at most."""

PROVEN = ("logistic", "mlp")
"""Learners that are all ours: their own tests repeat their steps, so that one dry step is enough
here. It still shows whether they can be made and trained as the recipe says."""

Answer = Mapping[str, Any]
Digests = Mapping[str, str]


@dataclass(frozen=True)
class Rehearsed:
    """What the dry steps showed.

    Attributes:
        findings: What the learner does that no stage may do.
        fingerprint: The environment of a worker on this machine; None if no step was possible.
    """

    findings: tuple[Finding, ...]
    fingerprint: dict[str, Any] | None = None


@contextmanager
def under_way(recipe: Recipe, import_paths: Sequence[str]) -> Iterator[Callable[[], Rehearsed]]:
    """Start the processes, which take seconds; what is yielded waits for them.

    Args:
        recipe: Names the learner; no record is needed.
        import_paths: Where user modules are found.
    """
    asked = {"recipe": recipe.model_dump(mode="json"), "import_paths": list(import_paths)}
    deadline = time.monotonic() + PATIENCE
    repeats = (False,) if recipe.learner.factory in PROVEN else (True, False)
    runs = [_start(recipe, {**asked, "repeat": repeat}) for repeat in repeats]
    try:
        yield lambda: _rehearsed([_answer(run, deadline) for run in runs])
    finally:
        for run in runs:
            run.kill()
            run.wait()


def _start(recipe: Recipe, asked: dict[str, Any]) -> subprocess.Popen[bytes]:
    run = subprocess.Popen(
        [sys.executable, "-m", "sisa.dry_run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(recipe.training.threads),
        start_new_session=True,  # an interrupt is the caller's to answer
    )
    if run.stdin is not None:
        with run.stdin as to:
            to.write(json.dumps(asked).encode())
        run.stdin = None
    return run


def _answer(run: subprocess.Popen[bytes], deadline: float) -> Answer | None:
    """What a process says; None if it died or took too long."""
    try:
        said, _ = run.communicate(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None
    answer: Answer | None = json.loads(said) if said else None
    return answer


def _rehearsed(answers: Sequence[Answer | None]) -> Rehearsed:
    told = [answer for answer in answers if answer is not None]
    if len(told) < len(answers):
        message = f"A dry step of the learner ended its process or took {PATIENCE:.0f} s."
        return Rehearsed((_finding("learner", message, "Correct the learner's code."),))
    wrong = [answer["error"] for answer in told if answer["error"]]
    if wrong:
        return Rehearsed((_failed(wrong[0]),))
    repeated, *others = (answer["outcomes"] for answer in told)
    found = [finding for fresh in others for finding in compared(repeated, fresh[0])]
    return Rehearsed(tuple(found), told[0]["fingerprint"])


def _failed(error: Mapping[str, Any]) -> Finding:
    if error["operator"] is None:
        return _finding("learner", error["message"], error["remedy"])
    return _finding(
        "determinism",
        f"The learner uses {error['operator']}, which has no deterministic form.",
        "Use another operator: training runs under torch.use_deterministic_algorithms(True).",
    )


def compared(repeated: Sequence[Digests], fresh: Digests) -> Iterator[Finding]:
    """What two processes made of one step.

    Args:
        repeated: Digests by name of the step and its repetitions in one process.
        fresh: Those of the step in the other process.
    """
    first, at_once, later = repeated[:3]
    moved_on = [] if _different(first, at_once) else _different(first, later)
    random = _different(first, fresh) or moved_on
    if random:
        yield _finding(
            "determinism",
            "The same step, in another process or a second later, gives other bits in "
            f"{_named(random)}.",
            "Draw from the generators that are seeded for each step (torch's, NumPy's and "
            "Python's global ones), and read neither clock nor process nor environment.",
        )
        return
    kept = sorted({name for again in repeated[1:] for name in _different(first, again)})
    if kept:
        yield _finding(
            "state",
            "The learner keeps state outside of its checkpoint: after other steps in the same "
            f"process, the same step gives other bits in {_named(kept)}.",
            "Keep what steps change in parameters and buffers of a fresh module, not in classes, "
            "globals, caches, or generators of your own.",
        )


def _different(one: Digests, other: Digests) -> list[str]:
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def _finding(check: str, message: str, remedy: str) -> Finding:
    return Finding(severity="error", check=check, message=message, remedy=remedy)
