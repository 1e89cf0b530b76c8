"""The loop: what a step computes, when there is none, and what a run is a function of."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from sisa.approximate import loop, models, reference
from sisa.approximate.batches import Examples, Items
from sisa.approximate.declaration import Method
from sisa.approximate.loop import Settings
from sisa.approximate.methods import METHODS
from sisa.approximate.models import Classifier, LanguageModel
from sisa.approximate.rows import IGNORED
from sisa.errors import ConfigurationError, DivergedError, UsageError

from .language import llama, made, padded

FORGET = made([9, 6, 12, 7, 8, 5], seed=1, name="forget")
RETAIN = made([8, 11, 6, 9], seed=2, name="retain")
SETTINGS = Settings(epochs=2, items_per_batch=2, lr=1e-3, chunk_rows=5, seed=3)


def parameters(subject: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in subject.trainable().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def far(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def go(
    name: str | Method, subject: Any, settings: Settings = SETTINGS, **more: Any
) -> loop.Outcome:
    """Run a method on the small items, with the reference's scores kept."""
    given = {"forget": FORGET, "retain": RETAIN, "folder": None, **more}
    if "reference" not in given:
        given["reference"] = reference.keep(subject, [given["forget"]])
    method = METHODS[name] if isinstance(name, str) else name
    return loop.run(subject, method, settings=settings, **given)


def plain(name: str, model: Any, forget: Items, retain: Items) -> float:
    """The common layout: padded batches, logits of everything, a reference that is a copy."""
    was = copy.deepcopy(model)

    def nll(of: Any, items: Items) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, labels, mask = padded(items)
        logits = of(input_ids=tokens, attention_mask=mask).logits
        losses = functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=IGNORED
        )
        return losses, labels[:, 1:] != IGNORED

    losses, learned = nll(model, forget)
    if name == "gradient-difference":
        first = -losses.sum() / learned.sum()
    else:
        with torch.no_grad():
            before, _ = nll(was, forget)
        ratio = before.sum(1) - losses.sum(1)
        first = (-2 / 0.1 * functional.logsigmoid(-0.1 * ratio)).mean()
    losses, learned = nll(model, retain)
    return float((first + losses.sum() / learned.sum()).detach())


@pytest.mark.parametrize("name", ["gradient-difference", "npo"])
def test_the_first_step_has_the_loss_of_the_plain_layout(name: str) -> None:
    model = llama().eval()
    everything = Settings(epochs=1, items_per_batch=len(RETAIN), lr=1e-3, chunk_rows=5)
    forget = FORGET.select(range(len(RETAIN)))
    expected = plain(name, model, forget, RETAIN)
    outcome = go(name, LanguageModel(model), everything, forget=forget)
    assert len(outcome.losses) == outcome.steps == 1
    assert abs(outcome.losses[0] - expected) <= 1e-5 * abs(expected)
    assert outcome.peak_bytes > 0 and outcome.stopped is None


def test_npo_begins_at_two_over_beta_times_ln_two() -> None:
    alone = METHODS["npo"].configured(alpha=0.0)
    subject = LanguageModel(llama())
    kept = reference.keep(subject, [FORGET])
    outcome = loop.run(subject, alone, FORGET, None, SETTINGS, None, kept)
    assert abs(outcome.losses[0] - 20 * math.log(2)) < 1e-4


@pytest.mark.parametrize("name", ["gradient-difference", "npo"])
def test_what_is_to_be_forgotten_becomes_less_likely(name: str) -> None:
    subject = LanguageModel(llama())
    before = reference.Live(subject).scores(FORGET).sum(), reference.Live(subject).scores(RETAIN)
    go(name, subject, Settings(epochs=5, items_per_batch=3, lr=3e-3))
    assert reference.Live(subject).scores(FORGET).sum() > before[0] + 1
    assert reference.Live(subject).scores(RETAIN).sum() < before[1].sum()


@pytest.mark.parametrize("name", ["gradient-difference", "npo"])
def test_accumulated_batches_are_one_large_batch(name: str) -> None:
    # items of unequal length: a mean of means would be another loss
    large, small, wrong = (LanguageModel(llama(dtype=torch.float64)) for _ in range(3))
    one = go(name, large, Settings(epochs=2, items_per_batch=6, lr=1e-3))
    two = go(name, small, Settings(epochs=2, items_per_batch=2, accumulate=3, lr=1e-3))
    go(name, wrong, Settings(epochs=2, items_per_batch=2, lr=1e-3))
    assert one.losses == pytest.approx(two.losses, rel=1e-9)
    assert far(parameters(large), parameters(small)) < 1e-7
    assert far(parameters(large), parameters(wrong)) > 1e-4, "the negative control"


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_chunks_change_nothing(chunk: int) -> None:
    one, other = (LanguageModel(llama(dtype=torch.float64)) for _ in range(2))
    go("npo", one, Settings(epochs=1, items_per_batch=3, lr=1e-3, chunk_rows=7))
    go("npo", other, Settings(epochs=1, items_per_batch=3, lr=1e-3, chunk_rows=chunk))
    assert far(parameters(one), parameters(other)) < 1e-9


def test_logits_of_a_batch_never_exist_at_once() -> None:
    subject = LanguageModel(llama())
    kept = reference.keep(subject, [FORGET], chunk=SETTINGS.chunk_rows)
    seen: list[int] = []
    subject.module.lm_head.register_forward_hook(lambda *given: seen.append(len(given[1][0])))
    go("npo", subject, reference=kept)
    assert max(seen) == SETTINGS.chunk_rows < sum(FORGET.select([0, 1]).counts())


def test_nothing_labelled_means_no_step() -> None:
    bare = made([6, 5, 4], prompt=6)
    subject = LanguageModel(llama())
    before = parameters(subject)
    for name in ("gradient-difference", "npo"):
        outcome = go(name, subject, forget=bare)
        assert outcome.steps == 0 and outcome.losses == ()
        assert outcome.stopped is not None and "labelled" in outcome.stopped
    assert same(before, parameters(subject))


def test_an_item_without_labels_changes_nothing_in_its_batch() -> None:
    def after(forget: Items) -> dict[str, torch.Tensor]:
        subject = LanguageModel(llama(dtype=torch.float64))
        go(METHODS["npo"].configured(alpha=0.0), subject, once, forget=forget)
        return parameters(subject)

    once = Settings(epochs=1, items_per_batch=8, lr=1e-3)
    bare, other = made([6], prompt=6, name="bare"), made([6], prompt=2, name="other")
    assert far(after(FORGET), after(FORGET + bare)) < 1e-9
    assert far(after(FORGET), after(FORGET + other)) > 1e-5, "the negative control"


def test_a_run_is_a_function_of_its_seed_and_not_of_the_order_of_files() -> None:
    def after(seed: int, forget: Items) -> dict[str, torch.Tensor]:
        subject = LanguageModel(llama())
        torch.manual_seed(seed + 100)
        go("npo", subject, Settings(epochs=1, items_per_batch=2, lr=1e-3, seed=seed), forget=forget)
        return parameters(subject)

    turned = FORGET.select(range(len(FORGET))[::-1])
    assert same(after(1, FORGET), after(1, turned))
    assert not same(after(1, FORGET), after(2, FORGET))


def test_lora_trains_the_adapter_and_the_base_stays() -> None:
    plain_hidden = LanguageModel(llama()).rows(FORGET).hidden
    subject = models.with_lora(LanguageModel(llama()), rank=4, alpha=8, seed=0)
    off = reference.AdapterOff(subject)
    twin = models.with_lora(LanguageModel(llama()), rank=4, alpha=8, seed=0)
    outcome = go("npo", subject, reference=off)
    kept = go("npo", twin)
    assert outcome.losses == pytest.approx(kept.losses, rel=1e-5)
    assert not torch.equal(subject.rows(FORGET).hidden, plain_hidden)
    with subject.adapter_off():
        assert torch.equal(subject.rows(FORGET).hidden, plain_hidden)


def test_a_second_model_says_what_was_kept() -> None:
    one, other = LanguageModel(llama()), LanguageModel(llama())
    first = go("npo", one, reference=reference.Live(LanguageModel(llama())))
    second = go("npo", other)
    assert first.losses == pytest.approx(second.losses, rel=1e-5)


def test_bf16_computes_the_same_roughly() -> None:
    one, other = LanguageModel(llama()), LanguageModel(llama())
    first = go("gradient-difference", one, Settings(epochs=1, items_per_batch=6, lr=1e-3))
    second = go(
        "gradient-difference",
        other,
        Settings(epochs=1, items_per_batch=6, lr=1e-3, precision="bf16"),
    )
    assert second.losses != first.losses
    assert second.losses == pytest.approx(first.losses, abs=0.1)
    assert all(p.dtype == torch.float32 for p in other.trainable().values())


def test_a_classifier_is_trained_by_the_same_loop() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    inputs, labels = torch.randn(12, 4), torch.arange(12) % 3
    names = tuple(f"example{i}" for i in range(12))
    forget, retain = (
        Examples(names[at], inputs[at], labels[at]) for at in (slice(0, 4), slice(4, 12))
    )
    before = functional.cross_entropy(module(inputs), labels, reduction="none").detach()
    for name in ("gradient-difference", "npo"):
        own = copy.deepcopy(module)
        go(
            name,
            Classifier(own),
            Settings(epochs=8, items_per_batch=2, lr=1e-2),
            forget=forget,
            retain=retain,
        )
        after = functional.cross_entropy(own(inputs), labels, reduction="none").detach()
        assert after[:4].mean() > before[:4].mean() and after[4:].mean() < before[4:].mean()


def test_every_step_is_reported() -> None:
    told: list[tuple[int, dict[str, float]]] = []
    outcome = go("npo", LanguageModel(llama()), report=lambda m, step: told.append((step, dict(m))))
    assert [step for step, _ in told] == list(range(1, outcome.steps + 1))
    assert tuple(m["loss"] for _, m in told) == outcome.losses
    assert told[0][1]["forget"] + told[0][1]["retain"] == pytest.approx(told[0][1]["loss"])


def test_a_warm_up_raises_the_rate() -> None:
    rates: list[float] = []
    settings = Settings(epochs=1, items_per_batch=2, lr=1.0, warmup=2)
    with pytest.raises(DivergedError):
        go(
            "gradient-difference",
            LanguageModel(llama()),
            Settings(epochs=9, items_per_batch=1, lr=math.inf),
        )
    go(
        "gradient-difference",
        LanguageModel(llama()),
        settings,
        report=lambda m, _: rates.append(m["lr"]),
    )
    assert rates == [0.5, 1.0, 1.0]


def test_what_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    subject = LanguageModel(llama())
    settings = Settings(epochs=3, items_per_batch=2, lr=1e-3, checkpoint_every=2)
    kept: list[dict[str, torch.Tensor]] = []

    def poison(metrics: Any, step: int) -> None:
        if step == 4:
            kept.append(parameters(subject))
        if step == 5:
            with torch.no_grad():
                next(iter(subject.trainable().values())).fill_(math.nan)

    with pytest.raises(DivergedError, match="step 6 is no longer a number") as found:
        go("npo", subject, settings, folder=tmp_path, report=poison)
    (file,) = tmp_path.glob("*.progress.safetensors")
    assert str(file) in str(found.value)
    from safetensors.torch import load_file

    saved = load_file(file)
    assert all(torch.equal(saved[f"parameter/{name}"], p) for name, p in kept[0].items())


def test_parameters_that_are_no_numbers_are_never_a_checkpoint(tmp_path: Path) -> None:
    def poison(metrics: Any, step: int) -> None:
        with torch.no_grad():
            next(iter(subject.trainable().values())).fill_(math.inf)

    subject = LanguageModel(llama())
    settings = Settings(epochs=1, items_per_batch=8, lr=1e-3, checkpoint_every=1)
    with pytest.raises(DivergedError, match="parameter"):
        go("npo", subject, settings, folder=tmp_path, report=poison)
    assert not list(tmp_path.iterdir())


def test_bad_calls_are_refused() -> None:
    subject = LanguageModel(llama())
    with pytest.raises(UsageError, match="forget set is empty"):
        go("npo", subject, forget=Items((), (), ()))
    with pytest.raises(UsageError, match="needs retain"):
        go("npo", subject, retain=None)
    with pytest.raises(ConfigurationError, match="no reference is given"):
        go("npo", subject, reference=None)
    for wrong in ({"epochs": 0}, {"lr": -1.0}, {"max_grad_norm": 0.0}, {"precision": "int3"}):
        with pytest.raises(UsageError):
            Settings(**wrong)  # type: ignore[arg-type]
