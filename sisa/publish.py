"""Build over the current data set without what is to be forgotten, and make it current."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

from data_index.database import Connection
from data_index.leases import Lease
from data_index.requests import Pending
from data_index.view import PartitionView, through
from sisa import rollback
from sisa.build import Built, Cost, build, walk
from sisa.context import Context
from sisa.errors import BusyError, IncompleteError, MovedOnError
from sisa.generation import Generation
from sisa.retention import Retention

ATTEMPTS = 10
"""How often a build starts again because requests came in meanwhile."""


@dataclass(frozen=True)
class Published:
    """A build that is current now.

    Attributes:
        number: The generation's number.
        generation: The generation.
        built: What the build did.
        pending: The requests that it left out.
    """

    number: int
    generation: Generation
    built: Built
    pending: Pending


@dataclass(frozen=True)
class Cancel:
    """A request that is taken back: its id, and what enters that in a transaction."""

    request_id: str
    enter: Callable[[Connection], None]


def build_and_publish(
    context: Context, lease: Lease, reason: str, cancel: Cancel | None = None
) -> Published:
    """Build and publish; if nothing changed, what is current stays.

    What was accepted and is served still is rolled back first, all of it in one generation.
    Requests that come in during the build are joined: it is walked again without them.

    Args:
        context: The workspace.
        lease: The writer's.
        reason: Why.
        cancel: A request that is not left out, and is taken back in the same transaction.

    Raises:
        IncompleteError: There is no record.
        BusyError: Requests came in faster than it could build.
    """
    rollback.together(context)
    trained = []
    for _ in range(ATTEMPTS):
        pending = context.ledger.pending()
        dataset = context.dataset()
        if dataset.records == 0 and not pending.requests:
            raise IncompleteError("There is no record to train on.", "Run `sisa ingest` first.")
        gone = pending.without({cancel.request_id}) if cancel else pending.gone
        views = through(context.store, context.ring, context.columns, dataset, gone)
        generation, built = _build(context, views, reason)
        trained.append(built)
        together = _together(trained)
        try:
            number, generation = _publish(
                context, lease, generation, pending, together.cost, cancel
            )
        except MovedOnError:
            continue
        return Published(number, generation, together, pending)
    raise BusyError("Erasure requests came in faster than the build.", "Run `sisa work` again.")


def _build(
    context: Context, views: tuple[PartitionView, ...], reason: str
) -> tuple[Generation, Built]:
    """Train what is missing. Returns the generation that it makes, and what was done."""
    recipe, training = context.config.recipe, context.training
    built = build(
        context.store,
        recipe,
        training,
        walk(context.store, views, training),
        context.executor,
        context.report.stage,
        import_paths=context.import_paths,
        retention=Retention.of(context.config.runtime.checkpoints, recipe.partition.shards),
    )
    generation = Generation(
        recipe=recipe,
        training=training,
        constituents=built.constituents,
        partitions=tuple((v.shard, v.slice, v.rows, v.logical) for v in views),
        reason=reason,
        certificate_head=context.ledger.certificate_head(),
    )
    return generation, built


def _publish(
    context: Context,
    lease: Lease,
    generation: Generation,
    pending: Pending,
    cost: Cost,
    cancel: Cancel | None,
) -> tuple[int, Generation]:
    """Make a generation current, unless that would change nothing."""
    along = cancel.enter if cancel else _nothing
    current = context.current()
    if current is not None and generation.same_as(current[1]):
        if cancel:
            context.ledger.change(along, pending.version, lease)
        return current[0].number, current[1]
    manifest = generation.save(context.store)
    context.store.flush()
    number = context.ledger.publish(
        manifest,
        generation.digest,
        generation.reason,
        pending.version,
        lease,
        along,
        (cost.visited, cost.full),
    )
    context.published()
    return number, generation


def _nothing(connection: Connection) -> None:
    """Enters nothing."""


def _together(builds: list[Built]) -> Built:
    """The last build, with the cost of those before it that were overtaken."""
    last = builds[-1]
    trained = tuple(r for b in builds for r in b.trained)
    seconds = sum(b.seconds for b in builds)
    cost = reduce(lambda spent, build: build.cost.after(spent), builds, Cost())
    return Built(last.constituents, trained, cost, seconds)
