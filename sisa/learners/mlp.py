"""A multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sisa.config import Recipe
from sisa.errors import ConfigurationError
from sisa.learners.torch_module import TorchLearner


def load(recipe: Recipe) -> TorchLearner:
    """The learner of a recipe.

    Raises:
        ConfigurationError: Torch has no such optimizer or loss.
    """
    return TorchLearner.of(recipe, factory, direct=True)


def factory(
    inputs: int,
    outputs: int,
    hidden: Sequence[int] = (128,),
    dropout: float = 0.0,
    batch_norm: bool = False,
) -> nn.Module:
    """Linear layers with ReLU between them.

    Args:
        inputs: Columns of a batch.
        outputs: Classes, or 1 for a regression.
        hidden: Width of each hidden layer; none makes a linear model.
        dropout: Share of hidden units that a training step leaves out, from 0 to under 1.
        batch_norm: Whether each hidden layer is normalised over the batch before its ReLU.

    Returns:
        A module from float32 [B, inputs] to float32 [B, outputs].

    Raises:
        ConfigurationError: A parameter is out of its range.
    """
    if not isinstance(hidden, Sequence) or not all(type(w) is int and w > 0 for w in hidden):
        raise _wrong("hidden", hidden, "a list of positive integers")
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise _wrong("dropout", dropout, "a number from 0 to under 1")
    if not isinstance(batch_norm, bool):
        raise _wrong("batch_norm", batch_norm, "true or false")
    layers: list[nn.Module] = []
    for width in hidden:
        layers.append(nn.Linear(inputs, width))
        layers += [nn.BatchNorm1d(width)] if batch_norm else []
        layers.append(nn.ReLU())
        layers += [nn.Dropout(dropout)] if dropout else []
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def _wrong(name: str, value: object, wanted: str) -> ConfigurationError:
    return ConfigurationError(
        f"learner.params.{name} of mlp is {value!r}.", f"It must be {wanted}."
    )
