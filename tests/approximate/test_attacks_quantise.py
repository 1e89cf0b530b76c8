"""Symmetric round-to-nearest: within half a step, by loops; hidden knowledge comes back."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from sisa.approximate.attacks import quantise
from sisa.errors import DataError, IncompleteError, UsageError


def by_loops(weight: list[list[float]], bits: int, group: int) -> list[list[float]]:
    largest = 2 ** (bits - 1) - 1
    found = []
    for channel in weight:
        out: list[float] = []
        for start in range(0, len(channel), group):
            part = channel[start : start + group]
            step = max(abs(w) for w in part) / largest
            out += [step * round(w / step) if step else 0.0 for w in part]
        found.append(out)
    return found


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group", [None, 1, 4, 7])
def test_rounding_is_that_of_loops_and_within_half_a_step(bits: int, group: int | None) -> None:
    torch.manual_seed(bits)
    weight = torch.randn(5, 10, dtype=torch.float64) * torch.logspace(-3, 3, 5)[:, None]
    weight[3] = 0
    found = quantise.round_to_nearest(weight, bits, group)
    expected = by_loops(weight.tolist(), bits, group or 10)
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12)
    for start in range(0, 10, group or 10):
        part = slice(start, start + (group or 10))
        step = weight[:, part].abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        assert ((found - weight)[:, part].abs() <= step / 2 * (1 + 1e-12)).all()
        for row, unit in zip(found[:, part], step[:, 0], strict=True):
            assert len(set((row / unit).nan_to_num().round().tolist())) <= 2**bits - 1


def test_what_is_on_the_grid_stays() -> None:
    weight = torch.tensor([[7.0, -3, 0, 1], [-14.0, 2, 4, -6]])
    assert torch.equal(quantise.round_to_nearest(weight, 4), weight)
    assert not torch.equal(quantise.round_to_nearest(weight + 0.4, 4), weight + 0.4)


def test_every_layer_once_and_the_model_stays() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(6, 8), nn.Linear(8, 6), nn.LayerNorm(6), nn.Conv1d(4, 3, 2), nn.Linear(8, 6)
    )
    model[4].weight = model[0].weight  # type: ignore[assignment]
    state = copy.deepcopy(model.state_dict())
    found = quantise.quantised(model, 4)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert found[4].weight is found[0].weight
    after = found.state_dict()
    for name in ("0.weight", "1.weight", "3.weight"):
        rows = state[name].reshape(len(state[name]), -1)
        assert torch.equal(after[name].reshape(rows.shape), quantise.round_to_nearest(rows, 4))
        assert not torch.equal(after[name], state[name])
    for name in ("1.bias", "2.weight", "2.bias", "3.bias", "4.bias"):
        assert torch.equal(after[name], state[name])
    total = 48 + 48 + 6 + 12 + 24 + 3 + 6
    assert quantise.quantisable_share(model) == pytest.approx((48 + 48 + 24) / total)


def test_half_precision_stays_half_precision() -> None:
    model = nn.Linear(16, 4).bfloat16()
    found = quantise.quantised(model, 8)
    assert found.weight.dtype == torch.bfloat16
    expected = quantise.round_to_nearest(model.weight.float(), 8).bfloat16()
    assert torch.equal(found.weight, expected)


def test_layers_of_gpt2_are_rounded_along_their_columns() -> None:
    utils = pytest.importorskip("transformers.pytorch_utils")
    torch.manual_seed(0)
    model = nn.Sequential(utils.Conv1D(3, 8))
    found = quantise.quantised(model, 4)
    expected = quantise.round_to_nearest(model[0].weight.T, 4).T
    assert torch.equal(found[0].weight, expected)
    assert not torch.equal(expected, quantise.round_to_nearest(model[0].weight, 4))


def test_unlearning_by_less_than_half_a_step_comes_back() -> None:
    """The original lies on the grid; small changes round away, large ones stay."""
    torch.manual_seed(0)
    original = nn.Linear(16, 4, bias=False)
    with torch.no_grad():
        original.weight.copy_(torch.randint(-6, 7, (4, 16)) / 10)
        original.weight[:, 0] = 0.7
    change = torch.rand(4, 16) - 0.5
    change[:, 0] = 0
    x = torch.randn(32, 16)
    known = original(x).detach()

    def gap(model: nn.Module) -> float:
        return float((model(x) - known).square().mean().detach())

    def attacked(size: float) -> tuple[quantise.Quantised, ...]:
        model = copy.deepcopy(original)
        with torch.no_grad():
            model.weight += size * change
        return quantise.evaluate(model, gap, gap(original))

    eight, four = attacked(0.09)
    assert (eight.bits, four.bits, four.parameters) == (8, 4, 1)
    assert eight.share == pytest.approx(0, abs=0.2)
    assert four.share == pytest.approx(1, abs=1e-6)
    assert max(abs(found.share or 0) for found in attacked(0.6)) < 0.3
    assert quantise.evaluate(original, gap, gap(original))[0].share is None


def test_a_smaller_group_is_nearer() -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 64)

    def error(group: int | None) -> float:
        return float((quantise.round_to_nearest(weight, 4, group) - weight).square().mean())

    assert error(8) < error(32) < error(None)


def test_bad_calls_are_refused() -> None:
    model = nn.Linear(4, 4)
    with pytest.raises(UsageError, match="1 bits"):
        quantise.quantised(model, 1)
    with pytest.raises(UsageError, match="size of a group"):
        quantise.quantised(model, 4, 0)
    with pytest.raises(IncompleteError, match="no linear"):
        quantise.quantised(nn.LayerNorm(3), 4)
    with pytest.raises(DataError, match="weight is not"):
        quantise.round_to_nearest(Tensor([[math.nan, 1]]), 4)
    with pytest.raises(DataError, match="metric"):
        quantise.evaluate(model, lambda m: math.nan, 1.0)
