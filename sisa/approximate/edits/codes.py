"""Code ablation: the codes of a bottleneck that stand for a topic are found and taken away."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
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
    runs = (partial(module, inputs_of(batch)) for batch in some(batches, "set of inputs"))
    return counted(module, bottleneck, runs)


def counted(
    module: nn.Module,
    bottleneck: QuantisedBottleneck | SparseBottleneck,
    runs: Iterable[Callable[[], Any]],
) -> Usage:
    """Count the codes that a model uses in forwards of any form.

    Args:
        module: A model into which the bottleneck was put.
        bottleneck: That.
        runs: Each makes a forward without padding, at least to the bottleneck.

    Raises:
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
        for run in runs:
            run()
    if not found:
        raise ConfigurationError("The bottleneck is not in this model.", "Insert it first.")
    return Usage(found[0], positions)


def tied(topic: Usage, control: Usage, ratio: float = 2.0, least: int = 2) -> Tensor:
    """Codes that are used on a topic far more often than on control inputs.

    After the idea of Wu et al., "CodeUnlearn", 2024, arXiv:2410.10866. Their rule of when a code is
    over-represented could not be read: ratio, least and the smoothing of rates are ours.

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
    """Take codes away for good.

    A position that used a quantised code gets the next nearest that is kept; one that used a sparse
    code does without it. Their vectors are zeroed, and they are never chosen again. Of a bottleneck
    that lets its error pass they stay: they are what is subtracted from hidden states.

    Args:
        params: `state_dict` of a bottleneck, or of what holds it; with buffers.
        codes: Those to remove, int64.
        prefix: Of the bottleneck's names, with its dot.

    Raises:
        ConfigurationError: There is no bottleneck of that prefix, no such code, or no code would be
            left.
    """
    main = params.get(f"{prefix}codebook", params.get(f"{prefix}encoder.weight"))
    if main is None:
        raise ConfigurationError("There is no bottleneck in this model.", "Correct the prefix.")
    if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < len(main):
        raise ConfigurationError(f"There are {len(main)} codes; one asked for is not among them.")
    gone = torch.zeros(len(main), dtype=torch.bool, device=main.device)
    gone[codes.to(main.device)] = True
    changes = {}
    if f"{prefix}kept" in params:
        kept = changes[f"{prefix}kept"] = params[f"{prefix}kept"] & ~gone
        if not kept.any():
            raise ConfigurationError("No code would be left.", "Remove fewer codes.")
    if f"{prefix}codebook" in params:
        changes[f"{prefix}codebook"] = main.detach().masked_fill(gone[:, None], 0)
    elif not changes:
        for name, mask in _vectors(gone).items():
            changes[prefix + name] = params[prefix + name].detach().masked_fill(mask, 0)
    return changed(params, changes)


def _vectors(gone: Tensor) -> dict[str, Tensor]:
    """Where a sparse bottleneck keeps what belongs to codes, by name."""
    return {"encoder.weight": gone[:, None], "encoder.bias": gone, "decoder.weight": gone}
