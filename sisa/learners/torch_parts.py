"""What training a torch module needs besides the module and its optimizer: randomness, losses and
states as arrays."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sisa.config import Training
from sisa.errors import ConfigurationError
from sisa.learners.protocol import State
from sisa.learners.user_code import reason

Loss = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Run with deterministic algorithms only and with every global generator under one seed.

    Modules may draw from Python's and NumPy's generators too. Afterwards torch's settings and all
    three generators are as they were.

    Args:
        seed: Under 2**63.
    """
    python, numpy = random.getstate(), np.random.get_state()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=[]):
        try:
            random.seed(seed)
            np.random.seed(seed & 0xFFFFFFFF)
            torch.default_generator.manual_seed(seed)
            torch.use_deterministic_algorithms(True)
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            random.setstate(python)
            np.random.set_state(numpy)


def loss_function(training: Training, classes: int | None) -> Loss:
    """The loss by its name in torch.nn.functional, of a module's output and the target.

    Args:
        training: The recipe's section; by default cross_entropy or mse_loss.
        classes: None for a regression, whose loss is over the values [B] of an output [B, 1].

    Raises:
        ConfigurationError: Torch has no such loss.
    """
    name = training.loss or ("cross_entropy" if classes else "mse_loss")
    known = {
        n: f
        for n, f in vars(nn.functional).items()
        if n.endswith(("_loss", "cross_entropy")) and not n.startswith("_")
    }
    if name not in known:
        raise ConfigurationError(
            f"There is no loss {name!r}.", f"Use one of {', '.join(sorted(known))}."
        )
    found: Loss = known[name]
    return found if classes else lambda output, target: found(output[:, 0], target)


def to_arrays(tensors: Mapping[str, Any], name: str) -> dict[str, npt.NDArray[Any]]:
    """C-ordered copies, which no later step writes to.

    Raises:
        ConfigurationError: NumPy has no such type, or an entry is no tensor that has a value yet.
    """
    try:
        return {
            key: np.array(tensor.detach().numpy(), order="C") for key, tensor in tensors.items()
        }
    except (TypeError, RuntimeError, ValueError, AttributeError) as error:
        raise ConfigurationError(
            f"The state of the learner {name} cannot be kept: {reason(error)}.",
            "Use modules whose state holds dense tensors of a type that NumPy has.",
        ) from error


def finite(found: State, parent: State) -> bool:
    """Whether no array turned infinite or NaN; a mask that always held infinities may keep them."""
    for name, array in found.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            before = parent.get(name)
            if before is None or np.isfinite(before).all():
                return False
    return True
