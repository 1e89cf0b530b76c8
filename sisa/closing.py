"""The end of an erasure: destroy everywhere, look everywhere, and only then certify."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from data_index import scan_sets
from data_index.leases import Lease
from data_index.requests import Pending, Request, iso
from sisa import certificate, purge, residue
from sisa.context import Context
from sisa.errors import BlockedError
from sisa.publish import Published
from sisa.residue import ScanSet

RETRY = 3600.0
"""Seconds until a search that found something is worth another try."""


def note_rows(context: Context, lease: Lease, taken: Pending) -> None:
    """Add to the scan sets what the rows are made of, while they are still in the files.

    Raises:
        BusyError: The lease was lost.
    """
    known = open_sets(context)
    sealed = {}
    for request in taken.requests:
        gone = taken.named_by({request.id})
        found = residue.erased(context, gone)
        if found != ScanSet() or request.id not in known:
            sealed[request.id] = residue.seal(
                residue.keys_of(gone) | known.get(request.id, ScanSet()) | found
            )
    with context.ledger.write() as connection:
        lease.check(connection)
        scan_sets.put(connection, sealed)


def open_sets(context: Context) -> dict[str, ScanSet]:
    """The scan sets of open requests, by their id."""
    with context.ledger.read() as connection:
        sealed = scan_sets.every(connection)
    return {name: residue.unseal(*pair) for name, pair in sealed.items()}


def rewritten_sets(context: Context) -> list[ScanSet]:
    """The scan sets of open requests of which no row is in the files any more."""
    found = open_sets(context).values()
    return [one for one in found if residue.erased(context, one.gone) == ScanSet()]


def close(
    context: Context, lease: Lease, requests: Sequence[Request], published: Published | None
) -> None:
    """Purge the store and the mirror, search for residue, and certify requests.

    Args:
        context: The workspace.
        lease: The writer's.
        requests: Those of which no row is left in the files; perhaps none.
        published: What was built for them, None if nothing was ever trained.

    Raises:
        BlockedError: The mirror cannot be purged now, or something was found; no certificate is
            issued, and the requests are blocked.
        ExactnessError: A replay that was asked for came out otherwise.
        BusyError: The lease was lost.
    """
    swept = purge.purge(context, lease)
    if not requests:
        return
    try:
        mirror = context.purge_mirror()
        found = _searched(context, requests)
    except BlockedError as error:
        _block(context, lease, requests, error)
        raise
    evidence = certificate.Evidence(swept.files, context.ledger.clock(), mirror.to_json(), found)
    certificate.issue_all(context, lease, requests, published, evidence)


def _searched(context: Context, requests: Sequence[Request]) -> dict[str, Any] | None:
    """Digest and outcome of the search, None if none is wanted.

    Raises:
        BlockedError: Something was found, or the search missed its own controls.
    """
    if context.config.runtime.erasure.residue == "none":
        return None
    context.ledger.compact()
    known = open_sets(context)
    scan = residue.of(context, [known[r.id] for r in requests if r.id in known])
    if not scan.valid:
        missed = ", ".join(name for name, found in scan.controls.items() if not found)
        raise BlockedError(
            f"The search for residue is not valid: it missed its own controls {missed}.",
            "Run `sisa work` again; report it if it happens again.",
            RETRY,
        )
    if scan.hits:
        places = ", ".join(sorted({h.where for h in scan.hits})[:5])
        raise BlockedError(
            f"Residue of an erasure was found in {places}.",
            "Remove it, or see docs/residue.md; then run `sisa work`.",
            RETRY,
        )
    return {
        "digest": scan.digest,
        "files": scan.files,
        "bytes": scan.bytes,
        "found": len(scan.hits),
        "controls": len(scan.controls),
        "opaque": scan.opaque,
        "not_decoded": len(scan.undecodable) + len(scan.refused),
        "too_short": scan.short,
    }


def _block(
    context: Context, lease: Lease, requests: Sequence[Request], error: BlockedError
) -> None:
    retry = iso(context.ledger.clock() + timedelta(seconds=error.retry))
    context.ledger.block([r.id for r in requests], error.message, retry, lease)
