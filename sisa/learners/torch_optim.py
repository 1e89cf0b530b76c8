"""Optimizers of torch by name: which variant is used, and their state as named arrays.

The variant decides bits, so it is fixed: fused where the class has one on a CPU (`sgd`, `adam`,
`adamw`, `adagrad`), else one parameter after the other.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.optim import Optimizer

from sisa.config import Training
from sisa.errors import ConfigurationError

PREFIX = "optimizer."
FUSED = frozenset({"sgd", "adam", "adamw", "adagrad"})
OWN = frozenset({"params", "lr", "momentum", "weight_decay"})
"""Settings of their own in the recipe."""

Named = Mapping[str, torch.nn.Parameter]
Arrays = Mapping[str, npt.NDArray[Any]]


def classes() -> dict[str, type[Optimizer]]:
    """Every optimizer of torch.optim by its name in lower case."""
    return {
        name.lower(): found
        for name, found in vars(torch.optim).items()
        if isinstance(found, type) and issubclass(found, Optimizer) and found is not Optimizer
    }


def check(training: Training) -> None:
    """Check the optimizer's name and the names of its parameters.

    Raises:
        ConfigurationError: Torch has no such optimizer, or it has no such parameter.
    """
    _settings(training)


def make(training: Training, parameters: Named, state: Arrays) -> Optimizer:
    """An optimizer over named parameters, continued from what a parent carried.

    Args:
        training: The recipe's section.
        parameters: Those to train, by name.
        state: The parent's; arrays `optimizer.<parameter>.<key>` are taken from it. A parameter
            without any starts afresh.

    Raises:
        ConfigurationError: The optimizer refuses its parameters.
    """
    kind, settings = _settings(training)
    try:
        optimizer = kind(list(parameters.values()), **settings)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"The optimizer {training.optimizer} cannot be used: {error}.",
            "Correct training.optimizer or training.optimizer_params.",
        ) from error
    if settings.get("fused") and settings.get("momentum"):
        # fused SGD fails when some parameters have a momentum and others meet their first
        # gradient; a momentum of 0 gives the same first step
        for parameter in parameters.values():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    for name, array in state.items():
        if name.startswith(PREFIX):
            owner, _, key = name.removeprefix(PREFIX).rpartition(".")
            optimizer.state[parameters[owner]][key] = torch.from_numpy(np.array(array))
    return optimizer


def stepper(optimizer: Optimizer, in_place: bool = False) -> Callable[[float], None]:
    """What takes one step at a learning rate along the gradients that are there, without a graph.

    Fused SGD calls its kernel: at small batches `Optimizer.step` takes longer than the kernel.

    Args:
        optimizer: The optimizer.
        in_place: Whether all gradients are there by now and are always written to where they are.
    """
    (group,) = optimizer.param_groups
    if isinstance(optimizer, torch.optim.SGD) and group["fused"]:
        return _fused_sgd(optimizer, group, in_place)

    def step(lr: float) -> None:
        group["lr"] = lr
        optimizer.step()

    return step


def _fused_sgd(
    optimizer: Optimizer, group: dict[str, Any], in_place: bool
) -> Callable[[float], None]:
    settings = {k: group[k] for k in ("weight_decay", "momentum", "dampening", "nesterov")}
    settings |= {"maximize": group["maximize"], "is_first_step": False}
    parameters = group["params"]
    momenta = [optimizer.state[p]["momentum_buffer"] for p in parameters if settings["momentum"]]

    if in_place:
        fixed = [p.grad for p in parameters]
        return lambda lr: torch._fused_sgd_(parameters, fixed, momenta, lr=lr, **settings)

    def step(lr: float) -> None:
        gradients = [p.grad for p in parameters]
        there = [g is not None for g in gradients]
        if all(there):
            torch._fused_sgd_(parameters, gradients, momenta, lr=lr, **settings)
        elif any(there):
            some = [list(compress(v, there)) for v in (parameters, gradients, momenta)]
            torch._fused_sgd_(*some, lr=lr, **settings)

    return step


def arrays(optimizer: Optimizer, parameters: Named) -> dict[str, torch.Tensor]:
    """The state as `optimizer.<parameter>.<key>`; numbers become 0-dimensional tensors."""
    return {
        f"{PREFIX}{name}.{key}": torch.as_tensor(value)
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def _settings(training: Training) -> tuple[type[Optimizer], dict[str, Any]]:
    """Class and keyword arguments; a setting that the class lacks is not passed."""
    found = classes()
    name, given = training.optimizer, training.optimizer_params
    if name not in found:
        raise ConfigurationError(
            f"There is no optimizer {name!r}.", f"Use one of {', '.join(sorted(found))}."
        )
    known = inspect.signature(found[name]).parameters
    wrong = sorted(key for key in given if key not in known or key in OWN)
    if wrong:
        raise ConfigurationError(
            f"optimizer_params cannot hold {', '.join(wrong)} for the optimizer {name}.",
            f"It takes {', '.join(k for k in known if k not in OWN)}.",
        )
    settings = {
        key: value
        for key in ("lr", "momentum", "weight_decay")
        if key in known and (value := getattr(training, key)) is not None
    }
    if name in FUSED and not (name == "sgd" and given.get("dampening")):
        variant = {"fused": True}
    else:
        variant = {"foreach": False} if "foreach" in known else {}
    return found[name], {**settings, **variant, **given}
