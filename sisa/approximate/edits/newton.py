"""A damped Newton step away from the forget set, solved by conjugate gradients.

Products with the curvature of the retain set are taken batch by batch, so that no matrix is ever
built. For a quadratic loss one step is the exact retrain; for a deep network the curvature is
degenerate, and the step no better than its damping.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from sisa.approximate.edits.mappings import Parameters, changed, check, wide
from sisa.approximate.edits.passes import logits_of
from sisa.errors import ConfigurationError, IncompleteError, UsageError

Outcome = Literal["converged", "iteration_limit", "negative_curvature", "not_finite"]
Curvature = Literal["hessian", "gauss_newton"]


@dataclass(frozen=True)
class Problem:
    """A loss in two parts, so that both curvatures can be had.

    Attributes:
        outputs: From parameters and a batch of n items to what the model gives, [n, ...].
        losses: From that and the batch to one loss an item, [n].
        l2: Each item's loss is also l2 / 2 times the squared norm of the parameters.
    """

    outputs: Callable[[Parameters, Any], Tensor]
    losses: Callable[[Tensor, Any], Tensor]
    l2: float = 0.0


@dataclass(frozen=True)
class Solution:
    """Where conjugate gradients ended.

    Attributes:
        x: [d], the last iterate.
        outcome: Why they ended.
        iterations: Products taken.
        residual: Norm of b - A x over the norm of b.
    """

    x: Tensor
    outcome: Outcome
    iterations: int
    residual: float


@dataclass(frozen=True)
class Stepped:
    """A model after a step.

    Attributes:
        params: New; as they were, but for noise, after negative curvature or numbers not finite.
        outcome: `iteration_limit` means a step that is shorter than asked for.
        iterations: Products taken.
        residual: Of the linear system, relative.
    """

    params: dict[str, Tensor]
    outcome: Outcome
    iterations: int
    residual: float


def of_classifier(module: nn.Module, l2: float = 0.0) -> Problem:
    """Cross-entropy of a module on batches of inputs [n, ...] and labels [n].

    Args:
        module: In evaluation mode: items must not depend on each other, nor on chance.
        l2: See `Problem`; the weight decay of plain gradient descent.
    """

    def outputs(params: Parameters, batch: Any) -> Tensor:
        return logits_of(functional_call(module, dict(params), (batch[0],)))

    def losses(logits: Tensor, batch: Any) -> Tensor:
        return cross_entropy(logits, batch[1], reduction="none")

    return Problem(outputs, losses, l2)


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], b: Tensor, tolerance: float = 1e-6, limit: int = 250
) -> Solution:
    """Solve A x = b for a symmetric positive definite A; Hestenes and Stiefel, 1952.

    Args:
        product: From v [d] to A v [d].
        b: [d], float32 or float64.
        tolerance: The residual to reach, relative to the norm of b.
        limit: Products to take at most.
    """
    x, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
    start = square = float(b @ b)
    if start == 0:
        return Solution(x, "converged", 0, 0.0)

    def ended(outcome: Outcome, iterations: int) -> Solution:
        return Solution(x, outcome, iterations, math.sqrt(square / start))

    if not math.isfinite(start):
        return ended("not_finite", 0)
    for iteration in range(1, limit + 1):
        image = product(direction)
        curvature = float(direction @ image)
        if not math.isfinite(curvature):
            return ended("not_finite", iteration)
        if curvature <= 0:
            return ended("negative_curvature", iteration)
        length = square / curvature
        x = x + length * direction
        residual = residual - length * image
        last, square = square, float(residual @ residual)
        if square <= tolerance**2 * start:
            return ended("converged", iteration)
        direction = residual + (square / last) * direction
    return ended("iteration_limit", limit)


def step(
    params: Parameters,
    problem: Problem,
    forget: Iterable[Any],
    retain: Iterable[Any],
    *,
    curvature: Curvature = "hessian",
    damping: float = 0.0,
    tolerance: float = 1e-6,
    limit: int = 250,
    chosen: Parameters | None = None,
    sigma: float = 0.0,
    seed: int | None = None,
) -> Stepped:
    """theta + (H + damping I)^-1 sum of the forget set's gradients / (n - m), + N(0, sigma^2).

    H is the mean curvature of the n - m retained items at theta, which minimises the loss of all n:
    Sekhari et al., "Remember What You Want to Forget", NeurIPS 2021, algorithm 1, without its
    choice of sigma. Their guarantee needs a convex loss; here is none.

    Args:
        params: theta; not changed.
        problem: The loss that theta was trained for.
        forget: Batches of the m forgotten items.
        retain: Batches of the retained items; iterated over once a product.
        curvature: The Hessian, or the Gauss-Newton matrix, which is never negative for a loss that
            is convex in the outputs.
        damping: Added to the diagonal; the more, the shorter the step.
        tolerance: Of the linear system, relative; 1e-6 is about what float32 reaches.
        limit: Products at most.
        chosen: Masks, bool: a step in these coordinates alone, by their block of the curvature. A
            parameter without a mask does not move.
        sigma: Deviation of the noise on each coordinate that may move.
        seed: Of the noise.

    Raises:
        UsageError: There is noise but no seed, or batches can be iterated over only once.
        ConfigurationError: Damping or sigma is negative, no coordinate is chosen, or a mask fits
            no parameter.
        IncompleteError: The retain set or the forget set is empty.
    """
    if damping < 0 or sigma < 0:
        raise ConfigurationError("damping and sigma must not be negative.", "Correct the setting.")
    if sigma and seed is None:
        raise UsageError("Noise needs a seed.", "Give one, so that the step can be repeated.")
    block = _Block(params, problem, chosen)
    kept = block.count(retain, "retain set")
    gone = block.count(forget, "forget set")

    def product(v: Tensor) -> Tensor:
        spread = block.spread(v)
        total = sum((block.product(spread, batch, curvature) for batch in retain), start=0 * v)
        return total / kept + (problem.l2 + damping) * v

    # the curvature of fused attention kernels cannot be had
    with sdpa_kernel(SDPBackend.MATH):
        own = gone * problem.l2 * block.vector()
        gradient = sum((block.gradient(batch) for batch in forget), start=own)
        found = conjugate_gradients(product, gradient / kept, tolerance, limit)
    stepped = found.outcome in ("converged", "iteration_limit")
    move = found.x if stepped else torch.zeros_like(found.x)
    if sigma:
        draws = torch.Generator().manual_seed(seed or 0)
        noise = torch.randn(len(move), generator=draws, dtype=torch.float64)
        move = move + (sigma * noise).to(move)
    # subtracted, because -0.0 + 0.0 would change the bits of what does not move
    back = block.spread(-move) if move.any() else {}
    moved = {name: wide(params[name].detach()) - value for name, value in back.items()}
    return Stepped(changed(params, moved), found.outcome, found.iterations, found.residual)


class _Block:
    """The coordinates that may move, as one vector; gradients and products of a batch in them."""

    def __init__(self, params: Parameters, problem: Problem, chosen: Parameters | None) -> None:
        check(params, chosen or {})
        if chosen is not None and not any(mask.any() for mask in chosen.values()):
            raise ConfigurationError("No coordinate is chosen.", "Choose some, or leave it out.")
        names = params.keys() if chosen is None else chosen.keys()
        everything = {name: wide(value.detach()) for name, value in params.items()}
        self._free = {name: everything[name] for name in names}
        self._fixed = {name: value for name, value in everything.items() if name not in names}
        self._places: Tensor | None = None
        if chosen is not None:
            self._places = torch.cat([chosen[name].flatten() for name in names])
        self._problem = problem

    def count(self, batches: Iterable[Any], what: str) -> int:
        """How many items there are.

        Raises:
            IncompleteError: There is none.
            UsageError: They can be iterated over only once.
        """
        if iter(batches) is batches:
            raise UsageError(f"The {what} is needed several times.", "Give a list of batches.")
        with torch.no_grad():
            found = sum(len(self._losses(self._free, batch)) for batch in batches)
        if not found:
            raise IncompleteError(f"The {what} is empty.", "Give at least one example.")
        return found

    def vector(self) -> Tensor:
        """The parameters, [d]."""
        return self._gather(self._free)

    def gradient(self, batch: Any) -> Tensor:
        """Of the sum of a batch's losses, without l2, [d]."""
        return self._gather(grad(lambda free: self._losses(free, batch).sum())(self._free))

    def product(self, spread: dict[str, Tensor], batch: Any, curvature: Curvature) -> Tensor:
        """Of the curvature of the sum of a batch's losses, without l2, with a vector, [d]."""
        if curvature == "hessian":
            gradients = grad(lambda free: self._losses(free, batch).sum())
            return self._gather(vjp(gradients, self._free)[1](spread)[0])

        def outputs(free: dict[str, Tensor]) -> Tensor:
            return self._problem.outputs({**self._fixed, **free}, batch)

        found, back = vjp(outputs, self._free)[:2]
        along = jvp(outputs, (self._free,), (spread,))[1]
        by_output = grad(lambda output: self._problem.losses(output, batch).sum())
        return self._gather(back(vjp(by_output, found)[1](along)[0])[0])

    def spread(self, vector: Tensor) -> dict[str, Tensor]:
        """[d] as tensors of the parameters' shapes, 0 where not chosen."""
        if self._places is not None:
            whole = vector.new_zeros(len(self._places))
            whole[self._places] = vector
            vector = whole
        parts = torch.split(vector, [value.numel() for value in self._free.values()])
        return {
            name: part.view(value.shape).to(value.dtype)
            for (name, value), part in zip(self._free.items(), parts, strict=True)
        }

    def _gather(self, tensors: dict[str, Tensor]) -> Tensor:
        vector = torch.cat([tensors[name].flatten() for name in self._free])
        return vector if self._places is None else vector[self._places]

    def _losses(self, free: dict[str, Tensor], batch: Any) -> Tensor:
        outputs = self._problem.outputs({**self._fixed, **free}, batch)
        return self._problem.losses(outputs, batch)
