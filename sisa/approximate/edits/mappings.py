"""New parameter mappings from old ones: the old is never written to, and tied tensors stay tied."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor, nn

from sisa.errors import ConfigurationError

Parameters = Mapping[str, Tensor]


def of_module(module: nn.Module) -> dict[str, Tensor]:
    """Copies of a module's parameters by name; a parameter with two names has the first.

    Buffers are left out: running statistics are no weights, and a variance that something is
    subtracted from can become negative.
    """
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def into_module(module: nn.Module, params: Parameters) -> None:
    """Write a mapping into a module's parameters and buffers of the same names.

    Raises:
        ConfigurationError: The module has no tensor of such a name and shape.
    """
    own = module.state_dict(keep_vars=True)
    check(own, params)
    with torch.no_grad():
        for name, value in params.items():
            own[name].copy_(value)


def check(params: Parameters, other: Parameters) -> None:
    """Check that each tensor of `other` has one of the same name and shape in `params`.

    Raises:
        ConfigurationError: It has not.
    """
    for name, value in other.items():
        if name not in params or params[name].shape != value.shape:
            raise ConfigurationError(
                f"The model has no tensor {name} of shape {list(value.shape)}.",
                "Use statistics and weights of the same model.",
            )


def changed(params: Parameters, changes: Parameters) -> dict[str, Tensor]:
    """Copies of all tensors, with those in `changes` instead of their old values.

    Tensors that share memory in `params` share it in the result, so that a tied weight which is
    edited under one name is not undone under its other.

    Args:
        params: The old mapping; it stays as it is.
        changes: New values by name, of the old shapes; they are taken over, not copied.

    Raises:
        ConfigurationError: A name is unknown, or one tied tensor is to have two values.
    """
    check(params, changes)
    values: dict[Hashable, Tensor] = {}
    for name, value in changes.items():
        value = value.to(params[name].dtype)
        first = values.setdefault(_memory(name, params[name]), value)
        if first is not value and not torch.equal(first, value):
            raise ConfigurationError(
                f"{name} shares its memory with another parameter that is edited otherwise.",
                "Edit tied parameters under one name.",
            )
    result = {}
    for name, old in params.items():
        memory = _memory(name, old)
        if memory not in values:
            values[memory] = old.detach().clone()
        result[name] = values[memory]
    return result


def wide(value: Tensor) -> Tensor:
    """At least float32, so that squares and ratios of half-precision numbers neither vanish nor
    overflow."""
    return value if value.dtype == torch.float64 else value.float()


def _memory(name: str, value: Tensor) -> Hashable:
    """The same for tensors that are views of the same elements in the same order."""
    if not value.numel() or value.is_meta:
        return name
    return value.data_ptr(), value.device, value.dtype, value.shape, value.stride()
