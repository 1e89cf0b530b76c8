"""Zero or reset what matters most for the forget set and least for the retain set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from sisa.approximate.edits.importance import Importance
from sisa.approximate.edits.mappings import Parameters, changed, check
from sisa.errors import ConfigurationError

Unit = Literal["parameter", "neuron"]
Scope = Literal["model", "layer"]

Groups = dict[str, list[str]]
"""Tensors that are chosen together: a layer's weight and bias have the neurons in common."""

ROUNDING = 1e-9
"""0.29 of 100 is 29, but a little less in binary."""


def prune(
    params: Parameters,
    forget: Importance,
    retain: Importance,
    share: float,
    unit: Unit = "parameter",
    scope: Scope = "model",
    initial: Parameters | None = None,
) -> dict[str, Tensor]:
    """Zero the given share of units with the largest importance ratio D_F / D_R, or reset them.

    Score as in Pochinkov and Schoots, "Dissecting Language Models: Machine Unlearning via Selective
    Pruning", 2024, with squared gradients as importance. It is the step-function form of `dampen`.
    Of equal ratios the earlier unit is taken; what does not matter for the forget set never is.
    A ratio says nothing of size: single parameters of large ratio may hardly matter for either set,
    so that a small share of them can be without effect where as many neurons are not.

    Args:
        params: The model; tensors without importance are copied.
        forget: D_F, over the forget set.
        retain: D_R, over the retain set; see `importance.without`.
        share: Of the units with importance, 0 to 1; rounded down to whole units.
        unit: "parameter" for single elements; "neuron" for rows of a layer (index 0 of its weight,
            with the bias of that index), whose importance is summed.
        scope: Whether the share is taken of the whole model or of each layer; a small layer may
            give none.
        initial: Values to go back to, by parameter; zero by default.

    Raises:
        ConfigurationError: The share is out of range or under one unit, or importance, initial
            values and model do not fit together.
    """
    if not 0 < share <= 1:
        raise ConfigurationError(f"The share {share} is not in (0, 1].", "Correct the setting.")
    forget.comparable(retain)
    check(params, forget.values)
    check(params, initial or {})
    changes = {}
    for name, mask in selected(forget, retain, share, unit, scope).items():
        old = params[name].detach()
        if initial is None:
            new = torch.zeros_like(old)
        elif name in initial:
            new = initial[name].to(old)
        else:
            raise ConfigurationError(
                f"There is no initial value of {name}.", "Give all that have importance."
            )
        changes[name] = torch.where(mask, new, old)
    return changed(params, changes)


def selected(
    forget: Importance, retain: Importance, share: float, unit: Unit, scope: Scope
) -> dict[str, Tensor]:
    """What `prune` takes: bool by parameter, of its shape."""
    groups = _groups(forget.values, unit)
    scores = {
        key: _ratio(_score(forget.values, names, unit), _score(retain.values, names, unit))
        for key, names in groups.items()
    }
    most = (sum if scope == "model" else max)(map(len, scores.values()))
    if int(share * most + ROUNDING) < 1:
        raise ConfigurationError(
            f"A share of {share:g} is less than one of {most} units.", "Give a larger one."
        )
    if scope == "model":
        largest = _largest(torch.cat(list(scores.values())), share)
        parts = torch.split(largest, [len(score) for score in scores.values()])
        chosen = dict(zip(scores, parts, strict=True))
    else:
        chosen = {key: _largest(score, share) for key, score in scores.items()}
    return {
        name: _spread(chosen[key], forget.values[name], unit)
        for key, names in groups.items()
        for name in names
    }


def _groups(values: Mapping[str, Tensor], unit: Unit) -> Groups:
    groups: Groups = {}
    for name, value in values.items():
        layer = name.rpartition(".")[0]
        key = f"{layer}/{_rows(value)}" if unit == "neuron" else name
        groups.setdefault(key, []).append(name)
    return groups


def _score(values: Mapping[str, Tensor], names: list[str], unit: Unit) -> Tensor:
    """Importance [u] of a group's units."""
    if unit == "parameter":
        return values[names[0]].flatten()
    rows = [values[name].reshape(_rows(values[name]), -1).sum(1) for name in names]
    return torch.stack(rows).sum(0)


def _rows(value: Tensor) -> int:
    return len(value) if value.ndim else 1


def _ratio(forget: Tensor, retain: Tensor) -> Tensor:
    """Infinite where only the forget set needs the unit, 0 where it does not."""
    return torch.where(forget > 0, forget / retain, 0)


def _largest(score: Tensor, share: float) -> Tensor:
    """bool [u]: the share of largest scores; a stable order, as `topk` leaves ties open."""
    order = score.argsort(descending=True, stable=True)[: int(share * len(score) + ROUNDING)]
    mask = torch.zeros_like(score, dtype=torch.bool)
    mask[order] = True
    return mask & (score > 0)


def _spread(chosen: Tensor, like: Tensor, unit: Unit) -> Tensor:
    if unit == "parameter":
        return chosen.view(like.shape)
    return chosen.view(-1, *[1] * (like.ndim - 1)).expand(like.shape) if like.ndim else chosen[0]
