"""What one forward pass says of each labelled position; every metric and attack reads this."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sisa.errors import SisaError


@dataclass(frozen=True, eq=False)
class RowStatistics:
    """N rows, on the CPU; float32, or float64 where the logits are.

    Attributes:
        nll: -log p of the label [N], nats; finite.
        greedy_hit: Whether the label is the argmax, bool [N].
        mean_log_p: Mean of log p under p, sum p log p [N], nats (Min-K++).
        var_log_p: Variance of log p under p [N], nats squared (Min-K++).
        item: Which item a row belongs to, int64 [N], ascending.
        items: How many items there are, those without rows included.
    """

    nll: Tensor
    greedy_hit: Tensor
    mean_log_p: Tensor
    var_log_p: Tensor
    item: Tensor
    items: int

    @property
    def log_p(self) -> Tensor:
        """log p of the label [N], nats."""
        return -self.nll


def of_rows(
    inputs: Tensor,
    labels: Tensor,
    item: Tensor,
    items: int,
    head: Callable[[Tensor], Tensor] | None = None,
    chunk_rows: int = 256,
) -> RowStatistics:
    """Statistics of N rows; logits exist for `chunk_rows` of them at a time.

    Args:
        inputs: Logits [N, V], or hidden states [N, d] that `head` makes logits of.
        labels: int64 [N]; none is ignored.
        item: Which item a row belongs to, int64 [N], ascending.
        items: How many items there are.
        head: From hidden states [n, d] to logits [n, V]; it is called once for each row.
        chunk_rows: Rows at a time.

    Raises:
        ValueError: Lengths differ, or items are not ascending from 0.
        SisaError: A label has no finite log probability.
    """
    _require_order(inputs, labels, item, items)
    parts = [inputs.new_zeros(0)] * 4
    chunks = []
    with torch.no_grad():
        for start in range(0, len(inputs), chunk_rows):
            rows = slice(start, start + chunk_rows)
            logits = head(inputs[rows]) if head else inputs[rows]
            chunks.append(_of_logits(logits, labels[rows]))
    if chunks:
        parts = [torch.cat(values) for values in zip(*chunks, strict=True)]
    nll, hit, mean, variance = parts
    return RowStatistics(nll.cpu(), hit.bool().cpu(), mean.cpu(), variance.cpu(), item.cpu(), items)


def joined(parts: Iterable[RowStatistics]) -> RowStatistics:
    """One after the other; the items of each are numbered on from those before."""
    every = list(parts)
    if not every:
        none = torch.zeros(0)
        return RowStatistics(none, none.bool(), none, none, none.long(), 0)
    first = torch.tensor([0, *(p.items for p in every)]).cumsum(0).tolist()
    return RowStatistics(
        torch.cat([p.nll for p in every]),
        torch.cat([p.greedy_hit for p in every]),
        torch.cat([p.mean_log_p for p in every]),
        torch.cat([p.var_log_p for p in every]),
        torch.cat([p.item + first[i] for i, p in enumerate(every)]),
        first[-1],
    )


def _of_logits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Negative log-likelihood, hit, mean and variance of log p of one chunk; each [n]."""
    log_p = torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)
    nll = -log_p.gather(1, labels[:, None]).squeeze(1)
    if not nll.isfinite().all():
        raise SisaError(
            "The model gives a label no finite log probability.",
            "Its weights are damaged, or it collapsed: take an earlier checkpoint.",
        )
    p = log_p.exp()
    log_p = log_p.masked_fill(p == 0, 0.0)  # 0 log 0 is 0; -inf would make it NaN
    mean = (p * log_p).sum(1)
    # around the mean: a difference of squares would cancel in float32
    variance = (p * (log_p - mean[:, None]).square_()).sum(1)
    return nll, logits.argmax(1) == labels, mean, variance


def _require_order(inputs: Tensor, labels: Tensor, item: Tensor, items: int) -> None:
    if not len(inputs) == len(labels) == len(item):
        raise ValueError("inputs, labels and items must be of the same number of rows")
    if len(item) and (item[0] < 0 or item[-1] >= items or (item.diff() < 0).any()):
        raise ValueError("items must be ascending, from 0 on, and fewer than their number")
