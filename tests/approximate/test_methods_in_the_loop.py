"""Every method that is declared runs through the loop, and controllers act where they should."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from sisa.approximate import loop, models, reference
from sisa.approximate.batches import Items
from sisa.approximate.controllers import Measured, PerItemStop, UtilityFloor
from sisa.approximate.declaration import Method, Parts
from sisa.approximate.loop import Settings
from sisa.approximate.methods import METHODS
from sisa.approximate.models import LanguageModel
from sisa.errors import ConfigurationError, UsageError

from .language import llama, made

FORGET = made([9, 6, 12, 7], seed=1, name="forget")
RETAIN = made([8, 11, 6, 9, 7], seed=2, name="retain")
OTHER = made([8, 7, 9, 6], seed=3, name="other")
NEAR = made([7, 7, 8, 8], seed=4, name="near")
SETTINGS = Settings(epochs=2, items_per_batch=2, lr=1e-3)
TRAINED = sorted(name for name, method in METHODS.items() if method.kind == "objective")


def configured(name: str) -> Method:
    return METHODS[name].configured(layer=1) if name == "rmu" else METHODS[name]


def steady(wants: Any, active: Any) -> Measured:
    return Measured(1.0, dict.fromkeys(FORGET.ids, 1.0))


def go(method: Method, subject: Any, settings: Settings = SETTINGS, **more: Any) -> loop.Outcome:
    given = {
        "alternatives": OTHER,
        "neighbours": NEAR,
        "measure": steady,
        "reference": reference.Live(LanguageModel(llama(dtype=torch.float64))),
        **more,
    }
    return loop.run(subject, method, FORGET, RETAIN, settings, None, **given)


@pytest.mark.parametrize("name", TRAINED)
def test_a_method_runs_and_splitting_its_steps_changes_nothing(name: str) -> None:
    subject, split = (LanguageModel(llama(dtype=torch.float64)) for _ in range(2))
    before = {n: p.detach().clone() for n, p in subject.trainable().items()}
    outcome = go(configured(name), subject, Settings(epochs=2, items_per_batch=4, lr=1e-3))
    assert outcome.steps >= 2 and all(map(math.isfinite, outcome.losses))
    after = subject.trainable()
    assert any(not torch.equal(before[n], after[n]) for n in before)

    small = Settings(epochs=2, items_per_batch=1, accumulate=4, lr=1e-3)
    again = go(configured(name), split, small)
    assert again.losses == pytest.approx(outcome.losses, rel=1e-7, abs=1e-9)
    gaps = ((after[n] - p).detach().abs().max() for n, p in split.trainable().items())
    assert max(map(float, gaps)) < 1e-6


@pytest.mark.parametrize(("together", "batches"), [(1, 4), (2, 2)])
def test_a_multiplier_moves_once_a_step_however_many_batches_it_has(
    together: int, batches: int
) -> None:
    method = METHODS["pdu"].configured(first=1.0, warmup_epochs=0, epsilon=1.0)

    def told(together: int, batches: int) -> tuple[list[float], list[float]]:
        settings = Settings(epochs=4, items_per_batch=together, accumulate=batches, lr=1e-3)
        steps: list[Any] = []
        subject = LanguageModel(llama(dtype=torch.float64))
        outcome = go(method, subject, settings, report=lambda metrics, _: steps.append(metrics))
        assert outcome.steps == 4
        retain = [step["retain"] for step in steps]
        return retain, [(s["loss"] - s["forget"]) / s["retain"] for s in steps]

    retain, multipliers = told(together, batches)
    expected = [1.0]
    for value in retain[:-1]:
        expected.append(max(0.0, expected[-1] + 1.0 * (value - 1.0)))
    assert multipliers == pytest.approx(expected, rel=1e-9)
    assert max(expected) > 3, "it moves"
    assert multipliers == pytest.approx(told(4, 1)[1], rel=1e-6)


@pytest.mark.parametrize("name", TRAINED)
def test_a_method_runs_on_an_adapter_with_its_base_as_reference(name: str) -> None:
    subject = models.with_lora(LanguageModel(llama()), rank=2, alpha=4, seed=0)
    off = reference.AdapterOff(subject)
    outcome = go(configured(name), subject, replace(SETTINGS, epochs=1), reference=off)
    assert outcome.steps and all(map(math.isfinite, outcome.losses))


def test_a_forgotten_item_is_left_alone() -> None:
    seen: list[int] = []

    def measure(wants: Any, active: Any) -> Measured:
        assert wants == frozenset({"similarity"})
        assert active == list(FORGET.ids if not seen else FORGET.ids[3:])
        met = FORGET.ids[: 3 if not seen else 4]
        seen.append(len(met))
        return Measured(None, {name: 0.0 if name in met else 1.0 for name in FORGET.ids})

    steps: list[int] = []
    outcome = go(
        with_controller(PerItemStop(0.5)),
        LanguageModel(llama(dtype=torch.float64)),
        replace(SETTINGS, items_per_batch=1, epochs=9),
        measure=measure,
        report=lambda metrics, step: steps.append(step),
    )
    assert len(steps) == 4 + 1
    assert outcome.stopped == "Every item is forgotten."


def test_below_the_floor_the_last_good_epoch_comes_back() -> None:
    subject = LanguageModel(llama(dtype=torch.float64))
    utilities, kept = iter([0.9, 0.8, 0.1]), list[dict[str, torch.Tensor]]()

    def measure(wants: Any, active: Any) -> Measured:
        kept.append({n: p.detach().clone() for n, p in subject.trainable().items()})
        return Measured(next(utilities))

    outcome = go(
        with_controller(UtilityFloor(0.5)), subject, replace(SETTINGS, epochs=9), measure=measure
    )
    assert outcome.stopped is not None and "below the floor" in outcome.stopped
    after = subject.trainable()
    assert all(torch.equal(after[n], kept[1][n]) for n in after)
    assert not all(torch.equal(after[n], kept[2][n]) for n in after)


def test_what_a_method_needs_must_be_there() -> None:
    subject = LanguageModel(llama())
    with pytest.raises(UsageError, match="needs alternatives"):
        go(METHODS["dpo"], subject, alternatives=None)
    with pytest.raises(UsageError, match="as many alternatives"):
        go(METHODS["dpo"], subject, alternatives=OTHER.select([0]))
    with pytest.raises(ConfigurationError, match="needs measurements"):
        go(METHODS["icu"], subject, measure=None)
    with pytest.raises(UsageError, match="no layer 8"):
        go(METHODS["rmu"], subject)


def test_retained_items_alone_are_no_step() -> None:
    bare = Items(FORGET.ids, FORGET.tokens, tuple(torch.full_like(x, -100) for x in FORGET.labels))
    subject = LanguageModel(llama())
    kept = reference.keep(subject, [bare])
    outcome = loop.run(subject, METHODS["npo"], bare, RETAIN, SETTINGS, None, kept)
    assert outcome.steps == 0


def with_controller(controller: Any) -> Method:
    """Gradient difference with another controller."""
    usual = METHODS["gradient-difference"]
    parts = usual.parts
    return replace(usual, build=lambda: Parts(parts.forget, parts.retain, controller))
