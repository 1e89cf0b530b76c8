"""The Newton step against exact retrains, its parts against dense linear algebra, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from sisa.approximate.edits.mappings import of_module
from sisa.approximate.edits.newton import (
    Curvature,
    Problem,
    conjugate_gradients,
    of_classifier,
    step,
)
from sisa.errors import ConfigurationError, IncompleteError, UsageError

N, M, D, L2 = 200, 10, 8, 0.05
TIGHT = {"tolerance": 1e-12}


def data(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [N, D] and signs [N]; the first M, which are forgotten, lie apart from the rest."""
    draws = np.random.default_rng(seed)
    x = draws.normal(size=(N, D))
    x[:M] += 1.0
    signs = np.where(x @ draws.normal(size=D) + draws.logistic(size=N) > 0, 1.0, -1.0)
    signs[:M] *= -1
    return x, signs


def batches(x: np.ndarray, y: np.ndarray, size: int = 64) -> list[tuple[Tensor, Tensor]]:
    return [
        (torch.from_numpy(x[i : i + size]), torch.from_numpy(y[i : i + size]))
        for i in range(0, len(x), size)
    ]


def linear(params: Any, batch: Any) -> Tensor:
    return batch[0] @ params["w"]


RIDGE = Problem(linear, lambda output, batch: (output - batch[1]).square() / 2, L2)
LOGISTIC = Problem(linear, lambda o, b: torch.log1p(torch.exp(-b[1] * o)), L2)


def ridge(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.linalg.solve(x.T @ x / len(x) + L2 * np.eye(D), x.T @ y / len(x))


def logistic(x: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """The minimum, by Newton's method with the curvature written out."""
    w = np.zeros(D)
    for _ in range(50):
        p = 1 / (1 + np.exp(signs * (x @ w)))
        gradient = -(x * (signs * p)[:, None]).mean(0) + L2 * w
        w = w - np.linalg.solve((x.T * (p * (1 - p))) @ x / len(x) + L2 * np.eye(D), gradient)
    assert np.abs(gradient).max() < 1e-14
    return w


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def labelled(n: int, seed: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=draws, dtype=torch.float64)
    return x, torch.randint(3, (n,), generator=draws)


def flat(params: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in params.values()])


def dense(module: nn.Sequential, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hessian and Gauss-Newton matrix of the mean loss, gradient of its sum; by `autograd`.

    The network is written out as matrices, so that nothing of the code under test is in it.
    """
    w = [p.detach() for p in module.parameters()]
    sizes = [p.numel() for p in w]

    def outputs(vector: Tensor) -> Tensor:
        a, b, c, d = (v.view(p.shape) for v, p in zip(torch.split(vector, sizes), w, strict=True))
        return (x @ a.T + b).tanh() @ c.T + d

    start = torch.cat([p.flatten() for p in w])
    hessian = torch.autograd.functional.hessian(lambda v: cross_entropy(outputs(v), y), start)
    jacobian = torch.autograd.functional.jacobian(outputs, start)
    p = outputs(start).softmax(1)
    gauss = sum(
        jacobian[i].T @ (p[i].diag() - torch.outer(p[i], p[i])) @ jacobian[i] for i in range(len(x))
    ) / len(x)
    gradient = torch.autograd.functional.jacobian(
        lambda v: cross_entropy(outputs(v), y, reduction="sum"), start
    )
    return hessian, gauss, gradient


def test_one_step_on_a_ridge_regression_is_the_exact_retrain() -> None:
    x, y = data()
    full, retrain = ridge(x, y), ridge(x[M:], y[M:])
    found = step(
        {"w": torch.from_numpy(full)}, RIDGE, batches(x[:M], y[:M]), batches(x[M:], y[M:]), **TIGHT
    )
    assert found.outcome == "converged"
    assert found.iterations <= D + 1
    assert np.abs(found.params["w"].numpy() - retrain).max() < 1e-12
    assert np.abs(full - retrain).max() > 0.05


def test_a_regularizer_left_out_is_not_the_exact_retrain() -> None:
    """Control: the forgotten items' share of it is a part of what they did."""
    x, y = data()
    full, retrain = ridge(x, y), ridge(x[M:], y[M:])
    bare = Problem(RIDGE.outputs, RIDGE.losses)
    found = step(
        {"w": torch.from_numpy(full)}, bare, batches(x[:M], y[:M]), batches(x[M:], y[M:]), **TIGHT
    )
    assert np.abs(found.params["w"].numpy() - retrain).max() > 1e-4


def test_one_step_on_a_logistic_regression_leaves_a_small_part_of_the_error() -> None:
    x, y = data()
    full, retrain = logistic(x, y), logistic(x[M:], y[M:])
    start = {"w": torch.from_numpy(full)}
    found = step(start, LOGISTIC, batches(x[:M], y[:M]), batches(x[M:], y[M:]), **TIGHT)
    nothing = np.linalg.norm(full - retrain)
    after = np.linalg.norm(found.params["w"].numpy() - retrain)
    print(f"distance to the exact retrain: {nothing:.5f} doing nothing, {after:.5f} after a step")
    assert found.outcome == "converged"
    assert nothing > 0.1
    assert after < 0.1 * nothing


def test_of_one_item_the_error_falls_with_the_square() -> None:
    """The step is first order in the share of the data that is forgotten."""
    x, y = data()
    ratios = []
    for m in (1, 2, 4, 8):
        full, retrain = logistic(x, y), logistic(x[m:], y[m:])
        found = step(
            {"w": torch.from_numpy(full)},
            LOGISTIC,
            batches(x[:m], y[:m]),
            batches(x[m:], y[m:]),
            **TIGHT,
        )
        ratios.append(
            np.linalg.norm(found.params["w"].numpy() - retrain) / np.linalg.norm(full - retrain)
        )
    assert ratios == sorted(ratios)
    assert ratios[0] < 0.01


def test_the_gauss_newton_matrix_of_a_linear_model_is_its_hessian() -> None:
    x, y = data()
    start = {"w": torch.from_numpy(logistic(x, y))}
    sets = batches(x[:M], y[:M]), batches(x[M:], y[M:])
    one = step(start, LOGISTIC, *sets, curvature="hessian", **TIGHT)
    two = step(start, LOGISTIC, *sets, curvature="gauss_newton", **TIGHT)
    torch.testing.assert_close(one.params["w"], two.params["w"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_conjugate_gradients_solve_what_numpy_solves(seed: int) -> None:
    draws = np.random.default_rng(seed)
    root = draws.normal(size=(30, 20))
    a, b = root.T @ root + 0.1 * np.eye(20), draws.normal(size=20)
    matrix = torch.from_numpy(a)
    found = conjugate_gradients(lambda v: matrix @ v, torch.from_numpy(b), tolerance=1e-12)
    assert found.outcome == "converged"
    assert found.residual <= 1e-12
    np.testing.assert_allclose(found.x.numpy(), np.linalg.solve(a, b), rtol=1e-8, atol=1e-11)
    actual = np.linalg.norm(b - a @ found.x.numpy()) / np.linalg.norm(b)
    assert actual < 1e-10


def test_conjugate_gradients_take_as_many_products_as_there_are_eigenvalues() -> None:
    values = torch.tensor([1.0, 1.0, 5.0, 5.0, 9.0, 9.0], dtype=torch.float64)
    products = []

    def product(v: Tensor) -> Tensor:
        products.append(v)
        return values * v

    found = conjugate_gradients(product, torch.arange(1.0, 7, dtype=torch.float64), 1e-10)
    assert (found.outcome, found.iterations, len(products)) == ("converged", 3, 3)


def test_conjugate_gradients_name_how_they_ended() -> None:
    b = torch.ones(50, dtype=torch.float64)
    steep = torch.logspace(-6, 6, 50, dtype=torch.float64)
    short = conjugate_gradients(lambda v: steep * v, b, tolerance=1e-12, limit=5)
    assert (short.outcome, short.iterations) == ("iteration_limit", 5)
    assert short.residual > 1e-12
    saddle = torch.linspace(-1, 0.5, 50, dtype=torch.float64)
    assert conjugate_gradients(lambda v: saddle * v, b).outcome == "negative_curvature"
    assert conjugate_gradients(lambda v: 0 * v, b).outcome == "negative_curvature"
    assert conjugate_gradients(lambda v: v * torch.nan, b).outcome == "not_finite"
    assert conjugate_gradients(lambda v: v, b * torch.inf).outcome == "not_finite"
    nothing = conjugate_gradients(lambda v: v * torch.nan, 0 * b)
    assert (nothing.outcome, nothing.iterations) == ("converged", 0)
    assert not nothing.x.any()


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("blocked", [False, True])
def test_a_step_of_a_network_is_that_of_dense_matrices(curvature: Curvature, blocked: bool) -> None:
    module, kept, gone = network(), labelled(40, 1), labelled(6, 2)
    params, damping, l2 = of_module(module), 0.3, 0.1
    hessian, gauss, _ = dense(module, *kept)
    matrix = hessian if curvature == "hessian" else gauss
    gradient = dense(module, *gone)[2] + 6 * l2 * flat(params)
    matrix = matrix + (l2 + damping) * torch.eye(len(matrix), dtype=torch.float64)
    chosen, places = None, torch.ones(len(matrix), dtype=torch.bool)
    if blocked:
        draws = torch.Generator().manual_seed(3)
        chosen = {
            name: torch.rand(value.shape, generator=draws) < 0.4
            for name, value in params.items()
            if name != "2.bias"
        }
        places = torch.cat([mask.flatten() for mask in chosen.values()])
        places = torch.cat([places, torch.zeros(3, dtype=torch.bool)])
    wanted = flat(params)
    wanted[places] += torch.linalg.solve(matrix[places][:, places], gradient[places] / 40)
    found = step(
        params,
        of_classifier(module, l2),
        [gone],
        [(kept[0][:25], kept[1][:25]), (kept[0][25:], kept[1][25:])],
        curvature=curvature,
        damping=damping,
        chosen=chosen,
        **TIGHT,
    )
    assert found.outcome == "converged"
    torch.testing.assert_close(flat(found.params), wanted, rtol=0, atol=1e-10)
    assert torch.equal(flat(found.params)[~places], flat(params)[~places])
    assert (flat(found.params)[places] != flat(params)[places]).all()
    assert (hessian - gauss).abs().max() > 1e-3  # the two are not the same here


def test_a_block_is_not_the_whole_step_cut_to_it() -> None:
    module, kept, gone = network(), labelled(40, 1), labelled(6, 2)
    params = of_module(module)
    problem = of_classifier(module, 0.1)
    chosen = {"2.weight": torch.ones(3, 5, dtype=torch.bool)}
    how = {"curvature": "gauss_newton", "damping": 0.3}
    whole = step(params, problem, [gone], [kept], **how).params["2.weight"]
    block = step(params, problem, [gone], [kept], chosen=chosen, **how).params["2.weight"]
    assert (whole - block).abs().max() > 1e-4


def test_without_convergence_the_step_is_shorter_and_says_so() -> None:
    x, y = data()
    start = {"w": torch.from_numpy(logistic(x, y))}
    sets = batches(x[:M], y[:M]), batches(x[M:], y[M:])
    short = step(start, LOGISTIC, *sets, tolerance=1e-12, limit=1)
    whole = step(start, LOGISTIC, *sets, **TIGHT)
    assert (short.outcome, short.iterations) == ("iteration_limit", 1)
    assert short.residual > 0.01
    assert 0 < (short.params["w"] - start["w"]).norm() < (whole.params["w"] - start["w"]).norm()


def test_negative_curvature_leaves_the_model_as_it_was() -> None:
    module, kept, gone = network(), labelled(40, 1), labelled(6, 2)
    with torch.no_grad():
        module[0].bias[0] = -0.0
    params = of_module(module)
    found = step(params, of_classifier(module), [gone], [kept])
    assert found.outcome == "negative_curvature"
    for name, value in params.items():
        assert torch.equal(found.params[name].view(torch.int64), value.view(torch.int64))
        assert found.params[name].data_ptr() != value.data_ptr()
    convex = step(params, of_classifier(module), [gone], [kept], curvature="gauss_newton", limit=40)
    assert convex.outcome != "negative_curvature"


def test_a_loss_that_is_not_finite_leaves_the_model_as_it_was() -> None:
    x, y = data()
    start = {"w": torch.from_numpy(logistic(x, y))}
    kept = batches(x[M:], y[M:])
    broken = [(kept[0][0] * torch.nan, kept[0][1])]
    for sets in ((broken, kept), (batches(x[:M], y[:M]), broken)):
        found = step(start, LOGISTIC, *sets)
        assert found.outcome == "not_finite"
        assert torch.equal(found.params["w"], start["w"])


def test_more_damping_makes_a_shorter_step() -> None:
    x, y = data()
    start = {"w": torch.from_numpy(logistic(x, y))}
    sets = batches(x[:M], y[:M]), batches(x[M:], y[M:])
    steps = [
        float((step(start, LOGISTIC, *sets, damping=d).params["w"] - start["w"]).norm())
        for d in (0.0, 0.1, 1.0, 10.0)
    ]
    assert steps == sorted(steps, reverse=True)
    assert steps[3] < 0.05 * steps[0]


def test_noise_is_that_of_its_seed_and_falls_on_what_may_move() -> None:
    module = nn.Linear(4, 3).double()
    with torch.no_grad():
        module.bias.zero_()
    params, kept, gone = of_module(module), labelled(40, 1), labelled(6, 2)
    problem = of_classifier(module, 0.1)
    chosen = {"weight": torch.ones(3, 4, dtype=torch.bool)}

    def moved(sigma: float, seed: int | None = None) -> dict[str, Tensor]:
        return step(params, problem, [gone], [kept], chosen=chosen, sigma=sigma, seed=seed).params

    still = moved(0.0)
    assert torch.equal(moved(0.5, 7)["weight"], moved(0.5, 7)["weight"])
    assert not torch.equal(moved(0.5, 7)["weight"], moved(0.5, 8)["weight"])
    noise = torch.stack([moved(0.5, seed)["weight"] - still["weight"] for seed in range(100)])
    assert abs(float(noise.std()) - 0.5) < 0.04  # of 1200 draws, 4 standard errors
    assert abs(float(noise.mean())) < 0.06
    assert torch.equal(moved(0.5, 7)["bias"], params["bias"])
    with pytest.raises(UsageError, match="seed"):
        moved(0.5)


def test_the_input_is_not_changed_and_half_precision_stays() -> None:
    module = network(torch.bfloat16)
    params = of_module(module)
    before = {name: value.clone() for name, value in params.items()}
    kept, gone = labelled(40, 1), labelled(6, 2)
    sets = [(gone[0].float(), gone[1])], [(kept[0].float(), kept[1])]
    found = step(params, of_classifier(module, 0.1), *sets, curvature="gauss_newton", damping=0.01)
    assert found.outcome == "converged"
    assert all(torch.equal(params[name], before[name]) for name in params)
    assert all(value.dtype == torch.bfloat16 for value in found.params.values())
    assert not torch.equal(found.params["2.weight"], params["2.weight"])


class Attention(nn.Module):
    """Fused attention kernels have no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inner(x[:, None, None].expand(-1, 1, 3, -1)).chunk(3, -1)
        return self.outer(scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0].mean(1))


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_a_model_with_attention_can_be_stepped(curvature: Curvature) -> None:
    torch.manual_seed(0)
    module = Attention()
    (x, y), (u, v) = labelled(40, 1), labelled(6, 2)
    found = step(
        of_module(module),
        of_classifier(module, 0.1),
        [(u.float(), v)],
        [(x.float(), y)],
        curvature=curvature,
        damping=1.0,
        tolerance=1e-4,
    )
    assert found.outcome == "converged"
    assert all(value.isfinite().all() for value in found.params.values())


def test_what_cannot_be_is_refused() -> None:
    x, y = data()
    start = {"w": torch.from_numpy(logistic(x, y))}
    gone, kept = batches(x[:M], y[:M]), batches(x[M:], y[M:])
    for sets, what in ((([], kept), "forget set"), ((gone, [(x[:0], y[:0])]), "retain set")):
        with pytest.raises(IncompleteError, match=f"The {what} is empty"):
            step(start, LOGISTIC, *[[tuple(map(torch.as_tensor, b)) for b in s] for s in sets])
    for sets in ((iter(gone), kept), (gone, (batch for batch in kept))):
        with pytest.raises(UsageError, match="several times"):
            step(start, LOGISTIC, *sets)
    for how in (
        {"damping": -1.0},
        {"sigma": -1.0, "seed": 0},
        {"chosen": {}},
        {"chosen": {"w": torch.zeros(D, dtype=torch.bool)}},
        {"chosen": {"v": torch.ones(D, dtype=torch.bool)}},
    ):
        with pytest.raises(ConfigurationError):
            step(start, LOGISTIC, gone, kept, **how)
