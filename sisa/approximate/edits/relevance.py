"""Layer-wise relevance of a classifier's neurons for a class, by the epsilon rule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from sisa.approximate.edits.mappings import wide
from sisa.approximate.edits.passes import Batch, evaluating, inputs_of, some
from sisa.errors import ConfigurationError
from sisa.learners.cnn import Image

WEIGHTED = (nn.Linear, nn.Conv2d)
MEANS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
ROUTES = (nn.MaxPool2d, nn.Flatten, nn.Unflatten, Image)
"""Each output is one input: relevance goes back to where the value came from."""
KEEPS = (nn.ReLU, nn.Identity, nn.Dropout, nn.Dropout2d)
"""Relevance passes as it is."""


@dataclass(frozen=True)
class Relevance:
    """How much each value contributes to the logit of a class.

    Attributes:
        inputs: Of the module's inputs, of their shape.
        layers: Of the outputs of each Linear and Conv2d layer, by name, of the outputs' shape.
    """

    inputs: Tensor
    layers: dict[str, Tensor]


def relevance(module: nn.Module, inputs: Tensor, target: int, epsilon: float = 1e-6) -> Relevance:
    """How much each value contributes to the logit of a class.

    R_i = sum_j a_i w_ij / (z_j + epsilon sign z_j) R_j with z_j = sum_i a_i w_ij + b_j, from the
    logit of the class and 0 elsewhere: Bach et al., PLOS ONE 2015; Montavon et al., "Layer-Wise
    Relevance Propagation: An Overview", 2019. Averages are weighted sums too; a maximum gives its
    relevance to the winner; ReLU passes it. Without biases and for a small epsilon each layer's
    relevance has the same sum, the logit; a bias keeps the share b_j / z_j of its R_j.

    Args:
        module: Sequences of Linear, Conv2d, ReLU, pooling, dropout and reshaping, dropout off.
        inputs: [n, ...].
        target: The class.
        epsilon: Keeps quotients of small z finite.

    Raises:
        ConfigurationError: A layer has no rule, the module does not end in logits [n, C], or there
            is no such class.
    """
    layers = list(flat(module))
    with evaluating(module), torch.no_grad():
        seen = [inputs.clone()]  # a ReLU may work in place
        for _, layer in layers:
            seen.append(layer(seen[-1]))
        logits = wide(seen.pop())
        if logits.ndim != 2 or not 0 <= target < logits.shape[1]:
            raise ConfigurationError(
                f"The output has the shape {list(logits.shape)}; there is no class {target} in it.",
                "Give a classifier and one of its classes.",
            )
        flowing = torch.zeros_like(logits)
        flowing[:, target] = logits[:, target]
        found = {}
        for name, layer in reversed(layers):
            if isinstance(layer, WEIGHTED):
                found[name] = flowing
            flowing = _back(layer, seen.pop(), flowing, epsilon)
    return Relevance(flowing, found)


def neuron_relevance(
    module: nn.Module, batches: Iterable[Batch], target: int, epsilon: float = 1e-6
) -> dict[str, Tensor]:
    """Relevance of the neurons of all layers but the last, for each probe.

    A neuron is an output of a Linear layer, or a channel of a convolution with its positions
    summed.

    Args:
        module: As of `relevance`.
        batches: Inputs [n, ...] that show the class; they need not be training data.
        target: The class.
        epsilon: Of the rule.

    Returns:
        By layer, [probes, neurons].

    Raises:
        IncompleteError: There is no probe.
        ConfigurationError: As of `relevance`.
    """
    parts: dict[str, list[Tensor]] = {}
    *hidden, _ = [name for name, layer in flat(module) if isinstance(layer, WEIGHTED)]
    for batch in some(batches, "set of probes"):
        found = relevance(module, inputs_of(batch), target, epsilon)
        for name in hidden:
            value = found.layers[name]
            parts.setdefault(name, []).append(value.reshape(*value.shape[:2], -1).sum(2))
    return {name: torch.cat(values) for name, values in parts.items()}


def flat(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers of nested sequences in order, with their names in the module.

    Raises:
        ConfigurationError: A layer has no rule.
    """
    if isinstance(module, nn.Sequential):
        for name, part in module._modules.items():  # named_children tells a shared ReLU once
            assert part is not None
            yield from flat(part, f"{prefix}.{name}" if prefix else name)
    elif isinstance(module, (*WEIGHTED, *MEANS, *ROUTES, *KEEPS)):
        yield prefix, module
    else:
        raise ConfigurationError(
            f"There is no relevance rule for {type(module).__name__}.",
            "Give a Sequential of Linear, Conv2d, ReLU, pooling, Dropout and Flatten.",
        )


def _back(layer: nn.Module, inputs: Tensor, relevance: Tensor, epsilon: float) -> Tensor:
    """Relevance of a layer's inputs, of their shape, from that of its outputs."""
    if isinstance(layer, KEEPS):
        return relevance
    with torch.enable_grad():
        leaf = inputs.detach().requires_grad_(True)
        outputs = layer(leaf)
    pull = partial(torch.autograd.grad, outputs, leaf)
    if isinstance(layer, ROUTES):
        return wide(pull(relevance.to(outputs.dtype))[0])
    stable = wide(outputs.detach())
    stable = torch.where(stable >= 0, stable + epsilon, stable - epsilon)
    return wide(inputs * pull((relevance / stable).to(outputs.dtype))[0])
