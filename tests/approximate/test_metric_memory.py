"""Exact memorisation, extraction strength and likelihood, against loops over prefixes."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from sisa.approximate.metrics import statistics
from sisa.approximate.metrics.memory import (
    exact_memorisation,
    extraction_likelihood,
    extraction_strength,
)
from sisa.approximate.metrics.statistics import RowStatistics


def statistics_of(hits: list[list[bool]]) -> RowStatistics:
    """Items whose labels are the argmax, or are not."""
    flat = torch.tensor([x for item in hits for x in item], dtype=torch.bool)
    item = torch.tensor([i for i, rows in enumerate(hits) for _ in rows], dtype=torch.int64)
    zeros = torch.zeros(len(flat), dtype=torch.float64)
    return RowStatistics(zeros, flat, zeros, zeros, item, len(hits))


def strength_by_search(hits: list[bool]) -> float:
    """Try each prefix, from the shortest."""
    n = len(hits)
    return next(1 - k / n for k in range(n + 1) if all(hits[k:]))


@pytest.mark.parametrize("seed", range(5))
def test_memorisation_is_that_of_loops(seed: int) -> None:
    draw = random.Random(seed)
    hits = [[draw.random() < 0.7 for _ in range(draw.randint(0, 6))] for _ in range(40)]
    full = [i for i, rows in enumerate(hits) if rows]
    exact, strength = (f(statistics_of(hits)) for f in (exact_memorisation, extraction_strength))
    assert exact.item.tolist() == strength.item.tolist() == full
    assert len(full) < 40  # items without a row are among them
    wanted = [sum(hits[i]) / len(hits[i]) for i in full]
    assert exact.values.tolist() == pytest.approx(wanted, rel=1e-14)
    wanted = [strength_by_search(hits[i]) for i in full]
    assert strength.values.tolist() == pytest.approx(wanted, rel=1e-14)
    assert 0 in wanted and 1 in wanted
    assert strength.mean().left_out == 40 - len(full)


def test_extraction_strength_has_no_floor() -> None:
    """A toolkit gives 1/n where nothing matches, and leaves the last label out."""
    hits = [[False] * 4, [True, True, True, False], [False, False, False, True], [True] * 4]
    assert extraction_strength(statistics_of(hits)).values.tolist() == [0, 0, 0.25, 1]


def test_extraction_strength_of_logits_reaches_the_last_label() -> None:
    labels = torch.tensor([2, 0, 1])
    logits = torch.zeros(3, 4, dtype=torch.float64)
    logits[torch.arange(3), labels] = 1.0
    logits[0, 3] = 2.0
    found = statistics.of_rows(logits, labels, torch.zeros(3, dtype=torch.int64), 1)
    assert extraction_strength(found).values.tolist() == pytest.approx([2 / 3])
    logits[2, 3] = 2.0
    found = statistics.of_rows(logits, labels, torch.zeros(3, dtype=torch.int64), 1)
    assert extraction_strength(found).values.tolist() == [0]


def tokens(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def test_extraction_likelihood_by_hand() -> None:
    items = [
        [
            (tokens(1, 2, 3, 9), tokens(1, 2, 3, 4)),  # 12 and 23 of 12, 23, 39
            (tokens(5, 5, 5, 6), tokens(7, 8, 9, 7, 5, 5, 8)),  # 55 twice of 55, 55, 56
            (tokens(8,), tokens(8, 1)),  # nothing long enough was generated
        ],
        [],  # a text shorter than an n-gram has no prefix
        [(tokens(1, 2), tokens(1, 2)), (tokens(4), tokens(4))],  # the second leaves no 2-gram
    ]  # fmt: skip
    found = extraction_likelihood(items, n=2)
    assert found.item.tolist() == [0, 2] and found.items == 3
    assert found.values.tolist() == pytest.approx([(2 / 3 + 2 / 3 + 0) / 3, 1.0])
    assert extraction_likelihood([], n=2).mean().value is None
    with pytest.raises(ValueError, match="at least one"):
        extraction_likelihood(items, n=0)
