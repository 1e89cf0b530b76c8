"""From a data subject or a record down to its stages, generations and certificates."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from data_index import keys, lineage
from data_index.dataset import DataSet
from data_index.lineage import Selection
from data_index.requests import Places, touches
from data_index.schema import RECORD_KEY, SUBJECT_KEY
from sisa.context import Context
from sisa.errors import UsageError
from sisa.generation import Generation
from sisa.lookup import look_up
from sisa.results import LineageRecord, LineageResult, LineageStage
from sisa.states import state


def trace(context: Context, subject: str | int | None, record: str | int | None) -> LineageResult:
    """Look one id up.

    Raises:
        UsageError: Not exactly one id is given.
    """
    if (subject is None) == (record is None):
        raise UsageError("Name one subject or one record.", "Use --subject or --record.")
    named = look_up(
        context, [] if subject is None else [subject], [] if record is None else [record]
    )
    request = named.earlier[-1] if named.earlier else None
    return LineageResult(
        records=tuple(_records(context, named.rows)),
        stages=tuple(_stages(context, named.places)),
        generations=tuple(_generations(context, named.places)),
        erased=request is not None,
        status=request and state(request),
        certificate=request
        and request.certificate
        and str(context.store.path(request.certificate)),
    )


def _records(context: Context, rows: pa.Table) -> Iterator[LineageRecord]:
    origins = _origins(context, context.dataset(), rows)
    for row in rows.to_pylist():
        source, number = origins.get(row[RECORD_KEY], (None, None))
        yield LineageRecord(
            record_key=row[RECORD_KEY].hex(),
            subject_key=row[SUBJECT_KEY].hex(),
            shard=row["shard"],
            slice=row["slice"],
            source=source,
            row=number,
        )


def _origins(context: Context, dataset: DataSet, rows: pa.Table) -> dict[bytes, tuple[str, int]]:
    """Source file and row of each record, from the journals."""
    wanted = Selection(keys.empty(), keys.from_arrow(rows[RECORD_KEY]))
    found: dict[bytes, tuple[str, int]] = {}
    for journal in dataset.journals if rows.num_rows else ():
        for table in lineage.scan(context.store, journal):
            hits = table.filter(pa.array(wanted.mask(table)))
            for row in hits.to_pylist():
                found[row[RECORD_KEY]] = row["file"], row["row"]
    return found


def _stages(context: Context, places: Places) -> Iterator[LineageStage]:
    current = context.current()
    if current is None:
        return
    for constituent in current[1].constituents:
        for stage in constituent.stages:
            if touches(places, constituent.shard, stage.slice):
                yield LineageStage(shard=constituent.shard, slice=stage.slice, key=stage.key)


def _generations(context: Context, places: Places) -> Iterator[int]:
    """Kept generations with a stage that has seen the rows."""
    for entry in context.ledger.generations():
        if entry.manifest is None:
            continue
        generation = Generation.load(context.store, entry.manifest)
        if any(
            touches(places, c.shard, stage.slice)
            for c in generation.constituents
            for stage in c.stages
        ):
            yield entry.number
