"""The chain of certificates, walked from its head in the ledger back to the first one.

None can be removed, replaced or moved without breaking it, the last one included.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_index.storage import sha256
from sisa import statement
from sisa.certificate import FOLDER, path_of, place_of, waiting
from sisa.checks import Outcome
from sisa.context import Context
from sisa.errors import ExactnessError, NotFoundError
from sisa.results import CertificateEntry, CertificateList
from sisa.statement import Statement

RESTORE = "Restore the store from a backup."


@dataclass(frozen=True, slots=True)
class Kept:
    """A certificate of the store: path, bytes, and what it states."""

    path: str
    data: bytes
    statement: Statement


def walk(context: Context) -> tuple[Kept, ...]:
    """All certificates that the ledger knows, in the order in which they were issued.

    Raises:
        ExactnessError: One is missing, damaged, replaced, out of place, or not signed by a key of
            the workspace.
    """
    last = context.ledger.last_certificate()
    if last is None:
        return ()
    trusted = context.signing.trusted()
    found: list[Kept] = []
    expected: str | None = last[1]
    for place in range(place_of(last[0]), 0, -1):
        path = path_of(place)
        try:
            data = context.store.read_unchecked(path)
        except NotFoundError:
            raise ExactnessError(f"Certificate {place} is missing.", RESTORE) from None
        if sha256(data) != expected:
            whose = "the ledger names" if place_of(last[0]) == place else "the next one names"
            raise ExactnessError(f"Certificate {place} is not the one that {whose}.", RESTORE)
        stated = statement.read(data, trusted)
        if stated.predicate.sequence != place:
            raise ExactnessError(f"Certificate {place} states another place.", RESTORE)
        found.append(Kept(path, data, stated))
        expected = stated.predicate.previous
    if expected is not None:
        raise ExactnessError("Certificate 1 names one before it.", RESTORE)
    return tuple(reversed(found))


def listed(context: Context) -> CertificateList:
    """The chain as documents show it. Raises as `walk` does."""
    found = tuple(
        CertificateEntry(
            sequence=k.statement.predicate.sequence,
            request=k.statement.predicate.request,
            issued=k.statement.predicate.times.issued,
            records=k.statement.predicate.records_erased,
            file=str(context.store.path(k.path)),
            sha256=sha256(k.data),
        )
        for k in walk(context)
    )
    return CertificateList(certificates=found, head=found[-1].sha256 if found else None)


def file_of(context: Context, request_id: str) -> Path:
    """The file of an erasure request's certificate.

    Raises:
        NotFoundError: There is no such request, or it is not certified.
    """
    named = {r.id: r.certificate for r in context.ledger.requests()}.get(request_id)
    if named is None:
        raise NotFoundError(
            "There is no such certificate: the name is neither a file nor the id of a "
            "certified request.",
            "See `sisa certificate list`.",
        )
    return context.store.path(named)


def outcome(context: Context) -> Outcome:
    """Whether the chain is whole, the requests' own, and all that lies in its folder.

    What is wrong because a request was certified meanwhile is looked at again.

    Raises:
        ExactnessError: As `walk`, or what lies at the next place is no certificate.
    """
    while True:
        before = context.ledger.requests()
        try:
            found = _outcome(context)
        except ExactnessError:
            if context.ledger.requests() == before:
                raise
            continue
        if found[0] is not False or context.ledger.requests() == before:
            return found


def _outcome(context: Context) -> Outcome:
    there = set(context.store.list(FOLDER))  # listed first: what comes later is spared
    kept = walk(context)
    requests = {r.id: r.certificate for r in context.ledger.requests()}
    stated = {k.path: k.statement.predicate.request for k in kept}
    mine = {path: request for request, path in requests.items() if path is not None}
    if wrong := {p for p in mine if stated.get(p) != mine[p]} | (
        set(stated.values()) - set(requests)
    ):
        return False, f"{len(wrong)} certificates are not those of the ledger's requests"
    found = waiting(context)
    more = there - set(stated) - ({found[0]} if found else set())
    if more:
        return False, f"{len(more)} files among the certificates are not in the chain"
    if found:
        return None, "a certificate waits to be entered; run `sisa work`"
    head = f"; the last is {sha256(kept[-1].data)}" if kept else ""
    return True, f"{len(kept)} in the chain, signed and in their places{head}"
