"""Continuations of what is to be forgotten, utility, and what ends a run because of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sisa.approximate import loop, models, reference, similarity
from sisa.approximate.batches import Examples, Items
from sisa.approximate.controllers import (
    Alternating,
    Controller,
    Measured,
    PerItemStop,
    Together,
    UtilityFloor,
)
from sisa.approximate.declaration import Method
from sisa.approximate.floor import with_floor
from sisa.approximate.item_values import error, mean_probability
from sisa.approximate.methods import METHODS
from sisa.approximate.metrics.overlap import common_subsequence
from sisa.approximate.models import Classifier, LanguageModel
from sisa.approximate.rows import IGNORED
from sisa.approximate.similarity import Examiner
from sisa.errors import ConfigurationError, UsageError

from .language import llama, made

FORGET = made([9, 6, 12, 7, 8], seed=1, name="forget")
RETAIN = made([8, 11, 6, 9, 7], seed=2, name="retain")


def again(wants: frozenset[str], active: Sequence[str]) -> Measured:
    """Nothing is forgotten yet."""
    return Measured(1.0, dict.fromkeys(active, 1.0))


def parameters(subject: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in subject.trainable().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


class Cycle(nn.Module):
    """Says token + 1 after each token, whatever was before; with a cache as transformers has it."""

    def __init__(self, vocabulary: int = 10) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.roll(torch.eye(vocabulary), 1, dims=1))
        self.config = type("Config", (), {"max_position_embeddings": None})
        self.read = list[tuple[int, ...]]()

    def forward(self, input_ids: Tensor, past_key_values: Any, **_: Any) -> Any:
        self.read.append(tuple(input_ids.shape))
        out = {"logits": self.weight[input_ids[:, -1:]], "past_key_values": past_key_values}
        return type("Output", (), out)


def counting(end: int | None = None) -> LanguageModel:
    """A language model that counts; it is made without the check of an architecture."""
    subject = object.__new__(LanguageModel)
    subject._module = Cycle().eval()
    subject.tokenizer = type("Tokenizer", (), {"eos_token_id": end})
    return subject


def items(*pairs: tuple[list[int], int]) -> Items:
    """Items of tokens, of which so many are a prompt."""
    tokens = tuple(torch.tensor(t) for t, _ in pairs)
    labels = tuple(torch.tensor([IGNORED] * n + t[n:]) for t, n in pairs)
    return Items(tuple(f"item{i}" for i in range(len(pairs))), tokens, labels)


def test_worked_similarities_of_answers() -> None:
    given = items(
        ([7, 1, 2, 3, 4, 5], 2),  # continued word by word
        ([7, 1, 2, 9, 4, 9], 2),  # 2 3 4 5 is said: half of it, but no run of two
        ([1, 2, 3, 4, 9, 9, 9], 1),  # 2 3 4 5 6 7: three in the right order of six
        ([5, 1, 1], 1),
    )
    assert similarity.similarity(counting(), given) == pytest.approx(
        [1.0, 0.0, (3 / 6 * 2 / 5 * 1 / 4 * 0) ** 0.25, 0.0]
    )
    recall = similarity.similarity(counting(), given, "rouge-l")
    assert recall == pytest.approx([1.0, 0.5, 0.5, 0.0])
    short = items(([1, 2, 3, 9], 1))  # 2 3 4: precisions 2/3, 1/2 and 0 of three
    assert similarity.similarity(counting(), short) == [0.0]
    long = items(([1, 2, 3, 4, 5, 6, 9], 1))  # 2 ... 7: 5/6, 4/5, 3/4 and 2/3
    expected = (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
    assert similarity.similarity(counting(), long) == pytest.approx([expected])


def test_a_passage_is_continued_from_its_first_half() -> None:
    whole = items(([9, 9, 9, 4, 5, 6, 7], 0), ([3, 4], 0), ([9, 3, 4, 5, 6], 0))
    subject = counting()
    found = similarity.similarity(subject, whole, "rouge-l")
    # after 9 9 9 comes 0 1 2 3, after 3 comes 4, and after 9 3 comes 4 5 6
    assert found == [0.0, 1.0, 1.0]
    assert {shape for shape in subject.module.read if shape[1] > 1} == {(1, 3), (1, 2)}


def test_a_token_that_ends_a_text_does_not_count() -> None:
    answer = items(([1, 2, 3, 4], 1))
    assert similarity.similarity(counting(end=4), answer, "rouge-l") == [1.0]
    early = items(([1, 2, 3, 5, 6], 1))  # what is said ends where 4 would be said
    assert similarity.similarity(counting(end=4), early, "rouge-l") == [0.5]


def test_what_cannot_be_continued_is_forgotten() -> None:
    nothing = items(([3], 0), ([3, 4], 2), ([1, 4], 1))
    assert similarity.similarity(counting(end=4), nothing) == [0.0, 0.0, 0.0]
    assert similarity.similarity(counting(), nothing.select([])) == []


def test_only_active_items_are_continued() -> None:
    subject = counting()
    examiner = Examiner(subject, items(([1, 2, 3], 1), ([5, 6, 7], 1), ([2, 2], 1)))
    found = examiner(frozenset({"similarity"}), ["item2", "item0"])
    assert found == Measured(None, {"item0": 1.0, "item2": 0.0})
    assert subject.module.read[0] == (2, 1)


def test_the_adapter_that_is_trained_is_asked() -> None:
    subject = models.with_lora(LanguageModel(llama(dtype=torch.float64)), rank=4, alpha=8, seed=0)
    said = by_hand(subject.module, FORGET)
    known = Items(FORGET.ids, said, tuple(_after(t, 2) for t in said))
    assert similarity.similarity(subject, known) == [1.0] * len(known)
    with torch.no_grad():
        for name, parameter in subject.trainable().items():
            parameter.add_(0.5 * ("lora_B" in name))
    other = by_hand(subject.module, FORGET)
    expected = [
        common_subsequence(o[2:].tolist(), s[2:].tolist()) / (len(s) - 2)
        for o, s in zip(other, said, strict=True)
    ]
    found = similarity.similarity(subject, known, "rouge-l")
    assert found == pytest.approx(expected) and min(found) < 0.9
    with subject.adapter_off():
        assert similarity.similarity(subject, known) == [1.0] * len(known)


@torch.no_grad()
def by_hand(model: Any, given: Items) -> tuple[Tensor, ...]:
    """Each item with all after its prompt of two replaced by what the model says."""
    texts = []
    for tokens in given.tokens:
        text = tokens[:2]
        while len(text) < len(tokens):
            logits = model(input_ids=text[None], use_cache=False).logits
            text = torch.cat([text, logits[0, -1:].argmax(-1)])
        texts.append(text)
    return tuple(texts)


def _after(tokens: Tensor, prompt: int) -> Tensor:
    return torch.cat([torch.full((prompt,), IGNORED), tokens[prompt:]])


@pytest.mark.parametrize("items_per_batch", [1, 2, 50])
@torch.no_grad()
def test_utility_and_error_are_means_over_items(items_per_batch: int) -> None:
    subject = LanguageModel(llama(dtype=torch.float64))
    said = by_hand(subject.module, RETAIN)
    half = tuple(torch.cat([s[:5], t[5:]]) for s, t in zip(said, RETAIN.tokens, strict=True))
    bare = made([4], prompt=4, name="bare")  # counts in neither mean
    given = Items(RETAIN.ids, half, tuple(_after(t, 2) for t in half)) + bare
    probabilities, errors = [], []
    for tokens in half:
        log_p = subject.module(input_ids=tokens[None]).logits[0, 1:-1].log_softmax(-1)
        own = log_p.gather(1, tokens[2:, None])[:, 0]
        probabilities.append(math.exp(float(own.mean())))
        errors.append(float((log_p.argmax(1) != tokens[2:]).double().mean()))
    found = mean_probability(subject, given, items_per_batch, chunk=3)
    assert found == pytest.approx(sum(probabilities) / 5, rel=1e-9)
    assert error(subject, given, items_per_batch, 3) == pytest.approx(sum(errors) / 5, rel=1e-12)
    assert 0 < sum(errors) / 5 < 1


def test_utility_of_a_classifier_is_the_probability_of_its_labels() -> None:
    module = nn.Linear(2, 3).double()
    inputs, labels = torch.eye(2, dtype=torch.float64), torch.tensor([2, 0])
    expected = torch.softmax(module(inputs), 1)[[0, 1], labels].mean().detach()
    given = Examples(("a", "b"), inputs, labels)
    examiner = Examiner(Classifier(module), given, given)
    assert examiner(frozenset({"utility"}), []).utility == pytest.approx(float(expected))
    with pytest.raises(ConfigurationError, match="Only a language model"):
        examiner(frozenset({"similarity"}), ["a"])
    with pytest.raises(ConfigurationError, match="nothing to be measured"):
        replace(examiner, retain=None)(frozenset({"utility"}), [])


def test_utility_of_a_model_that_collapsed_is_no_number() -> None:
    subject = LanguageModel(llama())
    with torch.no_grad():
        subject.module.lm_head.weight.fill_(float("nan"))
    examiner = Examiner(subject, FORGET, RETAIN)
    assert math.isnan(examiner(frozenset({"utility"}), []).utility or 0)


def known_by_heart() -> tuple[LanguageModel, Items]:
    """A model, and what it says itself after the prompts of the items to forget."""
    subject = LanguageModel(llama())
    said = by_hand(subject.module, FORGET)
    return subject, Items(FORGET.ids, said, tuple(_after(t, 2) for t in said))


def refined(subject: Any, forget: Items, folder: Path | None = None, **more: Any) -> loop.Outcome:
    """ICU with its own measurements, each item in a batch of its own."""
    near = RETAIN.select(range(len(forget)))
    given: dict[str, Any] = {
        "method": METHODS["icu"].configured(below=0.5),
        "settings": loop.Settings(epochs=30, items_per_batch=1, lr=1e-4, checkpoint_every=1),
        "reference": reference.keep(LanguageModel(llama()), [near], top=16),
        "measure": Examiner(subject, forget, RETAIN),
        **more,
    }
    return loop.run(subject, forget=forget, retain=RETAIN, folder=folder, neighbours=near, **given)


def test_items_are_left_alone_as_soon_as_they_are_no_longer_said() -> None:
    subject, forget = known_by_heart()
    assert similarity.similarity(subject, forget) == [1.0] * len(forget)
    examiner, seen = Examiner(subject, forget), list[tuple[int, int]]()

    def watch(wants: Any, active: Any) -> Measured:
        found = examiner(wants, active)
        seen.append((len(active), sum(v < 0.5 for v in found.similarity.values())))
        return found

    outcome = refined(subject, forget, measure=watch)
    assert outcome.stopped == "Every item is forgotten."
    assert outcome.steps == sum(active for active, _ in seen)
    for (active, met), (left, _) in pairwise(seen):
        assert left == active - met
    assert len(seen) > 1 and seen[-1][0] == seen[-1][1] < len(forget)
    assert outcome.steps < len(seen) * len(forget)
    assert all(math.isfinite(loss) for loss in outcome.losses)


def test_a_refined_run_that_was_killed_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """What is measured depends on the parameters and the controller alone."""
    subject, forget = known_by_heart()
    through = refined(subject, forget)
    killed, _ = known_by_heart()

    def die(metrics: Any, step: int) -> None:
        if step == through.steps - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refined(killed, forget, tmp_path, report=die)
    taken_up, _ = known_by_heart()
    outcome = refined(taken_up, forget, tmp_path)
    assert outcome.losses == through.losses and outcome.stopped == through.stopped
    assert same(parameters(taken_up), parameters(subject))


def test_batches_of_forgotten_items_move_nothing() -> None:
    """ICU's code takes a NaN loss there, and Adam's momentum still moves the weights."""
    subject = LanguageModel(llama())
    first, after = list[dict[str, Tensor]](), list[dict[str, Tensor]]()

    def all_but_one(wants: Any, active: Any) -> Measured:
        (after if first else first).append(parameters(subject))
        return Measured(None, {name: float(name == FORGET.ids[2]) for name in active})

    settings = loop.Settings(epochs=3, items_per_batch=1, lr=1e-2, weight_decay=0.1)
    outcome = refined(subject, FORGET, settings=settings, measure=all_but_one)
    assert outcome.steps == 5 + 1 + 1  # and no step for the four that are forgotten
    assert all(map(math.isfinite, outcome.losses))
    assert not same(first[0], after[0]) and not same(after[0], after[1])

    bare = Items(FORGET.ids, FORGET.tokens, (*FORGET.labels[:4], torch.full((8,), IGNORED)))
    subject = LanguageModel(llama())
    kept = reference.keep(subject, [RETAIN], top=16)
    outcome = refined(subject, bare, settings=settings, measure=again, reference=kept)
    alone, left = LanguageModel(llama()), bare.select(range(4))
    expected = refined(alone, left, settings=settings, measure=again, reference=kept)
    assert outcome.steps == expected.steps == 3 * 4
    assert outcome.losses == expected.losses
    assert same(parameters(subject), parameters(alone))


def test_a_floor_stands_beside_a_methods_own_controller() -> None:
    method = with_floor(METHODS["scrub"], 0.9, before=0.5)
    both = method.controller
    assert both == Together((Alternating(3), UtilityFloor(0.45)))
    assert both.wants == {"utility"}
    other = method.configured(msteps=1)
    assert other.controller == Together((Alternating(1), UtilityFloor(0.45)))
    assert (len(other.forget), len(other.retain), other.needs) == (1, 2, ("retain",))
    plain = with_floor(METHODS["gradient-ascent"], 1.0, before=0.5)
    assert plain.controller == Together((Controller(), UtilityFloor(0.5)))


@pytest.mark.parametrize(
    ("share", "before", "told"),
    [
        (0.0, 1.0, "floor is 0"),
        (1.5, 1.0, "floor is 1.5"),
        (0.9, 0.0, "no utility"),
        (0.9, math.nan, "no utility"),
    ],
)
def test_a_floor_that_cannot_be_is_refused(share: float, before: float, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        with_floor(METHODS["npo"], share, before)


def test_an_edit_has_no_floor() -> None:
    edit = Method("edit", "edit", {}, (), "nothing", "nowhere")
    with pytest.raises(UsageError, match="no epochs"):
        with_floor(edit, 0.9, 1.0)


def test_ascent_ends_at_the_floor_with_what_it_measured(tmp_path: Path) -> None:
    subject, retain = known_by_heart()
    forget, retain = retain.select([0, 1]), retain.select([2, 3, 4])
    before = mean_probability(subject, retain)
    method = with_floor(METHODS["gradient-ascent"], 0.9, before)
    settings = loop.Settings(epochs=60, items_per_batch=2, lr=3e-4)
    kept = list[float]()
    outcome = loop.run(
        subject,
        method,
        forget,
        retain,
        settings,
        tmp_path,
        measure=Examiner(subject, forget, retain),
        after_epoch=lambda epoch: kept.append(mean_probability(subject, retain)),
    )
    assert outcome.stopped is not None and "below the floor" in outcome.stopped
    assert outcome.steps == len(kept) + 1 > 1
    assert min(kept) >= 0.9 * before
    assert mean_probability(subject, retain) == kept[-1] < before
    other = with_floor(METHODS["gradient-ascent"], 0.8, before)
    fresh, _ = known_by_heart()
    with pytest.raises(ConfigurationError, match="another run"):
        loop.run(fresh, other, forget, retain, settings, tmp_path, measure=again)
    loop.run(fresh, method, forget, retain, settings, tmp_path, measure=again)
    assert same(parameters(fresh), parameters(subject))  # what has ended stays so


def test_the_last_epoch_stays_where_a_run_ends_for_another_reason_than_its_floor() -> None:
    subject = LanguageModel(llama())
    last = list[dict[str, Tensor]]()

    def measure(wants: Any, active: Any) -> Measured:
        last.append(parameters(subject))
        done = len(last) == 2
        return Measured(0.9, dict.fromkeys(active, 0.0 if done else 1.0))

    floored = with_floor(METHODS["icu"].configured(below=0.5), 0.9, before=1.0)
    settings = loop.Settings(epochs=9, items_per_batch=5, lr=1e-2)
    outcome = refined(subject, FORGET, method=floored, settings=settings, measure=measure)
    assert outcome.stopped == "Every item is forgotten."
    assert same(parameters(subject), last[1]) and not same(last[0], last[1])

    both = Together((PerItemStop(0.5), UtilityFloor(0.5)))
    state = both.epoch_ended(both.start(), 0, Measured(0.1, {"a": 0.0}))
    assert both.gives_up(state)
