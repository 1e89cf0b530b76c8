"""Edits of classifiers: relevance paths, partial training, codes of a bottleneck."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sisa.approximate.batches import Batch
from sisa.approximate.edits.bottlenecks import QuantisedBottleneck, SparseBottleneck
from sisa.approximate.edits.codes import ablate, count, tied
from sisa.approximate.edits.given import Edited, Given
from sisa.approximate.edits.measured import labelled
from sisa.approximate.edits.partial import label_flip, optimise
from sisa.approximate.edits.passes import Labelled
from sisa.approximate.edits.paths import path, perturb
from sisa.approximate.edits.relevance import neuron_relevance
from sisa.errors import ConfigurationError, IncompleteError

BOTTLENECKS = (QuantisedBottleneck, SparseBottleneck)


def relevance_path(
    given: Given,
    *,
    top: float = 0.1,
    frequency: float = 0.5,
    noise: float = 0.0,
    epsilon: float = 1e-6,
) -> Edited:
    """Disturb the neurons that carry the classes of the forget set; see `path` and `perturb`.

    The forget set is but a set of probes: any examples of the class do.
    """
    module, probes = given.subject.module, labelled(given, given.forget, "forget set")
    along: dict[str, Tensor] = {}
    classes = sorted({label for _, labels in probes for label in labels.tolist()})
    for target in classes:
        own = [inputs[labels == target] for inputs, labels in probes]
        found = path(neuron_relevance(module, own, target, epsilon), top, frequency)
        for layer, neurons in found.items():
            met = along.get(layer, neurons)
            along[layer] = torch.tensor(sorted({*met.tolist(), *neurons.tolist()}))
    draws = torch.Generator().manual_seed(given.seed)
    params = perturb(given.parameters(), along, noise, draws)
    neurons_found = sum(map(len, along.values()))
    return Edited(params, (f"{neurons_found} neurons carry {len(classes)} classes.",))


def partial_label_flip(
    given: Given, *, share: float = 0.1, lr: float = 0.01, epochs: int = 5
) -> Edited:
    """Train a share of each layer on wrong labels; see `partial.label_flip`."""
    forget, retain = _both(given)
    with torch.no_grad():
        classes = given.subject.module(forget[0][0][:1]).shape[1]
    module, seed = given.subject.module, given.seed
    return Edited(label_flip(module, forget, retain, classes, lr, share, epochs, seed))


def partial_optimisation(
    given: Given, *, share: float = 0.1, lr: float = 0.01, epochs: int = 5
) -> Edited:
    """Raise the loss of the forget set, moving a share of each layer; see `partial.optimise`."""
    forget, retain = _both(given)
    return Edited(optimise(given.subject.module, forget, retain, lr, share, epochs))


def code_ablation(
    given: Given, *, bottleneck: str | None = None, ratio: float = 2.0, least: int = 2
) -> Edited:
    """Take away the codes that the forget set uses far more often than the retain set.

    See `codes.tied` and `codes.ablate`; `bottleneck` is the name of that submodule, by default of
    the only one there is.
    """
    assert given.retain is not None
    module = given.subject.module
    name, narrow = _bottleneck(module, bottleneck)
    topic = count(module, narrow, _inputs(given, given.forget))
    control = count(module, narrow, _inputs(given, given.retain))
    codes = tied(topic, control, ratio, least)
    if not len(codes):
        raise IncompleteError(
            "No code is used on the forget set so much more often than on the retain set.",
            "Lower ratio or least, or choose another method.",
        )
    prefix = f"{name}." if name else ""
    edited = ablate(module.state_dict(), codes, prefix)
    own = {key: value for key, value in edited.items() if key.startswith(prefix)}
    return Edited(own, (f"{len(codes)} of {len(topic.used)} codes were taken away.",))


def _both(given: Given) -> tuple[list[Labelled], list[Labelled]]:
    assert given.retain is not None
    forget = labelled(given, given.forget, "forget set")
    return forget, labelled(given, given.retain, "retain set")


def _inputs(given: Given, items: Batch) -> list[Labelled]:
    return labelled(given, items, "forget set" if items is given.forget else "retain set")


def _bottleneck(
    module: nn.Module, wanted: str | None
) -> tuple[str, QuantisedBottleneck | SparseBottleneck]:
    """Name and module of a bottleneck.

    Raises:
        ConfigurationError: There is none, or several and none is named.
    """
    found = {name: m for name, m in module.named_modules() if isinstance(m, BOTTLENECKS)}
    if wanted is not None:
        found = {name: m for name, m in found.items() if name == wanted}
    if len(found) != 1:
        raise ConfigurationError(
            f"The model has {len(found)} bottlenecks of that name."
            if wanted is not None
            else f"The model has {len(found)} bottlenecks.",
            "Name one with bottleneck, or train the model with one.",
        )
    return next(iter(found.items()))
