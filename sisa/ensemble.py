"""Load a generation, aggregate, predict, evaluate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_index import casting
from data_index.storage import Store
from sisa import checkpoint, learners
from sisa.config import Aggregation
from sisa.context import Context
from sisa.learners.protocol import Predict, predictor
from sisa.learners.records import Encoding, Records
from sisa.served import Served

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
        votes: What each voting constituent predicts, in shard order.
        aggregation: How votes are combined.
    """

    number: int
    digest: str
    encoding: Encoding
    votes: tuple[Predict, ...]
    aggregation: Aggregation

    @classmethod
    def of(cls, served: Served, store: Store) -> Ensemble:
        """Load what is served from where its checkpoints lie, and build each constituent once.

        Raises:
            IncompleteError: Too few constituents vote.
            ExactnessError: A checkpoint is damaged.
        """
        served.require_quorum()
        learner = learners.load(served.recipe)
        states = (checkpoint.read(store, v.file, v.tensors) for v in served.votes)
        return cls(
            served.number,
            served.digest,
            Encoding.of(served.recipe.data),
            tuple(predictor(learner, state) for state in states),
            served.recipe.aggregation,
        )

    def predict(self, records: Records) -> Floats:
        """Class probabilities float64 [n, classes], or values float64 [n] of a regression."""
        return aggregate(np.stack([vote(records) for vote in self.votes]), self.aggregation)

    def predict_table(self, table: pa.Table) -> pa.Table:
        """Predict the rows of a table that has the feature columns.

        Raises:
            DataError: It lacks a feature column, or one does not fit.
        """
        features = casting.cast_features(table, self.encoding.columns)
        return predictions(self, self.encoding.encode(features))


def load(context: Context) -> Ensemble:
    """Load the current generation.

    Raises:
        IncompleteError: Nothing is trained, or too few constituents vote.
        ExactnessError: A checkpoint is damaged.
    """
    entry, generation = context.served()
    context.find_user_modules()
    served = Served.of(entry.number, generation, context.config.runtime.erasure.quorum)
    return Ensemble.of(served, context.store)


def predictions(ensemble: Ensemble, records: Records) -> pa.Table:
    """What a user gets of n records: prediction, and for a classification all probabilities."""
    predicted = ensemble.predict(records)
    classes = ensemble.encoding.columns.classes
    if classes is None:
        return pa.table({"prediction": predicted})
    labels = pa.array(classes).take(pa.array(predicted.argmax(axis=1)))
    shares = {f"probability_{c}": predicted[:, i] for i, c in enumerate(classes)}
    return pa.table({"prediction": labels, **shares})
