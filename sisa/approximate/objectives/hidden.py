"""Losses on hidden states: RMU (Li et al., ICML 2024, arXiv:2403.03218).

Hidden states are float [M, d] at all positions of the items that are no padding, labelled or not,
grouped by item.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sisa.approximate.rows import item_counts, item_means, wide


def distance(hidden: Tensor, item: Tensor, items: int, target: Tensor) -> Tensor:
    """Average the squared distance to a target over an item's positions, then over items.

    Per position it is |h - target|^2 / d. To the control vector it misdirects what is to be
    forgotten; to the reference's hidden states it keeps what is retained.

    Args:
        hidden: Float [M, d].
        item: int64 [M], ascending.
        items: B, with the items that have no position; these are not counted.
        target: Float [d], or [M, d].
    """
    squares = ((wide(hidden) - wide(target.detach())) ** 2).mean(dim=-1)
    present = (item_counts(item, items) > 0).sum()
    return item_means(squares, item, items).sum() / present.clamp(min=1)


def control_vector(width: int, coefficient: float, generator: torch.Generator) -> Tensor:
    """Draw a direction uniformly from [0, 1)^d and give it a length; float32 [d].

    Args:
        width: d.
        coefficient: The length c.
        generator: Its stream, on the CPU.
    """
    drawn = torch.rand(width, generator=generator)
    vector: Tensor = coefficient * drawn / torch.linalg.vector_norm(drawn)
    return vector
