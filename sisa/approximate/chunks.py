"""Row functions a few rows at a time, so that the logits of a batch never exist all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sisa.approximate.likelihood import Likelihood
from sisa.approximate.models import HiddenRows
from sisa.approximate.objectives.rows import RowFunction, nll
from sisa.approximate.rows import RowReference

Read = Callable[[slice], RowReference]
"""Gives the reference at a slice of the rows."""

Loss = Callable[[slice, Tensor], Tensor]
"""Takes a slice of the rows and their values [n, F]; all other rows enter as constants."""


def row_values(
    rows: HiddenRows, functions: Sequence[RowFunction], reference: Read | None, chunk: int
) -> Tensor:
    """Apply row functions to the labelled positions of a batch.

    Logits of a chunk are made once for all functions. Where gradients are wanted of several chunks,
    they are made once more in the backward pass, and only hidden states are kept in between.

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

    if len(rows.labels) <= chunk:
        return part(rows.hidden, 0)
    parts = enumerate(torch.split(rows.hidden, chunk))
    if not torch.is_grad_enabled():
        return torch.cat([part(hidden, i * chunk) for i, hidden in parts])
    return torch.cat(
        [
            checkpoint(part, hidden, i * chunk, use_reentrant=False, preserve_rng_state=False)
            for i, hidden in parts
        ]
    )


def add_gradients(
    rows: HiddenRows,
    functions: Sequence[RowFunction],
    reference: Read | None,
    chunk: int,
    loss: Loss,
    *,
    together: bool = False,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """Add the gradients of a loss of row values to the parameters.

    Items that fit into a chunk go forward and backward through the head one group after the other,
    so that their logits are made once; then the rest of the model goes backward once.

    Args:
        rows: N rows, one or more.
        functions: F of them.
        reference: Gives the reference at a slice of the rows, if a function needs it.
        chunk: Rows whose logits exist at once.
        loss: Called for each group of whole items.
        together: The loss compares items with one another: all of them are one group.
        precision: In which values are computed.

    Returns:
        Values [N, F], without a graph.
    """
    matrix, values, gradients = rows.matrix, [], []
    alone = None if matrix is None or list(functions) != [nll] else Likelihood(matrix, chunk)
    for at in [slice(0, len(rows.labels))] if together else groups(rows.item, chunk):
        hidden, labels = rows.hidden[at].detach(), rows.labels[at]
        if alone is not None:
            found, gradient = alone.add_gradients(hidden, labels, _slopes(loss, at))
            found = found[:, None]
        else:
            own = replace(rows, hidden=hidden.requires_grad_(), labels=labels, item=rows.item[at])
            with precision():
                found = row_values(own, functions, _from(reference, at.start), chunk)
            loss(at, found).backward()  # type: ignore[no-untyped-call]
            assert hidden.grad is not None
            gradient = hidden.grad
        values.append(found.detach())
        gradients.append(gradient)
    if rows.hidden.requires_grad:
        rows.hidden.backward(torch.cat(gradients))  # type: ignore[no-untyped-call]
    return torch.cat(values)


def groups(item: Tensor, most: int) -> list[slice]:
    """Part rows into groups of whole items that follow one another.

    Args:
        item: Item of each row, ascending, int64 [N].
        most: Rows of a group, unless a single item has more.
    """
    found: list[slice] = []
    start = stop = 0
    for count in torch.unique_consecutive(item, return_counts=True)[1].tolist():
        if start < stop and stop + count - start > most:
            found.append(slice(start, stop))
            start = stop
        stop += count
    return [*found, slice(start, stop)] if start < stop else found


def _slopes(loss: Loss, at: slice) -> Callable[[Tensor], Tensor]:
    """The derivative of a loss with respect to values [n] of one row function."""

    @torch.enable_grad()
    def slopes(values: Tensor) -> Tensor:
        own = values.clone().requires_grad_()
        (found,) = torch.autograd.grad(loss(at, own[:, None]), own)
        return found

    return slopes


def _from(reference: Read | None, start: int) -> Read | None:
    """The reference of rows, of which the first is at `start`."""
    if reference is None:
        return None
    return lambda at: reference(slice(start + at.start, start + at.stop))
