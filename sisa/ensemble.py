"""Load a generation, aggregate, predict, evaluate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_index import casting
from sisa import checkpoint, learners
from sisa.config import Aggregation
from sisa.context import Context
from sisa.errors import IncompleteError
from sisa.generation import Generation
from sisa.learners.protocol import Learner, State
from sisa.learners.records import Encoding, Records

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
    entry, generation = context.served()
    require_quorum(generation, context.config.runtime.erasure.quorum)
    last = [c.stages[-1] for c in generation.voting]
    context.find_user_modules()
    return Ensemble(
        entry.number,
        generation.digest,
        Encoding.of(generation.recipe.data),
        learners.load(generation.recipe),
        tuple(checkpoint.read(context.store, s.file, s.tensors) for s in last),
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


def predict_table(context: Context, table: pa.Table) -> pa.Table:
    """Predict the rows of a table: prediction, and for a classification all probabilities.

    Raises:
        DataError: It lacks a feature column, or one does not fit.
    """
    ensemble = load(context)
    features = casting.cast_features(table, ensemble.encoding.columns)
    return predictions(ensemble, ensemble.encoding.encode(features))


def predictions(ensemble: Ensemble, records: Records) -> pa.Table:
    """What a user gets of n records: prediction, and for a classification all probabilities."""
    predicted = ensemble.predict(records)
    classes = ensemble.encoding.columns.classes
    if classes is None:
        return pa.table({"prediction": predicted})
    labels = pa.array(classes).take(pa.array(predicted.argmax(axis=1)))
    shares = {f"probability_{c}": predicted[:, i] for i, c in enumerate(classes)}
    return pa.table({"prediction": labels, **shares})
