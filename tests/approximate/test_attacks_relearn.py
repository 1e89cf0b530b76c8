"""Relearning brings back what was hidden, and not what was never known."""

from __future__ import annotations

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sisa.approximate.attacks.recovered import recovered_share
from sisa.approximate.attacks.relearn import Relearned, relearn, split
from sisa.errors import ConfigurationError, DataError, IncompleteError, UsageError

Pairs = tuple[Tensor, Tensor]


def test_shares_of_a_metric_in_either_direction() -> None:
    assert recovered_share(0.9, 0.1, 0.5) == pytest.approx(0.5)
    assert recovered_share(1.0, 5.0, 2.0) == pytest.approx(0.75)  # a loss
    assert recovered_share(0.9, 0.1, 0.0) == pytest.approx(-0.125)
    assert recovered_share(0.9, 0.1, 0.1) == 0
    assert recovered_share(0.4, 0.4, 0.4) is None
    with pytest.raises(DataError, match="not a finite"):
        recovered_share(0.9, math.nan, 0.5)


def test_the_best_point_of_a_curve_counts() -> None:
    found = Relearned(0.9, ((0, 0.1), (1, 0.7), (2, 0.3)), 0.1)
    assert found.shares == pytest.approx((0, 0.75, 0.25))
    assert found.share == pytest.approx(0.75)
    assert Relearned(0.1, ((0, 0.1), (1, 0.7)), 0.1).share is None


@pytest.mark.parametrize("items, share, taken", [(2, 0.01, 1), (2, 0.99, 1), (10, 0.25, 2)])
def test_a_split_leaves_neither_part_empty(items: int, share: float, taken: int) -> None:
    learned, asked = split(items, share, 3)
    assert len(learned) == taken
    assert sorted([*learned, *asked]) == list(range(items))
    assert all(
        np.array_equal(a, b) for a, b in zip(split(items, share, 3), (learned, asked), strict=True)
    )


@pytest.mark.parametrize("items", [0, 1])
def test_empty_and_single_forget_sets_are_refused(items: int) -> None:
    with pytest.raises(IncompleteError, match="two forgotten items"):
        split(items, 0.5)


def loss(model: nn.Module, batch: Pairs) -> Tensor:
    found: Tensor = nn.functional.cross_entropy(model(batch[0]), batch[1])
    return found


def accuracy(pairs: Pairs, model: nn.Module) -> float:
    assert not model.training
    assert not torch.is_grad_enabled()
    return float((model(pairs[0]).argmax(1) == pairs[1]).double().mean())


class Gated(nn.Module):
    """Remembers a label of each of 80 keys, behind one gate."""

    def __init__(self, labels: Tensor, gate: float) -> None:
        super().__init__()
        self.table = nn.Embedding(80, 4)
        with torch.no_grad():
            self.table.weight.copy_(nn.functional.one_hot(labels, 4) + torch.rand(80, 4) / 2)
        self.dropout = nn.Dropout(0.1)
        self.gate = nn.Parameter(torch.tensor(gate))

    def forward(self, keys: Tensor) -> Tensor:
        found: Tensor = self.gate * self.dropout(self.table(keys))
        return found


def locked() -> tuple[Gated, Gated, Pairs, Pairs]:
    """A model that knows, the same with its gate shut, keys to learn from and keys to ask for."""
    torch.manual_seed(0)
    keys, labels = torch.arange(80), torch.randint(4, (80,))
    model = Gated(labels, 1.0)
    hidden = copy.deepcopy(model)
    with torch.no_grad():
        hidden.gate.zero_()
    return model, hidden, (keys[:20], labels[:20]), (keys[20:], labels[20:])


def test_what_is_hidden_comes_back_and_what_was_never_known_does_not() -> None:
    model, hidden, learned, asked = locked()
    with torch.no_grad():
        original = accuracy(asked, model.eval())
    assert original == 1

    def attack(victim: nn.Module) -> Relearned:
        return relearn(
            victim,
            [learned],
            partial(loss, victim),
            lambda: accuracy(asked, victim),
            original,
            steps=10,
            lr=0.01,
            every=4,
        )

    found = attack(hidden)
    assert [step for step, _ in found.curve] == [0, 4, 8, 10]
    assert found.curve[0][1] < 0.5
    assert found.share == 1
    ignorant = attack(Gated(torch.randint(4, (80,)), 0.0))
    assert ignorant.share is not None
    assert ignorant.share < 0.2


def test_frozen_parameters_are_trained_and_nothing_is_random() -> None:
    _, hidden, learned, asked = locked()
    hidden.requires_grad_(False)

    def run() -> Relearned:
        victim = copy.deepcopy(hidden)
        return relearn(
            victim.train(),
            [learned, asked],
            partial(loss, victim),
            lambda: float(loss(victim, asked)),
            0.1,
            steps=5,
            lr=0.01,
            every=2,
        )

    before = torch.get_rng_state()
    first = run()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    with torch.no_grad():
        assert run() == first  # there is dropout in it, and it is off
    assert [step for step, _ in first.curve] == [0, 2, 4, 5]
    assert first.curve[-1][1] < first.curve[0][1]


def test_batches_are_taken_in_turn() -> None:
    seen, model = list[int](), nn.Linear(2, 2)

    def counting(batch: int) -> Tensor:
        seen.append(batch)
        return sum(p.square().sum() for p in model.parameters())  # type: ignore[return-value]

    relearn(model, [7, 8, 9], counting, lambda: 1.0, 2.0, steps=5, lr=0.1)
    assert seen == [7, 8, 9, 7, 8]


def test_bad_calls_are_refused() -> None:
    model, _, learned, asked = locked()

    def run(batches: list[Pairs], **changes: float) -> Relearned:
        settings = {"steps": 3, "lr": 0.01} | changes
        tell, metric = partial(loss, model), partial(accuracy, asked, model)
        return relearn(model, batches, tell, metric, 0.5, **settings)  # type: ignore[arg-type]

    with pytest.raises(IncompleteError, match="nothing to relearn"):
        run([])
    with pytest.raises(UsageError, match="a step or more"):
        run([learned], steps=0)
    with pytest.raises(ConfigurationError, match="at step"):
        run([(learned[0], learned[1])], lr=math.inf, steps=9)
    with pytest.raises(DataError, match="not a finite"):
        relearn(model, [learned], partial(loss, model), lambda: math.nan, 0.5, steps=1, lr=0.1)
