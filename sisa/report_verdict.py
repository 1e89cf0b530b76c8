"""The verdict: a report in a few sentences, for a reader in a hurry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from sisa.config import Recipe
from sisa.report_results import ReplayOutcome, RequestsReport, Served, Verdict
from sisa.report_words import count, listed, number, share, when
from sisa.results import Check, Finding

State = Literal["sound", "attention", "overdue", "failed"]


def verdict(
    served: Served | None,
    recipe: Recipe,
    requests: RequestsReport,
    checks: Sequence[Check],
    skipped: str | None,
    replay: ReplayOutcome | None,
    findings: Sequence[Finding],
) -> Verdict:
    """Judge what the other sections hold; `skipped` says why checks were not run."""
    failed = [c.name for c in checks if c.passed is False]
    disproved = _of(served, replay) and replay is not None and replay.exact is False
    if disproved:
        failed.append("replay")
    errors = sum(f.severity == "error" for f in findings)
    loose = bool(
        requests.open
        or skipped
        or errors
        or any(c.passed is None for c in checks)
        or served is None
        or not served.quorate
        or served.failed_shards
    )
    state: State = "attention" if loose else "sound"
    if requests.overdue:
        state = "overdue"
    if failed:
        state = "failed"
    return Verdict(
        state=state,
        headline=_headline(state, failed, served, requests),
        sentences=(
            *_serving(served, recipe),
            *_asked(requests),
            *_checked(checks, skipped),
            *_replayed(served, replay),
            *_found(errors),
        ),
    )


def _headline(
    state: State, failed: list[str], served: Served | None, requests: RequestsReport
) -> str:
    if state == "failed":
        return f"Something is not as promised: {', '.join(failed)}."
    if state == "overdue":
        verb = "is" if requests.overdue == 1 else "are"
        return f"{count(requests.overdue, 'erasure request')} {verb} overdue."
    if requests.open:
        verb = "is" if requests.open == 1 else "are"
        return f"{count(requests.open, 'erasure request')} {verb} open, none overdue."
    if served is None:
        return "Nothing is trained yet."
    if state == "attention":
        return "Nothing failed, but something needs a look."
    if requests.by_state.get("certified"):
        return "All that was to be erased is erased, and all checks passed."
    return "Nothing was to be erased, and all checks passed."


def _serving(served: Served | None, recipe: Recipe) -> Iterator[str]:
    if served is None:
        yield "No generation is served, or its manifest cannot be read."
        return
    yield (
        f"Generation {number(served.generation)} is served since {when(served.since)} UTC: "
        f"{number(served.voting)} of {count(recipe.partition.shards, 'shard')} vote, at "
        f"{share(served.depth)} of their depth."
    )
    if served.failed_shards:
        yield f"Shards that failed in training, and do not vote: {listed(served.failed_shards)}."
    if not served.quorate:
        yield "Too few shards vote, so that predictions are refused."


def _asked(requests: RequestsReport) -> Iterator[str]:
    if not requests.total:
        yield "No erasure request has been made."
    elif not requests.open:
        verb = "is" if requests.total == 1 else "are"
        yield f"{count(requests.total, 'erasure request')} {verb} closed, and none is open."
    else:
        verb = "is" if requests.open == 1 else "are"
        yield (
            f"{number(requests.open)} of {count(requests.total, 'erasure request')} {verb} open, "
            f"{number(requests.overdue)} overdue."
        )
    if requests.late:
        verb = "was" if requests.late == 1 else "were"
        yield f"{count(requests.late, 'request')} {verb} certified after the due date."


def _checked(checks: Sequence[Check], skipped: str | None) -> Iterator[str]:
    failed = [c.name for c in checks if c.passed is False]
    unsure = [c.name for c in checks if c.passed is None]
    if skipped:
        yield f"The stored files were not checked: {skipped}."
    if failed:
        yield f"{number(len(failed))} of {count(len(checks), 'check')} failed: {', '.join(failed)}."
    if unsure:
        yield f"{count(len(unsure), 'check')} could not be decided: {', '.join(unsure)}."
    if checks and not failed and not unsure and not skipped:
        yield f"All {number(len(checks))} checks of what is stored passed."


def _replayed(served: Served | None, replay: ReplayOutcome | None) -> Iterator[str]:
    if served is None:
        return
    if replay is None:
        yield "Training was not replayed: `sisa verify` would show that every bit is exact."
        return
    outcome = {
        True: "found every bit equal",
        False: "found other bits",
        None: "left something open",
    }
    yield (
        f"The last replay, on {when(replay.time)} UTC, trained {number(replay.shards)} of "
        f"{count(replay.constituents, 'shard')} of generation {number(replay.generation)} again "
        f"and {outcome[replay.exact]}."
    )
    if not _of(served, replay):
        yield "What is served now has not been replayed."


def _of(served: Served | None, replay: ReplayOutcome | None) -> bool:
    """Whether a replay was of what is served."""
    return served is not None and replay is not None and served.digest == replay.digest


def _found(errors: int) -> Iterator[str]:
    if errors:
        yield f"The doctor found {count(errors, 'error')}."
