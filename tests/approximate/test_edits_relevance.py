"""Relevance by hand and conserved, the neurons that it names, and silencing them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from sisa.approximate.edits.mappings import into_module, of_module
from sisa.approximate.edits.paths import path, perturb
from sisa.approximate.edits.relevance import linear, neuron_relevance, relevance
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
        assert found.layers["2"][row].tolist() == pytest.approx(wanted_hidden, rel=1e-12)
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
    for value in found.layers.values():
        torch.testing.assert_close(value.flatten(1).sum(1), logits, rtol=1e-8, atol=1e-8)
    assert found.layers["1"].shape == (4, 5, 8, 8)
    assert found.inputs is found.layers["0.0"] and found.inputs.shape == x.shape
    large = relevance(module, x, 1, epsilon=0.1).inputs.flatten(1).sum(1)
    assert (large - logits).abs().max() > 1e-3


def test_a_bias_keeps_its_share() -> None:
    x = torch.tensor([[0.25, 2.0]], dtype=torch.float64)
    found = relevance(two_layers(), x, 0, epsilon=1e-12)
    out = two_layers()(x)[0, 0].item()
    z1 = [sum(W1[j][i] * x[0, i].item() for i in range(2)) + B1[j] for j in range(3)]
    hidden = found.layers["2"][0].tolist()
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


def test_without_a_class_it_is_that_of_the_class_each_input_is_taken_for() -> None:
    x = [[1.0, 0.5], [-2.0, 1.0], [0.25, 2.0]]
    inputs = torch.tensor(x, dtype=torch.float64)
    taken = two_layers()(inputs).argmax(1).tolist()
    assert set(taken) == {0, 1}
    found = relevance(two_layers(), inputs)
    for row, (one, target) in enumerate(zip(x, taken, strict=True)):
        wanted_inputs, wanted_hidden = by_hand(one, target, 0.1)
        assert found.inputs[row].tolist() == pytest.approx(wanted_inputs, rel=1e-12)
        assert found.layers["2"][row].tolist() == pytest.approx(wanted_hidden, rel=1e-12)


def test_neurons_are_the_inputs_of_the_last_linear_layer_or_of_one_by_name() -> None:
    module = convolutional(bias=True)
    x = torch.randn(5, 2, 16, 16, dtype=torch.float64)
    assert (linear(module), linear(module, "6")) == ("8", "6")
    for name, width in (("8", 7), ("6", 24)):
        found = neuron_relevance(module, [x[:2], (x[2:], torch.zeros(3))], name)
        assert found.shape == (5, width)
        torch.testing.assert_close(found, relevance(module, x).layers[name])
    with pytest.raises(ConfigurationError, match="no Linear layer 1") as caught:
        linear(module, "1")
    assert caught.value.remedy == "It has 6, 8."
    with pytest.raises(ConfigurationError, match="no Linear layer in a Sequential"):
        linear(nn.Conv2d(1, 1, 1))


def test_positions_of_a_neuron_are_summed() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Flatten(), nn.Linear(8, 2)).double()
    x = torch.randn(6, 4, 3, dtype=torch.float64)
    found = neuron_relevance(module, [x], "0")
    torch.testing.assert_close(found, relevance(module, x).inputs.sum(1))


def test_what_lies_before_the_layer_needs_no_rule() -> None:
    torch.manual_seed(0)
    head = [nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)]
    module = nn.Sequential(nn.Sequential(nn.Tanh(), nn.BatchNorm1d(4)), *head).double().eval()
    x = torch.randn(7, 4, dtype=torch.float64)
    wanted = relevance(nn.Sequential(*head), module[0](x).detach())
    for name, behind in (("3", "2"), ("1", "0")):
        found = relevance(module, x, until=name)
        torch.testing.assert_close(found.inputs, wanted.layers[behind])
    with pytest.raises(ConfigurationError, match="no relevance rule for Tanh"):
        relevance(module, x)
    with pytest.raises(ConfigurationError, match="no layer 9"):
        relevance(module, x, until="9")


def test_the_convolutional_learner_has_relevance() -> None:
    torch.manual_seed(0)
    module = factory(16 * 16, 3, widths=(4, 5), dense=6).double()
    x = torch.rand(2, 16 * 16, dtype=torch.float64)
    found = relevance(module, x, 2, epsilon=1e-12)
    assert list(found.layers) == ["8", "6", "3", "1"] and found.inputs.shape == x.shape
    whole = found.layers["8"].sum(1) + module[8].bias[2].detach()
    torch.testing.assert_close(whole, module(x)[:, 2].detach())
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
        neuron_relevance(two_layers(), [x[:0]], "2")


def by_counting(values: Sequence[Sequence[float]], top: int, taken: int) -> list[int]:
    """The authors' ranking in words: probe by probe, how often each neuron is among the top."""
    counts: dict[int, int] = {}
    for probe in values:
        best = sorted(range(len(probe)), key=lambda i: (-probe[i], i))[:top]
        for neuron in best:
            counts[neuron] = counts.get(neuron, 0) + 1
    met = list(counts)
    return sorted(met, key=lambda n: (-counts[n], met.index(n)))[:taken]


def test_a_path_holds_the_neurons_that_are_on_top_most_often() -> None:
    values = torch.tensor(
        [
            [5.0, 4.0, 1.0, 0.0, -9.0],
            [5.0, 1.0, 4.0, 0.0, -9.0],
            [1.0, 4.0, 5.0, 0.0, -9.0],
            [1.0, -1.0, 3.0, -2.0, -1.0],
        ],
        dtype=torch.float64,
    )  # of the top two: neuron 2 three times, 0 three times and met earlier, 1 twice
    assert path(values, top=0.4, share=0.4).tolist() == [0, 2]
    assert path(values, top=0.4, share=0.6).tolist() == [0, 2, 1]
    assert path(values, top=0.4, share=1.0).tolist() == [0, 2, 1]
    assert path(values, top=0.01, share=0.01).tolist() == [0]
    with pytest.raises(IncompleteError, match="No neuron speaks"):
        path(-values.abs(), top=0.2, share=0.2)
    sparse = torch.tensor([[0.0, 0.0, 0.0, 0.3, 0.0], [0.0, 0.0, 0.0, 0.0, 0.2]])
    assert path(sparse, top=0.6, share=0.6).tolist() == [3, 4], "zeros are the same everywhere"
    for wrong in ({"top": 0.0}, {"share": 1.1}):
        with pytest.raises(ConfigurationError, match="top and share"):
            path(values, **wrong)


@pytest.mark.parametrize(("top", "taken"), [(3, 5), (10, 10), (12, 40)])
def test_a_path_is_what_counting_probe_by_probe_gives(top: int, taken: int) -> None:
    torch.manual_seed(2)
    values = torch.randn(36, 40, dtype=torch.float64) + torch.linspace(0, 2, 40)
    values[:, 30:] = values[:, 30:].round()  # equal ones
    wanted = by_counting(values.tolist(), top, taken)
    assert path(values, top / 40, taken / 40).tolist() == wanted


def test_by_default_a_path_has_as_many_neurons_as_the_authors_take_of_a_resnet() -> None:
    values = torch.randn(36, 2048, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert path(values).tolist() == by_counting(values.tolist(), 200, 400)


def test_silenced_neurons_reach_no_class_and_all_else_keeps_its_bits() -> None:
    module = two_layers()
    before = of_module(module)
    found = perturb(before, "2", torch.tensor([0, 2]))
    assert found["2.weight"].tolist() == [[0, W2[0][1], 0], [0, W2[1][1], 0]]
    assert all(torch.equal(found[n], before[n]) for n in ("0.weight", "0.bias", "2.bias"))
    assert before["2.weight"].tolist() == W2
    alone = perturb({"weight": torch.ones(2, 2)}, "", torch.tensor([1]))
    assert alone["weight"].tolist() == [[1, 0], [1, 0]]
    x = torch.randn(9, 2, dtype=torch.float64)
    into_module(module, found)
    hidden = module[1](module[0](x))
    wanted = hidden[:, 1:2] * torch.tensor([W2[0][1], W2[1][1]]) + torch.tensor(B2)
    torch.testing.assert_close(module(x), wanted.double())
    for layer, neuron in (("1", 0), ("2", 3), ("2", -1)):
        with pytest.raises(ConfigurationError, match="no such neurons"):
            perturb(before, layer, torch.tensor([neuron]))


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
    along = path(neuron_relevance(module, [probes[0][probes[1] == 1]], "2"), 0.3, 0.3)
    into_module(module, perturb(of_module(module), "2", along))
    after = accuracy()
    assert after[1] < 0.1 and min(after[0], after[2], after[3]) > 0.95
