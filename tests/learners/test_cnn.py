"""The convolutional network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sisa.checkpoint import tensors_digest
from sisa.determinism import pin_threads
from sisa.errors import ConfigurationError
from sisa.learners import load
from sisa.learners.cnn import Image, factory, shape

from .helpers import accuracy, recipe, records, train

SECTION = {"features": {"p": "uint8[64]"}, "classes": list(range(10))}


def digits() -> Any:
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    return records(arrays=((bunch.data * 15).astype(np.uint8),), target=bunch.target)


def test_digits_are_read_after_four_slices() -> None:
    data = digits()
    chosen = recipe("cnn", {"widths": [8, 16], "dense": 32}, SECTION, epochs=16)
    assert accuracy(load(chosen), chosen, data) > 0.93


def trained() -> str:
    pin_threads(1)
    data = digits().take(np.arange(400))
    chosen = recipe("cnn", {}, SECTION, epochs=2, batch_size=32)
    return tensors_digest(train(load(chosen), chosen, data, stages=2))


def test_two_fresh_processes_train_the_same_bytes() -> None:
    code = "from tests.learners import test_cnn as t; print(t.trained())"
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code]
    runs = [
        subprocess.run(command, check=True, cwd=root, capture_output=True, text=True).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1] and len(runs[0].strip()) == 64


def test_pixels_keep_their_places() -> None:
    """Rows, then pixels, then the values of a pixel, as an image file is decoded."""
    image = np.arange(24).reshape(2, 4, 3)
    found = Image(2, 4, 3)(torch.from_numpy(image.reshape(1, 24)))
    assert found.shape == (1, 3, 2, 4)
    np.testing.assert_array_equal(found[0].numpy().transpose(1, 2, 0), image)


@pytest.mark.parametrize(
    ("size", "given", "expected"),
    [
        (784, {}, (28, 28, 1)),
        (3072, {"channels": 3}, (32, 32, 3)),
        (3072, {"height": 32, "width": 32}, (32, 32, 3)),
        (24, {"height": 4}, (4, 6, 1)),
        (24, {"width": 4, "channels": 2}, (3, 4, 2)),
        (24, {"height": 2, "width": 4, "channels": 3}, (2, 4, 3)),
        (1, {}, (1, 1, 1)),
    ],
)
def test_the_shape_is_inferred_where_there_is_one(
    size: int, given: dict[str, int], expected: tuple[int, int, int]
) -> None:
    sides = {"height": None, "width": None, "channels": None, **given}
    assert shape(size, **sides) == expected
    assert factory(size, 5, **given)(torch.zeros(3, size)).shape == (3, 5)


@pytest.mark.parametrize(
    ("size", "given"),
    [
        (48, {}),
        (3072, {}),
        (784, {"channels": 3}),
        (784, {"height": 27}),
        (784, {"height": 28, "width": 27}),
        (784, {"height": 28, "width": 28, "channels": 3}),
        (2, {"channels": 3}),
        (4, {"height": 8}),
        (4, {"height": 8, "width": 8}),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(size: int, given: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=f"have {size} elements") as caught:
        factory(size, 5, **given)
    assert "height, width, channels" in (caught.value.remedy or "")


@pytest.mark.parametrize(
    "params",
    [
        {"height": 0},
        {"width": 2.0},
        {"channels": True},
        {"widths": []},
        {"widths": [0]},
        {"widths": 8},
        {"widths": "88"},
        {"dense": -1},
        {"dense": True},
    ],
)
def test_wrong_parameters_are_named(params: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"learner.params.{next(iter(params))} of cnn"):
        load(recipe("cnn", params, SECTION)).init(0)


@pytest.mark.parametrize(
    "features",
    [
        {"a": "float64"},
        {"t": "text"},
        {"p": "uint8[64]", "a": "float64"},
        {"p": "uint8[64]", "q": "uint8[64]"},
    ],
)
def test_anything_but_one_image_is_refused(features: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="needs one array feature and no other"):
        load(recipe("cnn", {}, {"features": features}))


def test_without_a_hidden_layer_convolutions_feed_the_output() -> None:
    layers = [type(layer) for layer in factory(64, 3, widths=[4], dense=0)]
    assert layers == [Image, nn.Conv2d, nn.ReLU, nn.Flatten, nn.Linear]
