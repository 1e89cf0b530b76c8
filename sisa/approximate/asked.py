"""Items that models are asked about, and what one of them says: one forward pass feeds all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sisa.approximate.answers import CHUNK, ITEMS, statistics
from sisa.approximate.batches import Batch, Examples, Items
from sisa.approximate.evidence import tried
from sisa.approximate.metrics.knowledge import rouge_scores
from sisa.approximate.metrics.scores import Scores
from sisa.approximate.metrics.statistics import RowStatistics
from sisa.approximate.models import Classifier, LanguageModel, Subject
from sisa.approximate.similarity import continued
from sisa.errors import SisaError


@dataclass(frozen=True)
class Asked:
    """Items that models are asked about, each with a labelled position.

    Attributes:
        forget: Of what is to be forgotten.
        retain: Of what is kept, if anything is given.
        holdout: Of what no model ever saw, if anything is given.
        paraphrased: The items to forget with the right answer in other words, if they are given.
        wrong: The items to forget with a wrong answer, once for each of several.
        continued: Items to forget whose beginning is continued; None for none.
    """

    forget: Batch
    retain: Batch | None = None
    holdout: Batch | None = None
    paraphrased: Batch | None = None
    wrong: tuple[Batch, ...] = ()
    continued: Items | None = None

    @classmethod
    def of(
        cls,
        forget: Batch,
        retain: Batch | None,
        holdout: Batch | None,
        most: int | None = None,
        *,
        paraphrased: Batch | None = None,
        wrong: Sequence[Batch] = (),
        continued: int = 0,
    ) -> Asked:
        """Choose items by their digests, so that no order of files matters.

        Args:
            forget: What is to be forgotten.
            retain: What is kept, or None.
            holdout: What no model ever saw, or None.
            most: Most of each; None for all.
            paraphrased: Other right answers, one for each item to forget and in their order.
            wrong: Wrong answers of the same kind, once for each of several.
            continued: Most items to forget that are continued.
        """
        kept, never = (
            None if side is None else side.select(_some(side, most)) for side in (retain, holdout)
        )
        own = _some(forget, most)
        some = forget.select(own)
        begun = some.select(_some(some, continued)) if continued else None
        return cls(
            some,
            kept,
            never,
            None if paraphrased is None else paraphrased.select(own),
            tuple(side.select(own) for side in wrong),
            begun if isinstance(begun, Items) else None,
        )


@dataclass(frozen=True)
class Known:
    """What one model says of the items, row by row; None where there are none.

    Attributes:
        forget: Of what is to be forgotten, as for the next four.
        retain: Of what is kept.
        holdout: Of what no model ever saw.
        paraphrased: Of other right answers.
        wrong: Of wrong answers.
        outputs: Of a classifier for the items to forget, [B, C] on the CPU.
        said: Recall and F1 of ROUGE-L between what it says by itself after each beginning and what
            follows in truth; why there is none, where it could not; None where it was not asked.
    """

    forget: RowStatistics
    retain: RowStatistics | None = None
    holdout: RowStatistics | None = None
    paraphrased: RowStatistics | None = None
    wrong: tuple[RowStatistics, ...] = ()
    outputs: Tensor | None = None
    said: tuple[Scores, Scores] | SisaError | None = None

    @classmethod
    def by(cls, asked: Asked, ask: Callable[[Batch], RowStatistics]) -> Known:
        """Ask for rows alone, whichever way."""
        forget = ask(asked.forget)
        retain, holdout, paraphrased = (
            None if side is None else ask(side)
            for side in (asked.retain, asked.holdout, asked.paraphrased)
        )
        return cls(forget, retain, holdout, paraphrased, tuple(map(ask, asked.wrong)))


def known(subject: Subject, asked: Asked, together: int = ITEMS, chunk: int = CHUNK) -> Known:
    """Ask a model: one forward pass over all items, see `answers.statistics`, and continuations.

    A classifier is asked once more about the items to forget, for its answers themselves.
    """
    rows = Known.by(asked, lambda side: statistics(subject, side, together, chunk))
    outputs = _outputs(subject, asked.forget, together)
    return replace(rows, outputs=outputs, said=said(subject, asked.continued))


def said(subject: Subject, items: Items | None) -> tuple[Scores, Scores] | SisaError | None:
    """How much of some items a model says by itself: see `Known.said`."""
    if items is None or not isinstance(subject, LanguageModel) or subject.tokenizer is None:
        return None
    decode, model, begun = subject.tokenizer.decode, subject, items

    def scores() -> tuple[Scores, Scores]:
        found = continued(model, begun)
        return rouge_scores(
            [decode(made.tolist()) for made, _ in found],
            [decode(true.tolist()) for _, true in found],
        )

    return tried(scores)


@torch.no_grad()
def _outputs(subject: Subject, items: Batch, together: int) -> Tensor | None:
    """What a classifier makes of examples, [B, C]."""
    if not (isinstance(subject, Classifier) and isinstance(items, Examples)):
        return None
    parts = []
    for at in range(0, len(items), together):
        rows = subject.rows(items.select(range(at, min(at + together, len(items)))))
        parts.append(rows.head(rows.hidden).cpu())
    return torch.cat(parts)


def _some(items: Batch, most: int | None) -> list[int]:
    """Places of labelled items, of those with the smallest digests, in their own order."""
    labelled = [i for i, count in enumerate(items.counts()) if count]
    if most is not None and len(labelled) > most:
        digests = [*items.digests()]
        labelled = sorted(sorted(labelled, key=lambda i: digests[i])[:most])
    return labelled
