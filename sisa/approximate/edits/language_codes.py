"""What codes a language model uses: in the bottleneck that it has, or in one fitted to it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sisa.approximate import bottlenecked
from sisa.approximate.batches import Batch, Items
from sisa.approximate.bottlenecked import About
from sisa.approximate.edits.bottlenecks import (
    QuantisedBottleneck,
    ResidualBottleneck,
    SparseBottleneck,
    insert,
)
from sisa.approximate.edits.codes import Usage, counted
from sisa.approximate.edits.fitted import Fit, fit, unexplained, used
from sisa.approximate.edits.given import Given
from sisa.approximate.models import LanguageModel
from sisa.errors import ConfigurationError, IncompleteError

THERE = "The model has a bottleneck already: none was fitted, and settings of a fit do not count."


@dataclass(frozen=True)
class Wanted:
    """Settings of a bottleneck to be fitted; see `on_codes.code_ablation`."""

    layer: int | None = None
    codes: int | None = None
    strongest: int = 4
    epochs: int = 100
    lr: float = 3e-3


@dataclass(frozen=True)
class Counted:
    """The codes of a model, counted.

    Attributes:
        prefix: Of the bottleneck's names in the model, with its dot.
        bottleneck: Whose codes they are.
        topic: Usage on the forget set.
        control: Usage on the retain set.
        added: What the bottleneck is, where the model does not have it yet.
        notes: What a reader of a report should know, one sentence each.
    """

    prefix: str
    bottleneck: QuantisedBottleneck | SparseBottleneck
    topic: Usage
    control: Usage
    added: About | None = None
    notes: tuple[str, ...] = ()


def of_language(given: Given, subject: LanguageModel, wanted: Wanted) -> Counted:
    """Count the codes of a language model at all positions of both sets.

    Args:
        given: The data, and how the model is run.
        subject: The model; as it was afterwards.
        wanted: Which bottleneck it gets if it has none.

    Raises:
        ConfigurationError: It has an adapter, or a bottleneck elsewhere, or a setting is wrong.
        IncompleteError: A set is empty.
        DivergedError: The fit left all numbers behind.
    """
    if subject.adapted:
        raise ConfigurationError(
            "The model has an adapter, and the folder of an adapter holds no bottleneck.",
            "Give its base, or merge the adapter.",
        )
    found, about = bottlenecked.of(subject.module), bottlenecked.described(subject.module)
    if found is None or about is None:
        return _of_new(given, subject, *_planned(subject, wanted, given.seed))
    usual = Wanted()
    if (
        wanted.layer not in (None, about.layer)
        or wanted.codes not in (None, about.codes)
        or wanted.strongest not in (usual.strongest, about.strongest)
    ):
        raise ConfigurationError(
            f"The model has a bottleneck behind block {about.layer} already.",
            "Leave out layer, codes and strongest: its codes are taken away.",
        )
    name, narrow = found
    usages = _usages(given, subject, about.layer, narrow)
    return Counted(f"{name}.", narrow, *usages, notes=(THERE,))


def _planned(subject: LanguageModel, wanted: Wanted, seed: int) -> tuple[About, Fit]:
    """Which bottleneck is fitted where, and how.

    Raises:
        ConfigurationError: There is no such layer, or a setting is out of its range.
    """
    every, width = len(bottlenecked.blocks(subject.module)), subject.module.config.hidden_size
    layer = (every + 1) // 2 if wanted.layer is None else wanted.layer
    if not 1 <= layer <= every:
        raise ConfigurationError(f"There is no layer {layer}.", f"The model has {every}.")
    codes = 8 * width if wanted.codes is None else wanted.codes
    how = Fit(codes, wanted.strongest, wanted.epochs, wanted.lr, seed)
    return About(layer=layer, codes=codes, strongest=wanted.strongest), how


def _of_new(given: Given, subject: LanguageModel, about: About, how: Fit) -> Counted:
    """Count the codes of a bottleneck that is fitted now."""
    started = time.monotonic()
    with torch.no_grad():
        sides = [_hidden(given, subject, items, about.layer) for items in _sides(given)]
    hidden = torch.cat(sides)
    narrow = fit(hidden, how, given.report).to(hidden)
    note = (
        f"A bottleneck was fitted behind block {about.layer}, to {len(hidden)} positions in "
        f"{time.monotonic() - started:.0f} s: {used(narrow, hidden)} of "
        f"{how.codes} codes are in use; {unexplained(narrow, hidden):.2%} of the variance, which "
        "they do not reconstruct, passes it."
    )
    block = bottlenecked.blocks(subject.module)[about.layer - 1]
    name = next(n for n, m in subject.module.named_modules() if m is block)
    with insert(block, "", narrow):
        usages = _usages(given, subject, about.layer, narrow)
    return Counted(f"{name}.{bottlenecked.NAME}.", narrow, *usages, about, (note,))


def _usages(
    given: Given, subject: LanguageModel, layer: int, narrow: ResidualBottleneck
) -> tuple[Usage, Usage]:
    """Usage on the forget set, and on the retain set."""
    topic, control = (
        counted(
            subject.module,
            narrow,
            (partial(subject.hidden, batch, layer) for batch in _batches(given, items)),
        )
        for items in _sides(given)
    )
    return topic, control


def _hidden(given: Given, subject: LanguageModel, items: Batch, layer: int) -> Tensor:
    """Hidden states of all positions of items after a block, [M, d]."""
    return torch.cat([subject.hidden(batch, layer).hidden for batch in _batches(given, items)])


def _batches(given: Given, items: Batch) -> Iterator[Items]:
    assert isinstance(items, Items)
    for at in range(0, len(items), given.items_per_batch):
        yield items.select(range(len(items))[at : at + given.items_per_batch])


def _sides(given: Given) -> tuple[Batch, Batch]:
    """The forget set and the retain set.

    Raises:
        IncompleteError: One is empty.
    """
    assert given.retain is not None
    if not len(given.forget) or not len(given.retain):
        raise IncompleteError("The forget or the retain set is empty.", "Give at least one item.")
    return given.forget, given.retain
