"""How much of a reference text a generated text repeats: ROUGE-L and BLEU."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """Runs of letters and digits of any script, in lower case; no stemming."""
    return WORD.findall(text.lower())


@dataclass(frozen=True)
class RougeL:
    """Longest common subsequence as a share of each side.

    Attributes:
        recall: Of the reference.
        precision: Of the generated text.
    """

    recall: float
    precision: float

    @property
    def f1(self) -> float:
        """Harmonic mean of recall and precision; 0 where nothing is common."""
        both = self.recall + self.precision
        return 2 * self.recall * self.precision / both if both else 0.0


def rouge_l(generated: Sequence[Hashable], reference: Sequence[Hashable]) -> RougeL | None:
    """ROUGE-L of two sequences of words or tokens (Lin 2004); None where there is no reference."""
    if not reference:
        return None
    common = common_subsequence(generated, reference)
    return RougeL(common / len(reference), common / max(1, len(generated)))


def common_subsequence(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence; bit-parallel (Hyyro 2004)."""
    places: dict[Hashable, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    every = (1 << len(a)) - 1
    free = every
    for token in b:
        met = free & places.get(token, 0)
        free = (free + met | free - met) & every
    return len(a) - free.bit_count()


def bleu(
    generated: Sequence[Hashable], reference: Sequence[Hashable], order: int = 4
) -> float | None:
    """BLEU of one text with one reference (Papineni et al. 2002), in [0, 1], not smoothed.

    The geometric mean of the clipped precisions of 1-grams to `order`-grams, times the brevity
    penalty. Orders that the generated text is too short for are left out.

    Returns:
        None where there is no reference; 0 where nothing was generated or an order has no match.
    """
    if not reference:
        return None
    orders = range(1, min(order, len(generated)) + 1)
    precisions = [_clipped_precision(generated, reference, n) for n in orders]
    if not precisions or min(precisions) == 0:
        return 0.0
    brevity = min(0.0, 1 - len(reference) / len(generated))
    return math.exp(brevity + sum(map(math.log, precisions)) / len(precisions))


def _clipped_precision(
    generated: Sequence[Hashable], reference: Sequence[Hashable], n: int
) -> float:
    made = ngrams(generated, n)
    return (made & ngrams(reference, n)).total() / made.total()


def ngrams(tokens: Sequence[Hashable], n: int) -> Counter[tuple[Hashable, ...]]:
    """How often each run of n tokens occurs."""
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
