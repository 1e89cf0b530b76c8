"""Relevance by hand and conserved, and perturbation along a path."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sisa.approximate.edits.mappings import into_module, of_module
from sisa.approximate.edits.paths import path, perturb
from sisa.approximate.edits.relevance import neuron_relevance, relevance
from sisa.determinism import pin_threads
from sisa.errors import ConfigurationError, IncompleteError
from sisa.learners.cnn import factory

W1 = [[1.0, -2.0], [0.5, 1.5], [-1.0, 0.25]]
B1 = [0.5, -0.25, 0.1]
W2 = [[2.0, -1.0, 3.0], [0.5, 1.0, -2.0]]
B2 = [0.3, -0.6]


def two_layers() -> nn.Sequential:
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True), nn.Linear(3, 2)).double()
    values = {"0.weight": W1, "0.bias": B1, "2.weight": W2, "2.bias": B2}
    into_module(module, {n: torch.tensor(v, dtype=torch.float64) for n, v in values.items()})
    return module


def by_hand(x: list[float], target: int, epsilon: float) -> tuple[list[float], list[float]]:
    """Relevance of the two inputs and of the three hidden neurons, with explicit sums."""
    z1 = [sum(W1[j][i] * x[i] for i in range(2)) + B1[j] for j in range(3)]
    a1 = [max(z, 0.0) for z in z1]
    out = sum(W2[target][j] * a1[j] for j in range(3)) + B2[target]
    stable = out + math.copysign(epsilon, out)
    hidden = [a1[j] * W2[target][j] / stable * out for j in range(3)]
    inputs = [
        sum(x[i] * W1[j][i] / (z1[j] + math.copysign(epsilon, z1[j])) * hidden[j] for j in range(3))
        for i in range(2)
    ]
    return inputs, hidden


@pytest.mark.parametrize("epsilon", [1e-9, 0.1])
@pytest.mark.parametrize("target", [0, 1])
def test_two_layers_give_what_is_computed_by_hand(target: int, epsilon: float) -> None:
    x = [[1.0, 0.5], [-2.0, 1.0], [0.25, 2.0]]
    inputs = torch.tensor(x, dtype=torch.float64)
    found = relevance(two_layers(), inputs, target, epsilon)
    for row, one in enumerate(x):
        wanted_inputs, wanted_hidden = by_hand(one, target, epsilon)
        assert found.inputs[row].tolist() == pytest.approx(wanted_inputs, rel=1e-12)
        assert found.layers["0"][row].tolist() == pytest.approx(wanted_hidden, rel=1e-12)
    assert inputs.tolist() == x


def convolutional(bias: bool) -> nn.Sequential:
    torch.manual_seed(3)
    relu = nn.ReLU(inplace=True)  # one instance, used twice
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 5, 3, padding=1, bias=bias), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Conv2d(5, 6, 3, stride=2, padding=1, bias=bias),
        relu,
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(6 * 2 * 2, 7, bias=bias),
        relu,
        nn.Linear(7, 3, bias=bias),
    ).double()


def test_relevance_is_conserved_from_layer_to_layer_without_biases() -> None:
    module = convolutional(bias=False)
    x = torch.randn(4, 2, 16, 16, dtype=torch.float64)
    logits = module.eval()(x)[:, 1]
    module.train()
    found = relevance(module, x, 1, epsilon=1e-12)
    assert list(found.layers) == ["8", "6", "1", "0.0"] and module.training
    for value in (*found.layers.values(), found.inputs):
        torch.testing.assert_close(value.flatten(1).sum(1), logits, rtol=1e-8, atol=1e-8)
    assert found.inputs.shape == x.shape and found.layers["1"].shape == (4, 6, 4, 4)
    large = relevance(module, x, 1, epsilon=0.1).inputs.flatten(1).sum(1)
    assert (large - logits).abs().max() > 1e-3


def test_a_bias_keeps_its_share() -> None:
    x = torch.tensor([[0.25, 2.0]], dtype=torch.float64)
    found = relevance(two_layers(), x, 0, epsilon=1e-12)
    out = two_layers()(x)[0, 0].item()
    z1 = [sum(W1[j][i] * x[0, i].item() for i in range(2)) + B1[j] for j in range(3)]
    hidden = found.layers["0"][0].tolist()
    assert sum(hidden) + B2[0] == pytest.approx(out)
    kept = sum(B1[j] / z1[j] * hidden[j] for j in range(3))
    assert found.inputs.sum().item() + kept == pytest.approx(sum(hidden))
    assert abs(kept) > 0.1


def test_relevance_follows_a_maximum_to_its_winner_and_an_average_to_all() -> None:
    x = torch.tensor([[[[1.0, 4.0], [2.0, 1.0]]]], dtype=torch.float64)
    for pool, wanted in [
        (nn.MaxPool2d(2), [[0.0, 8.0], [0.0, 0.0]]),
        (nn.AvgPool2d(2), [[0.5, 2.0], [1.0, 0.5]]),
        (nn.AdaptiveAvgPool2d(1), [[0.5, 2.0], [1.0, 0.5]]),
    ]:
        module = nn.Sequential(pool, nn.Flatten(), nn.Linear(1, 1, bias=False)).double()
        with torch.no_grad():
            module[2].weight.fill_(2.0)
        found = relevance(module, x, 0, epsilon=1e-12).inputs[0, 0]
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


def test_inputs_stay_where_the_first_layer_works_in_place() -> None:
    x = torch.tensor([[-1.0, 2.0]])
    relevance(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(2, 2)), x, 0)
    assert x.tolist() == [[-1.0, 2.0]]


def test_neurons_of_a_convolution_are_channels() -> None:
    module = convolutional(bias=True)
    x = torch.randn(5, 2, 16, 16, dtype=torch.float64)
    found = neuron_relevance(module, [x[:2], (x[2:], torch.zeros(3))], 2)
    assert {n: tuple(v.shape) for n, v in found.items()} == {
        "0.0": (5, 5),
        "1": (5, 6),
        "6": (5, 7),
    }
    whole = relevance(module, x, 2).layers["1"]
    torch.testing.assert_close(found["1"], whole.sum((2, 3)))


def test_the_convolutional_learner_has_relevance() -> None:
    torch.manual_seed(0)
    module = factory(16 * 16, 3, widths=(4, 5), dense=6).double()
    x = torch.rand(2, 16 * 16, dtype=torch.float64)
    found = relevance(module, x, 2, epsilon=1e-12)
    assert list(found.layers) == ["8", "6", "3", "1"] and found.inputs.shape == x.shape
    torch.testing.assert_close(found.layers["8"][:, 2], module(x)[:, 2].detach())
    dark = x.clone()
    dark[:, :8] = 0
    assert (relevance(module, dark, 2).inputs[:, :8] == 0).all()


def test_what_has_no_rule_is_refused_by_name() -> None:
    x = torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(ConfigurationError, match="no relevance rule for Tanh"):
        relevance(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), x, 0)
    with pytest.raises(ConfigurationError, match="no class 2"):
        relevance(two_layers(), x, 2)
    with pytest.raises(IncompleteError, match="set of probes is empty"):
        neuron_relevance(two_layers(), [x[:0]], 0)


def test_a_path_holds_the_neurons_that_are_on_top_for_enough_probes() -> None:
    values = torch.tensor(
        [
            [5.0, 4.0, 1.0, 0.0, -9.0],
            [5.0, 1.0, 4.0, 0.0, -9.0],
            [1.0, 5.0, 4.0, 0.0, -9.0],
            [2.0, 3.0, 1.0, 0.0, -9.0],
        ]
    )  # of the top two: neuron 0 three times, 1 three times, 2 twice
    found = path({"l": values}, top=0.4, frequency=0.75)
    assert found["l"].tolist() == [0, 1]
    assert path({"l": values}, top=0.4, frequency=0.5)["l"].tolist() == [0, 1, 2]
    assert path({"l": -values.abs()}, top=1.0)["l"].tolist() == []
    assert path({"l": values}, top=0.01, frequency=0.5)["l"].tolist() == [0, 1]
    with pytest.raises(ConfigurationError, match="top and frequency"):
        path({"l": values}, top=0.0)


def test_zeroed_neurons_are_silent_and_all_else_keeps_its_bits() -> None:
    module = two_layers()
    before = of_module(module)
    found = perturb(before, {"0": torch.tensor([0, 2])})
    assert found["0.weight"].tolist() == [[0, 0], W1[1], [0, 0]]
    assert found["0.bias"].tolist() == [0, B1[1], 0]
    assert torch.equal(found["2.weight"], before["2.weight"])
    assert before["0.weight"].tolist() == W1
    into_module(module, found)
    hidden = module[1](module[0](torch.randn(9, 2, dtype=torch.float64)))
    assert (hidden[:, [0, 2]] == 0).all() and (hidden[:, 1] > 0).any()


def test_noise_is_of_the_size_asked_for_and_repeatable() -> None:
    torch.manual_seed(0)
    params = {"l.weight": 3 * torch.randn(40, 50), "l.bias": torch.zeros(40)}
    rows = torch.arange(0, 40, 2)

    def noisy(seed: int) -> dict[str, Tensor]:
        return perturb(params, {"l": rows}, 0.5, torch.Generator().manual_seed(seed))

    added = noisy(1)["l.weight"] - params["l.weight"]
    assert (added[1::2] == 0).all()
    assert added[rows].std().item() == pytest.approx(1.5, rel=0.1)
    assert torch.equal(noisy(1)["l.weight"], noisy(1)["l.weight"])
    assert not torch.equal(noisy(1)["l.weight"], noisy(2)["l.weight"])
    with pytest.raises(ConfigurationError, match="generator"):
        perturb(params, {"l": rows}, 0.5)
    for wrong in ({"m": rows}, {"l": torch.tensor([40])}):
        with pytest.raises(ConfigurationError, match="no such neurons"):
            perturb(params, wrong)


def test_the_path_of_a_class_takes_that_class_and_leaves_the_others() -> None:
    """Zero-shot: probes of the class that were not in training."""
    pin_threads(1)
    torch.manual_seed(0)
    centres = 3 * torch.randn(4, 12, dtype=torch.float64)

    def drawn(n: int) -> Any:
        y = torch.arange(n) % 4
        return centres[y] + torch.randn(n, 12, dtype=torch.float64), y

    module = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 4)).double()
    x, y = drawn(400)
    for _ in range(60):
        loss = nn.functional.cross_entropy(module(x), y)
        found = torch.autograd.grad(loss, list(module.parameters()))
        with torch.no_grad():
            for p, gradient in zip(module.parameters(), found, strict=True):
                p -= 0.1 * gradient
    probes, held = drawn(80), drawn(800)

    def accuracy() -> list[float]:
        right = module(held[0]).argmax(1) == held[1]
        return [right[held[1] == c].double().mean().item() for c in range(4)]

    assert min(accuracy()) > 0.95
    along = path(neuron_relevance(module, [probes[0][probes[1] == 1]], 1), 0.3, 0.5)
    into_module(module, perturb(of_module(module), along))
    after = accuracy()
    assert after[1] < 0.5 and min(after[0], after[2], after[3]) > 0.8
