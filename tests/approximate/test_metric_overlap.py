"""ROUGE-L, BLEU, VerbMem and KnowMem on cases counted by hand, and against a plain search."""

from __future__ import annotations

import math
import random
from itertools import combinations

import pytest

from sisa.approximate.metrics.knowledge import (
    knowledge_memorisation,
    rouge_scores,
    verbatim_memorisation,
)
from sisa.approximate.metrics.overlap import bleu, common_subsequence, rouge_l, words


def test_words_are_those_of_any_script() -> None:
    assert words("The dog's 3.5, FOO_bar -- Straße 東京!") == [
        "the", "dog", "s", "3", "5", "foo", "bar", "straße", "東京",
    ]  # fmt: skip
    assert words("…") == []


def longest_by_search(a: str, b: str) -> int:
    """Longest of all subsequences of `a` that is one of `b`."""

    def within(part: tuple[str, ...]) -> bool:
        rest = iter(b)
        return all(letter in rest for letter in part)

    return max(n for n in range(len(a) + 1) if any(map(within, combinations(a, n))))


def test_common_subsequence_is_that_of_a_search() -> None:
    draw = random.Random(0)
    for _ in range(200):
        a, b = ("".join(draw.choices("abc", k=draw.randint(0, 8))) for _ in range(2))
        assert common_subsequence(a, b) == longest_by_search(a, b)


def test_rouge_l_of_the_paper() -> None:
    # Lin 2004, section 3: against "police killed the gunman"
    reference = ["police", "killed", "the", "gunman"]
    first = rouge_l(["police", "kill", "the", "gunman"], reference)
    second = rouge_l(["the", "gunman", "kill", "police"], reference)
    assert first is not None and second is not None
    assert (first.recall, first.precision, first.f1) == (0.75, 0.75, 0.75)
    assert (second.recall, second.f1) == (0.5, 0.5)


def test_rouge_l_sides_are_not_swapped() -> None:
    found = rouge_l(["a", "b"], ["a", "x", "b", "y"])
    assert found is not None
    assert (found.recall, found.precision) == (0.5, 1.0)
    assert found.f1 == pytest.approx(2 / 3)


def test_nothing_generated_is_zero_and_no_reference_is_none() -> None:
    nothing = rouge_l([], ["a"])
    assert nothing is not None and nothing.f1 == nothing.recall == 0
    assert rouge_l(["a"], []) is None
    assert bleu([], ["a"]) == 0 and bleu(["a"], []) is None


def test_bleu_by_hand() -> None:
    # clipped: 5/6 of words, 3/5 of pairs, 1/4 of triples, 0/3 of fours
    made, true = ["the", "cat", "sat", "on", "the", "mat"], ["the", "cat", "is", "on", "the", "mat"]
    assert bleu(made, true, order=1) == pytest.approx(5 / 6)
    assert bleu(made, true, order=3) == pytest.approx((5 / 6 * 3 / 5 * 1 / 4) ** (1 / 3))
    assert bleu(made, true) == 0
    # the seven of Papineni et al. 2002, clipped to the two of the reference
    assert bleu(["the"] * 7, true, order=1) == pytest.approx(2 / 7)


def test_bleu_of_short_texts_is_held_down() -> None:
    true = ["a", "b", "c", "d", "e", "f"]
    assert bleu(true[:4], true) == pytest.approx(math.exp(1 - 6 / 4))
    assert bleu(true[:2], true) == pytest.approx(math.exp(1 - 6 / 2))  # of 1- and 2-grams alone
    assert bleu(true, true[:4], order=1) == pytest.approx(4 / 6)  # a long one has no bonus
    assert bleu(true, true) == 1


def test_what_a_model_knows_is_the_mean_f1() -> None:
    made, true = ["a b", "x", "nothing"], ["a x b y", "X!", "..."]
    recall, f1 = rouge_scores(made, true)
    assert recall.item.tolist() == f1.item.tolist() == [0, 1]
    assert recall.values.tolist() == [0.5, 1.0]
    for figure in (verbatim_memorisation(made, true), knowledge_memorisation(made, true)):
        assert figure.value == pytest.approx((2 / 3 + 1) / 2)
        assert (figure.counted, figure.left_out) == (2, 1)
    assert verbatim_memorisation([], []).reason == "there are no items"
    with pytest.raises(ValueError):
        knowledge_memorisation(["a"], [])
