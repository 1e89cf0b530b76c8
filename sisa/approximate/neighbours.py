"""For each item to forget the retained item nearest to it, as the model itself sees them.

Contrastive enhancement of ICU (Tang et al., 2024, arXiv:2407.20271) lets a model learn from the
analogue of what it forgets. There a second model embeds the texts; here the mean of the model's own
hidden states does, so that nothing has to be fetched and any classifier has neighbours too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sisa.approximate.batches import Batch
from sisa.approximate.models import LanguageModel, Subject
from sisa.approximate.rows import wide
from sisa.errors import ConfigurationError, UsageError

TIE = 1e-6
"""Cosines as near as this are equal: that much depends on which items share a batch."""

CELLS = 1 << 24
"""Cosines that exist at once."""


@dataclass(frozen=True)
class Neighbours:
    """The nearest retained item of each of F items to forget.

    Attributes:
        indices: Into the retained items [F].
        cosine: Of the mean hidden states of both [F], from -1 to 1.
    """

    indices: tuple[int, ...]
    cosine: tuple[float, ...]


def nearest(
    subject: Subject, forget: Batch, retain: Batch, layer: Any = None, items_per_batch: int = 8
) -> Neighbours:
    """Find the nearest retained items, in the order of the items to forget.

    It is the model as it is now, its adapter included, that is asked: ask before it is changed. One
    forward of all items up to the layer, then F R d multiplications for R retained items. Among
    equally near ones that of the smallest digest is taken, so that no order of files matters.

    Args:
        subject: The model, not changed.
        forget: Items to forget.
        retain: Items to keep.
        layer: As `Subject.hidden` takes it; None for `usual_layer`.
        items_per_batch: Items that go through the model at once.

    Raises:
        UsageError: There is no item on one of the two sides, or no such layer.
        ConfigurationError: Hidden states are not finite.
    """
    if not (len(forget) and len(retain)):
        raise UsageError(
            "Neighbours are found for items to forget among items to keep, and one is empty.",
            "Give items of both.",
        )
    layer = usual_layer(subject) if layer is None else layer
    digests = list(retain.digests())
    order = sorted(range(len(retain)), key=digests.__getitem__)
    wanted = directions(subject, forget, layer, items_per_batch)
    there = directions(subject, retain, layer, items_per_batch)[order]
    places, cosine = _first_of_largest(wanted, there)
    return Neighbours(tuple(order[place] for place in places), tuple(cosine))


def usual_layer(subject: Subject) -> int | str:
    """Name the layer whose hidden states are compared, unless the caller names one.

    Of a language model it is the middle block: meaning is found best there, as the last blocks turn
    to the next token (Skean et al., "Layer by Layer", ICML 2025, arXiv:2502.02013), and what
    follows need not be computed. Of a classifier it is the last module, as they are registered,
    before the one that makes the logits.
    """
    if isinstance(subject, LanguageModel):
        blocks: int = subject.module.config.get_text_config().num_hidden_layers
        return (blocks + 1) // 2
    leaves = [(name, m) for name, m in subject.module.named_modules() if not any(m.children())]
    last = max(i for i, (_, module) in enumerate(leaves) if list(module.parameters()))
    before: str = leaves[max(last - 1, 0)][0]
    return before


@torch.no_grad()
def directions(subject: Subject, items: Batch, layer: Any, items_per_batch: int = 8) -> Tensor:
    """Where hidden states of each item point: their mean over all positions, prompts included.

    Each state enters with length 1, as its direction alone is what the next block reads. The first
    of many models' states are a thousand times longer than others (Sun et al., COLM 2024,
    arXiv:2402.17762) and would make a mean tell nothing but the length of an item.

    Args:
        subject: The model, not changed.
        items: At least one.
        layer: As `Subject.hidden` takes it.
        items_per_batch: Items that go through the model at once.

    Returns:
        Of length 1, [n, d], at least float32, where the model is; zero for a mean of zero.

    Raises:
        ConfigurationError: They are not finite.
    """
    sums = []
    for start in range(0, len(items), items_per_batch):  # the last batch may be a smaller one
        batch = items.select(range(start, min(start + items_per_batch, len(items))))
        found = subject.hidden(batch, layer)
        states = functional.normalize(wide(found.hidden), dim=1)
        none = states.new_zeros(found.items, states.shape[1])
        sums.append(none.index_add(0, found.item, states))  # a mean points where the sum does
    joined = torch.cat(sums)
    if not joined.isfinite().all():
        raise ConfigurationError(
            f"Hidden states after layer {layer} are not finite.", "The model is damaged."
        )
    return functional.normalize(joined, dim=1)


def _first_of_largest(wanted: Tensor, there: Tensor) -> tuple[Sequence[int], Sequence[float]]:
    """For each of `wanted` [F, d], the first of `there` [R, d] with the largest product."""
    places, largest = list[int](), list[float]()
    for some in torch.split(wanted, max(1, CELLS // len(there))):
        products = some @ there.T
        top = products.amax(1, keepdim=True)
        first = (products >= top - TIE).byte().argmax(1)
        places += first.tolist()
        largest += products.gather(1, first[:, None]).squeeze(1).tolist()
    return places, largest
