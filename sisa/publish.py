"""Build over the current data set without what is to be forgotten, and make it current."""

from __future__ import annotations

from dataclasses import dataclass

from data_index.leases import Lease
from data_index.requests import Pending
from data_index.view import PartitionView, through
from sisa.build import Built, build, walk
from sisa.context import Context
from sisa.errors import BusyError, IncompleteError, MovedOnError
from sisa.generation import Generation

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


def build_and_publish(context: Context, lease: Lease, reason: str) -> Published:
    """Build and publish; if nothing changed, what is current stays.

    Requests that come in during the build are joined: it is walked again without them.

    Raises:
        IncompleteError: There is no record.
        BusyError: Requests came in faster than it could build.
    """
    trained = []
    for _ in range(ATTEMPTS):
        pending = context.ledger.pending()
        dataset = context.dataset()
        if dataset.records == 0 and not pending.requests:
            raise IncompleteError("There is no record to train on.", "Run `sisa ingest` first.")
        views = through(context.store, context.ring, context.columns, dataset, pending.gone)
        generation, built = _build(context, views, reason)
        trained.append(built)
        try:
            number, generation = _publish(context, lease, generation, pending)
        except MovedOnError:
            continue
        return Published(number, generation, _together(trained), pending)
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
        context.make_executor(),
        context.report.stage,
        import_paths=context.import_paths,
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
    context: Context, lease: Lease, generation: Generation, pending: Pending
) -> tuple[int, Generation]:
    """Make a generation current, unless that would change nothing."""
    current = context.current()
    if current is not None and generation.same_as(current[1]):
        return current[0].number, current[1]
    manifest = generation.save(context.store)
    context.store.flush()
    number = context.ledger.publish(
        manifest, generation.digest, generation.reason, pending.sequence, lease
    )
    return number, generation


def _together(builds: list[Built]) -> Built:
    """The last build, with the cost of those before it that were overtaken."""
    last = builds[-1]
    trained = tuple(r for b in builds for r in b.trained)
    seconds = sum(b.seconds for b in builds)
    cost = last.cost.plus_trained(sum(b.cost.trained for b in builds[:-1]))
    return Built(last.constituents, trained, cost, seconds)
