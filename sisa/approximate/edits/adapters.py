"""Adapters of a sequence of requests: fused in closed form, or dropped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sisa.approximate.edits.mappings import Parameters, check
from sisa.approximate.edits.passes import Batch, evaluating, inputs_of, some
from sisa.errors import ConfigurationError, NotFoundError, UsageError

Grams = Mapping[str, Tensor]
"""By linear layer, X^T X of its inputs X [n, d], float64 [d, d]; with a bias a 1 is put behind each
input, so [d + 1, d + 1]. They can be kept when the data are gone."""

RANK = 1e-12
"""Share of the largest eigenvalue under which a direction counts as one that no input reaches: sums
of rounded squares leave some 1e-15 there."""


def grams(module: nn.Module, layers: Sequence[str], batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Gram matrices of what enters linear layers, in one pass.

    Args:
        module: The model with the adapter in it; it is not changed.
        layers: Names of its `Linear` layers.
        batches: Inputs [n, ...] without padding: every position counts.

    Raises:
        ConfigurationError: There is no such linear layer.
        IncompleteError: There is no example.
    """
    with gathering(module, layers) as found, evaluating(module), torch.no_grad():
        for batch in some(batches, "forget set"):
            module(inputs_of(batch))
    return found


@contextmanager
def gathering(module: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Gram matrices of all that enters linear layers while it is open; full when it is left.

    Args:
        module: The model with the adapter in it.
        layers: Names of its `Linear` layers.

    Raises:
        ConfigurationError: There is no such linear layer, or nothing entered one.
    """
    found: dict[str, Tensor] = {}
    hooks = []

    def add(name: str, layer: nn.Linear, args: tuple[Any, ...]) -> None:
        rows = args[0].detach().reshape(-1, layer.in_features).double()
        if layer.bias is not None:
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
        found[name] = found.get(name, 0) + (rows.T @ rows).cpu()

    for name in layers:
        layer = dict(module.named_modules()).get(name)
        if not isinstance(layer, nn.Linear):
            raise ConfigurationError(f"The model has no linear layer {name}.", "Correct its name.")
        hooks.append((layer, partial(add, name)))
    handles = [layer.register_forward_pre_hook(hook) for layer, hook in hooks]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    if missing := [name for name in layers if name not in found]:
        raise ConfigurationError(f"Nothing enters the layer {missing[0]}.", "Name a used one.")


def fuse(adapters: Sequence[Parameters], statistics: Sequence[Grams]) -> dict[str, Tensor]:
    """One adapter that gives on the inputs of each what that one gives, as nearly as can be.

    W = (sum_i X_i^T X_i)^-1 sum_i X_i^T X_i W_i minimises sum_i ||X_i W - X_i W_i||^2: Chen
    and Yang, "Unlearn What You Want to Forget", EMNLP 2023. Along what no input reaches the sum has
    no inverse; there W is the mean of the W_i: the limit of a vanishing ridge towards each W_i.

    Args:
        adapters: Of each request in turn, with the same names; W_i is the transposed `weight`.
        statistics: Of each, the Gram matrices of its linear layers, from `grams`.

    Returns:
        Linear layers fused with their biases, in float64 and back; of other numbers the plain mean,
        of whole numbers those of the first.

    Raises:
        UsageError: There is nothing to fuse.
        ConfigurationError: Names or shapes do not agree.
    """
    if not adapters or len(adapters) != len(statistics):
        raise UsageError("Fusing needs one or more adapters and the statistics of each.")
    first = adapters[0]
    for other, gram in zip(adapters, statistics, strict=True):
        check(first, other)
        check(other, first)
        check(statistics[0], gram)
        check(gram, statistics[0])
    fused = {name: _mean([adapter[name] for adapter in adapters]) for name in first}
    for layer in statistics[0]:
        joint = [_joint(adapter, layer) for adapter in adapters]
        solved = _solve([gram[layer] for gram in statistics], joint).T
        names = (f"{layer}.weight", f"{layer}.bias")
        parts = (solved[:, : first[names[0]].shape[1]], solved[:, -1])
        for name, part in zip(names, parts, strict=True):
            if name in first:
                fused[name] = part.to(first[name]).contiguous()
    return fused


def drop(params: Parameters, adapter: str) -> dict[str, Tensor]:
    """The mapping without an adapter: what has its name as one part of its dotted name.

    What stays was never trained with the adapter, so it keeps its bits.

    Raises:
        NotFoundError: There is no such adapter.
    """
    kept = {
        name: v.detach().clone() for name, v in params.items() if adapter not in name.split(".")
    }
    if len(kept) == len(params):
        raise NotFoundError(f"The model has no adapter {adapter}.", "Correct its name.")
    return kept


def _mean(values: list[Tensor]) -> Tensor:
    if not values[0].is_floating_point():
        return values[0].detach().clone()
    return torch.stack([v.detach().double() for v in values]).mean(0).to(values[0])


def _joint(adapter: Parameters, layer: str) -> Tensor:
    """W_i, float64 [d, outputs], with the bias as the last row where there is one."""
    if f"{layer}.weight" not in adapter:
        raise ConfigurationError(f"An adapter has no layer {layer}.", "Use its own statistics.")
    rows = [adapter[f"{layer}.weight"].detach().double().cpu().T]
    if f"{layer}.bias" in adapter:
        rows.append(adapter[f"{layer}.bias"].detach().double().cpu()[None])
    return torch.cat(rows)


def _solve(gram: list[Tensor], weights: list[Tensor]) -> Tensor:
    """The mean plus the shortest deviation from it that solves the normal equations."""
    total, mean = torch.stack(gram).sum(0), torch.stack(weights).mean(0)
    if total.shape != (len(mean), len(mean)):
        raise ConfigurationError(
            f"Statistics of width {len(total)} do not fit a layer of {len(mean)} inputs.",
            "Measure them on this adapter.",
        )
    right = sum(
        (g @ (w - mean) for g, w in zip(gram, weights, strict=True)), torch.zeros_like(mean)
    )
    solution: Tensor = torch.linalg.lstsq(total, right, rcond=RANK, driver="gelsd").solution
    return mean + solution
