"""Of each layer exactly its share moves, and what moves forgets."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sisa.approximate.edits.mappings import into_module, of_module
from sisa.approximate.edits.partial import (
    descend,
    flipped,
    label_flip,
    largest,
    masks,
    only,
    optimise,
)
from sisa.errors import ConfigurationError, IncompleteError, SisaError

CLASSES = 3


def trained() -> tuple[nn.Sequential, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A classifier of three clouds of points, its forget set (a cloud) and its retain set."""
    torch.manual_seed(0)
    centres = 1.5 * torch.randn(CLASSES, 6, dtype=torch.float64)
    y = torch.arange(CLASSES).repeat_interleave(20)
    x = centres[y] + torch.randn(60, 6, dtype=torch.float64)
    module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, CLASSES)).double()
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    for _ in range(25):
        optimizer.zero_grad()
        cross_entropy(module(x), y).backward()
        optimizer.step()
    module.zero_grad()
    return module, (x[:20], y[:20]), (x[20:], y[20:])


def accuracy(module: nn.Module, params: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> float:
    before = of_module(module)
    into_module(module, params)
    with torch.no_grad():
        found = float((module(batch[0]).argmax(1) == batch[1]).double().mean())
    into_module(module, before)
    return found


@pytest.mark.parametrize("share", [0.001, 0.1, 0.25, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("shape", [(1,), (7,), (5, 8), (2, 3, 4)])
def test_the_largest_are_exactly_the_share(shape: tuple[int, ...], share: float) -> None:
    torch.manual_seed(1)
    values = torch.randn(shape, dtype=torch.float64)
    count = max(1, round(share * math.prod(shape)))
    order = sorted(range(values.numel()), key=lambda i: -abs(float(values.flatten()[i])))
    assert largest(values, share).tolist() == sorted(order[:count])


def test_of_equal_magnitudes_the_earlier_is_taken() -> None:
    values = torch.tensor([0.0, -2.0, 1.0, 2.0, -1.0, 1.0, 1.0, 0.0])
    assert largest(values, 0.5).tolist() == [1, 2, 3, 4]
    assert largest(torch.zeros(10), 0.3).tolist() == [0, 1, 2]
    assert largest(torch.tensor([1.0, torch.nan, 3.0, torch.inf]), 0.5).tolist() == [1, 3]
    assert largest(torch.zeros(0), 0.5).tolist() == []


def test_masks_have_the_share_of_each_layer() -> None:
    gradients = {"a": 1e6 * torch.randn(10, 10), "b": torch.randn(50), "c": torch.randn(3)}
    found = masks(gradients, 0.1)
    assert {name: int(mask.sum()) for name, mask in found.items()} == {"a": 10, "b": 5, "c": 1}
    for name, mask in found.items():
        magnitudes = gradients[name].abs()
        assert magnitudes[mask].min() >= magnitudes[~mask].max()


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1),
    ],
)
def test_only_the_chosen_move_under_any_optimizer(optimizer: type) -> None:
    module, (x, y), _ = trained()
    start, stepper = of_module(module), optimizer(module.parameters())
    parameters = dict(module.named_parameters())
    chosen = masks({"2.weight": start["2.weight"]}, 0.2)
    for _ in range(3):
        stepper.zero_grad()
        cross_entropy(module(x), y).backward()
        with only(parameters, chosen):
            stepper.step()
    moved = {name: p.detach() != start[name] for name, p in parameters.items()}
    assert torch.equal(moved.pop("2.weight"), chosen["2.weight"])
    assert not any(mask.any() for mask in moved.values())
    stepper.step()  # control: without it the optimizer moves them all
    assert all((p.detach() != start[name]).all() for name, p in parameters.items())


def test_a_step_is_the_rate_times_the_largest_gradients() -> None:
    module, forget, _ = trained()
    params = of_module(module)

    def loss(given: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(torch.func.functional_call(module, given, (batch[0],)), batch[1])

    found = descend(loss, params, [forget], 0.5, share=0.25)
    cross_entropy(module(forget[0]), forget[1]).backward()
    for name, p in module.named_parameters():
        gradient = p.grad.flatten().tolist()
        order = sorted(range(len(gradient)), key=lambda i: -abs(gradient[i]))
        wanted = params[name].flatten().tolist()
        for i in order[: max(1, round(0.25 * len(gradient)))]:
            wanted[i] -= 0.5 * gradient[i]
        torch.testing.assert_close(
            found[name].flatten(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=1e-15
        )
        assert torch.equal(params[name], p)


def test_masks_that_are_given_hold_for_every_step() -> None:
    module, forget, retain = trained()
    params = of_module(module)
    chosen = masks({"0.weight": params["0.weight"]}, 0.3)

    def loss(given: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(torch.func.functional_call(module, given, (batch[0],)), batch[1])

    found = descend(loss, params, [forget, retain] * 3, 0.1, chosen=chosen)
    assert not (found["0.weight"] != params["0.weight"])[~chosen["0.weight"]].any()
    assert (found["0.weight"] != params["0.weight"]).any()
    for name in ("0.bias", "2.weight", "2.bias"):
        assert torch.equal(found[name], params[name])
    with pytest.raises(ConfigurationError):
        descend(loss, params, [], 0.1, chosen={"other": torch.ones(1, dtype=torch.bool)})


def test_a_flipped_label_is_any_other_class() -> None:
    labels = torch.arange(5).repeat(2000)
    labels[:10] = -100
    found = flipped(labels, 5, torch.Generator().manual_seed(0))
    assert found[:10].eq(-100).all()
    real, wrong = labels[10:], found[10:]
    assert not (real == wrong).any()
    counts = torch.bincount(real * 5 + wrong, minlength=25).view(5, 5)
    others = counts[~torch.eye(5, dtype=torch.bool)]
    assert (others - 500).abs().max() < 100  # of 2000 each, 5 standard errors
    assert torch.equal(found, flipped(labels, 5, torch.Generator().manual_seed(0)))
    assert flipped(torch.tensor([0, 1]), 2, torch.Generator()).tolist() == [1, 0]


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_label_flipping_forgets_and_the_rest_is_kept(share: float) -> None:
    module, forget, retain = trained()
    params = of_module(module)
    assert accuracy(module, params, forget) == 1
    found = label_flip(module, [forget], [retain], CLASSES, 0.3, share, epochs=60)
    assert accuracy(module, found, forget) < 0.2
    assert accuracy(module, found, retain) > 0.9
    assert all(torch.equal(p, params[name]) for name, p in module.named_parameters())
    again = label_flip(module, [forget], [retain], CLASSES, 0.3, share, epochs=60)
    assert all(torch.equal(found[name], again[name]) for name in found)


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_optimising_forgets_up_to_guessing_and_the_rest_is_kept(share: float) -> None:
    module, forget, retain = trained()
    params = of_module(module)
    found = optimise(module, [forget], [retain], 0.05, share, epochs=200)
    assert accuracy(module, found, forget) < 0.2
    assert accuracy(module, found, retain) > 0.95
    assert all(torch.equal(p, params[name]) for name, p in module.named_parameters())
    assert max(float((found[name] - params[name]).abs().max()) for name in params) < 1
    into_module(module, found)
    with torch.no_grad():
        assert math.log(CLASSES) <= cross_entropy(module(forget[0]), forget[1]) < 10


def test_without_a_ceiling_the_weights_run_away() -> None:
    """Control, and what ascent does when nothing ends it."""
    module, forget, retain = trained()
    found = optimise(module, [forget], [retain], 0.05, 1.0, epochs=200, ceiling=math.inf)
    assert max(float(value.abs().max()) for value in found.values()) > 1e6


def test_a_retain_set_of_fewer_batches_is_gone_through_again() -> None:
    module, (x, y), retain = trained()
    halves = [(x[:10], y[:10]), (x[10:], y[10:])]
    once = optimise(module, halves, [retain], 0.1, 1.0)
    twice = optimise(module, halves, [retain, retain], 0.1, 1.0)
    without = optimise(module, halves, [], 0.1, 1.0)
    assert all(torch.equal(once[name], twice[name]) for name in once)
    assert not torch.equal(once["2.weight"], without["2.weight"])


def test_one_step_moves_a_share_of_each_layer() -> None:
    module, forget, _ = trained()
    params = of_module(module)
    for found in (
        optimise(module, [forget], [], 0.1, 0.25),
        label_flip(module, [forget], [], CLASSES, 0.1, 0.25),
    ):
        for name, value in params.items():
            assert 0 < int((found[name] != value).sum()) <= max(1, round(0.25 * value.numel()))


def test_labels_that_are_all_ignored_take_no_step() -> None:
    module, (x, _), _ = trained()
    nothing = [(x, torch.full((20,), -100))]
    for found in (
        label_flip(module, nothing, [], CLASSES, 0.1),
        optimise(module, nothing, nothing, 0.1),
    ):
        assert all(torch.equal(found[name], p) for name, p in module.named_parameters())


def test_dropout_is_off_and_the_mode_is_given_back() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.BatchNorm1d(16), nn.Linear(16, 3))
    module.double().train()
    x, y = torch.randn(8, 6, dtype=torch.float64), torch.arange(8) % 3
    running = module[2].running_mean.clone()
    one, two = (optimise(module, [(x, y)], [], 0.1) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert module.training
    assert torch.equal(module[2].running_mean, running)


def test_what_cannot_be_is_refused() -> None:
    module, forget, retain = trained()
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigurationError, match="share"):
            optimise(module, [forget], [retain], 0.1, share)
    with pytest.raises(ConfigurationError, match="one class"):
        label_flip(module, [forget], [retain], 1, 0.1)
    for empty in ([], [(forget[0][:0], forget[1][:0])]):
        with pytest.raises(IncompleteError, match="forget set is empty"):
            optimise(module, empty, [retain], 0.1)
        with pytest.raises(IncompleteError, match="forget set is empty"):
            label_flip(module, empty, [retain], CLASSES, 0.1)
    params = of_module(module)
    with pytest.raises(SisaError, match=r"not finite at step 1"):
        optimise(module, [forget, (forget[0] * torch.nan, forget[1])], [], 0.1)
    assert all(torch.equal(p, params[name]) for name, p in module.named_parameters())
