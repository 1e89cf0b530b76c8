"""Softmax regression, or least squares for a regression, in NumPy: small, fast, no torch.

Minibatch SGD with momentum and weight decay in float64, with torch's formulas:

    g = gradient of the batch's mean loss, clipped, + weight_decay * w
    v = momentum * v + g;  w -= lr * v
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sisa.config import Recipe, Training
from sisa.determinism import StagePlan, pin_threads
from sisa.errors import ConfigurationError
from sisa.learners import design
from sisa.learners.design import Floats, Scales
from sisa.learners.protocol import Advanced, State
from sisa.learners.records import Encoding, Records

Loss = Callable[[Floats, npt.NDArray[Any]], tuple[float, Floats]]
"""Summed loss of a batch by its logits or values and its target, and the gradient of the mean."""


def load(recipe: Recipe) -> LogisticLearner:
    """The learner of a recipe.

    Raises:
        ConfigurationError: The recipe asks for what this learner does not have.
    """
    training = recipe.training
    if recipe.learner.params:
        names = ", ".join(sorted(recipe.learner.params))
        raise ConfigurationError(
            f"The learner logistic takes no parameters, but was given {names}.",
            "Leave learner.params empty.",
        )
    if training.optimizer != "sgd" or training.optimizer_params:
        raise ConfigurationError(
            f"The learner logistic trains with plain sgd, not with {training.optimizer!r}"
            f"{' and optimizer_params' if training.optimizer_params else ''}.",
            "Set training.optimizer to sgd, or use a torch learner such as mlp.",
        )
    encoding = Encoding.of(recipe.data)
    loss = "mse_loss" if encoding.classes is None else "cross_entropy"
    if training.loss not in (None, loss):
        raise ConfigurationError(
            f"The learner logistic has the loss {loss}, not {training.loss!r}.",
            "Leave training.loss out, or use a torch learner such as mlp.",
        )
    return LogisticLearner(encoding, training)


@dataclass(frozen=True)
class LogisticLearner:
    """State: `weight` float64 [inputs, outputs], `bias` [outputs], the standardiser, and the
    momentum (`optimizer.weight`, `optimizer.bias`) where the recipe carries it."""

    encoding: Encoding
    training: Training
    uses_torch: bool = False

    def init(self, seed: int) -> State:
        """All zeros: the loss is convex, so there is no symmetry to break by the seed."""
        outputs = self.encoding.outputs
        return {
            "weight": np.zeros((design.inputs(self.encoding), outputs)),
            "bias": np.zeros(outputs),
            **Scales.unit(self.encoding).arrays(),
        }

    def advance(self, state: State, records: Records, plan: StagePlan) -> Advanced:
        """Train one stage; without a step the parent's state is the outcome."""
        if plan.steps == 0 or records.target is None:
            return Advanced(dict(state), math.nan)
        pin_threads(plan.training.threads)
        scales = Scales.fit(self.encoding, records)
        matrix = design.blocks(self.encoding, records, scales, np.float64)
        with np.errstate(all="ignore"):  # what overflows is found and reported as a failure
            fit = _Fit.of(state)
            loss = self._train(fit, matrix, scales.learned(records.target), plan)
        if not (math.isfinite(loss) and fit.finite()):
            return Advanced(state, math.nan, "loss is not finite")
        carried = self.training.optimizer_state == "carry"
        return Advanced({**fit.arrays(carried), **scales.arrays()}, loss)

    def _train(
        self,
        fit: _Fit,
        matrix: tuple[design.Block, ...],
        target: npt.NDArray[Any],
        plan: StagePlan,
    ) -> float:
        """Take the steps in place; the mean loss over samples."""
        training, total = self.training, 0.0
        loss_of = _squared if fit.single else _loss(training)
        for step in plan:
            x, y = _batch(matrix, step.rows), target[step.rows]
            loss, delta = loss_of(x @ fit.weight + fit.bias, y)
            total += loss
            fit.step(x.T @ delta, delta.sum(axis=0), step.lr, training)
        return total / plan.samples

    def predict(self, state: State, records: Records) -> Floats:
        """Class probabilities float64 [n, classes], or values float64 [n]."""
        scales = Scales.of(state)
        return design.predicted(self.encoding, records, lambda r: self._chunk(state, scales, r))

    def _chunk(self, state: State, scales: Scales, records: Records) -> Floats:
        matrix = design.blocks(self.encoding, records, scales, np.float64)
        output = _batch(matrix, np.arange(len(records))) @ state["weight"] + state["bias"]
        if self.encoding.classes is None:
            return scales.restored(output[:, 0])
        shares = np.exp(output - output.max(axis=1, keepdims=True))
        probabilities: Floats = shares / shares.sum(axis=1, keepdims=True)
        return probabilities


@dataclass(frozen=True)
class _Fit:
    """Weights and their momentum, changed in place; never the parent's own arrays."""

    weight: Floats
    bias: Floats
    weight_momentum: Floats
    bias_momentum: Floats

    @classmethod
    def of(cls, state: State) -> _Fit:
        """A copy of the parent's; a momentum that was not carried is 0."""
        weight, bias = state["weight"], state["bias"]
        return cls(
            np.array(weight),
            np.array(bias),
            np.array(state.get("optimizer.weight", np.zeros_like(weight))),
            np.array(state.get("optimizer.bias", np.zeros_like(bias))),
        )

    @property
    def single(self) -> bool:
        """Whether there is one output, as in a regression; a classification has two or more."""
        return len(self.bias) == 1

    def step(self, weight: Floats, bias: Floats, lr: float, training: Training) -> None:
        """One step along gradients of the shapes of weight and bias, which are used up."""
        if training.clip_norm is not None:
            norm = math.sqrt(float(np.square(weight).sum() + np.square(bias).sum()))
            # torch's formula: torch.nn.utils.clip_grad_norm_
            share = min(training.clip_norm / (norm + 1e-6), 1.0)
            weight, bias = weight * share, bias * share
        for value, momentum, gradient in (
            (self.weight, self.weight_momentum, weight),
            (self.bias, self.bias_momentum, bias),
        ):
            if training.weight_decay:
                gradient += training.weight_decay * value
            np.multiply(momentum, training.momentum, out=momentum)
            np.add(momentum, gradient, out=momentum)
            np.subtract(value, lr * momentum, out=value)

    def finite(self) -> bool:
        """Whether every weight is a number."""
        return bool(np.isfinite(self.weight).all() and np.isfinite(self.bias).all())

    def arrays(self, momentum: bool) -> dict[str, npt.NDArray[Any]]:
        """Named arrays for the state."""
        found = {"weight": self.weight, "bias": self.bias}
        if momentum:
            found |= {
                "optimizer.weight": self.weight_momentum,
                "optimizer.bias": self.bias_momentum,
            }
        return found


def _batch(matrix: tuple[design.Block, ...], rows: npt.NDArray[np.int64]) -> Floats:
    """Rows of the design matrix, float64 [b, inputs]."""
    parts = [_final(block.values[rows], block.scale) for block in matrix]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _final(values: npt.NDArray[Any], scale: tuple[float, float] | None) -> Floats:
    if scale is None:
        return values
    mean, factor = scale
    return (values - mean if mean else values) * factor


def _loss(training: Training) -> Loss:
    """The cross-entropy that a recipe asks for."""
    if not (training.label_smoothing or training.class_weights):
        return _cross_entropy
    weights = np.array(training.class_weights) if training.class_weights else None
    return lambda logits, target: _soft_cross_entropy(
        logits, target, training.label_smoothing, weights
    )


def _cross_entropy(logits: Floats, target: npt.NDArray[Any]) -> tuple[float, Floats]:
    """Summed loss, and the gradient of its mean by the logits [b, classes]: softmax - one-hot."""
    logits -= logits.max(axis=1, keepdims=True)
    rows = np.arange(len(target))
    chosen = logits[rows, target]
    np.exp(logits, out=logits)
    sums = logits.sum(axis=1)
    loss = float((np.log(sums) - chosen).sum())
    logits /= sums[:, None]
    logits[rows, target] -= 1
    logits /= len(target)
    return loss, logits


def _soft_cross_entropy(
    logits: Floats, target: npt.NDArray[Any], smoothing: float, weights: Floats | None
) -> tuple[float, Floats]:
    """The same with label smoothing and class weights, as torch.nn.functional.cross_entropy has it.

    With t = (1 - smoothing) * one-hot + smoothing / classes, the mean loss of a batch is the sum of
    -t * w * log softmax over rows and classes, by the sum of the targets' weights w.
    """
    classes = logits.shape[1]
    wanted = np.full(logits.shape, smoothing / classes)
    wanted[np.arange(len(target)), target] += 1 - smoothing
    total = float(len(target))
    if weights is not None:
        wanted *= weights
        total = float(weights[target].sum())
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    loss = -float((wanted * logits).sum()) / total * len(target)
    delta = (np.exp(logits) * wanted.sum(axis=1, keepdims=True) - wanted) / total
    return loss, delta


def _squared(output: Floats, target: npt.NDArray[Any]) -> tuple[float, Floats]:
    """Summed squared error, and the gradient of its mean by the output [b, 1]."""
    error = output - target[:, None]
    return float((error * error).sum()), 2 * error / len(target)
