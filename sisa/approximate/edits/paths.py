"""Neuronal path perturbation: what leads out of the neurons that carry a class is zeroed.

Chang et al., "Zero-shot Class Unlearning via Layer-wise Relevance Analysis and Neuronal Path
Perturbation", 2024, arXiv:2410.23693, by the authors' code,
https://github.com/ChangWenhan/LRA-NPP-Unlearning, commit 1815094,
examples/batch_experiments/core/{config,methods}.py. The code has numbers and a rule of its own for
each data set; these are those of CIFAR-10, where a ResNet-50 has 2048 neurons before its last
layer, and the weights from the chosen ones to all classes are zeroed, biases untouched. That rule
asks for no more than a Linear layer. Of the others, CIFAR-100 has the same one, with 150 and 250 of
2048; MNIST zeroes the weights to the class alone and those into the neuron, with 50 and 80 of 512,
and so does ImageNet, a VGG-16 whose last layer has the place 39, with 150 and 400 of 4096; MUFAC, a
ViT, those to the class alone, with 400 and 500 of 768 by the size of relevance. Noise instead of
zeros is the authors' baseline, and not here.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from sisa.approximate.edits.mappings import Parameters, changed
from sisa.approximate.edits.prune import ROUNDING
from sisa.errors import ConfigurationError, IncompleteError

TOP, SHARE, PROBES = 200 / 2048, 400 / 2048, 36
"""`analyze_top_n`, `perturb_top_n` and `analysis_sample_size` of CIFAR-10."""


def path(relevance: Tensor, top: float = TOP, share: float = SHARE) -> Tensor:
    """Neurons that are most often among the most relevant of a probe.

    Of equal counts the neuron that was met first is taken, probe by probe and the most relevant
    before others. Neurons that are on top for no probe are not taken, so there may be fewer. Only
    relevance above 0 counts. The authors count any: behind a ReLU that is mostly off, a probe has
    fewer relevant neurons than are asked for, and others, of 0 and the same for every probe, would
    be the most frequent.

    Args:
        relevance: Of each probe and neuron [probes, neurons], from `neuron_relevance`.
        top: Share of the neurons that counts as most relevant for a probe, at least one.
        share: Share of the neurons that is taken, at least one.

    Returns:
        The neurons, int64, the most frequent first.

    Raises:
        ConfigurationError: A share is not in (0, 1].
        IncompleteError: No neuron has a relevance above 0.
    """
    if not (0 < top <= 1 and 0 < share <= 1):
        raise ConfigurationError("top and share must be in (0, 1].", "Correct the setting.")
    each, taken = (max(1, int(s * relevance.shape[1] + ROUNDING)) for s in (top, share))
    order = relevance.argsort(dim=1, descending=True, stable=True)[:, :each]
    speaking = order[relevance.gather(1, order) > 0]
    counts = Counter(speaking.tolist()).most_common(taken)  # equal ones as they were met
    if not counts:
        raise IncompleteError(
            "No neuron speaks for what the model says of the forget set.", "Name another layer."
        )
    return torch.tensor([neuron for neuron, _ in counts], dtype=torch.int64)


def perturb(params: Parameters, layer: str, neurons: Tensor) -> dict[str, Tensor]:
    """Zero all weights of a Linear layer that lead out of some of its inputs.

    Args:
        params: The model.
        layer: Name of the layer; empty where the model is nothing else.
        neurons: Which inputs of it: columns of its weight.

    Raises:
        ConfigurationError: The model has no such layer or neuron.
    """
    name = f"{layer}.weight" if layer else "weight"
    weight = params.get(name)
    if weight is None or (
        len(neurons) and not 0 <= int(neurons.min()) <= int(neurons.max()) < weight.shape[1]
    ):
        raise ConfigurationError(
            f"The model has no such neurons before a layer {layer}.", "Use a path of this model."
        )
    new = weight.detach().clone()
    new[:, neurons] = 0
    return changed(params, {name: new})
