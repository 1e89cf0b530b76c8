"""Every declared method on a small batch: losses against their formulas, and batches of nothing."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from sisa.approximate import loop, reference, rows
from sisa.approximate.batches import Items
from sisa.approximate.controllers import Alternating, Controller, Dual, Measured, PerItemStop
from sisa.approximate.declaration import HiddenTerm, Method, Term
from sisa.approximate.methods import METHODS, NEEDS, OBJECTIVES
from sisa.approximate.models import LanguageModel
from sisa.approximate.rows import RowReference, Rows
from sisa.determinism import mix
from sisa.errors import UsageError

from .closed_forms import FORMULAS, Row, Side, World
from .language import llama, made, padded

B, T, V, D = 4, 6, 11, 5
DRAW = torch.Generator().manual_seed(11)
LOGITS = 2 * torch.randn(B, T, V, generator=DRAW, dtype=torch.float64)
OTHER = LOGITS + torch.randn(B, T, V, generator=DRAW, dtype=torch.float64)
LABELS = torch.randint(V, (B, T), generator=DRAW)
LABELS[0, :3] = LABELS[1, :2] = LABELS[3, :4] = rows.IGNORED
LABELS[2] = rows.IGNORED
HIDDEN = torch.randn(9, D, generator=DRAW, dtype=torch.float64)
HIDDEN_ITEM = torch.tensor([0, 0, 0, 1, 1, 1, 1, 3, 3])
NAMES = [method.name for method in OBJECTIVES]

SEED = 5


def models() -> tuple[LanguageModel, LanguageModel]:
    """A model, and another that it is compared with."""
    settings: dict[str, Any] = {"dtype": torch.float64, "initializer_range": 0.5}  # rather sure
    model, was = (LanguageModel(llama(seed, **settings)) for seed in (0, 1))
    return model, was


@functools.cache
def given() -> dict[str, Items]:
    """Four items of each kind, one without a label and one of a single one among them."""
    (known,), (model, _) = made([9], 1, name="known").tokens, models()
    says = model.module(input_ids=known[None]).logits[0].argmax(-1)
    labels = torch.cat([torch.full((2,), rows.IGNORED), says[1:-1]])
    best = Items(("known",), (known,), (labels,))  # else each loss of a saturating kind is nothing
    bare = {n: made([12], n, prompt=12, name="bare") for n in (7, 8)}
    return {
        "forget": best + made([3, 7], 2, name="forget") + bare[7],
        "retain": made([8, 11, 3], 3, name="retain") + bare[8],
        "alternatives": made([6, 10, 8, 7], 5, name="other"),
        "neighbours": made([7, 9, 5, 6], 6, name="near"),
    }


@functools.cache
def world() -> World:
    """What both say in the common layout: padded, with a mask, and logits of everything."""
    model, was = (subject.module for subject in models())
    sides = {name: side(model, was, items) for name, items in given().items()}
    draws = torch.Generator().manual_seed(mix(SEED, 1) >> 1)
    drawn = torch.rand(model.config.hidden_size, generator=draws).double()
    return World(**sides, control=(drawn / drawn.square().sum().sqrt()).tolist())


@torch.no_grad()
def side(model: Any, was: Any, items: Items) -> Side:
    tokens, labels, mask = padded(items)
    now, then = (
        of(input_ids=tokens, attention_mask=mask, output_hidden_states=True) for of in (model, was)
    )
    z, q, found = now.logits.tolist(), then.logits.tolist(), Side([], [], [])
    for b, own in enumerate(labels.tolist()):
        places = [t for t in range(len(own) - 1) if own[t + 1] != -100]
        found.rows.append([Row(z[b][t], q[b][t], own[t + 1]) for t in places])
        length = len(items.tokens[b])
        found.hidden.append(now.hidden_states[1][b, :length].tolist())
        found.was.append(then.hidden_states[1][b, :length].tolist())
    return found


def steady(wants: Any, active: Any) -> Measured:
    return Measured(None, dict.fromkeys(active, 1.0))


@pytest.mark.parametrize("together", [4, 1], ids=["one batch", "batches of one item"])
@pytest.mark.parametrize("changed", [False, True], ids=["as declared", "other settings"])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_the_loop_has_the_loss_of_the_formula(
    name: str, changed: bool, together: int
) -> None:
    formula, settings = FORMULAS[name], dict[str, Any]()
    gamma, alpha = formula.gamma, formula.alpha
    if changed:
        settings, gamma, alpha = dict(formula.changed), 0.7, 0.3
    expected = formula.loss(world(), **settings)
    settings |= {"gamma": gamma, "alpha": alpha} if changed else {}
    settings |= {"layer": 1} if name == "rmu" else {}

    (model, was), told = models(), list[Mapping[str, float]]()
    outcome = loop.run(
        model,
        METHODS[name].configured(**settings),
        settings=loop.Settings(
            epochs=1, items_per_batch=together, accumulate=4 // together, lr=0.0, seed=SEED
        ),
        folder=None,
        reference=reference.Live(was),
        report=lambda metrics, _: told.append(metrics),
        measure=steady,
        **given(),
    )
    found = {name: value for step in told for name, value in step.items()}
    assert found["forget"] == pytest.approx(expected.forget, rel=1e-6, abs=0)
    whole = gamma * expected.forget
    if expected.retain is None or not alpha:
        assert "retain" not in found
    else:
        assert found["retain"] == pytest.approx(expected.retain, rel=1e-6, abs=0)
        whole += alpha * expected.multiplier * expected.retain
    assert sum(outcome.losses) == pytest.approx(whole, rel=1e-6, abs=0)
    if formula.turns:
        assert [tuple({"forget", "retain"} & step.keys()) for step in told] == [
            (side,) for side in formula.turns
        ]
    else:
        assert len(outcome.losses) == 1


def test_every_method_that_is_trained_has_a_formula() -> None:
    assert FORMULAS.keys() == {*NAMES}


def scores_of(found: Rows) -> Tensor:
    nll = -torch.log_softmax(found.logits, -1).gather(-1, found.labels[:, None])[:, 0]
    return rows.item_sums(nll, found.item, found.items)


def total(terms: tuple[Term | HiddenTerm, ...], logits: Tensor, labels: Tensor) -> Tensor:
    """Add up terms, with the logits of `OTHER` as the reference."""
    found, other = rows.of_sequences(logits, labels), rows.of_sequences(OTHER, labels)
    summed = logits.new_zeros(())
    for term in terms:
        if isinstance(term, HiddenTerm):
            kept = HIDDEN_ITEM[: len(found.item) and len(HIDDEN)]
            hidden = HIDDEN[: len(kept)] + 0 * logits.sum()
            target = torch.ones(D) if term.target == "control" else torch.ones(len(kept), D)
            summed = summed + term.loss(hidden, kept, B, target)
        else:
            reference = RowReference.of_logits(other.logits)
            summed = summed + term.loss(found, scores_of(other), reference)
    return summed


def loss(method: Method, labels: Tensor = LABELS) -> tuple[Tensor, Tensor]:
    logits = LOGITS.clone().requires_grad_()
    retained = torch.where(labels == rows.IGNORED, labels, (labels + 3) % V)
    forget, retain = total(method.forget, logits, labels), total(method.retain, logits, retained)
    both = method.gamma * forget + method.alpha * retain
    (gradient,) = torch.autograd.grad(both, logits)
    return both.detach(), gradient


@pytest.mark.parametrize("name", NAMES)
def test_every_method_gives_a_loss_and_a_gradient(name: str) -> None:
    value, gradient = loss(METHODS[name])
    assert value.dtype == torch.float64
    assert value.isfinite()
    assert gradient.isfinite().all()
    learned = torch.zeros(B, T, dtype=torch.bool)
    learned[:, :-1] = LABELS[:, 1:] != rows.IGNORED
    assert not gradient[~learned].any()
    if name != "rmu":  # hidden states here do not hang on the logits
        assert gradient[learned].abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_ignored_labels_gives_zero_and_no_gradient(name: str) -> None:
    value, gradient = loss(METHODS[name], torch.full_like(LABELS, rows.IGNORED))
    assert value.item() == 0
    assert not gradient.any()


def test_gradient_difference_ascends_and_descends() -> None:
    method = METHODS["gradient-difference"]
    assert total(method.forget, LOGITS, LABELS).item() == pytest.approx(-ce(), rel=1e-13)
    assert total(method.retain, LOGITS, LABELS).item() == pytest.approx(ce(), rel=1e-13)


def test_satimp_weighs_forgetting_ten_times_as_much_as_retaining() -> None:
    assert (METHODS["satimp"].gamma, METHODS["satimp"].alpha) == (1.0, 0.1)


def kl(degree: float) -> float:
    found, other = rows.of_sequences(LOGITS, LABELS), rows.of_sequences(OTHER, LABELS)
    means = []
    for z, o in zip(found.logits.tolist(), other.logits.tolist(), strict=True):
        log_p = [s / degree - math.log(sum(math.exp(x / degree) for x in z)) for s in z]
        log_q = [s / degree - math.log(sum(math.exp(x / degree) for x in o)) for s in o]
        means.append(sum(math.exp(b) * (b - a) for a, b in zip(log_p, log_q, strict=True)))
    return sum(means) / len(means)


def ce() -> float:
    places = [(b, t) for b in range(B) for t in range(T - 1) if LABELS[b, t + 1] != rows.IGNORED]
    each = []
    for b, t in places:
        z = LOGITS[b, t].tolist()
        each.append(math.log(sum(map(math.exp, z))) - z[int(LABELS[b, t + 1])])
    return sum(each) / len(each)


def test_scrub_has_two_phases() -> None:
    method = METHODS["scrub"]
    assert total(method.forget, LOGITS, LABELS).item() == pytest.approx(-4 * kl(2), rel=1e-12)
    retained = 1.0 * ce() + 0.5 * 4 * kl(2)
    assert total(method.retain, LOGITS, LABELS).item() == pytest.approx(retained, rel=1e-12)
    assert method.controller == Alternating(3)


def test_icu_ascends_and_learns_from_neighbours() -> None:
    method = METHODS["icu"]
    assert total(method.forget, LOGITS, LABELS).item() == pytest.approx(-ce(), rel=1e-12)
    retained = 0.5 * ce() + kl(1)
    assert total(method.retain, LOGITS, LABELS).item() == pytest.approx(retained, rel=1e-12)
    assert {term.data for term in method.retain} == {"neighbours"}
    assert isinstance(method.controller, PerItemStop)


def test_eul_leaves_its_teacher_only_where_it_forgets() -> None:
    method = METHODS["eul"].configured(kl=0.8, ce=0.7, language=0.2)
    forgotten = -kl(1) - 0.2 * ce()
    assert total(method.forget, LOGITS, LABELS).item() == pytest.approx(forgotten, rel=1e-12)
    retained = 0.8 * kl(1) + 0.7 * ce()
    assert total(method.retain, LOGITS, LABELS).item() == pytest.approx(retained, rel=1e-12)
    assert method.controller == Alternating(None, "retain")


def test_label_flip_and_idk_learn_other_labels() -> None:
    for name in ("label-flip", "idk"):
        assert [term.data for term in METHODS[name].forget] == ["alternatives"]
        other = (LABELS + 1) % V
        other[LABELS == rows.IGNORED] = rows.IGNORED
        found = rows.of_sequences(LOGITS, other)
        assert total(METHODS[name].forget, LOGITS, other).item() == pytest.approx(
            scores_of(found).sum().item() / len(found.item), rel=1e-13
        )


@pytest.mark.parametrize(
    ("name", "needs", "references"),
    [
        ("gradient-ascent", (), set()),
        ("gradient-difference", ("retain",), set()),
        ("dpo", ("alternatives", "retain"), {"scores"}),
        ("npo", ("retain",), {"scores"}),
        ("simnpo", ("retain",), set()),
        ("wga", ("retain",), set()),
        ("satimp", ("retain",), set()),
        ("undial", (), {"distribution"}),
        ("ce-u", (), set()),
        ("rmu", ("retain",), {"hidden"}),
        ("scrub", ("retain",), {"distribution"}),
        ("icu", ("retain", "similarity"), {"distribution"}),
        ("eul", ("adapter", "retain"), {"distribution"}),
    ],
)
def test_what_a_method_needs(name: str, needs: tuple[str, ...], references: set[str]) -> None:
    assert METHODS[name].needs == needs
    assert METHODS[name].references == references


def test_every_method_is_described() -> None:
    assert len(METHODS) == len(NAMES) + sum(m.kind == "edit" for m in METHODS.values())
    for name, method in METHODS.items():
        assert method.name == name
        assert method.cost
        assert method.source
        assert set(method.needs) <= NEEDS.keys()


def test_settings_rebuild_the_parts() -> None:
    found = METHODS["npo"].configured(retain="kl", beta=2.0, gamma=0.5)
    assert found.references == {"scores", "distribution"}
    assert (found.gamma, found.defaults["beta"], found.defaults["lr"]) == (0.5, 2.0, 1e-5)
    assert total(found.forget, LOGITS, LABELS) != total(METHODS["npo"].forget, LOGITS, LABELS)
    assert total(found.retain, LOGITS, LABELS).item() == pytest.approx(kl(1), rel=1e-12)
    assert METHODS["npo"].defaults["beta"] == 0.1
    undial = METHODS["undial"].configured(alpha=1.0)
    assert undial.needs == ("retain",)
    pdu = METHODS["pdu"].configured(epsilon=1.25).controller
    assert isinstance(pdu, Dual)
    assert pdu.epsilon == 1.25


def test_wrong_settings_are_named() -> None:
    with pytest.raises(UsageError, match=r"npo has no setting 'betta'"):
        METHODS["npo"].configured(betta=1.0)
    with pytest.raises(UsageError, match="no retain term"):
        METHODS["npo"].configured(retain="kld")
    with pytest.raises(UsageError, match=r"gamma of npo is 'much'"):
        _ = METHODS["npo"].configured(gamma="much").gamma


def test_a_method_is_frozen_and_most_have_a_constant_controller() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        METHODS["npo"].name = "other"  # type: ignore[misc]
    assert METHODS["npo"].controller == Controller()
