"""The direct way to a perceptron's gradients gives the bits of autograd."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sisa.config import Training
from sisa.determinism import pin_threads
from sisa.learners import gradients, load
from sisa.learners.torch_module import TorchLearner
from sisa.learners.torch_parts import loss_function

from .helpers import plan, recipe, records, same, train

PIXELS = {"features": {"n": "float64", "p": "uint8[784]"}, "classes": list(range(10))}


def images(count: int) -> Any:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 784)).astype(np.uint8)
    return records(rng.normal(size=(count, 1)), pixels[:, 0] % 10, arrays=(pixels,))


@pytest.mark.parametrize("hidden", [[], [128], [40, 30]])
@pytest.mark.parametrize(
    "training",
    [
        {"batch_size": 16},
        {"batch_size": 64, "weight_decay": 0.01, "optimizer_state": "carry"},
        {"batch_size": 256, "momentum": 0, "schedule": "cosine"},
        {"batch_size": 33, "optimizer_params": {"nesterov": True}, "clip_norm": 0.5},
        {"batch_size": 64, "class_weights": [*range(1, 11)]},
        {"batch_size": 64, "optimizer": "adam", "lr": 0.001},
        {"batch_size": 1, "min_batch": 1, "epochs": 0.1},
    ],
)
def test_both_ways_train_the_same_bytes(hidden: list[int], training: dict[str, Any]) -> None:
    pin_threads(1)
    data = images(600)
    chosen = recipe("mlp", {"hidden": hidden}, PIXELS, **({"epochs": 2} | training))
    direct = load(chosen)
    assert isinstance(direct, TorchLearner) and direct.direct
    graph = replace(direct, direct=False)
    assert same(train(direct, chosen, data, stages=2), train(graph, chosen, data, stages=2))
    made = plan(chosen, data)
    losses = [way.advance(way.init(0), data, made).loss for way in (direct, graph)]
    assert losses[0] == losses[1]


def test_gradients_and_loss_are_those_of_autograd_bit_for_bit() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    x, y = torch.randn(11, 5), torch.randint(0, 3, (11,))
    found = []
    with torch.no_grad():
        for way in (
            gradients.of_perceptron(module, Training()),
            gradients.by_autograd(module, loss_function(Training(), 3)),
        ):
            loss = way(x, y)
            found.append([loss, *(p.grad for p in module.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert all(float(t.abs().sum()) > 0 for t in found[0])


@pytest.mark.parametrize(
    ("layers", "training"),
    [
        ([nn.Linear(2, 2), nn.ReLU()], {}),
        ([nn.ReLU(), nn.Linear(2, 2)], {}),
        ([nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)], {}),
        ([nn.Linear(2, 2), nn.Dropout(0.1), nn.Linear(2, 2)], {}),
        ([nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 2)], {}),
        ([nn.Linear(2, 2, bias=False)], {}),
        ([nn.Linear(2, 2)], {"label_smoothing": 0.1}),
        ([nn.Linear(2, 2)], {"loss": "mse_loss"}),
        ([], {}),
    ],
)
def test_nothing_else_goes_the_direct_way(layers: list[nn.Module], training: Any) -> None:
    assert gradients.is_perceptron(nn.Sequential(nn.Linear(2, 2)), Training(), 2)
    assert not gradients.is_perceptron(nn.Sequential(nn.Linear(2, 2)), Training(), None)
    assert not gradients.is_perceptron(nn.Sequential(*layers), Training(**training), 2)


def test_a_module_that_draws_is_seeded_at_every_step() -> None:
    chosen = recipe("mlp", {"hidden": [8], "dropout": 0.5})
    data = records(np.random.default_rng(0).normal(size=(50, 2)), np.arange(50) % 3)
    direct = load(chosen)
    assert isinstance(direct, TorchLearner)
    graph = replace(direct, direct=False)
    assert same(train(direct, chosen, data), train(graph, chosen, data))
