"""Round the weights of a copy to int8 and int4, and look what comes back of the forgotten.

Unlearning that keeps a model useful changes weights by little, often by less than the step of a
quantised model, which then is that of before: 21% of the forgotten was left at full precision and
83% at 4 bits (Zhang et al., "Catastrophic Failure of LLM Unlearning via Quantization", ICLR 2025).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sisa.approximate.attacks.recovered import finite, recovered_share
from sisa.errors import DataError, IncompleteError, UsageError

BITS = (8, 4)


@dataclass(frozen=True)
class Quantised:
    """A metric of the forgotten, of a quantised model.

    Attributes:
        bits: Of a weight.
        group: Weights of a channel that share a step; None for all of them.
        original: The metric before unlearning, at full precision.
        unlearned: After it.
        metric: After it and after quantising.
        parameters: Share of the model's parameters that were quantised.
    """

    bits: int
    group: int | None
    original: float
    unlearned: float
    metric: float
    parameters: float

    @property
    def share(self) -> float | None:
        """Recovered share: see `recovered.recovered_share`."""
        return recovered_share(self.original, self.unlearned, self.metric)


def evaluate(
    model: nn.Module,
    metric: Callable[[nn.Module], float],
    original: float,
    *,
    bits: Sequence[int] = BITS,
    group: int | None = None,
) -> tuple[Quantised, ...]:
    """Take the metric of a copy for each number of bits; the model stays as it is.

    Args:
        model: The unlearned model, adapters merged.
        metric: Of what was forgotten; called in the mode in which the model is.
        original: The metric of the model before unlearning.
        bits: From 2 to 8 each.
        group: As for `quantised`.

    Raises:
        UsageError: A number of bits or the group does not fit.
        IncompleteError: The model has no layer that can be quantised.
        DataError: A weight or the metric is not a finite number.
    """
    found = []
    with torch.no_grad():
        unlearned, share = finite(float(metric(model))), quantisable_share(model)
        for number in bits:
            figure = finite(float(metric(quantised(model, number, group))))
            found.append(Quantised(number, group, finite(original), unlearned, figure, share))
    return tuple(found)


def quantised(model: nn.Module, bits: int, group: int | None = None) -> nn.Module:
    """A copy whose weights are those of a symmetric round-to-nearest quantisation.

    Weights of linear, embedding and convolution layers are rounded, each output channel (row of an
    embedding) with a step of its own; biases and norms are not. A weight that two layers share is
    rounded once, and stays shared. The weights keep their dtype; for bfloat16 its own rounding
    comes on top, as in a kernel that computes in it.

    Raises:
        UsageError: A number of bits or the group does not fit.
        IncompleteError: The model has no layer that can be quantised.
        DataError: A weight is not a finite number.
    """
    found = copy.deepcopy(model)
    weights = list(_weights(found))
    if not weights:
        raise IncompleteError(
            "The model has no linear, embedding or convolution layer to quantise.",
            "Quantise it with what it is served with, and evaluate that.",
        )
    with torch.no_grad():
        for weight, transposed in weights:
            rows = weight.T if transposed else weight
            rounded = round_to_nearest(rows.reshape(len(rows), -1), bits, group).view(rows.shape)
            weight.copy_(rounded.T if transposed else rounded)
    return found


def round_to_nearest(weight: Tensor, bits: int, group: int | None = None) -> Tensor:
    """step * round(w / step), step = max |w| / (2^(bits - 1) - 1) of each channel or group.

    Every value is within half a step of its weight. float32 [C, K], or float64 if the weight is.

    Args:
        weight: [C, K], one channel a row.
        bits: From 2 to 8.
        group: Weights of a channel that share a step, the last group may be smaller; None for all.

    Raises:
        UsageError: A number of bits or the group does not fit.
        DataError: A weight is not a finite number.
    """
    if not 2 <= bits <= 8:
        raise UsageError(f"Weights cannot be rounded to {bits} bits.", "Take 2 to 8.")
    if group is not None and group < 1:
        raise UsageError(f"{group} is no size of a group.", "Take 1 or more.")
    if not torch.isfinite(weight).all():
        raise DataError("A weight is not a finite number.", "The model is broken.")
    wide = weight if weight.dtype == torch.float64 else weight.float()
    if not wide.numel():
        return wide
    parts = torch.split(wide, group or wide.shape[1], dim=1)
    return torch.cat([_rounded(part, 2 ** (bits - 1) - 1) for part in parts], dim=1)


def quantisable_share(model: nn.Module) -> float:
    """Share of a model's parameters that `quantised` rounds: how far its answer reaches."""
    total = sum(p.numel() for p in model.parameters())
    return sum(weight.numel() for weight, _ in _weights(model)) / total if total else 0.0


def _rounded(part: Tensor, largest: int) -> Tensor:
    step = part.abs().amax(dim=1, keepdim=True) / largest
    step = torch.where(step == 0, torch.ones_like(step), step)
    return (part / step).round().clamp(-largest, largest) * step


def _weights(model: nn.Module) -> Iterator[tuple[Tensor, bool]]:
    """Each weight once, and whether its output channels are its columns."""
    seen: set[int] = set()
    for module in model.modules():
        # The linear layers of GPT-2, of a class of transformers that is not imported for this.
        transposed = type(module).__name__ == "Conv1D" and not isinstance(module, nn.Conv1d)
        plain = isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        weight = getattr(module, "weight", None) if plain or transposed else None
        if isinstance(weight, Tensor) and id(weight) not in seen:
            seen.add(id(weight))
            yield weight, transposed
