"""Fusion equals the joint least-squares solution; a dropped adapter leaves the base."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sisa.approximate.edits.adapters import drop, fuse, grams
from sisa.errors import ConfigurationError, IncompleteError, NotFoundError, UsageError


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(seed: int, bias: bool = False) -> nn.Sequential:
    module = nn.Sequential(nn.Linear(4, 3, bias=bias)).double()
    with torch.no_grad():
        for at, p in enumerate(module.parameters()):
            p.copy_(drawn(*p.shape, seed=seed + 50 * at))
    return module


def fused(modules: list[nn.Sequential], data: list[Tensor]) -> dict[str, Tensor]:
    statistics = [grams(m, ["0"], [x[:3], x[3:]]) for m, x in zip(modules, data, strict=True)]
    return fuse([m.state_dict() for m in modules], statistics)


def test_fusion_is_the_exact_solution_of_the_joint_least_squares_problem() -> None:
    modules = [layer(1), layer(2), layer(3)]
    data = [drawn(n, 4, seed=10 + n) for n in (5, 9, 6)]
    found = fused(modules, data)["0.weight"]
    x = torch.cat(data)
    y = torch.cat([d @ m[0].weight.detach().T for m, d in zip(modules, data, strict=True)])
    wanted = torch.linalg.lstsq(x, y).solution.T  # of the stacked inputs, not of their squares
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)
    mean = torch.stack([m[0].weight.detach() for m in modules]).mean(0)
    assert (found - mean).abs().max() > 0.05


def test_biases_are_fused_with_their_weights() -> None:
    modules = [layer(1, bias=True), layer(2, bias=True)]
    data = [drawn(8, 4, seed=20), drawn(7, 4, seed=21)]
    found = fused(modules, data)
    x = torch.cat([torch.cat(data), torch.ones(15, 1, dtype=torch.float64)], 1)
    y = torch.cat([m(d).detach() for m, d in zip(modules, data, strict=True)])
    wanted = torch.linalg.lstsq(x, y).solution.T
    torch.testing.assert_close(found["0.weight"], wanted[:, :4], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found["0.bias"], wanted[:, 4], rtol=1e-11, atol=1e-12)


def test_where_no_input_reaches_the_fusion_is_the_mean_the_limit_of_a_ridge() -> None:
    modules = [layer(1), layer(2)]
    plane = drawn(2, 4, seed=5)  # inputs of rank 2 in 4 dimensions
    data = [drawn(6, 2, seed=30) @ plane, drawn(6, 2, seed=31) @ plane]
    found = fused(modules, data)["0.weight"]
    weights = [m[0].weight.detach().T for m in modules]
    ridge = 1e-7
    squares = [d.T @ d + ridge * torch.eye(4, dtype=torch.float64) for d in data]
    right = sum((s @ w for s, w in zip(squares, weights, strict=True)), torch.zeros(4, 3).double())
    wanted = torch.linalg.solve(squares[0] + squares[1], right).T
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    unseen = torch.linalg.svd(plane).Vh[2:]
    mean = (weights[0] + weights[1]) / 2
    torch.testing.assert_close(unseen @ found.T, unseen @ mean, rtol=1e-9, atol=1e-9)


def test_equal_adapters_fuse_to_themselves_even_where_singular() -> None:
    modules, x = [layer(1), layer(1)], drawn(2, 4, seed=40)
    found = fused(modules, [x, 2 * x])["0.weight"]
    torch.testing.assert_close(found, modules[0][0].weight.detach(), rtol=1e-13, atol=1e-13)


def test_other_numbers_are_averaged_and_inputs_stay() -> None:
    one = {"l.weight": torch.ones(1, 2).half(), "scale": torch.tensor([1.0]), "n": torch.tensor(3)}
    two = {"l.weight": torch.zeros(1, 2).half(), "scale": torch.tensor([2.0]), "n": torch.tensor(5)}
    square = {"l": torch.eye(2, dtype=torch.float64)}
    found = fuse([one, two], [square, {"l": 3 * square["l"]}])
    assert found["l.weight"].tolist() == [[0.25, 0.25]] and found["l.weight"].dtype == torch.half
    assert found["scale"].tolist() == [1.5] and found["n"].item() == 3
    for value in found.values():
        value.zero_()
    assert one["l.weight"].tolist() == [[1, 1]] and one["n"].item() == 3


def test_grams_count_every_position_and_leave_the_module_alone() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    x = torch.randn(3, 5, 4)
    found = grams(module, ["2"], [(x[:1], torch.zeros(1)), x[1:]])["2"]
    hidden = torch.cat([module[0](x).detach().flatten(0, 1), torch.ones(15, 1)], 1).double()
    torch.testing.assert_close(found, hidden.T @ hidden)
    assert module.training and not module[2]._forward_pre_hooks


class Adapted(nn.Module):
    """A base layer with adapters beside it."""

    def __init__(self, *adapters: str) -> None:
        super().__init__()
        self.base = nn.Linear(3, 3)
        self.adapters = nn.ModuleDict({name: nn.Linear(3, 3) for name in adapters})

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        for adapter in self.adapters.values():
            out = out + adapter(x)
        return out


def test_a_dropped_adapter_leaves_the_rest_bit_for_bit() -> None:
    full = Adapted("first", "second")
    state = full.state_dict()
    without = drop(drop(state, "second"), "first")
    base = Adapted()
    base.load_state_dict(without)
    x = torch.randn(4, 3)
    assert torch.equal(base(x), full.base(x)) and not torch.equal(base(x), full(x))
    assert set(drop(state, "second")) == {n for n in state if "second" not in n}
    assert len(full.state_dict()) == 6
    with pytest.raises(NotFoundError, match="no adapter fir"):
        drop(state, "fir")


def test_what_cannot_be_fused_is_refused() -> None:
    one, gram = {"l.weight": torch.ones(1, 2)}, {"l": torch.eye(2, dtype=torch.float64)}
    with pytest.raises(UsageError, match="one or more adapters"):
        fuse([], [])
    with pytest.raises(ConfigurationError, match="no tensor m"):
        fuse([one, one], [gram, {"m": gram["l"]}])
    with pytest.raises(ConfigurationError, match="width 3 do not fit"):
        fuse([one], [{"l": torch.eye(3, dtype=torch.float64)}])
    with pytest.raises(ConfigurationError, match="no layer m"):
        fuse([one], [{"m": gram["l"]}])
    with pytest.raises(ConfigurationError, match="no linear layer"):
        grams(layer(1), ["7"], [torch.zeros(1, 4)])
    with pytest.raises(IncompleteError, match="forget set is empty"):
        grams(layer(1), ["0"], [])
    with pytest.raises(ConfigurationError, match="Nothing enters"):
        grams(Unused(), ["spare"], [torch.zeros(1, 2)])


class Unused(nn.Module):
    """Has a layer that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x
