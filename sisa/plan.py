"""What an erasure will cost: the same walk as build, over the data set minus the ids."""

from __future__ import annotations

from collections.abc import Sequence

from data_index.lineage import Selection
from data_index.view import through
from sisa import build
from sisa.build import Cost, Walk
from sisa.context import Context
from sisa.determinism import cpus
from sisa.results import Planned


def walks_without(context: Context, gone: Selection) -> tuple[Walk, ...]:
    """The walk that a build would make if these were accepted too."""
    dataset = context.dataset()
    everything = context.ledger.pending().gone | gone
    views = through(context.store, context.ring, context.columns, dataset, everything)
    return build.walk(context.store, views, context.training)


def cost_without(context: Context, gone: Selection) -> Cost:
    """Samples of an erasure; none before the first training, when there is nothing to rebuild.

    Raises:
        ConfigurationError: The recipe was changed since the current generation was trained.
    """
    current = context.current()
    if current is None:
        return Cost(0, 0)
    context.require_trained_recipe(current[1])
    walks = walks_without(context, gone)
    return build.cost(context.store, context.config.recipe, walks)


def plan(context: Context, subjects: Sequence[str | int], records: Sequence[str | int]) -> Planned:
    """Cost of forgetting ids; changes nothing."""
    from sisa.forget import look_up

    named = look_up(context, subjects, records)
    cost = cost_without(context, named.new)
    walks = walks_without(context, named.new) if context.current() else ()
    return Planned(
        records=named.rows.num_rows,
        shards_affected=named.shards,
        stages=sum(len(w.missing) for w in walks),
        samples=cost.trained,
        samples_full=cost.full,
        seconds=_seconds(context, walks, cost),
        not_found=named.unknown,
    )


def _seconds(context: Context, walks: Sequence[Walk], cost: Cost) -> float:
    """Estimate from what the stored stages took, shards side by side on the workers there are."""
    stored = [r for w in walks for r in w.stored if r.samples]
    if not stored or not cost.trained:
        return 0.0
    per_sample = sum(r.seconds for r in stored) / sum(r.samples for r in stored)
    busy = sum(1 for w in walks if w.missing)
    workers = min(context.config.runtime.executor.workers or cpus(), busy)
    return round(cost.trained * per_sample / workers, 3)
