"""Selective synaptic dampening: what matters for the forget set above all is made smaller."""

from __future__ import annotations

import torch
from torch import Tensor

from sisa.approximate.edits.importance import Importance
from sisa.approximate.edits.mappings import Parameters, changed, check, wide
from sisa.errors import ConfigurationError


def dampen(
    params: Parameters,
    forget: Importance,
    whole: Importance,
    alpha: float = 10.0,
    strength: float = 1.0,
) -> dict[str, Tensor]:
    """Where D_F > alpha D, theta becomes min(strength D / D_F, 1) theta; else its bits stay.

    Foster et al., "Fast Machine Unlearning Without Retraining Through Selective Synaptic
    Dampening", AAAI 2024, where D is over all training data. `strength` is their lambda.

    Args:
        params: The model; tensors without importance are copied.
        forget: D_F, over the forget set.
        whole: D, over all data, the forget set included.
        alpha: How many times as important a parameter must be; the authors use 10 for ResNet-18,
            and for a vision transformer 5, 25 or 10, as a class, a part of one or random records
            are forgotten. Theirs is the Fisher information of batches (`batch_fisher`).
        strength: The smaller, the more is taken.

    Raises:
        ConfigurationError: A setting is negative, or importance and model do not fit together.
    """
    if alpha < 0 or strength < 0:
        raise ConfigurationError("alpha and strength must not be negative.", "Correct the setting.")
    forget.comparable(whole)
    check(params, forget.values)
    changes = {}
    for name, d_forget in forget.values.items():
        old, d_whole = params[name].detach(), whole.values[name]
        factor = (strength * d_whole / d_forget).clamp(max=1)
        less = (wide(old) * factor).to(old.dtype)
        changes[name] = torch.where(_selected(d_forget, d_whole, alpha), less, old)
    return changed(params, changes)


def dampened(forget: Importance, whole: Importance, alpha: float = 10.0) -> dict[str, int]:
    """How many elements of each parameter `dampen` selects."""
    forget.comparable(whole)
    return {
        name: int(_selected(d_forget, whole.values[name], alpha).sum())
        for name, d_forget in forget.values.items()
    }


def _selected(forget: Tensor, whole: Tensor, alpha: float) -> Tensor:
    return forget > alpha * whole
