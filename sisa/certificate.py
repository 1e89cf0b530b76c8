"""The certificate of an erasure: an in-toto statement of facts that can be checked.

It names no id, key or pseudonym. Certificates are chained: each holds the sha256 of the one before,
and the head stands in the ledger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from data_index.leases import Lease
from data_index.requests import Request, touches
from data_index.storage import canonical_json
from sisa import stage_log
from sisa.context import Context
from sisa.generation import Generation

if TYPE_CHECKING:
    from sisa.publish import Published
    from sisa.purge import Swept

FOLDER = "certificates"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://sisa-unlearning.org/erasure/v1"

OUTSIDE = (
    "backups and copies outside the store",
    "the source tables",
    "what was derived from predictions",
    "the choice of the recipe",
)
"""What an erasure does not reach; docs/threat-model.md says more."""


def issue(
    context: Context,
    lease: Lease,
    request: Request,
    published: Published | None,
    swept: Swept,
) -> None:
    """Write a request's certificate and close the request; repeating it after a crash is safe."""
    body = _statement(context, request, published, swept)
    file = context.store.put_named(f"{FOLDER}/{request.id}.json", canonical_json(body))
    context.store.flush()
    context.ledger.certify(request.id, file, lease)


def _statement(
    context: Context, request: Request, published: Published | None, swept: Swept
) -> dict[str, Any]:
    generation = published.generation if published else None
    return {
        "_type": STATEMENT,
        "predicateType": PREDICATE,
        "subject": _subjects(request, published),
        "predicate": {
            "request": request.id,
            "received": request.received,
            "due": request.due,
            "events": [list(e) for e in context.ledger.events(request.id)],
            "issued": context.ledger.clock().isoformat(timespec="milliseconds"),
            "exactness": "bitwise",
            "records_erased": request.records,
            "shards": [{"shard": s, "first_slice": r} for s, r in request.places],
            "generation_before": request.generation_before,
            "generation_after": published and published.number,
            "generation_digest": generation and generation.digest,
            "training_digest": generation and generation.training,
            "fingerprints": _fingerprints(context, request, generation),
            "files_destroyed": swept.files,
            "replay": "none",
            "outside": list(OUTSIDE),
            "previous": context.ledger.certificate_head(),
        },
    }


def _rebuilt(request: Request, generation: Generation) -> list[Any]:
    """The stages of the generation that stand where the erased records had been."""
    return [
        (c.shard, s)
        for c in generation.constituents
        for s in c.stages
        if touches(request.places, c.shard, s.slice)
    ]


def _subjects(request: Request, published: Published | None) -> list[dict[str, Any]]:
    """What the statement is about: the generation and every rebuilt checkpoint, by digest."""
    if published is None:
        return []
    rebuilt = [
        {"name": f"shard {shard} slice {s.slice}", "digest": {"sha256": s.file.sha256}}
        for shard, s in _rebuilt(request, published.generation)
    ]
    digest = {"sha256": published.generation.digest}
    return [{"name": f"generation {published.number}", "digest": digest}, *rebuilt]


def _fingerprints(
    context: Context, request: Request, generation: Generation | None
) -> list[dict[str, Any]]:
    """The environments that the rebuilt stages ran in, each with its stages."""
    if generation is None:
        return []
    found: dict[bytes, dict[str, Any]] = {}
    for shard, stage in _rebuilt(request, generation):
        record = stage_log.read_shard(context.store, shard).get(stage.key)
        if record is not None:
            name = canonical_json(record.fingerprint)
            entry = found.setdefault(name, {"fingerprint": record.fingerprint, "stages": []})
            entry["stages"].append([shard, stage.slice])
    return list(found.values())
