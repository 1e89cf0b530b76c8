"""What edits measure on the items of a request, of language models and of classifiers alike.

Items of a language model are packed, and only their labelled positions count: padding would be
measured as if it had been learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from sisa.approximate.batches import Batch, Examples
from sisa.approximate.chunks import row_values
from sisa.approximate.edits.given import Given
from sisa.approximate.edits.importance import (
    Importance,
    Kind,
    batch_fisher,
    fisher,
    sensitivity,
)
from sisa.approximate.edits.mappings import wide
from sisa.approximate.edits.passes import Labelled
from sisa.approximate.objectives.rows import nll
from sisa.approximate.rows import IGNORED, RowReference, item_means
from sisa.errors import ConfigurationError, IncompleteError


def importance(given: Given, items: Batch, kind: Kind, what: str) -> Importance:
    """How much each trained parameter matters for items.

    Of a language model the loss of an item is the mean over its labelled positions, and each item
    takes one backward, or each batch of `items_per_batch` for `batch_fisher`; `sensitivity` takes
    the mean over them of the squared norm of the logits.

    Args:
        given: The model and how it is run.
        items: What to measure on.
        kind: What to measure.
        what: Names the items in an error.

    Raises:
        IncompleteError: No item has a labelled position.
        DataError: A gradient is not finite.
    """
    if not isinstance(items, Examples):
        return _of_rows(given, items, kind, what)
    module, size = given.subject.module, given.items_per_batch
    if kind == "sensitivity":
        device = given.subject.device
        parts = torch.split(items.inputs, size)
        return sensitivity(module, [part.to(device) for part in parts], size)
    batches = labelled(given, items, what)
    return (
        fisher(module, batches, chunk=size) if kind == "fisher" else batch_fisher(module, batches)
    )


def of_layers(found: Importance, pattern: str) -> Importance:
    """The importance of those parameters whose names fit a pattern of `fnmatch`.

    Raises:
        ConfigurationError: None does.
    """
    values = {name: value for name, value in found.values.items() if fnmatchcase(name, pattern)}
    if not values:
        raise ConfigurationError(
            f"No trained parameter has a name like {pattern}.", "Correct layers."
        )
    return Importance(values, found.kind, found.count)


def labelled(given: Given, items: Batch, what: str) -> list[Labelled]:
    """Inputs and labels of a classifier's examples, on its device, without those of no label.

    Raises:
        IncompleteError: None has a label.
    """
    assert isinstance(items, Examples)
    kept = items.select((items.labels != IGNORED).nonzero().flatten().tolist())
    if not len(kept):
        raise _unlabelled(what)
    device, size = given.subject.device, given.items_per_batch
    pairs = zip(torch.split(kept.inputs, size), torch.split(kept.labels, size), strict=True)
    return [(inputs.to(device), labels.to(device)) for inputs, labels in pairs]


def batches(items: Batch, size: int, what: str) -> list[Batch]:
    """Batches of those items that have a labelled position, in their order.

    Raises:
        IncompleteError: None has.
    """
    kept = [at for at, rows in enumerate(items.counts()) if rows]
    if not kept:
        raise _unlabelled(what)
    return [items.select(kept[at : at + size]) for at in range(0, len(kept), size)]


def _of_rows(given: Given, items: Batch, kind: Kind, what: str) -> Importance:
    trained = given.subject.trainable()
    totals = {name: torch.zeros_like(wide(p.detach())) for name, p in trained.items()}
    measure = torch.abs if kind == "sensitivity" else torch.square
    count = 0
    for gradients in _gradients(given, items, kind, what):
        for total, gradient in zip(totals.values(), gradients, strict=True):
            total += measure(wide(gradient))
        count += 1
        given.report({"measured": float(count)}, count)
    return Importance({name: total / count for name, total in totals.items()}, kind, count)


def _gradients(given: Given, items: Batch, kind: Kind, what: str) -> Iterator[tuple[Tensor, ...]]:
    trained = list(given.subject.trainable().values())
    size = given.items_per_batch if kind == "batch_fisher" else 1
    for batch in batches(items, size, what):
        with torch.enable_grad():
            value = _item_values(given, batch, kind == "sensitivity").mean()
        yield torch.autograd.grad(value, trained, materialize_grads=True)


def _item_values(given: Given, batch: Batch, energy: bool) -> Tensor:
    """Mean over the rows of each item of the nll, or of the squared norm of the logits, [B]."""
    rows = given.subject.rows(batch)
    function = _energy if energy else nll
    values = row_values(rows, [function], None, given.chunk_rows)[:, 0]
    return item_means(values, rows.item, rows.items)


def _energy(logits: Tensor, labels: Tensor, reference: RowReference | None) -> Tensor:
    return wide(logits).square().sum(-1)


def _unlabelled(what: str) -> IncompleteError:
    return IncompleteError(
        f"No item of the {what} has a labelled position.", "Give at least one that has."
    )
