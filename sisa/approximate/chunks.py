"""Row functions a few rows at a time, so that the logits of a batch never exist all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sisa.approximate.models import HiddenRows
from sisa.approximate.objectives.rows import RowFunction
from sisa.approximate.rows import RowReference


def row_values(
    rows: HiddenRows,
    functions: Sequence[RowFunction],
    reference: Callable[[slice], RowReference] | None,
    chunk: int,
) -> Tensor:
    """Apply row functions to the labelled positions of a batch.

    Logits of a chunk are made once for all functions and, where gradients are wanted, once more in
    the backward pass, of which nothing but hidden states is kept in between.

    Args:
        rows: N rows.
        functions: F of them.
        reference: Gives the reference at a slice of the rows, if a function needs it.
        chunk: Rows whose logits exist at once.

    Returns:
        [N, F], at least float32.
    """

    def part(hidden: Tensor, start: int) -> Tensor:
        at = slice(start, start + len(hidden))
        logits, labels = rows.head(hidden), rows.labels[at]
        kept = None if reference is None else reference(at)
        return torch.stack([function(logits, labels, kept) for function in functions], dim=1)

    parts = enumerate(torch.split(rows.hidden, chunk))
    if not torch.is_grad_enabled():
        return torch.cat([part(hidden, i * chunk) for i, hidden in parts])
    return torch.cat(
        [
            checkpoint(part, hidden, i * chunk, use_reentrant=False, preserve_rng_state=False)
            for i, hidden in parts
        ]
    )
