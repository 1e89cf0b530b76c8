"""What a workspace comes to now, and the generations that it has had."""

from __future__ import annotations

from sisa.context import Context
from sisa.results import History, HistoryEntry, Status
from sisa.states import request_state


def status(context: Context) -> Status:
    """The current generation and all requests."""
    dataset, current, now = context.dataset(), context.current(), context.ledger.clock()
    entry, generation = current or (None, None)
    quorum = context.config.runtime.erasure.quorum
    return Status(
        workspace=str(context.folder),
        generation=entry and entry.number,
        digest=entry and entry.digest,
        reason=entry and entry.reason,
        voting=len(generation.voting) if generation else 0,
        shards=context.config.recipe.partition.shards,
        depth=round(generation.depth, 6) if generation else 0.0,
        quorate=generation.quorate(quorum) if generation else False,
        records=dataset.records,
        partitions=len(dataset.partitions),
        requests=tuple(request_state(r, now) for r in context.ledger.requests()),
        certificate_head=context.ledger.certificate_head(),
        outbox=len(context.ledger.outbox()),
    )


def history(context: Context) -> History:
    """All generations, the oldest first."""
    entries = context.ledger.generations()
    return History(
        generations=tuple(
            HistoryEntry(
                number=e.number,
                digest=e.digest,
                time=e.time,
                reason=e.reason,
                current=e is entries[-1],
                retired=e.manifest is None,
            )
            for e in entries
        )
    )
