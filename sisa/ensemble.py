"""Load a generation, aggregate, predict, evaluate."""

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
from data_index.storage import Store
from sisa import checkpoint, learners
from sisa.config import Aggregation
from sisa.context import Context
from sisa.errors import DataError, ExactnessError, IncompleteError, NotFoundError
from sisa.generation import Generation
from sisa.learners.protocol import Learner, State
from sisa.learners.records import Encoding, Records
from sisa.results import Evaluation, Predicted

Floats = npt.NDArray[np.float64]

SMALLEST = 1e-15
"""Probabilities are held above it before a logarithm."""


def aggregate(predictions: Floats, how: Aggregation) -> Floats:
    """Combine the votes of constituents, in float64 and in shard order.

    Args:
        predictions: Probabilities [constituents, n, classes], or values [constituents, n].
        how: `mean`; `vote` (share of constituents whose largest probability it is);
            `log_mean` (normalised geometric mean); `median` of values.

    Returns:
        Probabilities [n, classes], or values [n].
    """
    if how == "mean":
        return np.asarray(predictions.mean(axis=0))
    if how == "median":
        return np.asarray(np.median(predictions, axis=0))
    if how == "vote":
        return np.asarray(np.eye(predictions.shape[2])[predictions.argmax(axis=2)].mean(axis=0))
    logs = np.log(np.maximum(predictions, SMALLEST)).mean(axis=0)
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Ensemble:
    """A generation, loaded and checked.

    Attributes:
        number: The generation's number.
        digest: Its digest.
        encoding: How rows become blocks of numbers.
        learner: What predicts.
        states: States of the voting constituents in shard order.
        aggregation: How votes are combined.
    """

    number: int
    digest: str
    encoding: Encoding
    learner: Learner
    states: tuple[State, ...]
    aggregation: Aggregation

    def predict(self, records: Records) -> Floats:
        """Class probabilities float64 [n, classes], or values float64 [n] of a regression."""
        votes = [self.learner.predict(state, records) for state in self.states]
        return aggregate(np.stack(votes), self.aggregation)


def load(context: Context) -> Ensemble:
    """Load the current generation.

    Raises:
        IncompleteError: Nothing is trained, or too few constituents vote.
        ExactnessError: A checkpoint is damaged.
    """
    while True:
        entry, generation = context.served()
        require_quorum(generation, context.config.runtime.erasure.quorum)
        try:
            states = _states(context.store, generation)
        except ExactnessError:
            # Swept under our feet: another generation is current by now.
            now = context.ledger.generation()
            if now is not None and now.number == entry.number:
                raise
            continue
        context.find_user_modules()
        return Ensemble(
            entry.number,
            generation.digest,
            Encoding.of(generation.recipe.data),
            learners.load(generation.recipe),
            states,
            generation.recipe.aggregation,
        )


def require_quorum(generation: Generation, quorum: float) -> None:
    """Refuse to answer with too few votes.

    Raises:
        IncompleteError: Fewer constituents vote than the quorum asks for.
    """
    if not generation.quorate(quorum):
        raise IncompleteError(
            f"Only {len(generation.voting)} of {generation.recipe.partition.shards} constituents "
            f"vote, fewer than the quorum of {quorum:g}.",
            "Run `sisa work`, or correct the recipe and train.",
        )


def _states(store: Store, generation: Generation) -> tuple[State, ...]:
    last = [c.stages[-1] for c in generation.voting]
    return tuple(checkpoint.read(store, s.file, s.tensors) for s in last)


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


def predict_table(context: Context, table: pa.Table) -> pa.Table:
    """Predict the rows of a table: prediction, and for a classification all probabilities."""
    ensemble = load(context)
    columns = [
        sources.cast_feature(table[f.name].combine_chunks(), f)
        for f in ensemble.encoding.columns.features
    ]
    names = [f.column for f in ensemble.encoding.columns.features]
    records = ensemble.encoding.encode(pa.table(columns, names=names))
    return _predictions(ensemble, records)


def predict_file(context: Context, path: Path, out: Path) -> Predicted:
    """Predict a file into a Parquet or CSV file: record id, prediction, probabilities.

    Raises:
        DataError: The file does not fit, or the output is of another kind.
    """
    if out.suffix.lower() not in (".parquet", ".csv"):
        raise DataError(f"{out.name} is of an unknown kind.", "Use .parquet or .csv.")
    if not out.parent.is_dir():
        raise NotFoundError(f"The folder {out.parent} does not exist.", "Make it first.")
    ensemble = load(context)
    temporary = out.with_name(f".{out.name}.part")
    count = 0
    writer: Any = None
    try:
        for rows, records in _read(context, ensemble, path, target=False):
            made = _predictions(ensemble, records)
            made = made.add_column(0, context.columns.record_id, rows.raw_ids)
            count += made.num_rows
            if writer is None:
                kind = pq.ParquetWriter if out.suffix.lower() == ".parquet" else pacsv.CSVWriter
                writer = kind(temporary, made.schema)
            writer.write_table(made)
        if writer is None:
            raise DataError(f"{path.name} holds no rows.", "Point to a file with rows.")
        writer.close()
        temporary.replace(out)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror}.") from None
    finally:
        temporary.unlink(missing_ok=True)
    return Predicted(
        records=count, generation=ensemble.number, digest=ensemble.digest, out=str(out)
    )


def _read(
    context: Context, ensemble: Ensemble, path: Path, target: bool
) -> Iterator[tuple[sources.Rows, Records]]:
    for file in sources.expand([path]):
        for rows in sources.read(file, context.columns, target=target):
            yield rows, ensemble.encoding.encode(rows.table)


def _predictions(ensemble: Ensemble, records: Records) -> pa.Table:
    predicted = ensemble.predict(records)
    classes = ensemble.encoding.columns.classes
    if classes is None:
        return pa.table({"prediction": predicted})
    labels = pa.array(classes).take(pa.array(predicted.argmax(axis=1)))
    shares = {f"probability_{c}": predicted[:, i] for i, c in enumerate(classes)}
    return pa.table({"prediction": labels, **shares})


def _erased(context: Context, rows: sources.Rows) -> npt.NDArray[np.bool_]:
    """Which rows are of an erased subject or record; bool [n]."""
    stones = context.ledger.tombstones()
    records = keys.record_keys(context.ring, rows.record_ids)
    subjects = keys.subject_keys(context.ring, rows.subject_ids)
    return context.epochs.meets(stones, records) | context.epochs.meets(stones, subjects)
