"""The labelled positions of a batch as rows, and what is summed over the rows of an item.

An item is what a request names: one question with its answer, one passage, one image. A row is one
labelled position of an item. Every objective and every statistic starts from rows, so that padding
and prompts are left out in one place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100
"""The label of a position that is not learned."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Labelled positions of a batch of B items.

    Attributes:
        logits: Float [N, V], as the model gives them.
        labels: int64 [N], each in [0, V).
        item: int64 [N], ascending: which of the items a row belongs to.
        items: B, with the items that have no row.
    """

    logits: Tensor
    labels: Tensor
    item: Tensor
    items: int


@dataclass(frozen=True, slots=True)
class RowReference:
    """What the reference model says at each row: all of its log-probabilities, or the largest.

    Attributes:
        log_probs: Float [N, V], or [N, k] for the k largest.
        tokens: int64 [N, k], the tokens of the k largest; None for the whole vocabulary.
        log_tail: Float [N], the log of the mass of all other tokens; None for the whole vocabulary.
    """

    log_probs: Tensor
    tokens: Tensor | None = None
    log_tail: Tensor | None = None

    @classmethod
    def of_logits(cls, logits: Tensor, top: int | None = None) -> RowReference:
        """Take the reference from its logits, without a graph.

        Args:
            logits: Float [N, V].
            top: How many of the largest are kept; all if None or not less than V.
        """
        scores = wide(logits.detach())
        log_probs = torch.log_softmax(scores, dim=-1)
        if top is None or top >= logits.shape[-1]:
            return cls(log_probs)
        largest, tokens = log_probs.topk(top, dim=-1)
        others = log_probs.scatter(-1, tokens, -torch.inf)
        return cls(largest, tokens, torch.logsumexp(others, dim=-1))

    def part(self, rows: slice | Tensor) -> RowReference:
        """Take some of the rows: a slice, a mask bool [N] or positions int64 [n]."""
        return RowReference(
            self.log_probs[rows],
            None if self.tokens is None else self.tokens[rows],
            None if self.log_tail is None else self.log_tail[rows],
        )


def of_sequences(logits: Tensor, labels: Tensor) -> Rows:
    """Take the rows of sequences; position t predicts the label at t + 1.

    For objectives on tensors that a caller has already: the loop never makes logits of a whole
    batch, see `models`.

    Args:
        logits: Float [B, T, V].
        labels: int64 [B, T], -100 where nothing is learned.
    """
    following = labels[:, 1:]
    learned = following != IGNORED
    item = learned.nonzero()[:, 0]
    return Rows(logits[:, :-1][learned], following[learned], item, labels.shape[0])


def of_classes(logits: Tensor, labels: Tensor) -> Rows:
    """Take the rows of a classifier: each item is one row, and none where its label is -100.

    For objectives on tensors that a caller has already, as `of_sequences`.

    Args:
        logits: Float [B, C].
        labels: int64 [B].
    """
    learned = labels != IGNORED
    return Rows(logits[learned], labels[learned], learned.nonzero()[:, 0], labels.shape[0])


def keep(rows: Rows, active: Tensor) -> Rows:
    """Leave out the rows of items that are no longer active; items keep their numbers.

    For objectives on tensors that a caller has already: the loop makes no rows of such items.

    Args:
        rows: Rows of B items.
        active: bool [B].
    """
    kept = active[rows.item]
    return Rows(rows.logits[kept], rows.labels[kept], rows.item[kept], rows.items)


def wide(values: Tensor) -> Tensor:
    """Give bfloat16 and float16 as float32; float32 and float64 stay as they are."""
    return values if values.dtype == torch.float64 else values.float()


def item_sums(values: Tensor, item: Tensor, items: int) -> Tensor:
    """Sum values [N] over the rows of each item: [B], zero for an item without rows."""
    return values.new_zeros(items).index_add(0, item, values)


def item_counts(item: Tensor, items: int) -> Tensor:
    """Count the rows of each item: int64 [B]."""
    return torch.bincount(item, minlength=items)


def item_means(values: Tensor, item: Tensor, items: int) -> Tensor:
    """Average values [N] over the rows of each item: [B], zero for an item without rows."""
    return item_sums(values, item, items) / item_counts(item, items).clamp(min=1)


def positions(item: Tensor, items: int) -> Tensor:
    """Number the rows of each item from zero: int64 [N]."""
    counts = item_counts(item, items)
    first = counts.cumsum(0) - counts
    return torch.arange(len(item), device=item.device) - first[item]
