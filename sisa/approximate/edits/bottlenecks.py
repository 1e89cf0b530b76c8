"""Bottlenecks of discrete codes, to be put behind one layer: vector-quantised, or sparse."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, mse_loss
from torch.utils.hooks import RemovableHandle

from sisa.errors import ConfigurationError


class QuantisedBottleneck(nn.Module):
    """Each position becomes the nearest code that is kept.

    Van den Oord et al., "Neural Discrete Representation Learning", 2017. In training mode gradients
    pass straight through.

    Args:
        codebook: Codes [codes, d], for example from `codebook_of`.
    """

    kept: Tensor

    def __init__(self, codebook: Tensor) -> None:
        super().__init__()
        self.codebook = nn.Parameter(codebook.detach().clone())
        self.register_buffer("kept", torch.ones(len(codebook), dtype=torch.bool))

    def forward(self, hidden: Tensor) -> Tensor:
        """From [..., d] to [..., d]."""
        value = self.codebook[self._nearest(hidden)]
        return hidden + (value - hidden).detach() if self.training else value

    def loss(self, hidden: Tensor, commitment: float = 0.25) -> Tensor:
        """What trains the codes, and, by `commitment`, what comes before them."""
        value = self.codebook[self._nearest(hidden)]
        return mse_loss(value, hidden.detach()) + commitment * mse_loss(hidden, value.detach())

    def usage(self, hidden: Tensor) -> Tensor:
        """At how many positions each code is used, int64 [codes]."""
        return torch.bincount(self._nearest(hidden).flatten(), minlength=len(self.codebook))

    def _nearest(self, hidden: Tensor) -> Tensor:
        codes = self.codebook.detach()
        distance = codes.square().sum(1) - 2 * hidden.detach() @ codes.T
        return distance.masked_fill(~self.kept, torch.inf).argmin(-1)


class SparseBottleneck(nn.Module):
    """Each position becomes the sum of its strongest few features.

    The top-k autoencoder of Gao et al., "Scaling and evaluating sparse autoencoders", 2024; train
    it on `loss` like any module.

    Args:
        width: d.
        codes: Features.
        strongest: How many of them a position may use.
    """

    def __init__(self, width: int, codes: int, strongest: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(width, codes)
        self.decoder = nn.Linear(codes, width)
        self.strongest = strongest

    def forward(self, hidden: Tensor) -> Tensor:
        """From [..., d] to [..., d]."""
        return self.reconstructed(hidden)

    def reconstructed(self, hidden: Tensor) -> Tensor:
        """What the strongest features say of hidden states, [..., d]."""
        out: Tensor = self.decoder(self._features(hidden))
        return out

    def loss(self, hidden: Tensor) -> Tensor:
        """Mean squared error of the reconstruction."""
        return mse_loss(self.reconstructed(hidden), hidden)

    def usage(self, hidden: Tensor) -> Tensor:
        """At how many positions each feature is above 0, int64 [codes]."""
        return (self._features(hidden) > 0).flatten(0, -2).sum(0)

    def _features(self, hidden: Tensor) -> Tensor:
        every = torch.relu(self.encoder(hidden - self.decoder.bias))
        values, at = every.topk(self.strongest, -1)
        return torch.zeros_like(every).scatter(-1, at, values)


class ResidualBottleneck(SparseBottleneck):
    """A sparse bottleneck that lets its error pass: each position loses its removed features alone.

    hidden + decode(kept features) - decode(all features), as sparse autoencoders are used on a
    language model that was trained without one (Farrell et al., "Applying sparse autoencoders to
    unlearn knowledge in language models", 2024, arXiv:2410.19278). While nothing is removed the
    model keeps its bits, on inputs that the features were not fitted to as well. The price: what
    the features do not reconstruct passes, whatever it is of.

    Args:
        width: d.
        codes: Features.
        strongest: How many of them a position may use.
    """

    kept: Tensor

    def __init__(self, width: int, codes: int, strongest: int) -> None:
        super().__init__(width, codes, strongest)
        self.register_buffer("kept", torch.ones(codes, dtype=torch.bool))

    def forward(self, hidden: Tensor) -> Tensor:
        """From [..., d] to [..., d]."""
        removed = self._features(hidden).masked_fill(self.kept, 0)
        return hidden - linear(removed, self.decoder.weight)

    def usage(self, hidden: Tensor) -> Tensor:
        """At how many positions each feature that is kept is above 0, int64 [codes]."""
        return super().usage(hidden).masked_fill(~self.kept, 0)


def codebook_of(hidden: Tensor, codes: int, generator: torch.Generator, rounds: int = 25) -> Tensor:
    """Codes of least squared distance by Lloyd's k-means, from a random start.

    Args:
        hidden: [N, d].
        codes: At most N.
        generator: Draws the start; on the CPU.
        rounds: At most; a code that nothing is nearest to stays where it is.

    Returns:
        [codes, d].

    Raises:
        ConfigurationError: There are fewer positions than codes.
    """
    if not 1 <= codes <= len(hidden):
        raise ConfigurationError(
            f"{len(hidden)} positions cannot give {codes} codes.", "Ask for fewer codes."
        )
    start = torch.randperm(len(hidden), generator=generator)[:codes].sort().values
    centres = hidden[start.to(hidden.device)].detach().clone()
    for _ in range(rounds):
        nearest = torch.cdist(hidden, centres).argmin(1)
        sizes = torch.bincount(nearest, minlength=codes)
        sums = torch.zeros_like(centres).index_add_(0, nearest, hidden.detach())
        moved = torch.where(sizes[:, None] > 0, sums / sizes[:, None].clamp(min=1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def insert(module: nn.Module, layer: str, bottleneck: nn.Module) -> RemovableHandle:
    """Put a bottleneck behind a layer; names and weights of the model stay as they are.

    Args:
        module: The model.
        layer: A layer whose output is hidden [..., d], or a tuple that begins with it.
        bottleneck: From [..., d] to [..., d].

    Returns:
        What takes it out again; also a context manager.

    Raises:
        ConfigurationError: There is no such layer.
    """
    found = dict(module.named_modules()).get(layer)
    if found is None:
        raise ConfigurationError(f"The model has no layer {layer}.", "Correct its name.")

    handle: RemovableHandle = found.register_forward_hook(
        lambda _, __, output: _narrowed(bottleneck, output)
    )
    return handle


def narrow_by_child(layer: nn.Module, name: str, bottleneck: nn.Module) -> None:
    """Put a bottleneck behind a layer for good, as a part of it: in its state, and in its copies.

    Args:
        layer: Its output is hidden [..., d], or a tuple that begins with it.
        name: Of the part.
        bottleneck: From [..., d] to [..., d].
    """
    layer.add_module(name, bottleneck)
    layer.register_forward_hook(partial(_by_child, name))


def _by_child(name: str, layer: nn.Module, _: Any, output: Any) -> Any:
    """A hook that asks the layer it is called on: a copy has a bottleneck of its own."""
    return _narrowed(layer.get_submodule(name), output)


def _narrowed(bottleneck: nn.Module, output: Any) -> Any:
    if isinstance(output, tuple):
        return (bottleneck(output[0]), *output[1:])
    return bottleneck(output)
