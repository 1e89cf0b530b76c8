"""Layer-wise relevance of a classifier's neurons, by the epsilon rule."""

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
    """How much each value contributes to a logit.

    Attributes:
        inputs: Of the inputs of the module, or of the layer where it ends, of their shape.
        layers: Of the inputs of each Linear and Conv2d layer, by name, of their shape.
    """

    inputs: Tensor
    layers: dict[str, Tensor]


def relevance(
    module: nn.Module,
    inputs: Tensor,
    target: int | None = None,
    epsilon: float = 0.1,
    until: str | None = None,
) -> Relevance:
    """How much each value contributes to the logit of a class.

    R_i = sum_j a_i w_ij / (z_j + epsilon sign z_j) R_j with z_j = sum_i a_i w_ij + b_j, from the
    logit of the class and 0 elsewhere: Bach et al., PLOS ONE 2015; Montavon et al., "Layer-Wise
    Relevance Propagation: An Overview", 2019. Averages are weighted sums too; a maximum gives its
    relevance to the winner; ReLU passes it. Without biases and for a small epsilon each layer's
    relevance has the same sum, the logit; a bias keeps the share b_j / z_j of its R_j.

    Args:
        module: Sequences of Linear, Conv2d, ReLU, pooling, dropout and reshaping, dropout off;
            before `until`, of anything.
        inputs: [n, ...].
        target: The class; None for the one that the module takes each input for.
        epsilon: Keeps quotients of small z finite. In the last layer it but scales.
        until: Name of the layer whose inputs are the last to be given relevance; None for all.

    Raises:
        ConfigurationError: A layer has no rule or is not there, the module does not end in logits
            [n, C], or there is no such class.
    """
    layers = list(flat(module))
    behind = _behind(layers, until)
    with evaluating(module), torch.no_grad():
        seen = [inputs.clone()]  # a ReLU may work in place
        for _, layer in layers:
            seen.append(layer(seen[-1]))
        flowing = _start(seen.pop(), target)
        found = {}
        for name, layer in reversed(behind):
            flowing = _back(layer, seen.pop(), flowing, epsilon)
            if isinstance(layer, WEIGHTED):
                found[name] = flowing
    return Relevance(flowing, found)


def neuron_relevance(
    module: nn.Module, batches: Iterable[Batch], layer: str, epsilon: float = 0.1
) -> Tensor:
    """Relevance of a Linear layer's inputs for the class that each probe is taken for.

    The start is the logit, where Chang et al. start from 1: their order of neurons is the same, but
    reversed where the highest logit is negative.

    Args:
        module: As of `relevance`.
        batches: Probes [n, ...]; they need not be training data.
        layer: Name of the Linear layer, from `linear`.
        epsilon: Of the rule.

    Returns:
        [probes, neurons], summed over positions if the layer has several.

    Raises:
        IncompleteError: There is no probe.
        ConfigurationError: As of `relevance`.
    """
    parts = []
    for batch in some(batches, "set of probes"):
        value = relevance(module, inputs_of(batch), None, epsilon, layer).inputs
        parts.append(value.reshape(len(value), -1, value.shape[-1]).sum(1))
    return torch.cat(parts)


def linear(module: nn.Module, name: str | None = None) -> str:
    """The name of a Linear layer in nested sequences: the last, or the one that is asked for.

    Raises:
        ConfigurationError: There is none, or none of that name.
    """
    names = [found for found, layer in flat(module) if isinstance(layer, nn.Linear)]
    if not names or name not in (None, *names):
        raise ConfigurationError(
            f"The model has no Linear layer{f' {name}' if names else ' in a Sequential'}.",
            f"It has {', '.join(names)}." if names else "Give a Sequential that ends in one.",
        )
    return names[-1] if name is None else name


def flat(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers of nested sequences in order, with their names in the module."""
    if isinstance(module, nn.Sequential):
        for name, part in module._modules.items():  # named_children tells a shared ReLU once
            assert part is not None
            yield from flat(part, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, module


def _behind(layers: list[tuple[str, nn.Module]], until: str | None) -> list[tuple[str, nn.Module]]:
    """The layers that relevance goes through: from the one of that name on, or all.

    Raises:
        ConfigurationError: There is none of that name, or one of them has no rule.
    """
    names = [name for name, _ in layers]
    if until is not None and until not in names:
        raise ConfigurationError(f"The model has no layer {until}.", f"It has {', '.join(names)}.")
    found = layers[0 if until is None else names.index(until) :]
    for _, layer in found:
        if not isinstance(layer, (*WEIGHTED, *MEANS, *ROUTES, *KEEPS)):
            raise ConfigurationError(
                f"There is no relevance rule for {type(layer).__name__}.",
                "Give a Sequential of Linear, Conv2d, ReLU, pooling, Dropout and Flatten, or name "
                "a layer behind it.",
            )
    return found


def _start(outputs: Tensor, target: int | None) -> Tensor:
    """The logit of the class, by input, and 0 elsewhere."""
    logits = wide(outputs)
    if logits.ndim != 2 or (target is not None and not 0 <= target < logits.shape[1]):
        wanted = "" if target is None else f"; there is no class {target} in it"
        raise ConfigurationError(
            f"The output has the shape {list(logits.shape)}{wanted}.",
            "Give a classifier and one of its classes.",
        )
    at = logits.argmax(1, keepdim=True)
    if target is not None:
        at = torch.full_like(at, target)
    return torch.zeros_like(logits).scatter_(1, at, logits.gather(1, at))


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
