"""One pass of a module over batches: dropout off, running statistics fixed, modes kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

from sisa.errors import IncompleteError

Labelled = tuple[Tensor, Tensor]
"""Inputs [n, ...] and labels [n, ...]."""

Batch = Tensor | tuple[Tensor, ...]
"""Inputs [n, ...], alone or with what a statistic does not look at behind them."""

T = TypeVar("T", bound=Batch)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode; afterwards each part is in the mode that it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def some(batches: Iterable[T], what: str) -> Iterator[T]:
    """The batches that hold something.

    Args:
        batches: Any number.
        what: What they are, for the message: "forget set", "examples".

    Raises:
        IncompleteError: None does.
    """
    empty = True
    for batch in batches:
        if len(inputs_of(batch)):
            empty = False
            yield batch
    if empty:
        raise IncompleteError(f"The {what} is empty.", "Give at least one example.")


def inputs_of(batch: Batch) -> Tensor:
    """The inputs of a batch."""
    return batch if isinstance(batch, Tensor) else batch[0]


def logits_of(output: Any) -> Tensor:
    """The logits of what a module returns: itself, or its field `logits`."""
    found = getattr(output, "logits", output)
    assert isinstance(found, Tensor)
    return found
