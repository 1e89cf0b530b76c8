"""What training a torch module needs besides the module and its optimizer: randomness, losses and
states as arrays."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
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
            seed_all(seed)
            torch.use_deterministic_algorithms(True)
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def unfilled() -> Iterator[None]:
    """Let new tensors stay as they are: deterministic torch fills them, in case one is read so.

    Only for code that is known to write before it reads.
    """
    setting: Any = torch.utils.deterministic
    before = setting.fill_uninitialized_memory
    setting.fill_uninitialized_memory = False
    try:
        yield
    finally:
        setting.fill_uninitialized_memory = before


def seed_all(seed: int) -> None:
    """Put every global generator under one seed, under 2**63; only within `isolated`."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


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
    if training.class_weights or training.label_smoothing:
        found = _soft_cross_entropy(training)
    return found if classes else lambda output, target: found(output[:, 0], target)


def class_weights(training: Training) -> Tensor | None:
    """Declared weights of the classes, float32 [classes], if there are any."""
    declared = training.class_weights
    return torch.tensor(declared, dtype=torch.float32) if declared else None


def _soft_cross_entropy(training: Training) -> Loss:
    """Cross-entropy with label smoothing and class weights."""
    return partial(
        nn.functional.cross_entropy,
        weight=class_weights(training),
        label_smoothing=training.label_smoothing,
    )


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
