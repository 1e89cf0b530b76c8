"""What an erasure will cost: the same walk as build, over the data set minus the ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_index.lineage import Selection
from data_index.requests import iso
from data_index.view import through
from sisa import build, tempo, window
from sisa.build import Cost, Walk
from sisa.context import Context
from sisa.results import Planned, Price, Waiting, WindowState
from sisa.retention import Retention
from sisa.tempo import Tempo, Work

if TYPE_CHECKING:
    from sisa.lookup import Named


@dataclass(frozen=True)
class Forecast:
    """The walks that a build would make, and what it would cost; both empty before a first one."""

    walks: tuple[Walk, ...]
    cost: Cost


def walks_without(
    context: Context, gone: Selection, pending: Selection | None = None
) -> tuple[Walk, ...]:
    """The walk that a build would make if these were accepted too.

    Args:
        context: The workspace.
        gone: What is left out besides what is accepted.
        pending: In place of what is accepted.
    """
    accepted = context.ledger.pending().gone if pending is None else pending
    return walks_over(context, accepted | gone)


def walks_over(context: Context, gone: Selection) -> tuple[Walk, ...]:
    """The walk that a build would make if these were accepted and nothing else."""
    views = through(context.store, context.ring, context.columns, context.dataset(), gone)
    return build.walk(context.store, views, context.training)


def forecast(context: Context, gone: Selection, pending: Selection | None = None) -> Forecast:
    """Cost of an erasure; nothing before the first training, when there is nothing to rebuild.

    Arguments are those of `walks_without`.

    Raises:
        ConfigurationError: The recipe was changed since the current generation was trained.
    """
    current = context.current()
    if current is None:
        return Forecast((), Cost())
    context.require_trained_recipe(current[1])
    walks = walks_without(context, gone, pending)
    return Forecast(walks, build.cost(context.store, context.config.recipe, walks))


def plan(context: Context, named: Named) -> Planned:
    """Cost of forgetting what a call names, and what waiting saves; changes nothing."""
    pace = tempo.measured(context)
    together = forecast(context, named.new)
    price = _price(context, pace, _work(together))
    return Planned(
        records=named.rows.num_rows,
        shards_affected=named.shards,
        stages=sum(len(w.missing) for w in together.walks),
        samples=together.cost.trained,
        samples_full=together.cost.full,
        seconds=price.seconds,
        not_found=named.unknown,
        waiting=_waiting(context, named, pace, together),
        window=open_window(context),
    )


def open_window(context: Context) -> WindowState | None:
    """The window of what is open, as documents show it."""
    found = window.current(context)
    if found is None:
        return None
    return WindowState(
        opens=iso(found.opens),
        closes=iso(found.closes),
        reason=found.reason,
        requests=found.requests,
    )


def _waiting(context: Context, named: Named, pace: Tempo, together: Forecast) -> Waiting:
    """The open requests and those named: at once, apart, and one after the other."""
    both = _price(context, pace, _work(together))
    if not context.ledger.pending().requests:
        none = Price(samples=0, seconds=0.0)
        return Waiting(
            open=none, alone=both, together=both, one_after_other=both, saved_by_waiting=none
        )
    opened = forecast(context, Selection.nothing())
    alone = forecast(context, named.new, Selection.nothing())
    first = _price(context, pace, _work(opened))
    second = _price(context, pace, _then(context, opened.walks, together.walks))
    apart = _sum(first, second)
    return Waiting(
        open=first,
        alone=_price(context, pace, _work(alone)),
        together=both,
        one_after_other=apart,
        saved_by_waiting=Price(
            samples=apart.samples - both.samples, seconds=round(apart.seconds - both.seconds, 6)
        ),
    )


def _work(expected: Forecast) -> Work:
    stages = sum(len(w.missing) for w in expected.walks)
    return Work(stages, expected.cost.trained, sum(1 for w in expected.walks if w.missing))


def _then(context: Context, before: Sequence[Walk], after: Sequence[Walk]) -> Work:
    """What a second erasure trains once the first has been carried out, to the sample.

    The chains after the first are known, though their stages are not trained yet: the second goes
    on from the last stage that both have in common and whose checkpoint the first one keeps.
    Nothing else is left then, for the purge of the first one destroys what its chains do not reach.
    """
    known = {w.shard: w for w in before}
    recipe, store = context.config.recipe, context.store
    retention = Retention.of(context.config.runtime.checkpoints, recipe.partition.shards)
    left = [(w, w.links[_reach(known[w.shard], w, retention) :]) for w in after]
    return Work(
        sum(len(links) for _, links in left),
        sum(build.samples(store, recipe, w, links) for w, links in left if links),
        sum(1 for _, links in left if links),
    )


def _reach(before: Walk, after: Walk, retention: Retention) -> int:
    """How many stages of one chain are there once the missing ones of another are trained."""
    pairs = zip(before.links, after.links, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a.key != b.key), None)
    same = min(len(before.links), len(after.links)) if same is None else same
    if before.failed and same >= len(before.stored):
        return len(after.links)  # it fails again, and no later stage is run
    sizes = [r.file.size for r in before.stored if r.file is not None]
    fresh = retention.kept(len(before.links), max(sizes, default=1))
    kept = {i for i, r in enumerate(before.stored, 1) if r.file is not None}
    kept |= {i for i in fresh if i > len(before.stored)}
    return max((i for i in kept if i <= same), default=0)


def _price(context: Context, pace: Tempo, work: Work) -> Price:
    """Samples, and seconds from what stored stages took, on the workers there are."""
    seconds = pace.seconds(work, tempo.workers(context))
    return Price(samples=int(work.samples), seconds=round(seconds, 6))


def _sum(a: Price, b: Price) -> Price:
    return Price(samples=a.samples + b.samples, seconds=round(a.seconds + b.seconds, 6))
