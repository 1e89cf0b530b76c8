"""Held-out files against the store: records and data subjects that stand in both, counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_index import keys, lineage, sources
from data_index.keys import Keys
from data_index.lineage import Selection
from data_index.schema import RECORD_KEY, SUBJECT_KEY
from sisa.context import Context
from sisa.results import Finding


@dataclass(frozen=True, slots=True)
class Shared:
    """How much of a file the store holds.

    Attributes:
        rows: Rows of the file.
        records: Its distinct record ids that the store holds.
        subjects: Its distinct data subjects of whom the store holds a record.
        of: Its distinct data subjects.
    """

    rows: int
    records: int
    subjects: int
    of: int


def findings(context: Context, paths: Sequence[Path]) -> Iterator[Finding]:
    """Held-out files that are not held out; no finding names an id.

    Raises:
        NotFoundError: A path does not exist.
        DataError: A file does not fit the recipe.
    """
    if not paths:
        return
    if not context.steady(context.dataset).partitions:
        yield Finding(
            severity="info",
            check="held_out",
            message="The store holds no record yet that held-out files could share.",
            remedy="Run `sisa ingest` first.",
        )
        return
    for file in sources.expand(list(paths)):
        yield from _told(file.name, shared(context, file), context)


def _told(name: str, found: Shared, context: Context) -> Iterator[Finding]:
    if found.records:
        yield Finding(
            severity="warning",
            check="held_out",
            message=f"{found.records} records of {name} ({found.rows} rows) are in the store: what "
            "`sisa evaluate` says of it flatters the model.",
            remedy="Evaluate on records that were never ingested.",
        )
    if found.subjects and context.columns.subject_id is not None:
        yield Finding(
            severity="warning",
            check="held_out",
            message=f"{found.subjects} of {found.of} data subjects of {name} have records in the "
            "store: it says nothing about people that the model has not seen.",
            remedy="Split by data subject, not by row.",
        )


def shared(context: Context, file: Path) -> Shared:
    """Compare a file, read as `evaluate` reads it, with the lineage of the data set.

    Raises:
        DataError: It does not fit the recipe.
    """
    rows = 0
    records, subjects = [keys.empty()], [keys.empty()]
    for batch in sources.read(file, context.columns):
        rows += len(batch.record_ids)
        records.append(keys.record_keys(context.ring, batch.record_ids))
        subjects.append(keys.subject_keys(context.ring, batch.subject_ids))
    named = Selection(_distinct(subjects), _distinct(records))
    held = context.steady(lambda: _rows(context, named))
    return Shared(
        rows=rows,
        records=_held(named.records, keys.from_arrow(held[RECORD_KEY])),
        subjects=_held(named.subjects, keys.from_arrow(held[SUBJECT_KEY])),
        of=len(named.subjects),
    )


def _rows(context: Context, named: Selection) -> pa.Table:
    """Lineage rows of some ids, without what is accepted."""
    dataset = context.dataset()
    held = lineage.find(context.store, dataset.by_record, dataset.by_subject, named)
    return held.filter(pa.array(~context.ledger.pending().gone.mask(held)))


def _distinct(parts: list[Keys]) -> Keys:
    found: Keys = np.unique(np.concatenate(parts), axis=0)
    return found


def _held(named: Keys, held: Keys) -> int:
    return int(keys.contains(_distinct([held]), named).sum())
