"""One score for each item, and the mean of them with what was left out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Figure:
    """A figure, or why there is none.

    Attributes:
        value: The figure; never NaN.
        counted: From how many items or rows it comes.
        left_out: How many gave nothing.
        reason: Why `value` is None; None where there is a value.
    """

    value: float | None
    counted: int
    left_out: int = 0
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of those items that have one.

    Attributes:
        values: float64 [K], on the CPU.
        item: int64 [K], ascending: which items they belong to.
        items: How many items there are, those without a score included.
    """

    values: Tensor
    item: Tensor
    items: int

    def mean(self) -> Figure:
        """The mean over the items that have a score."""
        return mean_of(self.values, self.items)


def mean_of(values: Tensor, items: int) -> Figure:
    """The mean of the values [K] that `items` items gave; the others are counted as left out."""
    count = len(values)
    if count == 0:
        return Figure(None, 0, items, "no item has a score" if items else "there are no items")
    return Figure(float(values.double().mean()), count, items - count)


def item_means(values: Tensor, item: Tensor, items: int) -> Scores:
    """Mean of the values [N] of each item; items without values have no score."""
    sums, counts = item_sums(values, item, items)
    found = counts.nonzero().flatten()
    return Scores(sums[found] / counts[found], found, items)


def item_sums(values: Tensor, item: Tensor, items: int) -> tuple[Tensor, Tensor]:
    """Sum of the values [N] of each item, float64 [items], and their number, int64 [items]."""
    sums = torch.zeros(items, dtype=torch.float64)
    sums.index_add_(0, item, values.to("cpu", torch.float64))
    return sums, torch.bincount(item, minlength=items)


def aligned(*scores: Scores) -> tuple[Scores, ...]:
    """The same scores, only of those items that all of them have.

    Raises:
        ValueError: They are of different numbers of items.
    """
    if len({s.items for s in scores}) > 1:
        raise ValueError("scores of different sets of items cannot be compared item by item")
    return tuple(_only(s, scores) for s in scores)


def _only(kept: Scores, scores: tuple[Scores, ...]) -> Scores:
    common = torch.ones(len(kept.item), dtype=torch.bool)
    for other in scores:
        common &= torch.isin(kept.item, other.item)
    return Scores(kept.values[common], kept.item[common], kept.items)
