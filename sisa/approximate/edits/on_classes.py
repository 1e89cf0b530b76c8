"""Edits of classifiers: relevance paths, partial training."""

from __future__ import annotations

import torch
from torch import Tensor

from sisa.approximate.edits.given import Edited, Given
from sisa.approximate.edits.measured import labelled
from sisa.approximate.edits.partial import label_flip, optimise
from sisa.approximate.edits.passes import Labelled
from sisa.approximate.edits.paths import PROBES, SHARE, TOP, path, perturb
from sisa.approximate.edits.relevance import linear, neuron_relevance
from sisa.errors import ConfigurationError


def relevance_path(
    given: Given,
    *,
    top: float = TOP,
    share: float = SHARE,
    probes: int = PROBES,
    layer: str | None = None,
    epsilon: float = 0.1,
) -> Edited:
    """Silence the neurons that carry the classes of the forget set; see `path` and `perturb`.

    The forget set is but a set of probes: any examples of the class do, and of more than `probes`
    of a class as many are drawn by the seed. Of each class its own neurons are found, and those of
    all are silenced. They are the inputs of the Linear layer `layer`, by default of the last one.
    """
    module = given.subject.module
    name = linear(module, layer)
    draws = torch.Generator().manual_seed(given.seed)
    classes = _by_class(labelled(given, given.forget, "forget set"))
    found: set[int] = set()
    for own in classes:
        drawn = own[_drawn(len(own), probes, draws).to(own.device)]
        parts = torch.split(drawn, given.items_per_batch)
        found.update(path(neuron_relevance(module, parts, name, epsilon), top, share).tolist())
    params = perturb(given.parameters(), name, torch.tensor(sorted(found), dtype=torch.int64))
    return Edited(params, (f"{len(found)} neurons carry {len(classes)} classes.",))


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


def _both(given: Given) -> tuple[list[Labelled], list[Labelled]]:
    assert given.retain is not None
    forget = labelled(given, given.forget, "forget set")
    return forget, labelled(given, given.retain, "retain set")


def _by_class(batches: list[Labelled]) -> list[Tensor]:
    """Inputs of each class, by the number of the class."""
    inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return [inputs[labels == target] for target in sorted(set(labels.tolist()))]


def _drawn(count: int, most: int, draws: torch.Generator) -> Tensor:
    """Places of at most so many of `count`, in random order.

    Raises:
        ConfigurationError: It is none.
    """
    if most < 1:
        raise ConfigurationError("probes must be at least 1.", "Correct the setting.")
    return torch.randperm(count, generator=draws)[:most]
