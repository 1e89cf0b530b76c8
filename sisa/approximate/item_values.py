"""What a model says of each item, as one number: its probability, or the share of it that is wrong.

Unlike the statistics that metrics start from, these do not refuse a model that collapsed: what ends
a run that went too far must be able to look at it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sisa.approximate.batches import Batch
from sisa.approximate.chunks import row_values
from sisa.approximate.models import Subject
from sisa.approximate.objectives.rows import RowFunction, nll
from sisa.approximate.rows import item_counts, item_means


def mean_probability(
    subject: Subject, items: Batch, items_per_batch: int = 8, chunk: int = 256
) -> float:
    """Mean over items of exp(-S/n): the probability of an item, normalised by its length.

    S is the summed nll of its n labelled positions (Maini et al., 2024, TOFU, section 2.2); of a
    classifier it is the probability of the label. Items without a labelled position do not count.

    Args:
        subject: The model, not changed.
        items: The items; one forward of each.
        items_per_batch: Items that go through the model at once.
        chunk: Rows whose logits exist at once.

    Returns:
        From 0 to 1; NaN where the model collapsed, or no item has a labelled position.
    """
    return float(torch.exp(-_means(subject, items, nll, items_per_batch, chunk)).mean())


def error(subject: Subject, items: Batch, items_per_batch: int = 8, chunk: int = 256) -> float:
    """Mean over items of the share of labelled positions whose label is not the argmax.

    Of a classifier it is 1 - accuracy. Items without a labelled position do not count.

    Args:
        subject: The model, not changed.
        items: The items; one forward of each.
        items_per_batch: Items that go through the model at once.
        chunk: Rows whose logits exist at once.

    Returns:
        From 0 to 1; NaN where no item has a labelled position.
    """
    return float(_means(subject, items, _missed, items_per_batch, chunk).mean())


@torch.no_grad()
def _means(
    subject: Subject, items: Batch, function: RowFunction, items_per_batch: int, chunk: int
) -> Tensor:
    """Mean of a row function over each item that has rows, float64 on the CPU."""
    found = [torch.zeros(0, dtype=torch.float64)]
    for start in range(0, len(items), items_per_batch):
        rows = subject.rows(items.select(range(start, min(start + items_per_batch, len(items)))))
        values = row_values(rows, [function], None, chunk)[:, 0].double()
        labelled = item_counts(rows.item, rows.items) > 0
        found.append(item_means(values, rows.item, rows.items)[labelled].cpu())
    return torch.cat(found)


def _missed(logits: Tensor, labels: Tensor, _: Any) -> Tensor:
    return (logits.argmax(-1) != labels).double()
