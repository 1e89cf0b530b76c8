"""The learner that trains any torch module."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sisa.config import Recipe
from sisa.determinism import pin_threads
from sisa.errors import ConfigurationError
from sisa.learners import load
from sisa.learners.protocol import State
from sisa.learners.records import Records, Standardiser
from sisa.learners.torch_module import TorchLearner

from .helpers import blobs, plan, recipe, records, same, through_bytes, train

NOISY = {"hidden": [8], "dropout": 0.5}


def learner_of(chosen: Recipe, factory: Any) -> TorchLearner:
    return TorchLearner.of(chosen, factory)


def stages(chosen: Recipe, data: Records, count: int = 2) -> State:
    """Stages over the same records, each from the bytes of the one before."""
    learner = load(chosen)
    state = learner.init(3)
    for number in range(1, count + 1):
        done = learner.advance(through_bytes(state), data, plan(chosen, data, number))
        assert done.failure is None
        state = done.state
    return state


def reference(chosen: Recipe, data: Records, optimizer: Any, count: int = 2) -> dict[str, Any]:
    """The same stages in plain torch, in one go: one module, one optimizer, never reloaded."""
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(4, 128), nn.ReLU(), nn.Linear(128, 3))
    scaled = Standardiser.fit(data.numbers).apply(data.numbers)
    x = torch.from_numpy(np.concatenate([scaled, np.zeros_like(scaled)], axis=1)).float()
    chosen_optimizer = optimizer(module.parameters())
    for number in range(1, count + 1):
        for step in plan(chosen, data, number):
            target = torch.from_numpy(data.target[step.rows])
            loss = nn.functional.cross_entropy(module(x[torch.from_numpy(step.rows)]), target)
            chosen_optimizer.zero_grad()
            loss.backward()
            chosen_optimizer.step()
    return {f"module.{k}": v.numpy() for k, v in module.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "more", "optimizer"),
    [
        ("sgd", {}, lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, fused=True)),
        (
            "sgd",
            {"optimizer_params": {"dampening": 0.5}},
            lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, dampening=0.5, foreach=False),
        ),
        ("adam", {}, lambda p: torch.optim.Adam(p, 0.05, fused=True)),
        ("adamw", {}, lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0, fused=True)),
        ("adagrad", {}, lambda p: torch.optim.Adagrad(p, 0.05, fused=True)),
        ("rmsprop", {}, lambda p: torch.optim.RMSprop(p, 0.05, momentum=0.9, foreach=False)),
        ("nadam", {}, lambda p: torch.optim.NAdam(p, 0.05, foreach=False)),
        ("rprop", {}, lambda p: torch.optim.Rprop(p, 0.05, foreach=False)),
        ("asgd", {}, lambda p: torch.optim.ASGD(p, 0.05, foreach=False)),
    ],
)
def test_a_carried_optimizer_equals_an_uninterrupted_run_in_plain_torch(
    name: str, more: dict[str, Any], optimizer: Any
) -> None:
    pin_threads(1)
    data = blobs(48)
    chosen = recipe(epochs=2, batch_size=12, optimizer=name, optimizer_state="carry", **more)
    found = stages(chosen, data)
    for key, value in reference(chosen, data, optimizer).items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_a_reset_optimizer_starts_every_stage_afresh() -> None:
    data = blobs(48)
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 12, "optimizer": "adam"}
    reset = stages(recipe(**settings), data)
    carried = stages(recipe(**settings, optimizer_state="carry"), data)
    assert not any(name.startswith("optimizer.") for name in reset)
    assert carried["optimizer.0.weight.exp_avg"].shape == (128, 4)
    assert carried["optimizer.0.weight.step"].shape == ()
    assert not np.array_equal(reset["module.0.weight"], carried["module.0.weight"])


class Branching(nn.Module):
    """Uses its second layer from the third batch of a stage on, and one parameter never."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.always = nn.Linear(inputs, outputs)
        self.later = nn.Linear(inputs, outputs)
        self.never = nn.Parameter(torch.ones(1))
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        out = self.always(x)
        return out + self.later(x) if self.calls > 2 else out


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop"])
@pytest.mark.parametrize("optimizer_state", ["reset", "carry"])
def test_parameters_that_meet_their_first_gradient_late_are_trained(
    optimizer: str, optimizer_state: str
) -> None:
    data = blobs(40)
    chosen = recipe(
        epochs=4, batch_size=4, optimizer=optimizer, lr=0.01, optimizer_state=optimizer_state
    )
    learner = learner_of(chosen, Branching)
    first = learner.init(0)
    state = through_bytes(first)
    for number in (1, 2):
        done = learner.advance(state, data, plan(chosen, data, number))
        assert done.failure is None
        state = through_bytes(done.state)
    assert not np.array_equal(state["module.later.weight"], first["module.later.weight"])
    assert state["module.never"] == 1


@pytest.mark.parametrize("params", [NOISY, {"hidden": [8], "batch_norm": True}])
@pytest.mark.parametrize("optimizer_state", ["reset", "carry"])
def test_a_stage_is_a_function_of_its_arguments(
    params: dict[str, Any], optimizer_state: str
) -> None:
    """Neither global generators nor the caller's settings get in, and none are changed."""
    data = blobs()
    chosen = recipe("mlp", params, optimizer="adam", optimizer_state=optimizer_state, epochs=2.5)
    learner = load(chosen)
    parent = through_bytes(learner.advance(learner.init(1), data, plan(chosen, data)).state)
    before = {name: array.copy() for name, array in parent.items()}
    torch.manual_seed(1)
    first = learner.advance(parent, data, plan(chosen, data, 2))
    torch.manual_seed(2)
    drawn = torch.rand(3)
    torch.manual_seed(2)
    again = learner.advance(parent, data, plan(chosen, data, 2))
    assert torch.equal(torch.rand(3), drawn)
    assert not torch.are_deterministic_algorithms_enabled()
    assert same(first.state, again.state)
    assert first.loss == again.loss
    assert same(parent, before)


def test_dropout_follows_the_seed_of_each_step() -> None:
    data = blobs()
    settings: dict[str, Any] = {"batch_size": 200, "epochs": 1}
    whole = recipe("mlp", NOISY, seed=1, **settings), recipe("mlp", NOISY, seed=2, **settings)
    still = recipe("mlp", {"hidden": [8]}, seed=1, **settings)
    learner = load(whole[0])
    init = learner.init(0)
    left, right = (learner.advance(init, data, plan(chosen, data)).loss for chosen in whole)
    assert left != right
    calm = load(still)
    left, right = (
        calm.advance(calm.init(0), data, plan(recipe(seed=s, **settings), data)).loss
        for s in (1, 2)
    )
    assert left == pytest.approx(right), "one batch of all records: only dropout tells seeds apart"


def test_every_step_runs_under_its_own_seed() -> None:
    seeds: list[int] = []

    class Watching(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seeds.append(torch.initial_seed())
            return super().forward(x)

    data = blobs()
    chosen = recipe(epochs=2)
    learner = learner_of(chosen, Watching)
    init = learner.init(0)
    seeds.clear()
    learner.advance(init, data, plan(chosen, data))
    assert seeds == [step.seed for step in plan(chosen, data)]


def test_a_fresh_module_starts_from_its_seed_alone() -> None:
    learner = load(recipe())
    assert same(learner.init(4), learner.init(4))
    assert not same(learner.init(4), learner.init(5))


class Hidden(nn.Module):
    """Draws a projection from three generators, and keeps it out of its state."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        noise = torch.randn(inputs, 16) * random.random() + np.random.random()
        self.register_buffer("projection", noise, persistent=False)
        self.last = nn.Linear(16, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(x @ self.projection))


def test_what_a_factory_draws_outside_of_its_state_is_the_same_in_every_stage() -> None:
    data = blobs()
    chosen = recipe(epochs=20)
    learner = learner_of(chosen, Hidden)
    state = train(learner, chosen, data, stages=3)
    found = learner.predict(state, data)
    np.random.seed(0)
    np.testing.assert_array_equal(learner.predict(state, data), found)
    assert (found.argmax(axis=1) == data.target).mean() > 0.8


def test_batch_norm_keeps_its_buffers_and_predicts_row_by_row() -> None:
    data = blobs()
    chosen = recipe("mlp", {"hidden": [8], "batch_norm": True}, epochs=2)
    learner = load(chosen)
    state = train(learner, chosen, data)
    counted = state["module.1.num_batches_tracked"]
    assert counted.dtype == np.int64
    assert counted.shape == ()
    assert counted == plan(chosen, data).steps
    whole = learner.predict(state, data)
    np.testing.assert_allclose(
        learner.predict(state, data.take(np.array([7]))), whole[7:8], rtol=1e-6
    )


def test_a_stage_without_a_step_changes_nothing() -> None:
    chosen = recipe(min_batch=8)
    learner = load(chosen)
    state = train(learner, chosen, blobs())
    few = blobs(5, seed=1)
    done = learner.advance(state, few, plan(chosen, few, 2))
    assert same(done.state, state)
    assert np.isnan(done.loss)


def test_states_survive_a_checkpoint_and_are_not_views_of_each_other() -> None:
    chosen = recipe("mlp", {"hidden": [8], "batch_norm": True}, optimizer_state="carry")
    state = stages(chosen, blobs())
    assert same(through_bytes(state), state)
    assert all(array.flags.c_contiguous and array.flags.owndata for array in state.values())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_what_diverges_is_a_failure(optimizer: str) -> None:
    data = blobs()
    chosen = recipe(lr=1e30, optimizer=optimizer)
    learner = load(chosen)
    done = learner.advance(learner.init(0), data, plan(chosen, data))
    assert done.failure == "loss is not finite"


def test_a_failure_is_noticed_at_the_end_of_its_epoch() -> None:
    calls: list[int] = []

    class Counting(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(len(x))
            return super().forward(x)

    data = blobs(64)
    chosen = recipe(lr=1e38, weight_decay=1e30, epochs=50, batch_size=16)
    learner = learner_of(chosen, Counting)
    done = learner.advance(learner.init(0), data, plan(chosen, data))
    assert done.failure == "loss is not finite"
    assert len(calls) < 10


def test_a_last_step_into_infinity_is_a_failure_too() -> None:
    data = blobs(20)
    chosen = recipe(lr=1e38, epochs=1, batch_size=64, weight_decay=1e30)
    learner = load(chosen)
    done = learner.advance(learner.init(0), data, plan(chosen, data))
    assert done.failure == "loss is not finite"


class Masked(nn.Module):
    """Holds infinities from the beginning, as attention masks do."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.last = nn.Linear(inputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x)


def test_infinities_that_were_always_there_are_no_failure() -> None:
    chosen = recipe(epochs=1)
    state = train(learner_of(chosen, Masked), chosen, blobs())
    np.testing.assert_array_equal(state["module.mask"], [0, -np.inf])


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(inputs, 2), nn.Linear(inputs, 2)
        self.up.weight = self.down.weight
        self.last = nn.Linear(2, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.down(x)) + self.up(x))


def test_tied_parameters_stay_tied() -> None:
    chosen = recipe(optimizer="adam", optimizer_state="carry")
    state = train(learner_of(chosen, Tied), chosen, blobs(), stages=2)
    np.testing.assert_array_equal(state["module.up.weight"], state["module.down.weight"])


def test_frozen_parameters_stay_as_they_are() -> None:
    def factory(inputs: int, outputs: int) -> nn.Module:
        module = nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, outputs))
        module[0].requires_grad_(False)
        return module

    chosen = recipe(weight_decay=0.1)
    learner = learner_of(chosen, factory)
    state, init = train(learner, chosen, blobs()), learner.init(5)
    np.testing.assert_array_equal(state["module.0.weight"], init["module.0.weight"])
    assert not np.array_equal(state["module.2.weight"], init["module.2.weight"])


def test_images_numbers_and_text_reach_the_module_in_their_documented_order() -> None:
    seen: list[torch.Tensor] = []

    class Watching(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.detach().clone())
            return super().forward(x)

    section = {"features": {"n": "float64", "t": "text", "p": "uint8[2]"}, "hash_buckets": 1}
    chosen = recipe(data=section, epochs=1)
    learner = learner_of(chosen, Watching)
    pixels = np.array([[0, 255], [51, 0], [0, 0]], dtype=np.uint8)
    pixels.flags.writeable = False
    data = records([[1.0], [np.nan], [3.0]], [0, 1, 2], [[0], [1], [1]], (pixels,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = learner.advance(learner.init(0), data, plan(chosen, data))
        learner.predict(done.state, data)
    expected = [[-1, 0, 1, 0, 0, 1], [0, 1, 0, 1, 0.2, 0], [1, 0, 0, 1, 0, 0]]
    np.testing.assert_allclose(seen[-1].numpy(), expected, rtol=1e-6)
    assert seen[-1].dtype == torch.float32


def test_one_loss_over_all_steps_is_the_mean_over_samples() -> None:
    data = blobs(25)
    chosen = recipe(epochs=1, batch_size=20, lr=1e-12)
    learner = load(chosen)
    done = learner.advance(learner.init(0), data, plan(chosen, data))
    found = learner.predict(done.state, data)[np.arange(25), data.target]
    assert done.loss == pytest.approx(-np.log(found).mean(), rel=1e-5)


def test_a_regression_on_diabetes_beats_the_mean() -> None:
    bunch = pytest.importorskip("sklearn.datasets").load_diabetes()
    section = {
        "task": "regression",
        "features": {f"f{i}": "float64" for i in range(bunch.data.shape[1])},
    }
    chosen = recipe("mlp", {"hidden": [16]}, section, epochs=40, lr=0.02, loss="smooth_l1_loss")
    learner = load(chosen)
    data = records(bunch.data, bunch.target)
    held_out = np.arange(len(data)) % 4 == 0
    test = data.take(held_out)
    found = learner.predict(train(learner, chosen, data.take(~held_out), stages=2), test)
    assert found.dtype == np.float64
    assert np.sqrt(np.mean((found - test.target) ** 2)) < 0.8 * test.target.std()


@pytest.mark.parametrize(
    ("training", "named"),
    [
        ({"optimizer": "sgdd"}, "no optimizer 'sgdd'"),
        ({"optimizer": "optimizer"}, "no optimizer"),
        ({"optimizer_params": {"betas": [0.9, 0.9]}}, "betas"),
        ({"optimizer_params": {"lr": 0.9}}, "lr"),
        ({"loss": "relu"}, "no loss 'relu'"),
    ],
)
def test_unknown_names_are_refused_at_once(training: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        load(recipe(**training))


@pytest.mark.parametrize(
    ("training", "named"),
    [
        ({"optimizer": "lbfgs"}, "LBFGS.step"),
        ({"optimizer": "adam", "optimizer_params": {"betas": [2, 2]}}, "Invalid beta"),
        ({"loss": "gaussian_nll_loss"}, "trial step"),
    ],
)
def test_settings_that_cannot_train_are_refused_by_a_trial_step(
    training: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        load(recipe(**training)).init(0)


def refused(factory: Any, **training: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        learner_of(recipe(**training), factory).init(0)
    return str(caught.value)


def test_a_module_that_does_not_fit_is_refused_before_training() -> None:
    assert "[2, 5] instead of [2, 3]" in refused(lambda i, o: nn.Linear(i, 5))
    assert "trial step" in refused(lambda i, o: nn.Linear(i + 1, o))
    assert "not a torch module" in refused(lambda i, o: torch.zeros(i, o))
    assert "cannot be kept" in refused(lambda i, o: nn.LazyLinear(o))
    assert "BFloat16" in refused(lambda i, o: nn.Linear(i, o).bfloat16())
    normed = refused(lambda i, o: nn.Sequential(nn.BatchNorm1d(i), nn.Linear(i, o)), min_batch=1)
    assert "more than 1 value" in normed


def test_an_algorithm_without_a_deterministic_form_is_refused() -> None:
    class Random(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert torch.are_deterministic_algorithms_enabled()
            raise RuntimeError("put_ has no deterministic implementation.")

    assert "no deterministic implementation" in refused(Random)


def test_nothing_to_predict_gives_an_empty_answer() -> None:
    learner = load(recipe())
    assert learner.predict(learner.init(0), records(np.zeros((0, 2)))).shape == (0, 3)
