"""Code ablation: the codes of a bottleneck that stand for a topic are found and taken away."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sisa.approximate.edits.bottlenecks import QuantisedBottleneck, SparseBottleneck
from sisa.approximate.edits.mappings import Parameters, changed
from sisa.approximate.edits.passes import Batch, evaluating, inputs_of, some
from sisa.errors import ConfigurationError


@dataclass(frozen=True)
class Usage:
    """How often codes are used on some inputs.

    Attributes:
        used: Positions at which each code is used, int64 [codes].
        positions: All positions.
    """

    used: Tensor
    positions: int

    @property
    def rate(self) -> Tensor:
        """Share of positions that use each code, float64 [codes]: (used + 1) / (positions + 2).

        Laplace's rule of succession, so that what was never seen is rare, not impossible.
        """
        return (self.used.double() + 1) / (self.positions + 2)


def count(
    module: nn.Module,
    bottleneck: QuantisedBottleneck | SparseBottleneck,
    batches: Iterable[Batch],
) -> Usage:
    """Count the codes that a model uses on inputs.

    Args:
        module: A model into which the bottleneck was put.
        bottleneck: That.
        batches: Inputs [n, ...] without padding: every position counts.

    Raises:
        IncompleteError: There is no input.
        ConfigurationError: The bottleneck is not in the model.
    """
    found: list[Tensor] = []
    positions = 0

    def add(_: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal positions
        found[:] = [sum(found, bottleneck.usage(args[0]))]
        positions += args[0].shape[:-1].numel()

    with (
        evaluating(module),
        evaluating(bottleneck),
        torch.no_grad(),
        bottleneck.register_forward_pre_hook(add),
    ):
        for batch in some(batches, "set of inputs"):
            module(inputs_of(batch))
    if not found:
        raise ConfigurationError("The bottleneck is not in this model.", "Insert it first.")
    return Usage(found[0], positions)


def tied(topic: Usage, control: Usage, ratio: float = 2.0, least: int = 2) -> Tensor:
    """Codes that are used on a topic far more often than on control inputs.

    After Wu et al., "CodeUnlearn", 2024; the defaults are ours.

    Args:
        topic: Usage on inputs about the topic.
        control: Usage on others like them.
        ratio: How many times as high the rate on the topic must be.
        least: Positions of the topic that must use the code.

    Returns:
        int64, ascending.
    """
    often = (topic.rate >= ratio * control.rate) & (topic.used >= least)
    return often.nonzero().flatten()


def ablate(params: Parameters, codes: Tensor, prefix: str = "") -> dict[str, Tensor]:
    """Take codes away for good: their vectors are zeroed, and they are never chosen again.

    A position that used a quantised code gets the next nearest that is kept; one that used a sparse
    code does without it.

    Args:
        params: `state_dict` of a bottleneck, or of what holds it; with buffers.
        codes: Those to remove, int64.
        prefix: Of the bottleneck's names, with its dot.

    Raises:
        ConfigurationError: There is no bottleneck of that prefix, no such code, or no code would be
            left.
    """
    quantised = f"{prefix}codebook" in params
    main = params.get(f"{prefix}codebook" if quantised else f"{prefix}encoder.weight")
    if main is None:
        raise ConfigurationError("There is no bottleneck in this model.", "Correct the prefix.")
    if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < len(main):
        raise ConfigurationError(f"There are {len(main)} codes; one asked for is not among them.")
    gone = torch.zeros(len(main), dtype=torch.bool, device=main.device)
    gone[codes.to(main.device)] = True
    names = [f"{prefix}encoder.weight", f"{prefix}encoder.bias"]
    changes = {}
    if quantised:
        names = [f"{prefix}codebook"]
        kept = params[f"{prefix}kept"] & ~gone
        if not kept.any():
            raise ConfigurationError("No code would be left.", "Remove fewer codes.")
        changes[f"{prefix}kept"] = kept
    else:
        decoder = params[f"{prefix}decoder.weight"].detach()
        changes[f"{prefix}decoder.weight"] = decoder.masked_fill(gone, 0)
    for name in names:
        old = params[name].detach()
        changes[name] = old.masked_fill(gone.view(-1, *[1] * (old.ndim - 1)), 0)
    return changed(params, changes)
