"""Residue: is anything of an erasure left, in any place that the system writes to?

How an erasure uses it:

    at acceptance, for the ids that are known
        sealed, key = seal(named(context, subjects, records))
        # both into one row of the ledger, columns `sealed` and `key`

    at the start of carrying out, before anything is rewritten
        opened = unseal(sealed, key)
        sealed, key = seal(opened | erased(context, opened.gone))
        # replaces the row

    after every purge, before the certificate
        found = of(context, [unseal(sealed, key), ...])
        # valid and clean: certify with `found.digest`, and delete the rows
        # otherwise: the request is blocked, and its rows stay

`of` reports nothing that occurs in rows that stay. It tells these by `ScanSet.gone`, in the
partitions of the data set that is current: call it when the rows are rewritten.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from data_index import keys
from data_index.lineage import Selection
from sisa.context import Context
from sisa.residue.needles import ScanSet, split
from sisa.residue.places import places
from sisa.residue.rows import erased, legitimate
from sisa.residue.scan import Hit, Scan, scan
from sisa.residue.seal import seal, unseal

__all__ = ["Hit", "Scan", "ScanSet", "erased", "keys_of", "named", "of", "seal", "unseal"]


def named(context: Context, subjects: Sequence[str | int], records: Sequence[str | int]) -> ScanSet:
    """The scan set of ids alone: themselves, and their keys.

    Args:
        context: The workspace.
        subjects: Ids of subjects; without a subject column, of records.
        records: Ids of records.

    Raises:
        DataError: An id is empty or padded.
    """
    if context.columns.subject_id is None:
        subjects, records = (), (*subjects, *records)
    people, single = _canonical(subjects), _canonical(records)
    return ScanSet(
        ids=tuple(sorted({*people, *single})),
        subjects=split(keys.subject_keys(context.ring, people)),
        records=split(keys.record_keys(context.ring, single)),
    )


def keys_of(gone: Selection) -> ScanSet:
    """The scan set of what a request names, where nobody can tell the ids any more."""
    return ScanSet(subjects=split(gone.subjects), records=split(gone.records))


def of(
    context: Context,
    open_sets: Iterable[ScanSet],
    asked: ScanSet | None = None,
    whole: bool = False,
) -> Scan:
    """Search every place of the workspace for what scan sets give; the caller holds the lease.

    Args:
        context: The workspace.
        open_sets: Those of open requests, whose named keys the ledger holds until certification.
        asked: One of ids that somebody gives now; its keys must not be in the ledger either.
        whole: Also look at files in the workspace that the system did not make.

    Raises:
        ExactnessError: A stored partition cannot be read, so that what stays is not known.
    """
    opened = ScanSet()
    for scan_set in open_sets:
        opened |= scan_set
    asked = asked or ScanSet()
    everything = opened | asked

    def search(stays: set[bytes]) -> Scan:
        needles, short = opened.without(stays).needles(is_open=True)
        more, too_short = asked.without(stays).needles()
        sought = {n.pattern: n for n in (*more, *needles)}
        return scan(
            context.store,
            places(context, whole),
            tuple(sought.values()),
            short=short + too_short,
            legitimate=len(stays),
        )

    if everything.texts:  # short texts stand in other rows as a rule
        return search(legitimate(context, everything))
    found = search(set())
    if found.hits or found.elsewhere:
        return search(legitimate(context, everything))
    return found


def _canonical(ids: Sequence[str | int]) -> list[bytes]:
    return keys.canonical_texts([str(i) for i in ids], "The call")
