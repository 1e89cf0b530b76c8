"""What a learner is: init, advance by one stage, predict; its state is named arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from sisa.determinism import StagePlan
from sisa.learners.records import Records

State = Mapping[str, npt.NDArray[Any]]
"""Everything a stage hands to the next, and all that predicting needs, by name."""

Predict = Callable[[Records], npt.NDArray[np.float64]]
"""Class probabilities float64 [n, classes], or values float64 [n], of n records."""


@dataclass(frozen=True, slots=True)
class Advanced:
    """The outcome of one stage.

    Attributes:
        state: The state after it; of no use if it failed.
        loss: Mean training loss over the samples of the stage; NaN if it took no step.
        failure: Why the stage failed, in a few words, or None. A failure must be deterministic:
            the same records and parent fail again.
    """

    state: State
    loss: float
    failure: str | None = None


class Learner(Protocol):
    """Pure functions of their arguments; a learner keeps nothing between calls."""

    @property
    def uses_torch(self) -> bool:
        """Whether it computes with torch, whose version and threads then decide bits."""
        ...

    def init(self, seed: int) -> State:
        """The state before any stage.

        Args:
            seed: For everything random in it, under 2**63.
        """
        ...

    def advance(self, state: State, records: Records, plan: StagePlan) -> Advanced:
        """Train one stage.

        Args:
            state: The parent's state, read from its checkpoint; must not be written to.
            records: Records of slices 1..r in record-key order, targets included.
            plan: The steps to take; iterating it gives row indices, seed and rate of each.
        """
        ...

    def predict(self, state: State, records: Records) -> npt.NDArray[np.float64]:
        """Predict.

        Returns:
            Class probabilities float64 [n, classes], or values float64 [n] of a regression.
        """
        ...


@runtime_checkable
class Prepares(Protocol):
    """A learner that has something to build from a state before it can predict."""

    def prepare(self, state: State) -> Predict:
        """Build it once; every call of the outcome gives what `Learner.predict` gives."""
        ...


def predictor(learner: Learner, state: State) -> Predict:
    """What a state predicts, ready to be asked many times."""
    if isinstance(learner, Prepares):
        return learner.prepare(state)
    return partial(learner.predict, state)
