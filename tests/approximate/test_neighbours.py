"""Nearest retained items: against loops over hidden states of single items, and in the loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from sisa.approximate import loop, models, neighbours, order, reference
from sisa.approximate.batches import Batch, Examples, Items
from sisa.approximate.controllers import Measured
from sisa.approximate.methods import METHODS
from sisa.approximate.models import Classifier, HiddenPositions, LanguageModel
from sisa.approximate.neighbours import directions, nearest, usual_layer
from sisa.errors import ConfigurationError, UsageError

from .language import llama, made

FORGET = made([9, 6, 12, 7, 8], seed=1, name="forget")
RETAIN = made([8, 11, 3, 9, 7, 1, 10], seed=2, name="retain")


def again(wants: frozenset[str], active: Sequence[str]) -> Measured:
    """Nothing is forgotten yet."""
    return Measured(1.0, dict.fromkeys(active, 1.0))


def alone(subject: LanguageModel, items: Items, layer: int) -> list[torch.Tensor]:
    """The direction of each item, from a forward of it alone that is not cut short."""
    found = []
    for tokens in items.tokens:
        states = subject.module(tokens[None], output_hidden_states=True).hidden_states[layer][0]
        mean = sum(state / state.norm() for state in states) / len(states)
        found.append(mean / mean.norm())
    return found


@pytest.mark.parametrize("items_per_batch", [1, 2, 4, 100])
@torch.no_grad()
def test_nearest_are_those_of_a_loop(items_per_batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CELLS", 2 * len(RETAIN))  # two items to forget at a time
    subject = LanguageModel(llama(dtype=torch.float64))
    wanted, there = alone(subject, FORGET, 1), alone(subject, RETAIN, 1)
    cosines = [[float(a @ b) for b in there] for a in wanted]
    found = nearest(subject, FORGET, RETAIN, items_per_batch=items_per_batch)
    assert found.indices == tuple(row.index(max(row)) for row in cosines)
    assert found.cosine == pytest.approx([max(row) for row in cosines], rel=1e-9)
    assert len(set(found.indices)) > 1


class Told:
    """A model whose hidden states are what the test says: inputs [n, T, d]."""

    device = torch.device("cpu")

    def hidden(self, batch: Examples, layer: Any) -> HiddenPositions:
        n, length, width = batch.inputs.shape
        item = torch.arange(n).repeat_interleave(length)
        return HiddenPositions(batch.inputs.reshape(-1, width), item, n)


def told(*states: Any) -> Examples:
    inputs = torch.tensor(states, dtype=torch.float64)
    return Examples(tuple(map(str, range(len(states)))), inputs, torch.zeros(len(states)).long())


def near(forget: Batch, retain: Batch) -> neighbours.Neighbours:
    subject: Any = Told()
    return nearest(subject, forget, retain, layer="any")


def test_a_worked_case() -> None:
    retain = told([[3.0, 0.0]], [[4.0, 3.0]], [[0.0, -9.0]])
    found = near(told([[1.0, 1.0]], [[5.0, 0.1]], [[-1.0, -1.0]]), retain)
    assert found.indices == (1, 0, 2)
    assert found.cosine == pytest.approx((1.4 / 2**0.5, 5 / (25.01**0.5), 1 / 2**0.5))


def test_a_position_with_a_long_state_outweighs_no_other() -> None:
    first = [1e4, 0.0, 0.0]  # as that of the first token often is
    forget = told([first, [0, 1, 0], [0, 1, 0]])
    retain = told([first, [0, 0, 1], [0, 0, 1]], [[0, 0, 1], [0, 1, 0], [0, 1, 0]])
    assert near(forget, retain).indices == (1,)


def test_equally_near_ones_are_told_apart_by_their_digests_alone() -> None:
    retain = told(*[[[scale, scale]] for scale in (1.0, 2.0, 3.0, 0.7, 5.0, 1e-3)])
    digests = list(retain.digests())
    least = digests.index(min(digests))
    for shift in range(len(retain)):
        turned = [(i + shift) % len(retain) for i in range(len(retain))]
        (found,) = near(told([[1.0, 2.0]]), retain.select(turned)).indices
        assert turned[found] == least
    assert near(told([[0.0, 0.0]]), retain).indices == (least,)


def test_rounding_decides_nothing() -> None:
    """What an item's states are differs in the last digits with the items beside it."""
    base = torch.tensor([[0.6, 0.8]] * 8, dtype=torch.float64)
    retain = told(*(base + 1e-9 * torch.arange(16).view(8, 2))[:, None].tolist())
    digests = list(retain.digests())
    forget = told([[0.8, 0.6]])
    assert near(forget, retain).indices == (digests.index(min(digests)),)


def test_the_middle_block_is_asked_and_no_other_is_computed() -> None:
    subject = LanguageModel(llama(num_hidden_layers=5))
    assert usual_layer(subject) == 3
    assert usual_layer(models.with_lora(LanguageModel(llama()), 2, 4, 0)) == 1
    computed = list[int]()
    for i, block in enumerate(subject.module.model.layers):
        block.register_forward_pre_hook(lambda *_, i=i: computed.append(i))
    nearest(subject, FORGET, RETAIN, items_per_batch=100)
    assert computed == [0, 1, 2] * 2
    assert nearest(subject, FORGET, RETAIN, layer=5) != nearest(subject, FORGET, RETAIN)


def test_an_adapter_that_is_on_is_heard() -> None:
    subject = models.with_lora(LanguageModel(llama()), rank=2, alpha=4, seed=0)
    before = directions(subject, FORGET, 1)
    assert torch.equal(before, directions(LanguageModel(llama()), FORGET, 1))
    with torch.no_grad():
        for name, parameter in subject.trainable().items():
            parameter.add_(0.5 * ("lora_B" in name))
    after = directions(subject, FORGET, 1)
    assert not torch.allclose(before, after)
    with subject.adapter_off():
        assert torch.equal(before, directions(subject, FORGET, 1))


def test_a_classifier_has_neighbours_before_its_last_layer() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
        inputs = torch.randn(9, 4, dtype=torch.float64)
    everything = Examples(tuple("abcdefghi"), inputs, torch.zeros(9, dtype=torch.int64))
    assert usual_layer(Classifier(module)) == "1"
    assert usual_layer(Classifier(nn.Linear(4, 3))) == ""
    found = nearest(Classifier(module), everything.select(range(4)), everything.select(range(4, 9)))
    states = module[:2](inputs)
    cosine = torch.cosine_similarity(states[:4, None], states[None, 4:], dim=2)
    assert found.indices == tuple(cosine.argmax(1).tolist())
    assert found.cosine == pytest.approx(cosine.amax(1).tolist())


def test_nothing_to_be_near_to_and_a_damaged_model_are_told() -> None:
    subject = LanguageModel(llama())
    for forget, retain in ((FORGET, RETAIN.select([])), (FORGET.select([]), RETAIN)):
        with pytest.raises(UsageError, match="one is empty"):
            nearest(subject, forget, retain)
    with pytest.raises(UsageError, match="no layer 9"):
        nearest(subject, FORGET, RETAIN, layer=9)
    with torch.no_grad():
        subject.module.model.embed_tokens.weight.fill_(float("nan"))
    with pytest.raises(ConfigurationError, match="not finite"):
        nearest(subject, FORGET, RETAIN)


def test_the_last_smaller_batch_is_trained_too() -> None:
    """ICU's code keeps the reference's values of whole batches alone, and fails on the last one."""
    subject = LanguageModel(llama(dtype=torch.float64))
    found = nearest(subject, FORGET, RETAIN, items_per_batch=2)
    near = RETAIN.select(found.indices)
    kept = reference.keep(subject, [near], top=8)
    settings = loop.Settings(epochs=1, items_per_batch=2, lr=1e-3)
    method = METHODS["icu"]
    outcome = loop.run(
        subject, method, FORGET, RETAIN, settings, None, kept, neighbours=near, measure=again
    )
    assert len(FORGET) == 5 and outcome.steps == 3


def test_each_item_is_trained_beside_its_own_neighbour() -> None:
    """Only neighbours are learned, and nothing moves: losses are theirs, in their order."""
    subject = LanguageModel(llama(dtype=torch.float64))
    near = RETAIN.select(nearest(subject, FORGET, RETAIN).indices)
    assert any(near.counts())
    scores = reference.Live(subject).scores(near).tolist()
    counts, method = near.counts(), METHODS["icu"].configured(gamma=0.0, kl=0.0, ce=1.0)
    settings = loop.Settings(epochs=1, items_per_batch=1, lr=0.0, weight_decay=0.0)
    kept = reference.keep(subject, [near], top=8)
    outcome = loop.run(
        subject, method, FORGET, RETAIN, settings, None, kept, neighbours=near, measure=again
    )
    first = order.Order(FORGET.ids, settings.seed, order.FORGET).epoch(0)
    expected = [scores[i] / counts[i] for i in first if counts[i]]
    assert outcome.losses == pytest.approx(expected, rel=1e-6)
