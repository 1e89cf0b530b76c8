"""Edits of parameter mappings: dampening, pruning, task vector and mixing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sisa.approximate.edits.dampen import dampen, dampened
from sisa.approximate.edits.importance import Importance
from sisa.approximate.edits.mappings import changed, into_module, of_module
from sisa.approximate.edits.mix import mix, mix_to, task_vector
from sisa.approximate.edits.prune import prune
from sisa.errors import ConfigurationError, DataError

MINUS = -0.0


def tensor(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def of(**values: Tensor) -> Importance:
    return Importance(dict(values), "fisher", 10)


def bits(value: Tensor) -> bytes:
    return value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        v.dtype == other[n].dtype and v.shape == other[n].shape and bits(v) == bits(other[n])
        for n, v in one.items()
    )


def model() -> dict[str, Tensor]:
    return {
        "w": tensor([2.0, -4.0, MINUS], [1.0, 8.0, 3.0]),
        "b": tensor(0.5, -1.0),
        "steps": torch.tensor(7),
        "frozen": tensor(math.nan, 1.0),
    }


D = {"w": tensor([1.0, 1.0, 1.0], [0.0, 0.5, 2.0]), "b": tensor(4.0, 1.0)}
D_F = {"w": tensor([11.0, 10.0, 99.0], [1.0, 20.0, 0.0]), "b": tensor(1.0, 40.0)}


def test_dampening_follows_its_definition() -> None:
    found = dampen(model(), of(**D_F), of(**D), alpha=10.0, strength=1.0)
    # D_F > 10 D at (0,0): 1/11; not at (0,1): equal; at (0,2): 1/99; at (1,0): D = 0 gives 0;
    # at (1,1): .5/20; at (1,2): D_F = 0; b: only the second, 1/40
    wanted = model()
    wanted["w"] = tensor([2.0 / 11, -4.0, MINUS / 99], [0.0, 8.0 * 0.025, 3.0])
    wanted["b"] = tensor(0.5, -1.0 / 40)
    torch.testing.assert_close(found, wanted, rtol=1e-15, atol=0, equal_nan=True)
    for name, at in [("w", (0, 1)), ("w", (1, 2)), ("b", (0,))]:
        assert bits(found[name][at]) == bits(model()[name][at])
    assert found["steps"].dtype == torch.int64
    assert dampened(of(**D_F), of(**D)) == {"w": 4, "b": 1}


def test_the_factor_of_dampening_is_at_most_one() -> None:
    found = dampen(
        {"w": tensor(3.0, 3.0)}, of(w=tensor(2.0, 8.0)), of(w=tensor(1.0, 1.0)), 1.0, 4.0
    )
    assert found["w"].tolist() == [3.0, 1.5]  # min(4/2, 1) and 4/8


def test_dampening_of_half_precision_leaves_the_bits_of_what_it_does_not_select() -> None:
    torch.manual_seed(0)
    params = {"w": torch.randn(1000).bfloat16()}
    forget, whole = torch.rand(1000), torch.rand(1000) / 4
    found = dampen(params, of(w=forget), of(w=whole), alpha=5.0)["w"]
    chosen = forget > 5 * whole
    assert found.dtype == torch.bfloat16 and 0 < chosen.sum() < 1000
    assert bits(found[~chosen]) == bits(params["w"][~chosen])
    assert (found[chosen] != params["w"][chosen]).float().mean() > 0.9


@pytest.mark.parametrize(
    "edit",
    [
        lambda p: dampen(p, of(**D_F), of(**D)),
        lambda p: prune(p, of(**D_F), of(**D), 0.3),
        lambda p: prune(p, of(**D_F), of(**D), 0.5, unit="neuron", scope="layer"),
        lambda p: mix(p, {n: v * 2 for n, v in p.items()}, 0.25),
        lambda p: task_vector(p, {n: v * 2 for n, v in p.items()}),
    ],
)
def test_an_edit_leaves_its_input_and_whole_numbers_and_shares_no_memory(
    edit: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> None:
    params = model()
    found = edit(params)
    assert same(params, model()) and not same(found, params)
    assert found["steps"].dtype == torch.int64 and found["steps"].item() == 7
    for value in found.values():
        value.zero_()
    assert same(params, model())


def test_pruning_takes_exactly_the_largest_ratios_of_the_model() -> None:
    # ratios of w: 11, 10, 99 / inf, 40, 0; of b: .25, 40; 3 of 8: inf, 99, first 40
    found = prune(model(), of(**D_F), of(**D), 3 / 8)
    assert found["w"].tolist() == [[2.0, -4.0, 0.0], [0.0, 0.0, 3.0]]
    assert same({"b": found["b"]}, {"b": model()["b"]})


def test_pruning_by_layer_takes_a_share_of_each_tensor_and_goes_back_to_initial_values() -> None:
    initial = {"w": torch.full((2, 3), 0.1), "b": torch.full((2,), 0.2)}
    found = prune(model(), of(**D_F), of(**D), 0.5, scope="layer", initial=initial)
    tenth = torch.tensor(0.1).double().item()
    assert found["w"].tolist() == [[2.0, -4.0, tenth], [tenth, tenth, 3.0]]
    assert found["b"].tolist() == [0.5, torch.tensor(0.2).double().item()]


def test_neurons_are_rows_of_a_layer_with_their_bias() -> None:
    params = {
        "l.weight": torch.ones(3, 2, 1),
        "l.bias": torch.ones(3),
        "o.weight": torch.ones(1, 3),
    }
    forget = {
        "l.weight": tensor([[1.0], [1.0]], [[0.0], [3.0]], [[1.0], [1.0]]),
        "l.bias": tensor(1.0, 0.0, 7.0),
        "o.weight": tensor([1.0, 1.0, 1.0]),
    }
    retain = {name: torch.ones_like(value) for name, value in forget.items()}
    # sums 3, 3, 9 and 3 over 3, 3, 3 and 3: the third row of l has the largest ratio
    found = prune(params, of(**forget), of(**retain), 0.25, unit="neuron")
    assert found["l.weight"].flatten().tolist() == [1, 1, 1, 1, 0, 0]
    assert found["l.bias"].tolist() == [1, 1, 0]
    assert found["o.weight"].tolist() == [[1, 1, 1]]


def test_what_the_forget_set_does_not_need_is_never_pruned() -> None:
    zero = {name: torch.zeros_like(value) for name, value in D.items()}
    assert same(prune(model(), of(**zero), of(**D), 1.0), model())


def test_of_equal_ratios_the_earlier_are_taken_and_shares_are_not_rounded_off() -> None:
    ones = {"w": torch.ones(100)}
    found = prune(ones, of(**ones), of(**ones), 0.29)["w"]  # 0.29 * 100 is 28.999999999999996
    assert found.tolist() == [0.0] * 29 + [1.0] * 71


def test_pruning_refuses_shares_that_take_nothing_and_missing_initial_values() -> None:
    for share, words in [(0.0, "not in"), (1.5, "not in"), (0.01, "less than one of 8 units")]:
        with pytest.raises(ConfigurationError, match=words):
            prune(model(), of(**D_F), of(**D), share)
    with pytest.raises(ConfigurationError, match="less than one of 6 units"):
        prune(model(), of(**D_F), of(**D), 0.1, scope="layer")
    small = prune(model(), of(**D_F), of(**D), 0.2, scope="layer")
    assert torch.equal(small["b"], model()["b"]) and small["w"][1, 0] == 0
    with pytest.raises(ConfigurationError, match="no initial value of b"):
        prune(model(), of(**D_F), of(**D), 0.5, initial={"w": D["w"]})


def test_a_task_vector_goes_away_from_the_overfitted_model() -> None:
    found = task_vector({"w": tensor(1.0, 2.0)}, {"w": tensor(1.5, 1.0)}, alpha=2.0)
    assert found["w"].tolist() == [0.0, 4.0]  # 1 - 2 (.5), 2 - 2 (-1)


def far() -> dict[str, Tensor]:
    return {
        "w": tensor(MINUS, 1e300, 0.1),
        "h": torch.tensor([MINUS, 3.0]).half(),
        "n": torch.ones(1),
    }


def near() -> dict[str, Tensor]:
    return {
        "w": tensor(1.0, -1e300, 0.7),
        "h": torch.tensor([9.0, 5.0]).half(),
        "n": torch.zeros(1),
    }


def test_mixing_at_the_ends_gives_either_model_bit_for_bit() -> None:
    assert same(mix(far(), near(), 1), far())
    assert same(mix(far(), near(), 0), near())


def test_mixing_between_is_the_weighted_sum() -> None:
    found = mix({"w": tensor(1.0, -2.0)}, {"w": tensor(3.0, 6.0)}, 0.25)
    assert found["w"].tolist() == [0.25 * 1 + 0.75 * 3, 0.25 * -2 + 0.75 * 6]
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigurationError, match="share"):
            mix(far(), near(), share)


def test_bisection_finds_the_smallest_share_that_reaches_the_target() -> None:
    original, unlearned = {"w": tensor(1.0)}, {"w": tensor(0.0)}
    asked = []

    def utility(params: Any) -> float:
        asked.append(params["w"].item())
        return asked[-1] ** 2  # a share of s gives s^2

    found = mix_to(original, unlearned, utility, target=0.5, tolerance=1e-3)
    assert math.sqrt(0.5) <= found.share <= math.sqrt(0.5) + 1e-3
    assert found.utility == found.share**2 >= 0.5
    assert found.evaluations == len(asked) == 2 + 10
    assert found.params["w"].item() == found.share


def test_bisection_ends_at_once_where_there_is_nothing_to_search() -> None:
    one, other = {"w": tensor(1.0)}, {"w": tensor(0.0)}
    found = mix_to(one, other, lambda _: 1.0, target=0.5)
    assert (found.share, found.evaluations) == (0.0, 2) and same(found.params, other)
    with pytest.raises(ConfigurationError, match="under the target"):
        mix_to(one, other, lambda _: 0.4, target=0.5)
    with pytest.raises(DataError, match="not finite"):
        mix_to(one, other, lambda p: math.nan if p["w"] == 0.5 else p["w"].item(), target=0.5)
    with pytest.raises(ConfigurationError, match="tolerance"):
        mix_to(one, other, lambda _: 1.0, target=0.5, tolerance=0.0)


def test_a_jump_of_utility_still_gives_a_mixture_that_reaches_the_target() -> None:
    one, other = {"w": tensor(1.0)}, {"w": tensor(0.0)}
    found = mix_to(one, other, lambda p: float(p["w"] >= 0.9), target=1.0)
    assert 0.9 <= found.share <= 0.9 + 1 / 64 and found.utility == 1.0


def test_a_tied_weight_is_edited_under_all_its_names() -> None:
    layer, head = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    head.weight = layer.weight
    module = nn.Sequential(layer, head)
    state = module.state_dict()
    edited = changed(state, {"0.weight": torch.zeros(2, 2)})
    assert edited["1.weight"] is edited["0.weight"]
    assert state["1.weight"].abs().sum() > 0
    module.load_state_dict(edited)
    assert layer.weight.abs().sum() == 0
    with pytest.raises(ConfigurationError, match="shares its memory"):
        changed(state, {"0.weight": torch.zeros(2, 2), "1.weight": torch.ones(2, 2)})


def test_statistics_of_another_model_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"no tensor w of shape \[3\]"):
        dampen({"w": tensor(1.0)}, of(w=torch.ones(3)), of(w=torch.ones(3)))
    with pytest.raises(ConfigurationError, match="no tensor b"):
        mix({"w": tensor(1.0)}, {"w": tensor(1.0), "b": tensor(1.0)}, 0.5)
    with pytest.raises(ConfigurationError, match="negative"):
        dampen(model(), of(**D_F), of(**D), alpha=-1.0)


def test_parameters_go_out_of_a_module_and_back_without_its_buffers() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    params = of_module(module)
    assert set(params) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    params["0.bias"].fill_(5.0)
    assert module[0].bias.max() < 5
    into_module(module, params)
    assert module[0].bias.tolist() == [5.0, 5.0]
