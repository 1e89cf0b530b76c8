"""What a model says of items: one forward pass, which every figure and attack reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sisa.approximate.batches import Batch
from sisa.approximate.metrics.probability import probability
from sisa.approximate.metrics.statistics import RowStatistics, joined, of_rows
from sisa.approximate.models import Subject

ITEMS = 8
"""Items that go through a model at once, unless the caller says otherwise."""

CHUNK = 256
"""Rows whose logits exist at once, unless the caller says otherwise."""


@torch.no_grad()
def statistics(
    subject: Subject, items: Batch, together: int = ITEMS, chunk: int = CHUNK
) -> RowStatistics:
    """What a model says of each labelled position of some items.

    Args:
        subject: The model, not changed.
        items: What it is asked about.
        together: Items that go through the model at once.
        chunk: Rows whose logits exist at once.

    Raises:
        SisaError: A label has no finite log probability: the model collapsed.
    """
    parts = []
    for start in range(0, len(items), together):
        rows = subject.rows(items.select(range(start, min(start + together, len(items)))))
        parts.append(of_rows(rows.hidden, rows.labels, rows.item, rows.items, rows.head, chunk))
    return joined(parts)


def mean_probability(rows: RowStatistics) -> float:
    """Mean over items of exp(-mean negative log likelihood); 0 to 1."""
    return float(probability(rows).values.mean())


def of_some(rows: RowStatistics, items: Sequence[int]) -> RowStatistics:
    """The rows of some items, ascending, numbered anew."""
    wanted = torch.as_tensor(items, dtype=torch.int64)
    at = torch.isin(rows.item, wanted)
    return RowStatistics(
        rows.nll[at],
        rows.greedy_hit[at],
        rows.mean_log_p[at],
        rows.var_log_p[at],
        torch.searchsorted(wanted, rows.item[at]),
        len(items),
    )
