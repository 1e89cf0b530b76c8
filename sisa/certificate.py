"""Issue the certificate of an erasure: state what was done, sign it, and take a place in the chain.

Each certificate holds the sha256 of the one before it, and the ledger that of the last one. The
file comes first, under the name of its place, which can be taken once; then the ledger closes the
request. A crash between the two leaves a file, which `complete` enters as it is.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from data_index.leases import Lease
from data_index.requests import Request, iso, touches
from data_index.storage import sha256
from data_index.view import through
from sisa import stage_log, statement
from sisa.context import Context
from sisa.errors import BusyError, ExactnessError, NotFoundError
from sisa.generation import Generation, Stage
from sisa.replay import EQUAL, replay_shards
from sisa.results import ShardReplay
from sisa.stage import chain
from sisa.statement import (
    OUTSIDE,
    Ensemble,
    Erasure,
    PartitionChange,
    RebuiltStage,
    Replayed,
    Rows,
    Statement,
    Subject,
    Times,
    Touched,
)

if TYPE_CHECKING:
    from sisa.publish import Published

FOLDER = "certificates"


@dataclass(frozen=True)
class Evidence:
    """What was seen of an erasure's end.

    Attributes:
        destroyed: Count of destroyed files, by folder of the store.
        purged: When that was.
        mirror: What the purge of the MLflow mirror came to, as JSON; None if none was asked for.
        residue: Digest and outcome of the residue scan, as JSON; None if there was none.
    """

    destroyed: Mapping[str, int]
    purged: datetime
    mirror: dict[str, Any] | None = None
    residue: dict[str, Any] | None = None


def path_of(place: int) -> str:
    """Where in the store the certificate of a place in the chain lies, from 1."""
    return f"{FOLDER}/{place:010d}.json"


def place_of(path: str) -> int:
    """Place in the chain of a certificate's file."""
    return int(path.removeprefix(f"{FOLDER}/").removesuffix(".json"))


def issue_all(
    context: Context,
    lease: Lease,
    requests: Sequence[Request],
    published: Published | None,
    evidence: Evidence,
) -> None:
    """Certify requests that were carried out together, after the replay that is asked for.

    Raises:
        ExactnessError: A shard came out otherwise when it was trained again; nothing is issued.
        BusyError: The lease was lost.
    """
    shards = _replay(context, requests, published)
    for request in requests:
        issue(context, lease, request, published, evidence, shards)


def issue(
    context: Context,
    lease: Lease,
    request: Request,
    published: Published | None,
    evidence: Evidence,
    replayed: Sequence[ShardReplay] = (),
) -> None:
    """Write a request's certificate and close the request.

    Raises:
        BusyError: The lease was lost.
    """
    place, previous = _next(context)
    stated = _statement(context, request, published, evidence, replayed, place, previous)
    data = stated.signed(context.signing.signer())
    path = path_of(place)
    if not context.store.put_new(path, data):
        raise BusyError("Another process has issued a certificate meanwhile.", "Try again.")
    context.ledger.certify(request.id, path, data, lease)


def complete(context: Context, lease: Lease) -> list[str]:
    """Enter certificates that a crash left in the store and not in the ledger, as they are.

    Returns:
        Ids of the requests that they close.

    Raises:
        ExactnessError: What lies there is no certificate that the ledger waits for.
    """
    done: list[str] = []
    while (found := waiting(context)) is not None:
        path, data, request = found
        context.store.put_named(path, data)  # durable, whatever became of the first write
        context.store.flush()
        context.ledger.certify(request, path, data, lease)
        done.append(request)
    return done


def waiting(context: Context) -> tuple[str, bytes, str] | None:
    """A certificate in the store that the ledger has not entered: path, bytes, id of its request.

    Raises:
        ExactnessError: What lies at the next place is no certificate of an open request.
    """
    place, previous = _next(context)
    path = path_of(place)
    try:
        data = context.store.read_unchecked(path)
    except NotFoundError:
        return None
    found = statement.read(data, context.signing.trusted()).predicate
    open_ = {r.id for r in context.ledger.requests() if r.certificate is None}
    if (found.sequence, found.previous) != (place, previous) or found.request not in open_:
        raise ExactnessError(
            f"{path} is a certificate that the ledger does not wait for.",
            "Restore store and ledger from the same backup.",
        )
    return path, data, found.request


def _next(context: Context) -> tuple[int, str | None]:
    """The next place in the chain, and the sha256 of the certificate before it."""
    last = context.ledger.last_certificate()
    return (1, None) if last is None else (place_of(last[0]) + 1, last[1])


def _statement(
    context: Context,
    request: Request,
    published: Published | None,
    evidence: Evidence,
    replayed: Sequence[ShardReplay],
    place: int,
    previous: str | None,
) -> Statement:
    dataset = context.ledger.dataset()
    if dataset is None:
        raise ExactnessError("There is a request, and no data set.", "Restore the ledger.")
    stages = _rebuilt(request, published.generation) if published else []
    described, environments = _describe(context, stages)
    return Statement(
        subject=_subjects(dataset.sha256, published, stages),
        predicate=Erasure(
            request=request.id,
            sequence=place,
            previous=previous,
            exactness="bitwise",
            records_erased=request.records,
            shards=tuple(Touched(shard=s, first_slice=r) for s, r in request.places),
            partitions=_partitions(context, request),
            dataset=dataset.sha256,
            generation_before=request.generation_before,
            generation=_ensemble(published),
            stages=described,
            environments=environments,
            files_destroyed=dict(evidence.destroyed),
            mirror=evidence.mirror,
            residue=evidence.residue,
            times=_times(context, request, evidence),
            replay=context.config.runtime.erasure.replay,
            replayed=tuple(
                _outcome(r) for r in replayed if any(r.shard == s for s, _ in request.places)
            ),
            outside=OUTSIDE,
        ),
    )


def _times(context: Context, request: Request, evidence: Evidence) -> Times:
    when = {what: time for time, what in context.ledger.events(request.id)}
    return Times(
        received=request.received,
        due=request.due,
        accepted=when["accepted"],
        published=when.get("published"),
        purged=iso(evidence.purged),
        issued=iso(context.ledger.clock()),
    )


def _ensemble(published: Published | None) -> Ensemble | None:
    if published is None:
        return None
    generation = published.generation
    return Ensemble(
        number=published.number,
        digest=generation.digest,
        manifest=sha256(generation.manifest),
        training_digest=generation.training,
    )


def _rebuilt(request: Request, generation: Generation) -> list[tuple[int, Stage]]:
    """The stages of the generation that stand where the erased records had been."""
    return [
        (c.shard, s)
        for c in generation.constituents
        for s in c.stages
        if touches(request.places, c.shard, s.slice)
    ]


def _subjects(
    dataset: str, published: Published | None, stages: Sequence[tuple[int, Stage]]
) -> tuple[Subject, ...]:
    """What the statement is about, by the sha256 of its file."""
    found = [("data set", dataset)]
    if published is not None:
        manifest = sha256(published.generation.manifest)
        found.append((f"generation {published.number}", manifest))
    found += [(f"shard {n} slice {s.slice}", s.file.sha256) for n, s in stages if s.file]
    return tuple(Subject(name=name, digest={"sha256": digest}) for name, digest in found)


def _partitions(context: Context, request: Request) -> tuple[PartitionChange, ...]:
    now = {
        (p.shard, p.slice): Rows(rows=p.rows, digest=p.logical)
        for p in context.dataset().partitions
    }
    return tuple(
        PartitionChange(
            shard=shard,
            slice=slice_,
            erased=erased,
            before=Rows(rows=rows, digest=logical),
            after=now.get((shard, slice_)),
        )
        for shard, slice_, erased, rows, logical in request.before
    )


def _describe(
    context: Context, stages: Sequence[tuple[int, Stage]]
) -> tuple[tuple[RebuiltStage, ...], dict[str, dict[str, Any]]]:
    """Stages, and the environments that they were trained in, by digest."""
    logs = {n: stage_log.read_shard(context.store, n) for n in {shard for shard, _ in stages}}
    environments: dict[str, dict[str, Any]] = {}
    described = []
    for shard, stage in stages:
        record, environment = logs[shard].get(stage.key), None
        if record is not None:
            environment = statement.environment_digest(record.fingerprint)
            environments[environment] = record.fingerprint
        described.append(
            RebuiltStage(
                shard=shard,
                slice=stage.slice,
                key=stage.key,
                tensors=stage.tensors,
                checkpoint=stage.file.sha256 if stage.file else None,
                environment=environment,
            )
        )
    return tuple(described), environments


def _replay(
    context: Context, requests: Sequence[Request], published: Published | None
) -> tuple[ShardReplay, ...]:
    """Train the affected shards, or one of each request's, again.

    Raises:
        ExactnessError: One came out otherwise.
    """
    asked = context.config.runtime.erasure.replay
    if published is None or asked == "none":
        return ()
    generation = published.generation
    there = {c.shard for c in generation.constituents}
    wanted: set[int] = set()
    for request in requests:
        affected = {shard for shard, _ in request.places} & there
        if asked == "all":
            wanted |= affected
        elif affected and not affected & wanted:
            wanted.add(random.SystemRandom().choice(sorted(affected)))
    dataset, gone = context.dataset(), published.pending.gone
    views = through(context.store, context.ring, context.columns, dataset, gone)
    chains = {n: chain(n, (v for v in views if v.shard == n), generation.training) for n in wanted}
    chosen = [c for c in generation.constituents if c.shard in wanted]
    found = replay_shards(context, generation, chains, views, chosen) if chosen else ()
    wrong = [str(r.shard) for r in found if r.comparable and r.detail != EQUAL]
    if wrong:
        raise ExactnessError(
            f"Shards that came out otherwise when they were trained again: {', '.join(wrong)}. "
            "No certificate is issued.",
            "Run `sisa verify`, and `sisa doctor` for what is not repeatable.",
        )
    return found


def _outcome(replayed: ShardReplay) -> Replayed:
    return Replayed(
        shard=replayed.shard,
        digest=replayed.digest,
        replay_digest=replayed.replay_digest,
        equal=True if replayed.detail == EQUAL else None,
        detail=replayed.detail,
    )
