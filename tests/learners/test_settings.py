"""Label smoothing, class weights, clipping and declared scales against formulas written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from sisa.determinism import pin_threads
from sisa.learners import design, load
from sisa.learners.design import Scales
from sisa.learners.records import Encoding, Records

from .helpers import blobs, plan, recipe, records, same, train

WEIGHTS = (0.5, 1.0, 4.0)
LEARNERS = ("logistic", "mlp")


def columns(data: Records) -> np.ndarray[Any, Any]:
    """The design matrix of two numbers without nulls."""
    scaled = (data.numbers - data.numbers.mean(axis=0)) / data.numbers.std(axis=0)
    return np.concatenate([scaled, np.zeros_like(scaled)], axis=1)


def by_hand(
    factory: str, data: Records, smoothing: float = 0.0, weights: Any = (1, 1, 1), clip: float = 0.0
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], float]:
    """Weight, bias and mean loss of a linear model after plain gradient steps, in float64."""
    chosen = recipe(factory, batch_size=20, epochs=2)
    state = load(chosen).init(5) if factory == "logistic" else start(data)
    weight, bias = (np.array(a, dtype=np.float64) for a in parameters(factory, state))
    x, losses = columns(data), 0.0
    for step in plan(chosen, data):
        rows, y = x[step.rows], data.target[step.rows]
        shares = np.exp(rows @ weight + bias)
        shares /= shares.sum(axis=1, keepdims=True)
        # each row's loss is sum over classes of -t_c w_c log p_c
        wanted = (1 - smoothing) * np.eye(3)[y] + smoothing / 3
        wanted = wanted * np.asarray(weights)
        total = np.asarray(weights)[y].sum()
        losses += -(wanted * np.log(shares)).sum() / total * len(y)
        delta = (wanted.sum(axis=1, keepdims=True) * shares - wanted) / total
        gradients = [rows.T @ delta, delta.sum(axis=0)]
        if clip:
            norm = np.sqrt(sum((g**2).sum() for g in gradients))
            assert norm > clip
            gradients = [g * clip / norm for g in gradients]
        weight, bias = weight - 0.05 * gradients[0], bias - 0.05 * gradients[1]
    return weight, bias, losses / (2 * len(data))


def start(data: Records) -> Any:
    return load(recipe("mlp", {"hidden": []})).init(5)


def parameters(factory: str, state: Any) -> tuple[Any, Any]:
    if factory == "logistic":
        return state["weight"], state["bias"]
    return state["module.0.weight"].T, state["module.0.bias"]


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "smoothing": ({"label_smoothing": 0.3}, {"smoothing": 0.3}),
    "weights": ({"class_weights": WEIGHTS}, {"weights": WEIGHTS}),
    "both": (
        {"label_smoothing": 0.3, "class_weights": WEIGHTS, "loss": "cross_entropy"},
        {"smoothing": 0.3, "weights": WEIGHTS},
    ),
    "clipped": ({"clip_norm": 0.01}, {"clip": 0.01}),
    "all": (
        {"label_smoothing": 0.3, "class_weights": WEIGHTS, "clip_norm": 0.01},
        {"smoothing": 0.3, "weights": WEIGHTS, "clip": 0.01},
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("factory", LEARNERS)
def test_steps_follow_the_formula(factory: str, case: str) -> None:
    pin_threads(1)
    settings, by = CASES[case]
    data = blobs(60)
    params = {} if factory == "logistic" else {"hidden": []}
    chosen = recipe(factory, params, batch_size=20, epochs=2, momentum=0, **settings)
    learner = load(chosen)
    done = learner.advance(learner.init(5), data, plan(chosen, data))
    weight, bias, loss = by_hand(factory, data, **by)
    exact = {"atol": 1e-12 if factory == "logistic" else 2e-6}
    if "clip" in by:  # torch's formula divides by the norm + 1e-6
        exact = {"atol": 1e-5}
    for found, expected in zip(parameters(factory, done.state), (weight, bias), strict=True):
        np.testing.assert_allclose(found, expected, **exact)
    assert done.loss == pytest.approx(loss, rel=1e-5)
    if case != "plain":
        plain = by_hand(factory, data)
        assert np.abs(plain[0] - weight).max() > 1e-3


def test_the_numpy_learner_clips_and_weighs_as_torch_does() -> None:
    data = blobs(60)
    settings = {"label_smoothing": 0.2, "class_weights": WEIGHTS, "clip_norm": 0.7}
    more = {"weight_decay": 0.1, "momentum": 0.8, "epochs": 3, "batch_size": 16}
    chosen = recipe("logistic", **settings, **more)
    learner = load(chosen)
    found = learner.advance(learner.init(0), data, plan(chosen, data)).state
    x = torch.from_numpy(columns(data))
    weight = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=0.05, momentum=0.8, weight_decay=0.1)
    clipped = 0
    for step in plan(chosen, data):
        rows = torch.from_numpy(step.rows)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(
            x[rows] @ weight + bias,
            torch.from_numpy(data.target)[rows],
            weight=torch.tensor(WEIGHTS, dtype=torch.float64),
            label_smoothing=0.2,
        ).backward()
        clipped += float(torch.nn.utils.clip_grad_norm_([weight, bias], 0.7)) > 0.7
        optimizer.step()
    assert 0 < clipped < 12
    np.testing.assert_allclose(found["weight"], weight.detach().numpy(), atol=1e-12)
    np.testing.assert_allclose(found["bias"], bias.detach().numpy(), atol=1e-12)


@pytest.mark.parametrize("factory", LEARNERS)
def test_a_wide_clip_changes_no_bit(factory: str) -> None:
    data = blobs(60)
    plain, clipped = recipe(factory), recipe(factory, clip_norm=1e6)
    assert same(train(load(plain), plain, data), train(load(clipped), clipped, data))


@pytest.mark.parametrize("factory", LEARNERS)
def test_a_weight_raises_the_votes_for_its_class(factory: str) -> None:
    data = blobs(200)
    plain, weighed = recipe(factory), recipe(factory, class_weights=(1, 1, 20))
    votes = [
        load(r).predict(train(load(r), r, data), data).argmax(axis=1) for r in (plain, weighed)
    ]
    assert (votes[1] == 2).sum() > (votes[0] == 2).sum() + 5


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"class_weights": [1, 2]}, "class_weights has 2 values for 3 classes"),
        ({"class_weights": [1, 2, 0]}, "greater than 0"),
        ({"class_weights": WEIGHTS, "loss": "nll_loss"}, "for the loss cross_entropy"),
        ({"label_smoothing": 0.1, "loss": "nll_loss"}, "for the loss cross_entropy"),
        ({"label_smoothing": 1}, "less than 1"),
        ({"label_smoothing": -0.1}, "greater than or equal to 0"),
        ({"clip_norm": 0}, "greater than 0"),
        ({"warmup": 1}, "less than 1"),
        ({"last_stage_epochs": 0}, "greater than 0"),
    ],
)
def test_what_makes_no_sense_is_refused(training: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        recipe(**training)


@pytest.mark.parametrize("name", ["label_smoothing", "class_weights"])
def test_a_regression_has_no_classes_to_weigh_or_to_smooth(name: str) -> None:
    value: Any = 0.1 if name == "label_smoothing" else WEIGHTS
    with pytest.raises(ValidationError, match=f"training.{name} is for classification"):
        recipe(data={"task": "regression"}, **{name: value})


FEATURES = {"a": "uint8[2]", "b": "uint8[1]", "c": "float32[2]", "d": "int16[1]", "e": "float64[1]"}
SCALES = {"b": [100, 50], "c": [-1, 0.5], "d": [7, 2]}


def arrays(count: int) -> Records:
    rng = np.random.default_rng(0)
    blocks = (
        rng.integers(0, 256, (count, 2)).astype(np.uint8),
        rng.integers(0, 256, (count, 1)).astype(np.uint8),
        rng.normal(size=(count, 2)).astype(np.float32),
        rng.integers(-9, 9, (count, 1)).astype(np.int16),
        rng.normal(5, 3, (count, 1)),
    )
    return records(arrays=blocks, target=np.arange(count) % 3)


def test_declared_scales_move_arrays_in_their_own_unit_and_nothing_of_them_is_estimated() -> None:
    data = arrays(50)
    section = {"features": FEATURES, "scales": SCALES}
    encoding = Encoding.of(recipe(data=section).data)
    scales = Scales.fit(encoding, data)
    a, b, c, d, e = data.arrays
    np.testing.assert_allclose(scales.columns.mean, e.mean(axis=0))  # of `e` alone
    np.testing.assert_allclose(scales.columns.deviation, e.std(axis=0))
    expected = np.concatenate(
        [a / 255, (b - 100.0) / 50, (c + 1.0) / 0.5, (d - 7) / 2, (e - e.mean()) / e.std()], axis=1
    )
    found = design.blocks(encoding, data, scales, np.float64)
    kinds = [(block.values.dtype.kind, block.scale) for block in found]
    assert kinds == [("u", (0.0, 1 / 255)), ("u", (100.0, 1 / 50)), ("f", None)]
    from sisa.learners.logistic import _batch as numpy_batch
    from sisa.learners.torch_module import _batch as torch_batch

    np.testing.assert_allclose(numpy_batch(found, np.arange(50)), expected, atol=1e-14)
    tensors = tuple((torch.from_numpy(block.values), block.scale) for block in found)
    np.testing.assert_allclose(torch_batch(tensors, None).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("factory", LEARNERS)
def test_scales_reach_training_and_prediction(factory: str) -> None:
    """Bytes of which 255 is 1 are the same as undeclared ones; others train another model."""
    data = records(
        arrays=(np.arange(240, dtype=np.uint8).reshape(80, 3),), target=np.arange(80) % 3
    )
    found = []
    for scales in ({}, {"p": [0, 255]}, {"p": [100, 50]}):
        chosen = recipe(factory, data={"features": {"p": "uint8[3]"}, "scales": scales})
        learner = load(chosen)
        state = train(learner, chosen, data, stages=2)
        found.append((state, learner.predict(state, data)))
    assert same(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])
    assert not same(found[0][0], found[2][0])
    assert np.abs(found[0][1] - found[2][1]).max() > 1e-3


def test_null_elements_are_zero_after_declared_scaling() -> None:
    data = records(arrays=(np.array([[np.nan], [3.0]]),), target=[0, 1])
    encoding = Encoding.of(
        recipe(data={"features": {"p": "float64[1]"}, "scales": {"p": [1, 2]}}).data
    )
    (block,) = design.blocks(encoding, data, Scales.fit(encoding, data), np.float64)
    np.testing.assert_array_equal(block.values, [[0], [1]])


@pytest.mark.parametrize(
    ("scales", "said"),
    [
        ({"p": [0, 0]}, "greater than 0"),
        ({"p": [0, -1]}, "greater than 0"),
        ({"p": [0]}, "Field required"),
        ({"p": [0, float("nan")]}, "finite"),
        ({"n": [0, 1]}, "for array features only"),
        ({"x": [0, 1]}, "for array features only"),
    ],
)
def test_scales_are_two_numbers_of_an_array_feature(scales: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        recipe(data={"features": {"p": "uint8[3]", "n": "float64"}, "scales": scales})
