"""How much of an item is known by heart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sisa.approximate.metrics.overlap import ngrams
from sisa.approximate.metrics.scores import Scores, item_means
from sisa.approximate.metrics.statistics import RowStatistics


def exact_memorisation(statistics: RowStatistics) -> Scores:
    """Share of an item's labels that are the argmax, given what is before them.

    Memorisation accuracy (Jang et al. 2023, section 3.2) is the same quantity.
    """
    return item_means(statistics.greedy_hit, statistics.item, statistics.items)


def extraction_strength(statistics: RowStatistics) -> Scores:
    """Share of an item that greedy decoding gives back from its shortest sufficient prefix.

    1 - k/n with the smallest k such that the labels from k on are all the argmax; the last label
    counts, and 0 where it is not met (Carlini et al. 2021; Wang et al. 2025). Greedy decoding
    repeats the labels as long as each is the argmax given those before, so that the hits of one
    forward tell it.
    """
    counts = torch.bincount(statistics.item, minlength=statistics.items)
    begins = counts.cumsum(0) - counts
    place = torch.arange(len(statistics.item)) - begins[statistics.item]
    missed = torch.where(statistics.greedy_hit, 0, place + 1)
    needed = torch.zeros_like(counts).scatter_reduce_(0, statistics.item, missed, "amax")
    found = counts.nonzero().flatten()
    return Scores(1 - needed[found].double() / counts[found], found, statistics.items)


def extraction_likelihood(
    continuations: Sequence[Sequence[tuple[Tensor, Tensor]]], n: int = 10
) -> Scores:
    """Mean over the prefixes of an item of the overlap of n-grams, EL_n (Jang et al. 2023).

    Args:
        continuations: For each item, and for each of its prefixes, what the model generates and
            what follows in truth; tokens int64 [g] and [t].
        n: Length of the n-grams.

    Returns:
        Scores; a prefix whose continuation holds no n-gram in truth is not counted, and an item
        without a prefix has none.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError("n-grams are of at least one token")
    means: list[float] = []
    item: list[int] = []
    for index, pairs in enumerate(continuations):
        shares = [_overlap(made, true, n) for made, true in pairs if len(true) >= n]
        if shares:
            means.append(sum(shares) / len(shares))
            item.append(index)
    return Scores(
        torch.tensor(means, dtype=torch.float64),
        torch.tensor(item, dtype=torch.int64),
        len(continuations),
    )


def _overlap(made: Tensor, true: Tensor, n: int) -> float:
    """Share of the n-grams of `made` that `true` holds too; 0 where it has none."""
    grams = ngrams(made.tolist(), n)
    known = ngrams(true.tolist(), n)
    return sum(c for g, c in grams.items() if g in known) / max(1, grams.total())
