"""Losses on hidden states against loops over positions."""

from __future__ import annotations

import pytest
import torch

from sisa.approximate.objectives.hidden import control_vector, distance

ITEM = torch.tensor([0, 0, 0, 2])
DRAW = torch.Generator().manual_seed(3)
HIDDEN = torch.randn(4, 5, generator=DRAW, dtype=torch.float64)
TARGET = torch.randn(4, 5, generator=DRAW, dtype=torch.float64)


@pytest.mark.parametrize("target", [TARGET[0], TARGET], ids=["vector", "states"])
def test_distance(target: torch.Tensor) -> None:
    means = []
    for item in (0, 2):
        places = [place for place in range(4) if ITEM[place] == item]
        each = []
        for place in places:
            aim = (target if target.dim() == 1 else target[place]).tolist()
            here = HIDDEN[place].tolist()
            each.append(sum((h - t) ** 2 for h, t in zip(here, aim, strict=True)) / 5)
        means.append(sum(each) / len(each))
    found = distance(HIDDEN, ITEM, 3, target)
    assert found.item() == pytest.approx(sum(means) / 2, rel=1e-14)
    hidden = HIDDEN.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda h: distance(h, ITEM, 3, target), (hidden,))


def test_distance_to_itself_and_of_nothing_is_zero() -> None:
    assert distance(HIDDEN, ITEM, 3, HIDDEN).item() == 0
    hidden = HIDDEN.clone().requires_grad_()
    nothing = distance(hidden[:0], ITEM[:0], 3, TARGET[0])
    nothing.backward()
    assert nothing.item() == 0
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_the_target_gets_no_gradient() -> None:
    target = TARGET.clone().requires_grad_()
    assert not distance(HIDDEN, ITEM, 3, target).requires_grad


def test_bfloat16_is_computed_in_float32() -> None:
    assert distance(HIDDEN.bfloat16(), ITEM, 3, TARGET.bfloat16()).dtype == torch.float32


def test_the_control_vector_comes_from_its_stream_alone() -> None:
    drawn = control_vector(64, 6.5, torch.Generator().manual_seed(5))
    torch.manual_seed(99)
    assert torch.equal(drawn, control_vector(64, 6.5, torch.Generator().manual_seed(5)))
    assert not torch.equal(drawn, control_vector(64, 6.5, torch.Generator().manual_seed(6)))
    assert drawn.norm().item() == pytest.approx(6.5, rel=1e-6)
    assert (drawn >= 0).all()
