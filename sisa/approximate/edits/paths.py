"""Neuronal path perturbation: the neurons that carry a class are zeroed or disturbed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sisa.approximate.edits.mappings import Parameters, changed
from sisa.approximate.edits.prune import ROUNDING
from sisa.errors import ConfigurationError

Path = Mapping[str, Tensor]
"""By layer, the neurons on the path, int64 and ascending."""


def path(neurons: Mapping[str, Tensor], top: float = 0.1, frequency: float = 0.5) -> Path:
    """Neurons that are among the most relevant of their layer for many probes.

    Chang et al., "Zero-shot Class Unlearning via Layer-wise Relevance Analysis and Neuronal Path
    Perturbation", 2024. Defaults are ours: the authors' numbers are not public.

    Args:
        neurons: By layer, relevance [probes, neurons], from `neuron_relevance`.
        top: Share of a layer's neurons taken for each probe, at least one; without relevance none.
        frequency: Share of probes for which a neuron must be taken.

    Raises:
        ConfigurationError: A share is not in (0, 1].
    """
    if not (0 < top <= 1 and 0 < frequency <= 1):
        raise ConfigurationError("top and frequency must be in (0, 1].", "Correct the setting.")
    found = {}
    for layer, values in neurons.items():
        probes, width = values.shape
        order = values.argsort(dim=1, descending=True, stable=True)[
            :, : max(1, int(top * width + ROUNDING))
        ]
        taken = torch.zeros_like(values, dtype=torch.bool).scatter_(1, order, True) & (values > 0)
        found[layer] = (taken.sum(0) / probes >= frequency).nonzero().flatten()
    return found


def perturb(
    params: Parameters, along: Path, noise: float = 0.0, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Zero what leads into each neuron on a path, its bias included, or add noise to it.

    Args:
        params: The model.
        along: By layer, its neurons: rows of `<layer>.weight` and `<layer>.bias`.
        noise: 0 for zeroing; else the standard deviation of Gaussian noise that is added, in
            standard deviations of the layer's weights.
        generator: Of the noise, on the CPU; needed with noise.

    Raises:
        ConfigurationError: The model has no such layer or neuron, or noise has no generator.
    """
    if noise < 0 or (noise and generator is None):
        raise ConfigurationError("Noise must not be negative and needs a generator.")
    changes = {}
    for layer, rows in along.items():
        weight = params.get(f"{layer}.weight")
        if weight is None or (
            len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(weight)
        ):
            raise ConfigurationError(
                f"The model has no such neurons in a layer {layer}.", "Use a path of this model."
            )
        size = noise * float(weight.detach().double().std(correction=0))
        for name in (f"{layer}.weight", f"{layer}.bias"):
            if name in params:
                changes[name] = _disturbed(params[name].detach(), rows, size, generator)
    return changed(params, changes)


def _disturbed(old: Tensor, rows: Tensor, size: float, generator: torch.Generator | None) -> Tensor:
    new = old.clone()
    if generator is None or not size:
        new[rows] = 0
    else:
        drawn = torch.randn((len(rows), *old.shape[1:]), generator=generator, dtype=torch.float64)
        new[rows] += (size * drawn).to(old)
    return new
