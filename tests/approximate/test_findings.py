"""Truth ratio, continuations and leakage in the evidence, against values made another way here."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from sisa.approximate import inputs, models, statement
from sisa.approximate.asked import Asked, known
from sisa.approximate.batches import PROMPT, Items
from sisa.approximate.evidence import NOT_EVALUATED
from sisa.approximate.examine import Examination
from sisa.approximate.findings import continuation
from sisa.approximate.metrics.knowledge import rouge_scores
from sisa.approximate.models import LanguageModel
from sisa.approximate.targets import Attacks
from sisa.errors import IncompleteError

from .language import llama, made
from .shop import SHORT, call, qa, write

ATTACKS = Attacks(lr=1e-3, steps=2, items=3, chunk=5)
LENGTHS = [9, 7, 8, 6]


def probabilities(model: LanguageModel, items: Items) -> list[float]:
    """exp(-mean nll) of each item, by the plain model."""
    found = []
    for tokens, labels in zip(items.tokens, items.labels, strict=True):
        with torch.no_grad():
            log_p = model.module(input_ids=tokens[None]).logits[0].double().log_softmax(-1)
        own = [float(log_p[t, tokens[t + 1]]) for t in range(len(tokens) - 1) if labels[t + 1] >= 0]
        found.append(math.exp(sum(own) / len(own)))
    return found


def ratios(right: Sequence[float], *wrong: Sequence[float]) -> list[float]:
    each = zip(right, *wrong, strict=True)
    return [math.prod(false) ** (1 / len(false)) / true for true, *false in each]


def test_the_truth_ratio_is_that_of_plain_probabilities() -> None:
    before, after, never = (LanguageModel(llama(seed).double()) for seed in (0, 1, 2))
    forget, wrong = made(LENGTHS, 1), tuple(made(LENGTHS, seed) for seed in (5, 6))
    begun = Examination.begin(before, Asked(forget, wrong=wrong), ATTACKS, never)
    found, _ = begun.end(after)
    assert found.truth != NOT_EVALUATED and found.truth.oracle != NOT_EVALUATED
    was, now, clean = (
        ratios(probabilities(m, forget), *(probabilities(m, w) for w in wrong))
        for m in (before, after, never)
    )
    for value, own in ((found.truth.ratio.before, was), (found.truth.ratio.after, now)):
        assert value == pytest.approx(np.mean([min(r, 1 / r) for r in own]), rel=1e-9)
    test = stats.ks_2samp(now, clean)
    assert found.truth.oracle.distance == pytest.approx(test.statistic)
    assert found.truth.oracle.p_value == pytest.approx(test.pvalue)
    assert found.truth.oracle.statistic == "truth ratio"
    assert (found.truth.items, found.truth.answers, found.truth.paraphrased) == (4, 2, False)


def test_a_paraphrase_takes_the_place_of_the_right_answer() -> None:
    model = LanguageModel(llama(0).double())
    forget, other, wrong = (made(LENGTHS, seed) for seed in (1, 4, 5))
    asked = Asked(forget, paraphrased=other, wrong=(wrong,))
    found, _ = Examination.begin(model, asked, ATTACKS).end(model)
    assert found.truth != NOT_EVALUATED and found.truth.paraphrased
    own = ratios(probabilities(model, other), probabilities(model, wrong))
    assert found.truth.ratio.after == pytest.approx(np.mean([min(r, 1 / r) for r in own]))
    assert found.truth.oracle == NOT_EVALUATED


def test_wrong_answers_are_chosen_with_their_items() -> None:
    forget, wrong = made([9, 8, 7, 6, 5, 9], 1), made([9, 8, 7, 6, 5, 9], 2)
    asked = Asked.of(forget, None, None, 3, wrong=[wrong], paraphrased=wrong, continued=2)
    places = [forget.ids.index(name) for name in asked.forget.ids]
    assert [wrong.ids[i] for i in places] == list(asked.wrong[0].ids)
    assert asked.paraphrased is not None and asked.paraphrased.ids == asked.wrong[0].ids
    assert asked.continued is not None and len(asked.continued) == 2


def test_leakage_is_told_from_the_areas_of_min_k() -> None:
    model, never = LanguageModel(llama(0)), LanguageModel(llama(3))
    forget, unseen = made([9] * 20, 1), made([9] * 25, 3)
    asked = Asked(forget, None, unseen)
    found, _ = Examination.begin(model, asked, ATTACKS, never).end(model)
    assert found.membership != NOT_EVALUATED

    def area(of: LanguageModel) -> float:
        sides = []
        for items in (forget, unseen):
            rows = known(of, Asked(items)).forget
            own = [(-rows.nll[rows.item == i]).sort().values for i in range(len(items))]
            sides.append(np.array([float(v[: int(0.4 * len(v))].mean()) for v in own]))
        wins = np.sign(sides[0][:, None] - sides[1][None, :])
        return float((wins + 1).mean() / 2)

    expected = 100 * ((1 - area(model)) - (1 - area(never))) / (1 - area(never))
    assert found.membership.privacy_leakage == pytest.approx(expected, rel=1e-5)
    alone, _ = Examination.begin(model, asked, ATTACKS).end(model)
    assert alone.membership != NOT_EVALUATED
    assert alone.membership.privacy_leakage == NOT_EVALUATED


def test_what_is_known_by_heart_is_said_again(shop: Path) -> None:
    model = models.load(shop / "base")
    forget, never = (
        inputs.read(shop / f"{name}.jsonl", name, model, PROMPT, None)
        for name in ("forget", "holdout")
    )
    assert isinstance(forget, Items) and isinstance(never, Items)
    by_heart = Examination.begin(model, Asked(forget, continued=forget), ATTACKS)
    found, _ = by_heart.end(model)
    assert found.continuation != NOT_EVALUATED and found.continuation.begun == "questions"
    assert found.continuation.f1.before == found.continuation.f1.after == 1.0
    assert found.continuation.recall.after == 1.0 and found.continuation.items == 6
    unknown, _ = Examination.begin(model, Asked(forget, continued=never), ATTACKS).end(model)
    assert unknown.continuation != NOT_EVALUATED and unknown.continuation.f1.after < 0.9

    said = replace(by_heart.before, said=IncompleteError("It is silent."))
    silent, lacking = replace(by_heart, before=said).end(model)
    assert silent.continuation == NOT_EVALUATED
    assert "What it says by itself was not evaluated. It is silent." in lacking


def test_the_command_carries_all_of_it(shop: Path, tmp_path: Path) -> None:
    for name, turn in (("one", 1), ("two", 2)):
        wrong = [{**qa(i), "answer": qa(i + turn)["answer"]} for i in range(6)]
        write(tmp_path / f"{name}.jsonl", wrong)
    words = ["--wrong", str(tmp_path / "one.jsonl"), "--wrong", str(tmp_path / "two.jsonl")]
    words += ["--holdout", str(shop / "holdout.jsonl"), "--retrained", str(shop / "base")]
    done = call(shop, tmp_path / "new", *SHORT, *words, "--output", "json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert "not evaluated" not in document["evidence"].values() and document["warnings"] == []
    assert document["evidence"]["truth"]["answers"] == 2
    assert document["evidence"]["truth"]["ratio"]["before"] < 0.9
    said = statement.read((tmp_path / "new" / statement.FILE).read_bytes()).predicate
    assert [each.items for each in said.wrong] == [6, 6] and said.paraphrased == "none"
    without = call(shop, tmp_path / "two", *SHORT, "--set", "continued_items=0", "--output", "json")
    assert json.loads(without.stdout)["evidence"]["continuation"] == NOT_EVALUATED


def test_recall_and_f1_are_those_of_words() -> None:
    items = made([6, 6], 1)
    rows = known(LanguageModel(llama(0)), Asked(items))
    before = replace(rows, said=rouge_scores(["a b c d", "x"], ["a b", "y"]))
    after = replace(rows, said=rouge_scores(["a", "y y"], ["a b", "y"]))
    found = continuation(items, before, after)
    assert (found.recall.before, found.recall.after) == pytest.approx((1 / 2, 3 / 4))
    assert (found.f1.before, found.f1.after) == pytest.approx((1 / 3, 2 / 3))
