"""Amnesiac unlearning: the logged updates of the steps that held a forget item are subtracted."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sisa.approximate.edits.mappings import Parameters, changed, check
from sisa.approximate.edits.updates import Log
from sisa.errors import ConfigurationError, SisaError


def undo(
    params: Parameters, log: Log, forget: Iterable[str], share: float = 1.0
) -> dict[str, Tensor]:
    """theta - sum of Delta_b over the steps b that held an item of the forget set.

    Graves et al., "Amnesiac Machine Learning", AAAI 2021. With a share, or a log that was pruned
    when it was written, it is the partial amnesiac unlearning of Gogineni and Nadimi,
    arXiv:2403.07611, who prune updates layer by layer: of each layer's change only the largest
    values are taken back, which is our reading.

    The sum is taken in float64 and rounded once, so undoing the last step of a float32 model gives
    the bits before it wherever the logged difference was exact: Sterbenz's lemma, where no value
    more than doubled, halved or changed its sign. Later steps went on from what is taken back, so
    the error grows with their number. A step without a forget item is not even read.

    Args:
        params: The model at the end of the logged training; not changed.
        log: Of that training. Steps that were taken out of it were subtracted before.
        forget: Opaque ids of the items, as they were logged.
        share: Of each layer's logged change, in (0, 1].

    Raises:
        IncompleteError: There is no item, one that no step held, or an update is damaged.
        ConfigurationError: The log is of another model, or the share is not in (0, 1].
        SisaError: An update is not finite.
    """
    if not 0 < share <= 1:
        raise ConfigurationError(f"The share {share} is not in (0, 1].", "Correct the setting.")
    check(params, {name: torch.empty(shape, device="meta") for name, shape in log.shapes.items()})
    sums: dict[str, Tensor] = {}
    for step in log.holding(forget):
        for name, change in log.read(step).items():
            if not change.values.isfinite().all():
                raise SisaError(
                    f"Step {step.number} of the update log is not finite; the model is as it was.",
                    "Choose a method that needs no log.",
                )
            elements = params[name].numel()
            total = sums.setdefault(name, torch.zeros(elements, dtype=torch.float64))
            change.pruned(share, elements).add_to(total)
    return changed(params, {name: _less(params[name], total) for name, total in sums.items()})


def _less(old: Tensor, total: Tensor) -> Tensor:
    """In float64, on the device of the model."""
    return old.detach().double() - total.view(old.shape).to(old.device)
