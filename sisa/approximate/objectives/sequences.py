"""Reductions: from the numbers of a batch's rows to one loss.

A reduction is `g(values [N], item [N], items, reference [B] | None) -> scalar`, to be minimised.
Rows come grouped by item. An item without rows contributes nothing, no gradient, and is not counted
in a mean; where no item has a row, the loss is zero with zero gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from sisa.approximate.rows import item_counts, item_sums, positions

Reduction = Callable[[Tensor, Tensor, int, Tensor | None], Tensor]
Weighting = Callable[[Tensor], Tensor]


def token_mean(skip: int = 0) -> Reduction:
    """Average over rows.

    Args:
        skip: How many first rows of each item are left out, but never all of them (CE-U leaves out
            one: Yang, 2025, arXiv:2503.01224, a footnote on training settings).
    """

    def reduce(values: Tensor, item: Tensor, items: int, reference: Tensor | None = None) -> Tensor:
        if skip:
            first = (item_counts(item, items) - 1).clamp(min=0, max=skip)
            values = values[positions(item, items) >= first[item]]
        return values.sum() / max(len(values), 1)

    return reduce


def weighted(weighting: Weighting) -> Reduction:
    """Ascend the nll of rows by weights that get no gradient: -mean of w(p) nll, p = exp(-nll).

    Args:
        weighting: Gives weights [N] from probabilities of labels [N].
    """

    def reduce(values: Tensor, item: Tensor, items: int, reference: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            weights = weighting(torch.exp(-values))
        return -(weights * values).sum() / max(len(values), 1)

    return reduce


def smallest(fraction: float) -> Reduction:
    """Ascend the nll of the rows that are known best: loss selection.

    Minus the mean over floor(fraction n) rows of smallest nll of each item of n rows, at least one
    (Wang et al., ICLR 2025, arXiv:2406.09179).
    """

    def reduce(values: Tensor, item: Tensor, items: int, reference: Tensor | None = None) -> Tensor:
        ascending = values.detach().argsort(stable=True)
        order = ascending[item[ascending].argsort(stable=True)]
        counts = item_counts(item, items)
        chosen = (fraction * counts).floor().clamp(min=1)
        kept = values[order][positions(item, items) < chosen[item]]
        return -kept.sum() / max(len(kept), 1)

    return reduce


def squashed(beta: float, *, mean: bool = False, delta: float = 0.0) -> Reduction:
    """Ascend the score of items until it saturates: the mean of -(2 / beta) log sigmoid(beta s).

    The score s of an item is its nll, summed or averaged over its rows, minus the same of the
    reference if there is one, minus delta. Summed with a reference it is NPO (Zhang et al., COLM
    2024, arXiv:2404.05868); averaged without it is SimNPO (Fan et al., 2024, arXiv:2410.07163).

    Args:
        beta: Inverse temperature, above 0.
        mean: Divide the score by the item's number of rows.
        delta: Margin, in nats.
    """

    def reduce(values: Tensor, item: Tensor, items: int, reference: Tensor | None = None) -> Tensor:
        counts = item_counts(item, items)
        scores = _above(item_sums(values, item, items), reference, counts > 0)
        if mean:
            scores = scores / counts.clamp(min=1)
        return _saturating(scores - delta, counts > 0, beta)

    return reduce


def preferred(beta: float) -> Reduction:
    """Prefer an alternative answer to the one to forget: DPO on pairs.

    The mean over pairs of -(2 / beta) log sigmoid(beta ((S - S_ref)(forget) - (S - S_ref)(other))),
    with S the summed nll (Rafailov et al., NeurIPS 2023, arXiv:2305.18290; the factor 2 / beta as
    for NPO). Of 2 P items the first P are the alternatives and the last P what is to be forgotten,
    in the same order; a pair with an item without rows is left out.

    Args:
        beta: Inverse temperature, above 0.
    """

    def reduce(values: Tensor, item: Tensor, items: int, reference: Tensor | None = None) -> Tensor:
        present = item_counts(item, items) > 0
        scores = _above(item_sums(values, item, items), reference, present)
        others, forgotten = scores.view(2, -1)
        return _saturating(forgotten - others, present.view(2, -1).all(0), beta)

    return reduce


def _above(sums: Tensor, reference: Tensor | None, present: Tensor) -> Tensor:
    """Subtract the reference's scores [B] where an item has rows."""
    if reference is None:
        return sums
    return sums - torch.where(present, reference.detach().to(sums), 0)


def _saturating(scores: Tensor, counted: Tensor, beta: float) -> Tensor:
    """Average -(2 / beta) log sigmoid(beta s) over what is counted."""
    losses = -2 / beta * functional.logsigmoid(beta * scores)
    return torch.where(counted, losses, 0).sum() / counted.sum().clamp(min=1)


def everywhere(probability: Tensor) -> Tensor:
    """Weigh all rows alike: gradient ascent."""
    return torch.ones_like(probability)


def by_confidence(beta: float) -> Weighting:
    """Weigh by p^beta: WGA (Wang et al., ICLR 2025, arXiv:2502.19301)."""
    return lambda probability: probability**beta


def by_saturation_and_importance(beta1: float, beta2: float) -> Weighting:
    """Weigh by p^beta1 (1 - p)^beta2: SatImp (Yang et al., ICML 2025, arXiv:2505.11953)."""
    return lambda probability: probability**beta1 * (1 - probability) ** beta2
