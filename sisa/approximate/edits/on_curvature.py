"""The damped Newton step away from the forget set, of classifiers and of language models."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sisa.approximate.batches import Batch, Examples
from sisa.approximate.edits.given import Edited, Given
from sisa.approximate.edits.mappings import Parameters
from sisa.approximate.edits.measured import batches, importance, labelled
from sisa.approximate.edits.newton import Curvature, Problem, Stepped, of_classifier, step
from sisa.approximate.edits.partial import masks
from sisa.approximate.models import Subject
from sisa.approximate.objectives.rows import nll
from sisa.approximate.rows import IGNORED, item_means
from sisa.errors import ConfigurationError, DivergedError, IncompleteError


def newton(
    given: Given,
    *,
    share: float = 1.0,
    curvature: Curvature = "gauss_newton",
    damping: float = 0.1,
    l2: float = 0.0,
    tolerance: float = 1e-4,
    limit: int = 100,
    sigma: float = 0.0,
    layers: str = "*",
) -> Edited:
    """One step by conjugate gradients; see `newton.step`.

    With a `share` under 1 only that part of each parameter moves, by its block of the curvature:
    what matters most for the forget set, by squared gradients of its items.
    """
    assert given.retain is not None
    if not 0 < share <= 1:
        raise ConfigurationError(f"The share {share} is not in (0, 1].", "Correct the setting.")
    done = step(
        given.parameters(),
        _problem(given, l2),
        _batches(given, given.forget, "forget set"),
        _batches(given, given.retain, "retain set"),
        curvature=curvature,
        damping=damping,
        tolerance=tolerance,
        limit=limit,
        chosen=_chosen(given, share, layers),
        sigma=sigma,
        seed=given.seed,
    )
    return Edited(done.params, (_told(done),))


def _told(done: Stepped) -> str:
    """What came of the step.

    Raises:
        IncompleteError: The curvature is negative somewhere, and nothing moved.
        DivergedError: A number is not finite.
    """
    if done.outcome == "negative_curvature":
        raise IncompleteError(
            f"The curvature is negative after {done.iterations} products, so no step was taken.",
            "Raise damping, or set curvature to gauss_newton.",
        )
    if done.outcome == "not_finite":
        raise DivergedError(
            "A product with the curvature is no longer a number; the model is as it was.",
            "Raise damping.",
        )
    short = (
        "" if done.outcome == "converged" else " The step is shorter than asked for: raise limit."
    )
    return f"{done.iterations} products left a residual of {done.residual:.3g}.{short}"


def _batches(given: Given, items: Batch, what: str) -> list[Any]:
    if isinstance(items, Examples):
        return list(labelled(given, items, what))
    return list(batches(items, given.items_per_batch, what))


def _problem(given: Given, l2: float) -> Problem:
    if isinstance(given.forget, Examples):
        return of_classifier(given.subject.module, l2)
    forward = _Rows(given.subject)

    def outputs(params: Parameters, batch: Any) -> Tensor:
        named = {f"{_Rows.INNER}.{name}": value for name, value in params.items()}
        found: Tensor = functional_call(forward, named, (batch,))
        return found

    def losses(logits: Tensor, batch: Any) -> Tensor:
        labels, item, items = forward.about(batch)
        return item_means(nll(logits, labels), item, items)

    return Problem(outputs, losses, l2)


class _Rows(nn.Module):
    """A module whose forward gives the logits of a batch's labelled positions, [N, V]."""

    INNER = "inner"

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.inner, self._subject = subject.module, subject

    def forward(self, batch: Any) -> Tensor:
        rows = self._subject.rows(batch)
        return rows.head(rows.hidden)

    def about(self, batch: Any) -> tuple[Tensor, Tensor, int]:
        """Labels and item of each row, and how many items there are."""
        counts = torch.tensor(batch.counts())
        item = torch.arange(len(counts)).repeat_interleave(counts)
        labels = torch.cat([own[1:][own[1:] != IGNORED] for own in batch.labels])
        device = self._subject.device
        return labels.to(device), item.to(device), len(counts)


def _chosen(given: Given, share: float, layers: str) -> dict[str, Tensor] | None:
    """Masks of what may move; None for all of the module.

    Raises:
        ConfigurationError: No trained parameter has such a name.
    """
    trained = given.subject.trainable()
    named = {name: p for name, p in trained.items() if fnmatchcase(name, layers)}
    if not named:
        raise ConfigurationError(
            f"No trained parameter has a name like {layers}.", "Correct layers."
        )
    if share < 1:
        found = importance(given, given.forget, "fisher", "forget set").values
        return masks({name: found[name] for name in named}, share)
    if len(named) == len(dict(given.subject.module.named_parameters())):
        return None
    return {name: torch.ones_like(p, dtype=torch.bool) for name, p in named.items()}
