"""A bottleneck fitted to the hidden states of a model that was trained without one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sisa.approximate.edits.bottlenecks import ResidualBottleneck
from sisa.approximate.edits.mappings import wide
from sisa.errors import ConfigurationError, DivergedError

AT_ONCE = 1024
"""Positions whose features exist at once when a fit is looked at."""

STEPS, POSITIONS = 64, 64
"""Most steps of an epoch, and fewest positions of a step but the last."""


@dataclass(frozen=True)
class Fit:
    """How a bottleneck is fitted.

    Attributes:
        codes: Features.
        strongest: How many of them a position may use.
        epochs: Times that each position is visited.
        lr: Of Adam, constant.
        seed: Of the start and of the order.

    Raises:
        ConfigurationError: One of them is out of its range.
    """

    codes: int
    strongest: int
    epochs: int
    lr: float
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 1 <= self.strongest <= self.codes:
            raise ConfigurationError(
                f"A position cannot use {self.strongest} of {self.codes} codes.",
                "Set strongest to 1 or more, and codes to at least as many.",
            )
        if self.epochs < 1 or not self.lr > 0:
            raise ConfigurationError(
                "A bottleneck cannot be fitted in no epoch or with no learning rate.",
                "Set fit_epochs to 1 or more, and fit_lr above 0.",
            )


def fit(
    hidden: Tensor,
    how: Fit,
    report: Callable[[Mapping[str, float], int], None] = lambda metrics, step: None,
) -> ResidualBottleneck:
    """Fit a sparse autoencoder to hidden states by the mean squared error of its reconstruction.

    Features start along hidden states that are drawn, which leaves fewer of them without use than
    random directions do, and encode as they decode. The same bits come of the same hidden states,
    settings and number of threads.

    Args:
        hidden: [M, d], at least one position.
        how: Settings.
        report: Takes the error of each epoch, as a share of the variance, and its number.

    Returns:
        At least float32, on the device of the hidden states.

    Raises:
        DivergedError: The hidden states or the error are no numbers.
    """
    hidden = wide(hidden.detach())
    mean = hidden.mean(0)
    scale = (hidden - mean).square().mean().sqrt().clamp(min=torch.finfo(hidden.dtype).tiny)
    inputs, draws = (hidden - mean) / scale, torch.Generator().manual_seed(how.seed)
    found = _started(inputs, how, draws)
    optimizer = torch.optim.Adam(found.parameters(), lr=how.lr)
    size = max(POSITIONS, -(-len(inputs) // STEPS))
    with torch.enable_grad():
        for epoch in range(how.epochs):
            total = 0.0
            order = torch.randperm(len(inputs), generator=draws)
            for at in torch.split(order, size):
                optimizer.zero_grad()
                loss = found.loss(inputs[at.to(inputs.device)])
                torch.autograd.backward(loss)
                optimizer.step()
                total += loss.item() * len(at) / len(inputs)
            if not total < float("inf"):
                raise DivergedError("The fit of the bottleneck diverged.", "Lower fit_lr.")
            report({"unexplained": total}, epoch + 1)
    return _rescaled(found, mean, scale)


@torch.no_grad()
def unexplained(bottleneck: ResidualBottleneck, hidden: Tensor) -> float:
    """Share of the variance of hidden states [M, d] that a bottleneck does not reconstruct."""
    mean, error, whole = wide(hidden).mean(0), 0.0, 0.0
    for part in torch.split(hidden, AT_ONCE):
        own = part.to(bottleneck.encoder.weight.dtype)
        error += float(wide(bottleneck.reconstructed(own) - own).square().sum())
        whole += float((wide(part) - mean).square().sum())
    return error / whole if whole > 0 else 0.0


@torch.no_grad()
def used(bottleneck: ResidualBottleneck, hidden: Tensor) -> int:
    """How many codes some of these hidden states [M, d] use."""
    parts = torch.split(hidden, AT_ONCE)
    counts = [bottleneck.usage(p.to(bottleneck.encoder.weight.dtype)) for p in parts]
    return int((torch.stack(counts).sum(0) > 0).sum())


@torch.no_grad()
def _started(inputs: Tensor, how: Fit, draws: torch.Generator) -> ResidualBottleneck:
    """Features along inputs that are drawn, a little beside them: one may be drawn twice."""
    width = inputs.shape[1]
    with torch.random.fork_rng():  # what the layers start from is replaced
        found = ResidualBottleneck(width, how.codes, how.strongest).to(inputs)
    at = torch.randint(len(inputs), (how.codes,), generator=draws).to(inputs.device)
    beside = 0.1 * torch.randn(how.codes, width, generator=draws).to(inputs)
    along = inputs[at] + beside
    along /= along.norm(dim=1, keepdim=True)
    found.encoder.weight.copy_(along)
    found.decoder.weight.copy_(along.T)
    found.encoder.bias.zero_()
    found.decoder.bias.zero_()
    return found


@torch.no_grad()
def _rescaled(found: ResidualBottleneck, mean: Tensor, scale: Tensor) -> ResidualBottleneck:
    """From a fit to (hidden - mean) / scale to one of hidden states as they are."""
    found.encoder.weight /= scale
    found.decoder.weight *= scale
    found.decoder.bias.mul_(scale).add_(mean)
    return found.eval()
