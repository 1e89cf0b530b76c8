"""Fine-tune a model on little data, and look what comes back of all that was forgotten.

What was hidden returns after a few steps on a small part of the forgotten, or on harmless data of
the same kind; what was never known does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sisa.approximate.attacks.recovered import finite, recovered_share
from sisa.errors import ConfigurationError, IncompleteError, UsageError

Batch = TypeVar("Batch")
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Relearned:
    """What came back.

    Attributes:
        original: The metric before unlearning.
        curve: Steps taken and the metric then, from 0 on.
        lr: Learning rate.
    """

    original: float
    curve: tuple[tuple[int, float], ...]
    lr: float

    @property
    def shares(self) -> tuple[float | None, ...]:
        """Recovered share at each point of the curve: see `recovered.recovered_share`."""
        start = self.curve[0][1]
        return tuple(recovered_share(self.original, start, metric) for _, metric in self.curve)

    @property
    def share(self) -> float | None:
        """Largest of them: an attacker keeps the best. None if there was nothing to recover."""
        return max((share for share in self.shares if share is not None), default=None)


def split(items: int, share: float, seed: int = 0) -> tuple[Indices, Indices]:
    """Choose a small part of the forgotten to relearn from; the metric is taken on the rest.

    Returns:
        Places of both parts, int64, ascending; neither is empty.

    Raises:
        IncompleteError: There are fewer than two items.
        UsageError: The share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise UsageError(f"{share} is no share.", "Write a number between 0 and 1.")
    if items < 2:
        raise IncompleteError(
            f"Relearning needs two forgotten items or more and has {items}: one to learn from, "
            "and one to ask for.",
            "Give it a larger set, or harmless data to learn from.",
        )
    order = np.random.default_rng(seed).permutation(items)
    taken = min(max(round(share * items), 1), items - 1)
    return np.sort(order[:taken]), np.sort(order[taken:])


def relearn(
    attacked: nn.Module,
    batches: Sequence[Batch],
    loss: Callable[[Batch], Tensor],
    metric: Callable[[], float],
    original: float,
    *,
    steps: int,
    lr: float,
    every: int = 1,
) -> Relearned:
    """Take steps of AdamW on a model, in place, all its parameters trained.

    It is in evaluation mode all the time: without dropout, and with the statistics of batch
    normalisation as they are.

    Args:
        attacked: A copy of the unlearned model.
        batches: What to learn from, in turn: a part of the forgotten, or harmless data.
        loss: Of the model, to be minimised, a scalar.
        metric: Of the model and what was forgotten, but not learned from; without gradients.
        original: The metric of the model before unlearning.
        steps: How many.
        lr: Learning rate.
        every: Steps between two metrics; the last step has one always.

    Raises:
        IncompleteError: There is no batch.
        UsageError: There is no step to take.
        ConfigurationError: The loss is no longer finite: that attack says nothing.
        DataError: The metric is not a finite number.
    """
    if not batches:
        raise IncompleteError("There is nothing to relearn from.", "Give one batch or more.")
    if steps < 1 or every < 1:
        raise UsageError("Relearning needs a step or more.", "Set `steps` and `every` above 0.")
    # a model in parts has them to be trained until its first forward
    optimizer = torch.optim.AdamW(_all_trainable(attacked.eval()), lr=lr, weight_decay=0)
    curve = [(0, _measured(metric))]
    for step in range(1, steps + 1):
        with torch.enable_grad():
            _step(optimizer, loss, batches[(step - 1) % len(batches)], step)
        if step % every == 0 or step == steps:
            curve.append((step, _measured(metric)))
    return Relearned(finite(original), tuple(curve), lr)


def _all_trainable(model: nn.Module) -> list[nn.Parameter]:
    """Every parameter that can be trained: who attacks need not leave any frozen."""
    found = [p for p in model.parameters() if p.is_floating_point()]
    for parameter in found:
        parameter.requires_grad_(True)
        parameter.grad = None
    return found


def _step(
    optimizer: torch.optim.Optimizer, loss: Callable[[Any], Tensor], batch: Any, number: int
) -> None:
    found = loss(batch)
    if not torch.isfinite(found).all():
        raise ConfigurationError(
            f"Relearning came to a loss that is no finite number at step {number}.",
            "Lower its learning rate.",
        )
    optimizer.zero_grad(set_to_none=True)
    found.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


@torch.no_grad()
def _measured(metric: Callable[[], float]) -> float:
    return finite(float(metric()))
