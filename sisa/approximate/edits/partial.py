"""Layer-wise partial unlearning: of each layer only the coordinates that matter most are moved.

A layer is one parameter tensor. Gogineni and Nadimi, "Efficient Knowledge Deletion from Trained
Models through Layer-wise Partial Machine Unlearning", arXiv:2403.07611 (JMLR 2025), put partial
updates into label flipping and into unlearning by optimisation. They publish no code; that the
coordinates are chosen by the magnitude of the gradient of each step, and that the optimised loss is
the retain set's less the forget set's up to that of guessing, is our choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.functional import cross_entropy

from sisa.approximate.edits.mappings import Parameters, changed, check, of_module
from sisa.approximate.edits.passes import Labelled, evaluating, logits_of, some
from sisa.errors import ConfigurationError, DivergedError

IGNORED = -100
"""The label of what is not learned."""

Loss = Callable[[Parameters, Any], Tensor]
"""From parameters and a batch to a scalar."""


def largest(values: Tensor, share: float) -> Tensor:
    """Where a tensor's largest magnitudes are.

    Args:
        values: Of any shape.
        share: In (0, 1]; round(share * elements) of them, at least one.

    Returns:
        Flat positions, int64 and ascending: exactly so many. Of equal magnitudes the earlier is
        taken, and what is not a number first of all.

    Raises:
        ConfigurationError: The share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ConfigurationError(f"The share {share} is not in (0, 1].", "Correct the setting.")
    magnitudes = values.detach().abs().flatten().nan_to_num(nan=torch.inf, posinf=torch.inf)
    count = min(magnitudes.numel(), max(1, round(share * magnitudes.numel())))
    if count == magnitudes.numel():
        return torch.arange(count, device=values.device)
    least = magnitudes.topk(count, sorted=False).values.min()
    above = (magnitudes > least).nonzero().flatten()
    level = (magnitudes == least).nonzero().flatten()[: count - len(above)]
    return torch.cat([above, level]).sort().values


def masks(gradients: Parameters, share: float) -> dict[str, Tensor]:
    """The coordinates of each layer with the largest gradients.

    Args:
        gradients: By layer.
        share: Of each layer, see `largest`.

    Returns:
        By layer, of its shape, bool.

    Raises:
        ConfigurationError: The share is not in (0, 1].
    """
    found = {}
    for name, gradient in gradients.items():
        mask = torch.zeros(gradient.numel(), dtype=torch.bool, device=gradient.device)
        mask[largest(gradient, share)] = True
        found[name] = mask.view(gradient.shape)
    return found


@contextmanager
def only(parameters: Parameters, chosen: Parameters) -> Iterator[None]:
    """Let a step of any optimizer move nothing but the chosen coordinates.

    The others get their bits back: momentum and weight decay move even what has no gradient.

    Args:
        parameters: What the optimizer changes in place.
        chosen: Masks, bool; a parameter without one does not move.

    Raises:
        ConfigurationError: A mask fits no parameter.
    """
    check(parameters, chosen)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, p in parameters.items():
                mask = chosen.get(name)
                p.copy_(before[name] if mask is None else torch.where(mask, p, before[name]))


def descend(
    loss: Loss,
    params: Parameters,
    batches: Iterable[Any],
    lr: float,
    share: float = 0.1,
    chosen: Parameters | None = None,
) -> dict[str, Tensor]:
    """Plain gradient descent, one step a batch, that moves a share of each layer's coordinates.

    Args:
        loss: Differentiable by `torch.func.grad`.
        params: Where to start; not changed.
        batches: What `loss` takes.
        lr: Learning rate.
        share: Of each layer, chosen anew at each step by the magnitude of its gradient.
        chosen: Masks to keep to instead, bool; a layer without one does not move.

    Raises:
        ConfigurationError: The share is not in (0, 1], or a mask fits no layer.
        DivergedError: A gradient is not finite.
    """
    check(params, chosen or {})
    moving = params.keys() if chosen is None else chosen.keys()
    new = {name: params[name].detach().clone() for name in moving}
    fixed = {name: value.detach() for name, value in params.items() if name not in new}
    places = {name: mask.flatten().nonzero().flatten() for name, mask in (chosen or {}).items()}
    gradients_of = grad(lambda free, batch: loss({**fixed, **free}, batch))
    for step, batch in enumerate(batches):
        for name, gradient in gradients_of(new, batch).items():
            if not gradient.isfinite().all():
                raise DivergedError(
                    f"The gradient of {name} is not finite at step {step}; the model is as it was.",
                    "Choose a smaller learning rate or fewer epochs.",
                )
            place = largest(gradient, share) if chosen is None else places[name]
            new[name].view(-1)[place] -= lr * gradient.flatten()[place]
    return changed(params, new)


def flipped(labels: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """Another class for each label, each of the others equally likely.

    Args:
        labels: [n], int64; ignored ones (-100) stay.
        classes: How many there are.
        generator: Draws, on the CPU.

    Raises:
        ConfigurationError: There is no other class.
    """
    if classes < 2:
        raise ConfigurationError("With one class no label can be flipped.", "Correct the setting.")
    away = torch.randint(1, classes, labels.shape, generator=generator).to(labels.device)
    return torch.where(labels == IGNORED, labels, (labels + away) % classes)


def label_flip(
    module: nn.Module,
    forget: Iterable[Labelled],
    retain: Sequence[Labelled],
    classes: int,
    lr: float,
    share: float = 0.1,
    epochs: int = 1,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Train a share of each layer on the forget set under wrong labels, and on the retain set.

    Args:
        module: A classifier; it is not changed. Dropout is off, running statistics are fixed.
        forget: Inputs and labels; each label is flipped once, so that it is the same every epoch.
        retain: Inputs and true labels, visited after the forget set in each epoch; may be empty.
        classes: How many there are.
        lr: Learning rate.
        share: Of each layer's coordinates that a step moves.
        epochs: Passes.
        seed: Of the wrong labels.

    Returns:
        The module's parameters by name, new.

    Raises:
        IncompleteError: The forget set is empty.
        ConfigurationError: The share is not in (0, 1], or there is one class.
        DivergedError: A gradient is not finite.
    """
    draws = torch.Generator().manual_seed(seed)
    wrong = [(x, flipped(y, classes, draws)) for x, y in some(forget, "forget set")]
    batches = (batch for _ in range(epochs) for batch in (*wrong, *retain))
    with evaluating(module):
        return descend(_cross_entropy(module), of_module(module), batches, lr, share)


def optimise(
    module: nn.Module,
    forget: Iterable[Labelled],
    retain: Sequence[Labelled],
    lr: float,
    share: float = 0.1,
    epochs: int = 1,
    ceiling: float | None = None,
) -> dict[str, Tensor]:
    """Raise the forget set's loss and lower the retain set's, moving a share of each layer.

    Args:
        module: A classifier; it is not changed. Dropout is off, running statistics are fixed.
        forget: Inputs and labels.
        retain: Inputs and labels, one batch for each of the forget set, over again as often as
            needed; without any the forget set's loss is raised alone.
        lr: Learning rate.
        share: Of each layer's coordinates that a step moves.
        epochs: Passes over the forget set.
        ceiling: An item whose loss is higher is left alone; none: log(classes), that of guessing.
            Without an end the loss runs away and takes the weights with it.

    Returns:
        The module's parameters by name, new.

    Raises:
        IncompleteError: The forget set is empty.
        ConfigurationError: The share is not in (0, 1].
        DivergedError: A gradient is not finite.
    """
    leave = [*some(forget, "forget set")] * epochs
    keep = islice(cycle(retain or [None]), len(leave))
    with evaluating(module):
        loss, losses = _cross_entropy(module), _losses(module)

        def difference(params: Parameters, pair: tuple[Labelled, Labelled | None]) -> Tensor:
            high, away = losses(params, pair[0])
            away = -_mean(away.clamp(max=high if ceiling is None else ceiling), pair[0][1])
            return away if pair[1] is None else away + loss(params, pair[1])

        return descend(difference, of_module(module), zip(leave, keep, strict=True), lr, share)


def _losses(module: nn.Module) -> Callable[[Parameters, Labelled], tuple[float, Tensor]]:
    """The loss of guessing, and cross-entropy by label, 0 where ignored."""

    def losses(params: Parameters, batch: Labelled) -> tuple[float, Tensor]:
        logits = logits_of(functional_call(module, dict(params), (batch[0],)))
        found = cross_entropy(logits, batch[1], reduction="none", ignore_index=IGNORED)
        return math.log(logits.shape[1]), found

    return losses


def _cross_entropy(module: nn.Module) -> Loss:
    losses = _losses(module)
    return lambda params, batch: _mean(losses(params, batch)[1], batch[1])


def _mean(losses: Tensor, labels: Tensor) -> Tensor:
    """Over labels that are not ignored, 0 without any: nothing to learn is no step."""
    return losses.sum() / (labels != IGNORED).sum().clamp(min=1)
