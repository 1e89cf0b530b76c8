"""The perceptron."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import nn

from sisa.errors import ConfigurationError
from sisa.learners import load
from sisa.learners.mlp import factory

from .helpers import accuracy, plan, recipe, records


def test_it_has_the_layers_that_were_asked_for() -> None:
    layers = [type(layer) for layer in factory(4, 3, [8, 5], dropout=0.1, batch_norm=True)]
    hidden = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout]
    assert layers == [*hidden, *hidden, nn.Linear]


def test_without_hidden_layers_it_is_linear() -> None:
    (layer,) = factory(4, 3, hidden=[])
    assert (layer.in_features, layer.out_features) == (4, 3)


@pytest.mark.parametrize(
    "params",
    [
        {"hidden": 8},
        {"hidden": "88"},
        {"hidden": [0]},
        {"hidden": [True]},
        {"hidden": [1.5]},
        {"dropout": 1},
        {"dropout": "a"},
        {"dropout": True},
        {"batch_norm": 1},
    ],
)
def test_wrong_parameters_are_named(params: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"learner.params.{next(iter(params))}"):
        load(recipe("mlp", params)).init(0)


def test_unknown_parameters_are_named() -> None:
    with pytest.raises(ConfigurationError, match="depth"):
        load(recipe("mlp", {"depth": 3})).init(0)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_digits_are_read_after_four_slices(optimizer: str) -> None:
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    pixels = (bunch.data * 15).astype(np.uint8)
    data = records(arrays=(pixels,), target=bunch.target)
    section = {"features": {"p": "uint8[64]"}, "classes": list(range(10))}
    lr = 0.05 if optimizer == "sgd" else 3e-3
    chosen = recipe("mlp", {"hidden": [32]}, section, epochs=16, optimizer=optimizer, lr=lr)
    assert accuracy(load(chosen), chosen, data) > 0.9


def test_fractional_epochs_train_on_a_share_of_the_records() -> None:
    data = records(np.random.default_rng(0).normal(size=(200, 2)), np.arange(200) % 3)
    chosen = recipe(epochs=0.5)
    some = plan(chosen, data)
    assert 60 < some.samples < 140
    learner = load(chosen)
    done = learner.advance(learner.init(0), data, some)
    assert np.isfinite(done.loss)
