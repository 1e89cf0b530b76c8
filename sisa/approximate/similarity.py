"""How much of what is to be forgotten a model still says, and how good it still is.

Both are measured after each epoch for controllers that ask: iterative refinement of ICU (Tang et
al., 2024, arXiv:2407.20271) leaves an item alone once its continuation no longer resembles it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sisa.approximate.batches import Batch, Items
from sisa.approximate.controllers import Measure, Measured
from sisa.approximate.item_values import mean_probability
from sisa.approximate.metrics.generation import greedy
from sisa.approximate.metrics.overlap import bleu, rouge_l
from sisa.approximate.models import LanguageModel, Subject
from sisa.approximate.rows import IGNORED
from sisa.errors import ConfigurationError

Kind = Literal["bleu", "rouge-l"]


@dataclass(frozen=True)
class Examiner:
    """Measures a model while it is trained: a `loop.Measurer`.

    Its adapter, where it has one, is on: it is what is trained.

    Attributes:
        subject: The model.
        forget: What is to be forgotten.
        retain: What utility is measured on, if it is asked for; one forward of it per epoch.
        kind: Of similarity.
        items_per_batch: Items that go through the model at once.
        chunk: Rows whose logits exist at once.
    """

    subject: Subject
    forget: Batch
    retain: Batch | None = None
    kind: Kind = "bleu"
    items_per_batch: int = 8
    chunk: int = 256

    def __call__(self, wants: frozenset[Measure], active: Sequence[str]) -> Measured:
        """Measure what is wanted, similarity of the active items alone.

        Args:
            wants: What a controller asks for.
            active: Ids of items of `forget`.

        Raises:
            ConfigurationError: Similarity is wanted of a classifier, or utility without items.
        """
        return Measured(
            self._utility() if "utility" in wants else None,
            self._similarity(frozenset(active)) if "similarity" in wants else {},
        )

    def _utility(self) -> float:
        if self.retain is None:
            raise ConfigurationError("Utility has nothing to be measured on.", "Give retain items.")
        return mean_probability(self.subject, self.retain, self.items_per_batch, self.chunk)

    def _similarity(self, active: frozenset[str]) -> Mapping[str, float]:
        forget, subject = self.forget, self.subject
        if not (isinstance(forget, Items) and isinstance(subject, LanguageModel)):
            raise ConfigurationError(
                "Only a language model continues what is to be forgotten.",
                "Use a method without similarity.",
            )
        some = forget.select([i for i, name in enumerate(forget.ids) if name in active])
        return dict(zip(some.ids, similarity(subject, some, self.kind), strict=True))


def similarity(subject: LanguageModel, items: Items, kind: Kind = "bleu") -> list[float]:
    """How much of each item the model repeats when it continues the item's beginning greedily.

    An answer is continued from its question. A passage, which is learned from its first token, is
    continued from its first half, rounded down but of one token at least. Tokens are compared, as
    what a word is depends on the language; a token that ends a text does not count. It costs a
    forward per token of the longest continuation, beside the cache, for each group of equally long
    beginnings.

    Args:
        subject: The model, in evaluation mode; not changed.
        items: The items.
        kind: BLEU up to 4-grams, not smoothed, or recall of ROUGE-L.

    Returns:
        From 0 to 1; 0 for an item with nothing to continue, which no method learns either.
    """
    said = continued(subject, items)
    return [KINDS[kind](made.tolist(), true.tolist()) if len(true) else 0.0 for made, true in said]


def continued(subject: LanguageModel, items: Items) -> list[tuple[Tensor, Tensor]]:
    """What the model says after the beginning of each item, and what follows it in truth.

    Args:
        subject: The model, in evaluation mode; not changed.
        items: The items.

    Returns:
        Tokens int64 of each, as many at most as follow in truth; both empty for an item with
        nothing to continue.
    """
    ends = torch.tensor(_ends(subject.tokenizer), dtype=torch.int64)
    begun = [_split(t, n, ends) for t, n in zip(items.tokens, items.labels, strict=True)]
    asked = [i for i, (_, rest) in enumerate(begun) if len(rest)]
    said = greedy(
        subject.speaker,
        [begun[i][0] for i in asked],
        [len(begun[i][1]) for i in asked],
        ends.tolist(),
    )
    made = dict(zip(asked, said, strict=True))
    return [(made.get(i, rest[:0]), rest) for i, (_, rest) in enumerate(begun)]


def _bleu(generated: Sequence[int], reference: Sequence[int]) -> float:
    return bleu(generated, reference) or 0.0


def _recall(generated: Sequence[int], reference: Sequence[int]) -> float:
    found = rouge_l(generated, reference)
    return found.recall if found else 0.0


KINDS: Mapping[Kind, Callable[[Sequence[int], Sequence[int]], float]] = {
    "bleu": _bleu,
    "rouge-l": _recall,
}


def _split(tokens: Tensor, labels: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Where to continue from, and what would follow, without tokens that end a text."""
    learned = (labels != IGNORED).nonzero().squeeze(1)
    if not len(learned):
        return tokens, tokens[:0]
    first, last = int(learned[0]), int(learned[-1])
    cut = first or max(1, len(tokens) // 2)
    rest = tokens[cut : last + 1]
    return tokens[:cut], rest[~torch.isin(rest, ends)]


def _ends(tokenizer: object) -> list[int]:
    end = getattr(tokenizer, "eos_token_id", None)
    return [] if end is None else [int(end)]
