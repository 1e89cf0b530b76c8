"""Roll serving back for all that is accepted and not rolled back yet, in one publication."""

from __future__ import annotations

from data_index import changes, ledger
from data_index.database import Connection
from data_index.ledger import Moment
from data_index.requests import Places, first_of
from data_index.view import through
from sisa.context import Context
from sisa.generation import Constituent, Generation
from sisa.stage import chain


def publish(context: Context, connection: Connection, rolled: Generation) -> None:
    """Make a rolled-back generation current, inside a transaction that nothing overtakes."""
    manifest = rolled.save(context.store)
    context.store.flush()
    now = context.ledger.clock()
    ledger.add_generation(connection, manifest, rolled.digest, rolled.reason, now)


def together(context: Context) -> bool:
    """Roll back every constituent that has seen an accepted row; one that is clean stays.

    Returns:
        Whether anything was published.
    """
    while True:
        moment = context.ledger.moment()
        rolled = _rolled(context, moment)
        if rolled is None:
            return False
        with context.ledger.write() as connection:
            entry, version = ledger.current_generation(connection), changes.version(connection)
            if (entry, version) != (moment.generation, moment.pending.version):
                continue  # something moved since it was looked at
            publish(context, connection, rolled)
        context.published()
        return True


def _rolled(context: Context, moment: Moment) -> Generation | None:
    """The current generation without what is accepted; None if it has seen none of it."""
    waiting = [r for r in moment.pending.requests if r.status == "accepted"]
    places = first_of(place for r in waiting for place in r.places)
    if not places or moment.generation is None or moment.generation.manifest is None:
        return None
    current = Generation.load(context.store, moment.generation.manifest)
    reached = {c.shard for c in current.constituents if _behind(c, places)}
    places = tuple(p for p in places if p[0] in reached)
    if not places:
        return None
    clean = _clean(context, moment, current.training, reached)
    seen = {c.shard for c in current.constituents if not _behind(c, places) <= clean}
    rolled = current.before(
        tuple(p for p in places if p[0] in seen), context.ledger.certificate_head()
    )
    return None if rolled.same_as(current) else rolled


def _behind(constituent: Constituent, places: Places) -> set[str]:
    """Keys of its stages, a failed one included, at or behind what places name of its shard."""
    first = dict(places).get(constituent.shard)
    if first is None:
        return set()
    stages = [(s.slice, s.key) for s in constituent.stages]
    if constituent.failed:
        stages.append((constituent.failed.slice, constituent.failed.key))
    return {key for slice_, key in stages if slice_ >= first}


def _clean(context: Context, moment: Moment, training: str, shards: set[int]) -> set[str]:
    """Keys of all stages of some shards over the data without what is accepted."""
    dataset = context.load_dataset(moment.dataset)
    gone = moment.pending.gone
    views = through(context.store, context.ring, context.columns, dataset, gone)
    own = {s: [v for v in views if v.shard == s] for s in shards}
    return {link.key for s, found in own.items() for link in chain(s, found, training)}
