"""Row functions in float64 against formulas written out with `math`."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sisa.approximate.objectives.rows import (
    RowFunction,
    ce_u,
    divergence,
    margin,
    nll,
    temperature,
    undial,
)
from sisa.approximate.rows import RowReference
from sisa.errors import ConfigurationError

N, V = 6, 9
DRAW = torch.Generator().manual_seed(7)
LOGITS = 2 * torch.randn(N, V, generator=DRAW, dtype=torch.float64)
OTHER = 2 * torch.randn(N, V, generator=DRAW, dtype=torch.float64)
LABELS = torch.tensor([0, 8, 3, 3, 5, 1])
WHOLE = RowReference.of_logits(OTHER)
TOP = RowReference.of_logits(OTHER, top=3)


def softmax(scores: list[float]) -> list[float]:
    total = sum(math.exp(score) for score in scores)
    return [math.exp(score) / total for score in scores]


def close(found: Tensor, expected: list[float]) -> None:
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14)


def each() -> list[tuple[list[float], list[float], int]]:
    return list(zip(LOGITS.tolist(), OTHER.tolist(), LABELS.tolist(), strict=True))


def test_nll() -> None:
    close(nll(LOGITS, LABELS), [-math.log(softmax(z)[y]) for z, _, y in each()])


def test_temperature() -> None:
    expected = [-math.log(softmax([score / 2 for score in z])[y]) for z, _, y in each()]
    close(temperature(2.0)(LOGITS, LABELS, None), expected)
    assert torch.equal(temperature(1.0)(LOGITS, LABELS, None), nll(LOGITS, LABELS))


def test_margin() -> None:
    close(margin(LOGITS, LABELS), [(max(z) - sum(z) / V) ** 2 for z, _, _ in each()])
    assert margin(torch.full((1, V), 3.0), LABELS[:1]).item() == 0


def test_ce_u() -> None:
    expected, closed = [], []
    for z, _, y in each():
        p = softmax(z)
        total = sum(math.exp(score) for token, score in enumerate(z) if token != y)
        target = [0.0 if token == y else math.exp(z[token]) / total for token in range(V)]
        expected.append(-sum(t * math.log(p[token]) for token, t in enumerate(target)))
        entropy = -sum(t * math.log(t) for t in target if t)
        closed.append(entropy - math.log(1 - p[y]))
    close(ce_u(LOGITS, LABELS), expected)
    close(ce_u(LOGITS, LABELS), closed)


def test_the_target_of_ce_u_gets_no_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    ce_u(logits, LABELS).sum().backward()
    expected = []
    for z, _, y in each():
        p = softmax(z)
        expected.append([p[t] - (0 if t == y else p[t] / (1 - p[y])) for t in range(V)])
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor(expected, dtype=torch.float64))


def test_undial() -> None:
    beta, expected = 1.5, []
    for z, other, y in each():
        target = softmax([o - beta * (t == y) for t, o in enumerate(other)])
        expected.append(-sum(t * math.log(p) for t, p in zip(target, softmax(z), strict=True)))
    close(undial(beta)(LOGITS, LABELS, WHOLE), expected)


def test_undial_of_the_largest() -> None:
    beta, expected = 1.5, []
    for z, other, y in each():
        p, q = softmax(z), softmax(other)
        top = sorted(range(V), key=lambda token: -other[token])[:3]
        edited = [q[t] * math.exp(-beta * (t == y)) for t in top]
        edited.append(1 - sum(q[t] for t in top))
        mass = [p[t] for t in top] + [1 - sum(p[t] for t in top)]
        expected.append(
            -sum(e / sum(edited) * math.log(m) for e, m in zip(edited, mass, strict=True))
        )
    close(undial(beta)(LOGITS, LABELS, TOP), expected)


def test_undial_with_nothing_lowered_rests_at_the_reference() -> None:
    logits = OTHER.clone().requires_grad_()
    undial(0.0)(logits, LABELS, WHOLE).sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-15


@pytest.mark.parametrize("degree", [1.0, 2.0, 4.0])
def test_divergence(degree: float) -> None:
    expected = []
    for z, other, _ in each():
        p = softmax([score / degree for score in z])
        q = softmax([score / degree for score in other])
        kl = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
        expected.append(degree**2 * kl)
    close(divergence(degree)(LOGITS, LABELS, WHOLE), expected)


def test_divergence_from_the_largest() -> None:
    expected = []
    for z, other, _ in each():
        p, q = softmax(z), softmax(other)
        top = sorted(range(V), key=lambda token: -other[token])[:3]
        cells = [(q[t], p[t]) for t in top]
        cells.append((1 - sum(q[t] for t in top), 1 - sum(p[t] for t in top)))
        expected.append(sum(b * math.log(b / a) for b, a in cells))
    found = divergence()(LOGITS, LABELS, TOP)
    close(found, expected)
    assert (found <= divergence()(LOGITS, LABELS, WHOLE)).all()


@pytest.mark.parametrize("reference", [WHOLE, TOP], ids=["whole", "top"])
def test_divergence_rests_at_the_reference(reference: RowReference) -> None:
    logits = OTHER.clone().requires_grad_()
    values = divergence()(logits, LABELS, reference)
    values.sum().backward()
    assert values.abs().max() < 1e-14
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-14


def test_a_temperature_needs_the_whole_vocabulary() -> None:
    with pytest.raises(ConfigurationError, match="whole vocabulary"):
        divergence(2.0)(LOGITS, LABELS, TOP)


def test_tokens_that_both_rule_out_add_nothing() -> None:
    logits, other = LOGITS.clone(), OTHER.clone()
    logits[:, 6] = other[:, 6] = -torch.inf
    logits.requires_grad_()
    reference = RowReference.of_logits(other)
    without = RowReference.of_logits(torch.cat([other[:, :6], other[:, 7:]], dim=-1))
    labels = LABELS - (LABELS > 6).long()
    for function in (divergence(), undial(2.0)):
        values = function(logits, LABELS, reference)
        (gradient,) = torch.autograd.grad(values.sum(), logits)
        assert gradient.isfinite().all()
        fewer = torch.cat([logits[:, :6], logits[:, 7:]], dim=-1)
        torch.testing.assert_close(values, function(fewer, labels, without))


@pytest.mark.parametrize(
    ("function", "reference"),
    [
        (nll, None),
        (temperature(2.0), None),
        (margin, None),
        (undial(1.5), WHOLE),
        (undial(1.5), TOP),
        (divergence(), WHOLE),
        (divergence(3.0), WHOLE),
        (divergence(), TOP),
    ],
)
def test_gradients(function: RowFunction, reference: RowReference | None) -> None:
    logits = LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: function(z, LABELS, reference), (logits,))


FUNCTIONS = [nll, temperature(2.0), margin, ce_u, undial(2.0), divergence()]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("reference", [WHOLE, TOP], ids=["whole", "top"])
def test_rows_in_chunks_are_the_same(function: RowFunction, reference: RowReference) -> None:
    whole = function(LOGITS, LABELS, reference)
    parts = [
        function(LOGITS[rows], LABELS[rows], reference.part(rows))
        for rows in (slice(0, 1), slice(1, 5), slice(5, 6))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-15, atol=0)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_bfloat16_is_computed_in_float32(function: RowFunction) -> None:
    halves = LOGITS.bfloat16()
    found = function(halves, LABELS, WHOLE)
    assert found.dtype == torch.float32
    assert torch.equal(found, function(halves.float(), LABELS, WHOLE))


@pytest.mark.parametrize("function", [nll, ce_u, undial(2.0), divergence()])
def test_a_constant_added_to_logits_changes_nothing(function: RowFunction) -> None:
    shifted = LOGITS + torch.arange(N, dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        function(shifted, LABELS, WHOLE), function(LOGITS, LABELS, WHOLE), rtol=1e-12, atol=1e-13
    )
