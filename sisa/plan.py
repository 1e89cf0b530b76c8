"""What an erasure will cost: the same walk as build, over the data set minus the ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_index.lineage import Selection
from data_index.view import through
from sisa import build
from sisa.build import Cost, Walk
from sisa.context import Context
from sisa.determinism import cpus
from sisa.results import Planned

if TYPE_CHECKING:
    from sisa.forget import Named


@dataclass(frozen=True)
class Forecast:
    """The walks that a build would make, and what it would cost; both empty before a first one."""

    walks: tuple[Walk, ...]
    cost: Cost


def walks_without(context: Context, gone: Selection) -> tuple[Walk, ...]:
    """The walk that a build would make if these were accepted too."""
    dataset = context.dataset()
    everything = context.ledger.pending().gone | gone
    views = through(context.store, context.ring, context.columns, dataset, everything)
    return build.walk(context.store, views, context.training)


def forecast(context: Context, gone: Selection) -> Forecast:
    """Cost of an erasure; nothing before the first training, when there is nothing to rebuild.

    Raises:
        ConfigurationError: The recipe was changed since the current generation was trained.
    """
    current = context.current()
    if current is None:
        return Forecast((), Cost(0, 0))
    context.require_trained_recipe(current[1])
    walks = walks_without(context, gone)
    return Forecast(walks, build.cost(context.store, context.config.recipe, walks))


def plan(context: Context, named: Named) -> Planned:
    """Cost of forgetting what a call names; changes nothing."""
    expected = forecast(context, named.new)
    return Planned(
        records=named.rows.num_rows,
        shards_affected=named.shards,
        stages=sum(len(w.missing) for w in expected.walks),
        samples=expected.cost.trained,
        samples_full=expected.cost.full,
        seconds=_seconds(context, expected),
        not_found=named.unknown,
    )


def _seconds(context: Context, expected: Forecast) -> float:
    """Estimate from what the stored stages took, shards side by side on the workers there are."""
    stored = [r for w in expected.walks for r in w.stored if r.samples]
    if not stored or not expected.cost.trained:
        return 0.0
    per_sample = sum(r.seconds for r in stored) / sum(r.samples for r in stored)
    busy = sum(1 for w in expected.walks if w.missing)
    workers = min(context.config.runtime.executor.workers or cpus(), busy)
    return round(expected.cost.trained * per_sample / workers, 3)
