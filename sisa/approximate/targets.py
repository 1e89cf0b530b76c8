"""A model under attack, and what an attacker makes of copies of it, whoever holds it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sisa.approximate.answers import CHUNK, ITEMS, mean_probability, statistics
from sisa.approximate.attacks import quantise
from sisa.approximate.attacks.membership import Array, gradient_norms
from sisa.approximate.attacks.quantise import Quantised
from sisa.approximate.attacks.relearn import Relearned, relearn
from sisa.approximate.batches import Batch
from sisa.approximate.chunks import row_values
from sisa.approximate.models import Classifier, LanguageModel, Subject, merged
from sisa.approximate.objectives.rows import nll


@dataclass(frozen=True)
class Attacks:
    """How a model is attacked.

    Attributes:
        lr: Learning rate of relearning, which tries multiples of it too, see `attacked.RATES`.
        steps: Optimizer steps of relearning, at each rate.
        seed: Of the split of relearning.
        items: Items that go through the model at once.
        chunk: Rows whose logits exist at once.
    """

    lr: float
    steps: int = 20
    seed: int = 0
    items: int = ITEMS
    chunk: int = CHUNK


class Target(Protocol):
    """A model under attack, which no attack changes."""

    def gradients(self, items: Batch) -> Array:
        """Mean over all parameters of the norm of each item's gradient, float64 [B]."""
        ...

    def relearned(self, learned: Batch, kept: Batch, original: float, rate: float) -> Relearned:
        """Fine-tune all parameters of a copy, and look what comes back.

        Args:
            learned: Items to learn from, in batches and in turn.
            kept: Items whose mean probability is asked for.
            original: Their mean probability before unlearning.
            rate: Learning rate.

        Raises:
            SisaError: A loss is no longer finite, or the model collapsed.
        """
        ...

    def quantised(self, items: Batch, original: float) -> tuple[Quantised, ...]:
        """Round the weights of copies, an adapter's merged, and look what comes back.

        Args:
            items: Items whose mean probability is asked for.
            original: Their mean probability before unlearning.

        Raises:
            IncompleteError: There is no layer that can be quantised.
            DataError: A weight is not a finite number.
        """
        ...


class Held:
    """A model that this process holds as a whole.

    Args:
        subject: The model.
        how: Sizes of batches, steps and seed.
    """

    def __init__(self, subject: Subject, how: Attacks) -> None:
        self._subject, self._how = subject, how

    def gradients(self, items: Batch) -> Array:
        """See `Target.gradients`."""
        with _every(self._subject.module) as parameters:
            return gradient_norms(self._losses(items), parameters)

    def relearned(self, learned: Batch, kept: Batch, original: float, rate: float) -> Relearned:
        """See `Target.relearned`."""
        own = around(self._subject, copy.deepcopy(self._subject.module))
        return relearned(
            own,
            learned,
            lambda batch: self._loss(own, batch),
            lambda: self._probability(own, kept),
            original,
            rate,
            self._how,
        )

    def quantised(self, items: Batch, original: float) -> tuple[Quantised, ...]:
        """See `Target.quantised`."""
        whole = _served(self._subject)

        def metric(module: nn.Module) -> float:
            return self._probability(around(whole, module), items)

        return quantise.evaluate(whole.module, metric, original)

    def _losses(self, items: Batch) -> Iterator[Tensor]:
        """Mean nll of each item, with a graph."""
        with torch.enable_grad():
            for index in range(len(items)):
                yield self._loss(self._subject, items.select([index]))

    def _loss(self, subject: Subject, batch: Any) -> Tensor:
        """Mean nll over the rows of a batch."""
        return row_values(subject.rows(batch), [nll], None, self._how.chunk).mean()

    def _probability(self, subject: Subject, items: Batch) -> float:
        """Mean probability that a model gives to items."""
        return mean_probability(statistics(subject, items, self._how.items, self._how.chunk))


def relearned(
    own: Subject,
    learned: Batch,
    loss: Callable[[Batch], Tensor],
    metric: Callable[[], float],
    original: float,
    rate: float,
    how: Attacks,
) -> Relearned:
    """Fine-tune a model in place; see `Target.relearned` and `relearn.relearn`."""
    starts = range(0, len(learned), how.items)
    return relearn(
        own.module,
        [learned.select([*range(at, min(at + how.items, len(learned)))]) for at in starts],
        loss,
        metric,
        original,
        steps=how.steps,
        lr=rate,
        every=max(1, how.steps // 4),
    )


def around(subject: Subject, module: nn.Module) -> Subject:
    """A subject of the same kind with another module of the same build."""
    if isinstance(subject, LanguageModel):
        return LanguageModel(module, subject.tokenizer)
    return Classifier(module)


def _served(subject: Subject) -> Subject:
    """With its adapter in the weights, as it would be quantised to be served."""
    if isinstance(subject, LanguageModel) and subject.adapted:
        return merged(LanguageModel(copy.deepcopy(subject.module), subject.tokenizer))
    return subject


@contextmanager
def _every(module: nn.Module) -> Iterator[Sequence[Tensor]]:
    """All parameters, each with a gradient: an attacker need not leave any frozen."""
    found = [p for p in module.parameters() if p.is_floating_point()]
    frozen = [p for p in found if not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield found
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
