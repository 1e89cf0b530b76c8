"""Everything that would break the guarantee, all findings at once, each with its remedy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from data_index import sources
from data_index.view import PartitionView, through
from sisa import (
    balance,
    environments,
    identity,
    leaks,
    mirror_reach,
    overlap,
    personal,
    rehearsal,
    sample,
    surroundings,
)
from sisa.context import Context
from sisa.errors import SisaError
from sisa.rehearsal import Rehearsed
from sisa.results import Diagnosis, Finding
from sisa.sample import Sample
from sisa.states import overdue

ORDER = ("error", "warning", "info")


def diagnose(
    context: Context,
    environment: Mapping[str, str] = os.environ,
    held_out: Sequence[Path] = (),
) -> Diagnosis:
    """Look at a workspace and at a sample of its data, before or after the first ingest.

    Args:
        context: The workspace.
        environment: May hold a second secret.
        held_out: Files to compare with the store.

    Returns:
        Findings, the worst first; none of them names an id.

    Raises:
        NotFoundError: There is no such held-out file.
    """
    runtime = context.config.runtime
    sources.expand(list(held_out))
    with rehearsal.under_way(context.config.recipe, context.import_paths) as rehearsed:
        found = [
            *_data(context),
            *standing(context, environment),
            *_checked("held_out", lambda: overlap.findings(context, held_out)),
            *_checked("executor", lambda: environments.executor(context)),
            *_learner(context, rehearsed),
        ]
    # One cause may stop several checks; once is enough to say so.
    distinct: dict[str, Finding] = {}
    for finding in found:
        distinct.setdefault(finding.message, finding)
    findings = sorted(distinct.values(), key=lambda f: ORDER.index(f.severity))
    return Diagnosis(findings=tuple(findings), mirror=mirror_reach.kind(runtime.tracking))


def standing(context: Context, environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """What is found at once: without looking at rows, and without training a step."""
    tracking = context.config.runtime.tracking
    return [
        *_checked("keys", lambda: surroundings.keys(context.folder, environment)),
        *_checked("store", lambda: surroundings.store(context.store)),
        *_checked("privacy", lambda: surroundings.privacy(context)),
        *_checked("requests", lambda: _requests(context)),
        *_checked("mirror", lambda: _mirror(context)),
        *_checked("mirror", lambda: mirror_reach.findings(tracking, context.folder)),
        *_checked("quorum", lambda: _steady(context, _quorum)),
    ]


def _learner(context: Context, rehearsed: Callable[[], Rehearsed]) -> list[Finding]:
    """What dry steps showed, and how served stages compare with where they were taken."""
    recipe = context.config.recipe
    if recipe.learner.params.get("batch_norm") and recipe.training.min_batch < 2:
        message = (
            "batch_norm cannot train on a batch of one record, which recipe.training.min_batch "
            "allows."
        )
        remedy = "Set recipe.training.min_batch to 2 or more."
        return [Finding(severity="error", check="learner", message=message, remedy=remedy)]
    dry = rehearsed()
    stages = partial(environments.stages, here=dry.fingerprint)
    served = _checked("environment", lambda: _steady(context, stages))
    return [*dry.findings, *served]


def _checked(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """A check's findings; what it raises is one more, so that no check hides another."""
    found: list[Finding] = []
    try:
        for finding in check():  # one by one: those before an error are kept
            found.append(finding)
    except SisaError as error:
        found.append(_raised(name, error))
    return found


def _raised(name: str, error: SisaError) -> Finding:
    remedy = error.remedy or "Correct it and run `sisa doctor` again."
    return Finding(severity="error", check=name, message=error.message, remedy=remedy)


def _data(context: Context) -> list[Finding]:
    """What rows show; nothing more once they cannot be had."""
    try:
        rows = context.steady(lambda: _sample(context, _views(context)))
        found = [*(_rows(context, rows) if rows else _nothing())]
    except SisaError as error:
        found = [_raised("data", error)]
    return [*found, *_checked("generation", lambda: _steady(context, _generation))]


def _steady(context: Context, check: Callable[[Context], Iterable[Finding]]) -> Iterable[Finding]:
    """A check of what the pointers name, whoever moves them meanwhile."""
    return context.steady(lambda: list(check(context)))


def _views(context: Context) -> tuple[PartitionView, ...]:
    """All partitions without what is to be forgotten."""
    gone = context.ledger.pending().gone
    return through(context.store, context.ring, context.columns, context.dataset(), gone)


def _sample(context: Context, views: tuple[PartitionView, ...]) -> Sample | None:
    """Rows of the store if it holds any, else of the sources, else None."""
    if views:
        return sample.of_store(context.store, context.columns, views)
    paths = [context.folder / source for source in context.config.runtime.sources]
    partition = context.config.recipe.partition
    grid = (partition.shards, partition.slices)
    return sample.of_sources(paths, context.columns, context.ring, grid)


def _nothing() -> Iterator[Finding]:
    yield Finding(
        severity="info",
        check="data",
        message="There is no record yet, neither in the store nor in runtime.sources.",
        remedy="Name files in runtime.sources, or run `sisa ingest`.",
    )


def _rows(context: Context, rows: Sample) -> Iterator[Finding]:
    recipe, columns = context.config.recipe, context.columns
    yield from _checked("leak", lambda: leaks.findings(rows, columns))
    yield from _checked("identity", lambda: identity.identities(rows, columns, context.ring))
    yield from _checked("personal", lambda: personal.findings(rows, columns))
    yield from _checked("scaling", lambda: identity.scaling(rows, columns))
    yield from _checked("categories", lambda: identity.categories(rows, recipe.data))
    yield from _checked("classes", lambda: balance.classes(rows, recipe))
    yield from _checked("stages", lambda: balance.stages(rows, recipe))
    yield from _checked("shards", lambda: balance.shards(rows, recipe))
    if columns.subject_id is not None:
        yield from _checked("subjects", lambda: balance.subjects(rows))


def _generation(context: Context) -> Iterator[Finding]:
    """A current generation of another recipe or of other data."""
    current = context.current()
    if current is None:
        return
    generation = current[1]
    recipe = generation.training != context.training
    now = tuple((v.shard, v.slice, v.rows, v.logical) for v in _views(context))
    # While requests wait, what is served is meant to be older than the data.
    data = generation.partitions != now and not context.ledger.pending().requests
    if recipe or data:
        yield Finding(
            severity="info",
            check="generation",
            message=f"The {'recipe' if recipe else 'data'} changed since the current generation "
            "was trained.",
            remedy="Run `sisa train`.",
        )


def _requests(context: Context) -> Iterator[Finding]:
    """Erasure requests that wait, and those that waited too long."""
    now = context.ledger.clock()
    late = [r for r in context.ledger.pending().requests if overdue(r, now)]
    waiting = [r for r in context.ledger.pending().requests if r.hold is None]
    for requests, what in ((late, "past due"), (waiting, "not certified")):
        if requests:
            yield Finding(
                severity="warning",
                check="requests",
                message=f"Erasure requests that are {what}: {len(requests)}.",
                remedy="Run `sisa work`.",
            )


def _mirror(context: Context) -> Iterator[Finding]:
    """Generations that the mirror has not taken yet."""
    waiting = len(context.ledger.outbox())
    if waiting:
        yield Finding(
            severity="info",
            check="mirror",
            message=f"Generations that have not been mirrored yet: {waiting}.",
            remedy="The next `sisa work` delivers them; check runtime.tracking.uri.",
        )


def _quorum(context: Context) -> Iterator[Finding]:
    """A current generation with too few votes."""
    current = context.current()
    if current is None:
        return
    generation, quorum = current[1], context.config.runtime.erasure.quorum
    if not generation.quorate(quorum):
        yield Finding(
            severity="error",
            check="quorum",
            message=f"Only {len(generation.voting)} of {generation.recipe.partition.shards} "
            "constituents vote, so that nothing is predicted.",
            remedy="Run `sisa train`; if shards are empty or failed, change the recipe.",
        )
    if generation.failed_shards:
        yield Finding(
            severity="warning",
            check="quorum",
            message="Shards whose training failed, so that they do not vote: "
            f"{', '.join(map(str, generation.failed_shards))}.",
            remedy="Change recipe.training, a smaller lr for one, and run `sisa train`.",
        )
