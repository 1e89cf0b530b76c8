"""Was an item trained on? Population scores of one forward pass; higher means more likely.

They need no shadow model, and put one threshold to all items. That overestimates protection: see
`roc.POPULATION_CAVEAT` and, for attacks on each example, `lira`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sisa.errors import DataError, IncompleteError, UsageError

Array = npt.NDArray[np.float64]

MIN_K = 0.2
"""Share of an item's rows that Min-K and Min-K++ look at (Shi et al.; PrivLeak takes 0.4)."""

SMALLEST_VARIANCE = 1e-6
"""Of log p over the vocabulary: where the model is certain, Min-K++ would divide by zero."""


class Statistics(Protocol):
    """What one forward pass says of N rows of B items; arrays of NumPy or of torch on the CPU.

    A row is a labelled position of a text, or an image: see `metrics.statistics`.
    """

    @property
    def nll(self) -> Any:
        """-log p(label), float [N]."""

    @property
    def mean_log_p(self) -> Any:
        """Mean of log p over the vocabulary under p, float [N]."""

    @property
    def var_log_p(self) -> Any:
        """Variance of the same, float [N]."""

    @property
    def item(self) -> Any:
        """Which item a row belongs to, int64 [N]."""

    @property
    def items(self) -> int:
        """B."""


@dataclass(frozen=True)
class Observed:
    """All that the attacks may look at; what is None was not measured.

    Attributes:
        rows: Of the model under attack.
        sizes: Bytes of each item's text after zlib, [B]: see `zlib_sizes`.
        reference: The same rows under a model that never saw the items.
        gradients: Norms of each item's gradient, [B]: see `gradient_norms`.
    """

    rows: Statistics
    sizes: npt.ArrayLike | None = None
    reference: Statistics | None = None
    gradients: npt.ArrayLike | None = None


@dataclass(frozen=True)
class Attack:
    """An attack.

    Attributes:
        score: Scores [B], or None where what it needs was not measured.
        needs: What it needs besides the model's own probabilities, in words.
        source: Who proposed it.
    """

    score: Callable[[Observed], Array | None]
    needs: str
    source: str


def score_loss(rows: Statistics) -> Array:
    """-S / n: minus the mean nll of an item's rows; float64 [B] (Yeom et al., CSF 2018).

    Raises:
        IncompleteError: There is no item, or an item has no row.
        DataError: A statistic is not a finite number.
    """
    return -_means(rows)


def score_zlib(rows: Statistics, sizes: npt.ArrayLike) -> Array:
    """-(S / n) / bytes: the loss against how compressible the text is (Carlini et al., 2021).

    Args:
        rows: Of the model under attack.
        sizes: Bytes of each item's text after zlib, [B].

    Raises:
        IncompleteError: There is no item, or an item has no row.
        DataError: A statistic is not a finite number, or a size is not above zero.
    """
    found = _per_item(sizes, rows.items, "sizes")
    if (found <= 0).any():
        raise DataError("A compressed text has no size.", "Use `zlib_sizes`.")
    return -_means(rows) / found


def zlib_sizes(texts: Iterable[str]) -> Array:
    """Bytes of each text in UTF-8 after zlib, float64 [B]."""
    return np.array([len(zlib.compress(text.encode())) for text in texts], dtype=np.float64)


def score_reference(rows: Statistics, reference: Statistics) -> Array:
    """Mean nll under the reference minus that under the model; float64 [B].

    The reference should never have seen the items: the exact retrain is the best there is.

    Raises:
        IncompleteError: There is no item, or an item has no row.
        DataError: A statistic is not a finite number, or the rows are of other items.
    """
    if not np.array_equal(np.asarray(rows.item), np.asarray(reference.item)):
        raise DataError(
            "Model and reference were not measured on the same rows.",
            "Tokenise both with one tokenizer.",
        )
    return _means(reference) - _means(rows)


def score_min_k(rows: Statistics, share: float = MIN_K) -> Array:
    """Mean of an item's max(1, int(share n)) lowest log p; float64 [B] (Shi et al., ICLR 2024).

    Raises:
        IncompleteError: There is no item, or an item has no row.
        DataError: A statistic is not a finite number.
        UsageError: The share is not above 0 and at most 1.
    """
    return _lowest(-_values(rows.nll, "nll"), rows, share)


def score_min_k_plus_plus(rows: Statistics, share: float = MIN_K) -> Array:
    """Min-K of (log p - mean) / deviation of log p over the vocabulary (Zhang et al., ICLR 2025).

    Raises:
        IncompleteError: There is no item, or an item has no row.
        DataError: A statistic is not a finite number.
        UsageError: The share is not above 0 and at most 1.
    """
    spread = np.sqrt(np.maximum(_values(rows.var_log_p, "var_log_p"), SMALLEST_VARIANCE))
    log_p, mean = -_values(rows.nll, "nll"), _values(rows.mean_log_p, "mean_log_p")
    return _lowest((log_p - mean) / spread, rows, share)


def score_gradient_norm(norms: npt.ArrayLike) -> Array:
    """Minus the norm of an item's gradient: what was learned pulls no more; float64 [B].

    Args:
        norms: From `gradient_norms`, [B].

    Raises:
        IncompleteError: There is no item.
        DataError: A norm is not a finite number.
    """
    found = _values(norms, "gradient norms")
    if not len(found):
        raise IncompleteError("There is no item to attack.", "Name at least one.")
    return -found


def gradient_norms(losses: Iterable[Tensor], parameters: Sequence[Tensor]) -> Array:
    """Mean over tensors of the Euclidean norm of an item's gradient, float64 [B].

    Losses are taken one by one, so that a generator holds one graph at a time; `.grad` is left as
    it is. A tensor that a loss does not depend on is left out of its mean.

    Args:
        losses: The mean nll of each item, scalars with a graph.
        parameters: What to differentiate by.

    Raises:
        DataError: A loss depends on none of them.
    """
    found = []
    for loss in losses:
        if not loss.requires_grad:
            raise DataError("A loss has no gradient.", "Make it where gradients are recorded.")
        gradients = torch.autograd.grad(loss, list(parameters), allow_unused=True)
        norms = [torch.linalg.vector_norm(g.double()) for g in gradients if g is not None]
        if not norms:
            raise DataError(
                "A loss depends on none of the parameters.", "Name those that were trained."
            )
        found.append(float(torch.stack(norms).mean()))
    return np.array(found, dtype=np.float64)


def _zlib(seen: Observed) -> Array | None:
    return None if seen.sizes is None else score_zlib(seen.rows, seen.sizes)


def _reference(seen: Observed) -> Array | None:
    return None if seen.reference is None else score_reference(seen.rows, seen.reference)


def _gradient(seen: Observed) -> Array | None:
    return None if seen.gradients is None else score_gradient_norm(seen.gradients)


ATTACKS = {
    "loss": Attack(lambda seen: score_loss(seen.rows), "nothing", "Yeom et al., CSF 2018"),
    "zlib": Attack(_zlib, "the texts' compressed sizes", "Carlini et al., USENIX Security 2021"),
    "reference": Attack(
        _reference,
        "a forward pass of a model that never saw the items",
        "Carlini et al., USENIX Security 2021",
    ),
    "min_k": Attack(lambda seen: score_min_k(seen.rows), "nothing", "Shi et al., ICLR 2024"),
    "min_k_plus_plus": Attack(
        lambda seen: score_min_k_plus_plus(seen.rows),
        "mean and variance of log p over the vocabulary",
        "Zhang et al., ICLR 2025",
    ),
    "gradient_norm": Attack(
        _gradient, "a backward pass for each item", "Nasr et al., IEEE S&P 2019"
    ),
}
"""By name; each states what it needs."""


def scores(seen: Observed) -> dict[str, Array]:
    """Scores [B] of every attack for which what it needs was measured.

    Raises:
        IncompleteError: There is no item, or an item has no row.
        DataError: A statistic is not a finite number.
    """
    found = {name: attack.score(seen) for name, attack in ATTACKS.items()}
    return {name: score for name, score in found.items() if score is not None}


def _values(found: Any, name: str) -> Array:
    values = np.asarray(found, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError(
            f"{int((~np.isfinite(values)).sum())} values of {name} are not finite numbers.",
            "The model is broken there: look at its loss.",
        )
    return values


def _per_item(found: npt.ArrayLike, items: int, name: str) -> Array:
    values = _values(found, name)
    if values.shape != (items,):
        raise DataError(f"There are {values.size} {name} for {items} items.", "Give one for each.")
    return values


def _lengths(rows: Statistics) -> tuple[npt.NDArray[np.int64], Array]:
    """Each row's item and each item's number of rows."""
    item = np.asarray(rows.item, dtype=np.int64)
    lengths = np.bincount(item, minlength=rows.items).astype(np.float64)
    if not rows.items:
        raise IncompleteError("There is no item to attack.", "Name at least one.")
    if empty := int((lengths == 0).sum()):
        raise IncompleteError(
            f"{empty} of {rows.items} items have no labelled position, so nothing can be said "
            "of their membership.",
            "Leave them out.",
        )
    return item, lengths


def _means(rows: Statistics) -> Array:
    item, lengths = _lengths(rows)
    return np.bincount(item, weights=_values(rows.nll, "nll"), minlength=rows.items) / lengths


def _lowest(values: Array, rows: Statistics, share: float) -> Array:
    """Mean of the lowest share of each item's values, one at least."""
    if not 0 < share <= 1:
        raise UsageError(f"{share} is no share.", "Write a number above 0 and at most 1.")
    item, lengths = _lengths(rows)
    order = np.lexsort((values, item))
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    kept = np.maximum(1, (share * lengths).astype(np.int64))
    item = item[order]
    taken = np.arange(len(item)) - starts[item] < kept[item]
    sums = np.bincount(item[taken], weights=values[order][taken], minlength=rows.items)
    found: Array = sums / kept
    return found
