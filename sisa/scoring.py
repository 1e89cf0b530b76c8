"""Score files: held-out metrics, and predictions into another file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from data_index import keys, sources
from sisa.context import Context
from sisa.ensemble import SMALLEST, Ensemble, load, predictions
from sisa.errors import DataError, NotFoundError
from sisa.learners.records import Records
from sisa.results import Evaluation, Predicted

WRITERS = {".parquet": pq.ParquetWriter, ".csv": pacsv.CSVWriter}


@dataclass
class _Sums:
    """Running sums of the metrics."""

    records: int = 0
    skipped: int = 0
    right: float = 0.0
    log_loss: float = 0.0
    squares: float = 0.0
    absolutes: float = 0.0


def evaluate(context: Context, path: Path) -> Evaluation:
    """Metrics on a held-out file; rows of erased subjects and records are left out.

    Raises:
        DataError: The file does not fit, or has no row left.
    """
    ensemble = load(context)
    sums = _Sums()
    for rows, records in _read(context, ensemble, path, target=True):
        kept = ~_erased(context, rows)
        sums.skipped += int((~kept).sum())
        if kept.any():
            _add(sums, ensemble, records.take(kept))
    if sums.records == 0:
        raise DataError(f"{path.name} holds no row to evaluate on.", "Point to another file.")
    count = sums.records
    metrics: dict[str, float] = (
        {"accuracy": sums.right / count, "log_loss": sums.log_loss / count}
        if ensemble.encoding.classes
        else {"rmse": float(np.sqrt(sums.squares / count)), "mae": sums.absolutes / count}
    )
    return Evaluation(
        generation=ensemble.number, records=count, skipped_erased=sums.skipped, **metrics
    )


def _add(sums: _Sums, ensemble: Ensemble, records: Records) -> None:
    if records.target is None:
        raise ValueError("evaluation needs targets")
    predicted = ensemble.predict(records)
    sums.records += len(records)
    if ensemble.encoding.classes:
        sums.right += float((predicted.argmax(axis=1) == records.target).sum())
        true = predicted[np.arange(len(records)), records.target]
        sums.log_loss -= float(np.log(np.maximum(true, SMALLEST)).sum())
    else:
        errors = predicted - records.target
        sums.squares += float((errors * errors).sum())
        sums.absolutes += float(np.abs(errors).sum())


def predict_file(context: Context, path: Path, out: Path) -> Predicted:
    """Predict a file into a Parquet or CSV file: record id, prediction, probabilities.

    Raises:
        DataError: The file does not fit, or the output is of another kind.
        NotFoundError: There is no folder for the output.
    """
    if out.suffix.lower() not in WRITERS:
        raise DataError(f"{out.name} is of an unknown kind.", f"Use {' or '.join(WRITERS)}.")
    if not out.parent.is_dir():
        raise NotFoundError(f"The folder {out.parent} does not exist.", "Make it first.")
    ensemble = load(context)
    name = context.columns.record_id
    made = (
        predictions(ensemble, records).add_column(0, name, rows.raw_ids)
        for rows, records in _read(context, ensemble, path, target=False)
    )
    count = _write(made, out)
    if count == 0:
        raise DataError(f"{path.name} holds no rows.", "Point to a file with rows.")
    return Predicted(
        records=count, generation=ensemble.number, digest=ensemble.digest, out=str(out)
    )


def _write(tables: Iterator[pa.Table], out: Path) -> int:
    """Write tables to one file, whole or not at all. Returns the rows; nothing is written of none.

    Raises:
        DataError: The tables differ in their types, or the file cannot be written.
    """
    temporary = out.with_name(f".{out.name}.part")
    writer: Any = None
    schema, count = None, 0
    try:
        for table in tables:
            if writer is None:
                schema = table.schema
                writer = WRITERS[out.suffix.lower()](temporary, schema)
            if table.schema != schema:
                raise DataError("The files have ids of different types.", "Predict them apart.")
            writer.write_table(table)
            count += table.num_rows
        if writer is not None:
            writer.close()
            temporary.replace(out)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror}.") from None
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _read(
    context: Context, ensemble: Ensemble, path: Path, target: bool
) -> Iterator[tuple[sources.Rows, Records]]:
    for file in sources.expand([path]):
        for rows in sources.read(file, context.columns, target=target):
            yield rows, ensemble.encoding.encode(rows.table)


def _erased(context: Context, rows: sources.Rows) -> npt.NDArray[np.bool_]:
    """Which rows are of an erased subject or record; bool [n]."""
    stones = context.ledger.tombstones()
    records = keys.record_keys(context.ring, rows.record_ids)
    subjects = keys.subject_keys(context.ring, rows.subject_ids)
    return context.epochs.meets(stones, records) | context.epochs.meets(stones, subjects)
