"""The NumPy learner: softmax regression and least squares."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sisa.errors import ConfigurationError
from sisa.learners import load
from sisa.learners.records import Standardiser

from .helpers import blobs, plan, recipe, records, same, through_bytes, train


def test_the_first_step_is_the_gradient_of_the_mean_cross_entropy() -> None:
    """From zeros, softmax is 1/3 everywhere: the gradient can be written down by hand."""
    data = blobs(30)
    chosen = recipe("logistic", epochs=1, batch_size=30, lr=0.5, weight_decay=0.1)
    learner = load(chosen)
    done = learner.advance(learner.init(0), data, plan(chosen, data))
    scaled = Standardiser.fit(data.numbers).apply(data.numbers)
    x = np.concatenate([scaled, np.zeros_like(scaled)], axis=1)
    delta = (1 / 3 - np.eye(3)[data.target]) / 30
    np.testing.assert_allclose(done.state["weight"], -0.5 * x.T @ delta, atol=1e-12)
    np.testing.assert_allclose(done.state["bias"], -0.5 * delta.sum(axis=0), atol=1e-12)
    assert done.loss == pytest.approx(np.log(3))


def test_momentum_and_weight_decay_follow_torch() -> None:
    torch = pytest.importorskip("torch")
    data = blobs(60)
    chosen = recipe("logistic", epochs=3, batch_size=16, weight_decay=0.05, momentum=0.8)
    learner = load(chosen)
    found = learner.advance(learner.init(0), data, plan(chosen, data)).state
    scaled = Standardiser.fit(data.numbers).apply(data.numbers)
    x = torch.from_numpy(np.concatenate([scaled, np.zeros_like(scaled)], axis=1))
    weight = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=0.05, momentum=0.8, weight_decay=0.05)
    for step in plan(chosen, data):
        rows = torch.from_numpy(step.rows)
        target = torch.from_numpy(data.target)[rows]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(x[rows] @ weight + bias, target).backward()
        optimizer.step()
    np.testing.assert_allclose(found["weight"], weight.detach().numpy(), atol=1e-12)
    np.testing.assert_allclose(found["bias"], bias.detach().numpy(), atol=1e-12)


def test_it_finds_the_optimum_that_scikit_learn_finds() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    data = blobs(200)
    decay = 0.02
    chosen = recipe(
        "logistic", epochs=600, batch_size=200, lr=0.5, momentum=0.9, weight_decay=decay
    )
    learner = load(chosen)
    found = learner.predict(train(learner, chosen, data), data)
    scaled = Standardiser.fit(data.numbers).apply(data.numbers)
    design = np.concatenate([scaled, np.ones((200, 1))], axis=1)  # the bias decays as well
    reference = linear.LogisticRegression(C=1 / (decay * 200), fit_intercept=False, tol=1e-10)
    np.testing.assert_allclose(
        found, reference.fit(design, data.target).predict_proba(design), atol=1e-5
    )


def test_probabilities_sum_to_one_and_survive_extreme_inputs() -> None:
    data = blobs()
    chosen = recipe("logistic")
    learner = load(chosen)
    state = train(learner, chosen, data)
    found = learner.predict(state, records([[1e6, -1e6], [np.nan, np.nan]]))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_least_squares_recovers_a_line_in_the_targets_own_unit() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(200, 2))
    target = 1e6 + 3e4 * numbers[:, 0] - 2e4 * numbers[:, 1]
    chosen = recipe("logistic", data={"task": "regression"}, epochs=60)
    learner = load(chosen)
    data = records(numbers, target)
    state = train(learner, chosen, data)
    found = learner.predict(state, data)
    assert found.shape == (200,)
    np.testing.assert_allclose(found, target, rtol=1e-4)
    np.testing.assert_allclose(
        state["standardiser.target"], [target.mean(), target.std()], rtol=1e-12
    )


def test_text_and_images_are_learned_from() -> None:
    rng = np.random.default_rng(0)
    codes, pixels = rng.integers(0, 4, (300, 1)), rng.integers(0, 256, (300, 2)).astype(np.uint8)
    target = (codes[:, 0] == 2) | (pixels[:, 1] > 200)
    features = {"t": "text", "p": "uint8[2]"}
    chosen = recipe(
        "logistic", data={"features": features, "hash_buckets": 3, "classes": [0, 1]}, epochs=60
    )
    learner = load(chosen)
    data = records(codes=codes, arrays=(pixels,), target=target.astype(np.int64))
    found = learner.predict(train(learner, chosen, data), data).argmax(axis=1)
    assert (found == target).mean() > 0.93


def test_carried_momentum_equals_one_uninterrupted_run() -> None:
    """With the same records in both stages, two halves are one whole."""
    data = blobs(48)
    chosen = recipe("logistic", optimizer_state="carry", epochs=2, batch_size=12)
    learner = load(chosen)
    state = learner.init(0)
    for number in (1, 2):
        state = learner.advance(through_bytes(state), data, plan(chosen, data, number)).state
    steps = [*plan(chosen, data, 1), *plan(chosen, data, 2)]

    class Joined:
        training = chosen.training
        samples = 4 * 48

        def __init__(self) -> None:
            self.steps = len(steps)

        def __iter__(self) -> Any:
            return iter(steps)

    assert same(learner.advance(learner.init(0), data, Joined()).state, state)
    reset = load(recipe("logistic", epochs=2, batch_size=12))
    other = reset.init(0)
    for number in (1, 2):
        other = reset.advance(other, data, plan(chosen, data, number)).state
    assert not np.array_equal(other["weight"], state["weight"])
    assert "optimizer.weight" not in other


def test_a_stage_is_a_function_of_its_arguments_and_leaves_them_alone() -> None:
    data = blobs()
    chosen = recipe("logistic", epochs=2.5)
    learner = load(chosen)
    state = through_bytes(train(learner, chosen, data))
    before = {name: array.copy() for name, array in state.items()}
    first = learner.advance(state, data, plan(chosen, data, 2))
    again = learner.advance(through_bytes(state), data, plan(chosen, data, 2))
    assert same(first.state, again.state)
    assert first.loss == again.loss
    assert same(state, before)


def test_a_stage_without_a_step_changes_nothing() -> None:
    chosen = recipe("logistic", min_batch=8)
    learner = load(chosen)
    state = train(learner, chosen, blobs())
    few = blobs(5, seed=1)
    done = learner.advance(state, few, plan(chosen, few, 2))
    assert same(done.state, state)
    assert np.isnan(done.loss)
    assert done.failure is None


def test_what_diverges_is_a_failure() -> None:
    data = blobs()
    chosen = recipe("logistic", lr=1e308)
    learner = load(chosen)
    done = learner.advance(learner.init(0), data, plan(chosen, data))
    assert done.failure == "loss is not finite"


def test_nothing_to_predict_gives_an_empty_answer() -> None:
    learner = load(recipe("logistic"))
    assert learner.predict(learner.init(0), records(np.zeros((0, 2)))).shape == (0, 3)


@pytest.mark.parametrize(
    ("params", "training", "named"),
    [
        ({"depth": 3}, {}, "depth"),
        ({}, {"optimizer": "adam"}, "adam"),
        ({}, {"optimizer_params": {"nesterov": True}}, "optimizer_params"),
        ({}, {"loss": "mse_loss"}, "mse_loss"),
    ],
)
def test_what_it_does_not_have_is_refused(
    params: dict[str, Any], training: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        load(recipe("logistic", params, **training))


def test_digits_are_read_in_a_second() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    bunch = datasets.load_digits()
    pixels = (bunch.data * 15).astype(np.uint8)
    data = records(arrays=(pixels,), target=bunch.target)
    section = {"features": {"p": "uint8[64]"}, "classes": list(range(10))}
    chosen = recipe("logistic", data=section, epochs=20, lr=0.1)
    learner = load(chosen)
    held_out = np.arange(len(data)) % 4 == 0
    state = train(learner, chosen, data.take(~held_out), stages=2)
    test = data.take(held_out)
    assert (learner.predict(state, test).argmax(axis=1) == test.target).mean() > 0.9


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; from tests.learners import test_logistic as t; "
        "t.test_least_squares_recovers_a_line_in_the_targets_own_unit(); "
        "sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=root).returncode == 0
