"""Likelihood-ratio attacks on each example, from its scores under shadow models.

LiRA (Carlini et al., IEEE S&P 2022) asks whether an example was trained on: its score under the
target is held against two Gaussians, one of shadow models that were trained on it ("in") and one of
those that were not ("out"). U-LiRA (Hayes et al., arXiv:2403.01218) asks whether it was trained on
and then unlearned: "in" are shadow models that unlearned it, "out" those that never had it.

Here a Gaussian has a mean and an unbiased variance, which examples share where there are few
models, and the likelihood ratio is of both worlds; LiRA's code takes medians, one deviation of all
"in" scores for both worlds, and offline two tails.

The score is phi = log(p / (1 - p)) of the label's probability, which is about Gaussian over models.
Arrays are [S, E]: S shadow models, E examples. Results are higher where "in" is more likely.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sisa.errors import DataError, IncompleteError

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Variance = Literal["auto", "example", "shared"]

ENOUGH = 32
"""Fewest scores on either side of an example from which "auto" estimates a variance of its own."""

SMALLEST_DEVIATION = 1e-3
"""Of phi over models: below it is rounding, and equal scores would divide by zero."""


@dataclass(frozen=True)
class Side:
    """One of the two worlds of an example.

    Attributes:
        scores: phi under each shadow model, float64 [S, E].
        use: Which of them belong to this world, bool [S, E].
    """

    scores: Array
    use: Mask

    def without(self, model: int) -> Side:
        """Without one score of each example: this model's, or else that of the next that has one.

        So a side is as large whether the model is in it or not. Left out of its own side alone, it
        would make that side the worse known one, and its target less likely there: at six
        models and no difference the AUC is then 0.47 instead of 0.5.
        """
        models, examples = self.use.shape
        first = (np.roll(self.use, -model, axis=0).argmax(0) + model) % models
        use = self.use.copy()
        use[first, np.arange(examples)] = False
        return Side(self.scores, use)


def log_odds(nll: npt.ArrayLike) -> Array:
    """phi = log(p / (1 - p)) for p = exp(-nll), float64 of the same shape.

    Neither exp(-nll) for large nor 1 - p for small values is rounded away: phi = -nll - log(1 -
    exp(-nll)), with the logarithm taken as in Maechler, "Accurately computing log(1 - exp(-|a|))".
    A nll of zero counts as half the spacing of its type's numbers at 1 (float32: phi = 16.6): the
    model's p cannot be told from 1. For a text take the mean nll of its rows.

    Args:
        nll: Not negative; beyond rounding, which is taken for zero.

    Raises:
        DataError: A value is not a finite number, or negative.
    """
    given = np.asarray(nll)
    kind = given.dtype if np.issubdtype(given.dtype, np.floating) else np.dtype(np.float64)
    floor = float(np.finfo(kind).eps) / 2
    values = given.astype(np.float64)
    if not np.isfinite(values).all() or (values < -16 * floor).any():
        raise DataError(
            "A negative log-likelihood is negative or not a finite number.",
            "The model is broken there: look at its loss.",
        )
    values = np.maximum(values, floor)
    with np.errstate(divide="ignore"):
        near = np.log(-np.expm1(-values))
    found: Array = -values - np.where(values < np.log(2), near, np.log1p(-np.exp(-values)))
    return found


def log_odds_of_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """phi = logit of the label - logsumexp of all others: exact where p rounds to 1; float64 [N].

    Args:
        logits: [N, C], C at least 2.
        labels: int64 [N].
    """
    wide = logits.double()
    own = wide.gather(1, labels[:, None])
    others = wide.scatter(1, labels[:, None], -torch.inf)
    return (own[:, 0] - others.logsumexp(1)).detach()


def lira(
    target: npt.ArrayLike,
    scores: npt.ArrayLike,
    members: npt.ArrayLike,
    *,
    offline: bool = False,
    variance: Variance = "auto",
) -> Array:
    """Was each example trained on? log N(phi; in) - log N(phi; out), float64 [E].

    Args:
        target: phi under the model that is attacked, [E].
        scores: phi under each shadow model, [S, E].
        members: Which shadow model was trained on which example, bool [S, E].
        offline: Look at "out" alone, if no shadow model can be trained on the examples: the number
            of deviations above its mean. That orders as the paper's 1 - P(Z > phi) does and does
            not round to 1.
        variance: Of each "example", "shared" by all (around each example's own mean), or "auto":
            of each example from `ENOUGH` scores on, else shared.

    Raises:
        IncompleteError: There are too few examples, or shadow models of an example.
        DataError: Shapes differ, or a score is not a finite number.
    """
    inside, outside = sides(scores, members, scores, ~np.asarray(members, dtype=bool))
    return likelihood(target, inside, outside, offline=offline, variance=variance)


def u_lira(
    target: npt.ArrayLike,
    unlearned: npt.ArrayLike,
    forgotten: npt.ArrayLike,
    absent_scores: npt.ArrayLike,
    absent: npt.ArrayLike,
    *,
    offline: bool = False,
    variance: Variance = "auto",
) -> Array:
    """Was each example trained on and unlearned? As `lira`, "in" being unlearned shadow models.

    Args:
        target: phi under the model that is attacked, [E].
        unlearned: phi under each shadow model after it unlearned, [S, E].
        forgotten: Which shadow model was trained on and unlearned which example, bool [S, E].
        absent_scores: phi under models that are compared with, [S', E]: the same shadow models
            before unlearning, or exact retrains. With those after unlearning, what
            unlearning does to a model as a whole tells nothing.
        absent: Which of those never had which example, bool [S', E].
        offline: As for `lira`.
        variance: As for `lira`.

    Raises:
        IncompleteError: There are too few examples, or shadow models of an example.
        DataError: Shapes differ, or a score is not a finite number.
    """
    inside, outside = sides(unlearned, forgotten, absent_scores, absent)
    return likelihood(target, inside, outside, offline=offline, variance=variance)


def leave_one_out(
    inside: Side, outside: Side, *, offline: bool = False, variance: Variance = "auto"
) -> tuple[Array, Array]:
    """Attack each shadow model with the help of the others; model s is row s of both sides.

    Args:
        inside: The world that is looked for.
        outside: The other one.
        offline: As for `lira`.
        variance: As for `lira`.

    Returns:
        Results of all that are in, and of all that are out: for `roc.measure`, "per-example".

    Raises:
        IncompleteError: There are too few examples, or shadow models of an example.
        DataError: The two sides are not of the same models.
    """
    if inside.scores.shape != outside.scores.shape:
        raise DataError("The two sides are not of the same models and examples.")
    found: tuple[list[Array], list[Array]] = ([], [])
    for model in range(len(inside.scores)):
        rest = inside.without(model), outside.without(model)
        for side, results in zip((inside, outside), found, strict=True):
            target = side.scores[model]
            result = likelihood(target, *rest, offline=offline, variance=variance)
            results.append(result[side.use[model]])
    return np.concatenate(found[0]), np.concatenate(found[1])


def sides(
    inside: npt.ArrayLike, inside_use: Any, outside: npt.ArrayLike, outside_use: Any
) -> tuple[Side, Side]:
    """Two checked sides of the same examples.

    Raises:
        IncompleteError: There are fewer than two examples.
        DataError: Shapes differ, or a score is not a finite number.
    """
    one, other = _side(inside, inside_use), _side(outside, outside_use)
    if one.scores.shape[1] != other.scores.shape[1]:
        raise DataError("The two sides are not of the same examples.")
    return one, other


def likelihood(
    target: npt.ArrayLike, inside: Side, outside: Side, *, offline: bool, variance: Variance
) -> Array:
    """log N(target; inside) - log N(target; outside), or deviations above outside; float64 [E].

    Raises:
        IncompleteError: There are too few shadow models of an example.
        DataError: There is not one finite target for each example.
    """
    phi = np.asarray(target, dtype=np.float64)
    if phi.shape != outside.scores.shape[1:] or not np.isfinite(phi).all():
        raise DataError("There must be one finite score of the target for each example.")
    looked_at = (outside,) if offline else (inside, outside)
    if variance == "auto":
        fewest = min(int(side.use.sum(0).min()) for side in looked_at)
        variance = "example" if fewest >= ENOUGH else "shared"
    fits = [_gaussian(side, variance) for side in looked_at]
    if offline:
        mean, deviation = fits[0]
        return (phi - mean) / deviation
    logs = [-(((phi - mean) / deviation) ** 2) / 2 - np.log(deviation) for mean, deviation in fits]
    return logs[0] - logs[1]


def _side(scores: npt.ArrayLike, use: Any) -> Side:
    values, mask = np.asarray(scores, dtype=np.float64), np.asarray(use, dtype=bool)
    if values.ndim != 2 or values.shape != mask.shape:
        raise DataError(
            f"Scores {list(values.shape)} and their mask {list(mask.shape)} must both be "
            "[shadow models, examples]."
        )
    if values.shape[1] < 2:
        raise IncompleteError(
            f"An attack needs two examples or more and has {values.shape[1]}.",
            "Give it a larger set.",
        )
    if not np.isfinite(values[mask]).all():
        raise DataError("A score of a shadow model is not a finite number.", "Train it again.")
    return Side(values, mask)


def _gaussian(side: Side, variance: Variance) -> tuple[Array, Array]:
    """Mean and deviation of each example's scores, unbiased variance; float64 [E] each."""
    count = side.use.sum(0)
    least = 2 if variance == "example" else 1
    if (short := int((count < least).sum())) or count.sum() <= len(count):
        raise IncompleteError(
            f"There are too few shadow models: {short} of {len(count)} examples have under "
            f"{least} on one side, or none has two.",
            "Train more shadow models.",
        )
    mean = np.where(side.use, side.scores, 0).sum(0) / count
    squares = np.where(side.use, (side.scores - mean) ** 2, 0).sum(0)
    if variance == "example":
        spread = squares / (count - 1)
    else:
        spread = np.full(len(count), squares.sum() / (count.sum() - len(count)))
    return mean, np.maximum(np.sqrt(spread), SMALLEST_DEVIATION)
