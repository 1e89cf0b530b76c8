"""What a model says of what it should not know: VerbMem and KnowMem of MUSE."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sisa.approximate.metrics.overlap import rouge_l, words
from sisa.approximate.metrics.scores import Figure, Scores


def rouge_scores(generated: Sequence[str], references: Sequence[str]) -> tuple[Scores, Scores]:
    """ROUGE-L recall and F1 of each generated text; a reference without words has no score.

    Raises:
        ValueError: There are not as many texts as references.
    """
    found = [
        (i, rouge)
        for i, (made, true) in enumerate(zip(generated, references, strict=True))
        if (rouge := rouge_l(words(made), words(true))) is not None
    ]
    item = torch.tensor([i for i, _ in found], dtype=torch.int64)
    recall = torch.tensor([rouge.recall for _, rouge in found], dtype=torch.float64)
    f1 = torch.tensor([rouge.f1 for _, rouge in found], dtype=torch.float64)
    return Scores(recall, item, len(references)), Scores(f1, item, len(references))


def verbatim_memorisation(continuations: Sequence[str], passages: Sequence[str]) -> Figure:
    """VerbMem: mean ROUGE-L F1 of what follows a prefix with what the passage goes on with.

    In [0, 1], where the MUSE code (Shi et al. 2024) gives percent.
    """
    return rouge_scores(continuations, passages)[1].mean()


def knowledge_memorisation(answers: Sequence[str], references: Sequence[str]) -> Figure:
    """KnowMem: mean ROUGE-L F1 of answers to questions with the true answers; in [0, 1]."""
    return rouge_scores(answers, references)[1].mean()
