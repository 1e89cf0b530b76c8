"""The attacks that a verdict asks for, made on one model: parts of the evidence.

Membership is asked of items that no model ever saw beside those to forget; relearning and
quantisation ask what of the forget items' probability comes back.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from sisa.approximate.answers import mean_probability, of_some
from sisa.approximate.asked import Asked
from sisa.approximate.attacks import membership as scored
from sisa.approximate.attacks import relearn
from sisa.approximate.attacks.membership import Array, Observed, zlib_sizes
from sisa.approximate.attacks.recovered import recovered_share
from sisa.approximate.attacks.roc import Measured, measure
from sisa.approximate.batches import Batch, Items
from sisa.approximate.evidence import (
    NOT_EVALUATED,
    Attack,
    Membership,
    NotEvaluated,
    Quantisation,
    Recovery,
    Relearning,
    tried,
)
from sisa.approximate.metrics.privacy import auc, privacy_leakage
from sisa.approximate.metrics.statistics import RowStatistics
from sisa.approximate.models import LanguageModel, Subject
from sisa.approximate.rows import IGNORED
from sisa.approximate.targets import Attacks, Target
from sisa.errors import ConfigurationError, IncompleteError, SisaError

METRIC = "probability"
"""What recovery is measured in: mean over items of exp(-mean negative log likelihood)."""

RATES = (1.0, 10.0, 100.0)
"""Times `Attacks.lr`, at which relearning is tried: an attacker keeps the best."""


LEAKED = 0.4
"""Share of an item's rows that PrivLeak looks at."""

ROUNDING = 1e-6
"""Of a mean probability: a smaller difference is none."""


@dataclass(frozen=True)
class Seen:
    """Items, and what models say of them.

    Attributes:
        items: Those that were to be forgotten, or those that no model ever saw.
        rows: What the model under attack says of them.
        reference: What a model says that never saw any of them, if there is one.
        gradients: Norms of the attacked model's gradients by them, if they were taken.
    """

    items: Batch
    rows: RowStatistics
    reference: RowStatistics | None = None
    gradients: Array | None = None


@dataclass(frozen=True)
class Attacked:
    """What attacks came to for which copies of a model are made; or why they came to nothing.

    Attributes:
        gradients: Norms of the gradients by the items to forget, and by those never seen.
        relearning: What came back by fine-tuning.
        quantisation: What came back by rounding.
    """

    gradients: tuple[Array, Array] | SisaError
    relearning: Relearning | SisaError
    quantisation: Quantisation | SisaError


def attack(target: Target, asked: Asked, before: RowStatistics, how: Attacks) -> Attacked:
    """Attack a model in every way that needs more than its answers.

    Args:
        target: The model.
        asked: The items.
        before: What the model said before of those to forget.
        how: Rates and steps.
    """
    forget = asked.forget
    return Attacked(
        tried(lambda: _gradients(target, asked)),
        tried(lambda: relearning(target, forget, before, how)),
        tried(lambda: quantisation(target, forget, before)),
    )


def _gradients(target: Target, asked: Asked) -> tuple[Array, Array]:
    if asked.holdout is None:
        raise IncompleteError(
            "No items were given that no model ever saw.", "Name them with --holdout."
        )
    return target.gradients(asked.forget), target.gradients(asked.holdout)


def membership(subject: Subject, forget: Seen, never: Seen) -> Membership:
    """Tell forget items from items that were never seen, by every attack there is.

    Args:
        subject: The model under attack, whose tokenizer tells the texts of items.
        forget: Items to forget.
        never: Items that no model ever saw.

    Raises:
        IncompleteError: There are too few of either.
        DataError: A statistic is not a finite number.
    """
    found = [_scores(subject, side) for side in (forget, never)]
    leaked = _leakage(forget, never)
    return Membership(
        members=len(forget.items),
        non_members=len(never.items),
        attacks={
            name: _attack(measure(members, found[1][name], "population", resamples=1))
            for name, members in found[0].items()
        },
        privacy_leakage=NOT_EVALUATED if leaked is None else leaked,
    )


def _leakage(forget: Seen, never: Seen) -> float | None:
    """PrivLeak in percent; None without a model that never saw the items, or beside a perfect one.

    MUSE's attack: Min-K at 40 % (Shi et al., 2024).
    """
    if forget.reference is None or never.reference is None:
        return None
    areas = [
        auc(*(torch.from_numpy(scored.score_min_k(rows, LEAKED)) for rows in sides))
        for sides in ((forget.rows, never.rows), (forget.reference, never.reference))
    ]
    return privacy_leakage(*areas).value


def relearning(target: Target, forget: Batch, before: RowStatistics, how: Attacks) -> Relearning:
    """Fine-tune copies on half of the forget items, and look for the other half.

    Args:
        target: The model under attack.
        forget: Items to forget.
        before: What the model said of them before.
        how: Rates, steps and seed.

    Raises:
        IncompleteError: There are fewer than two items.
        ConfigurationError: It came to no finite loss at any rate.
    """
    learned, asked = (part.tolist() for part in relearn.split(len(forget), 0.5, how.seed))
    if len(asked) < 2:
        raise IncompleteError("Relearning leaves one item to ask about, and a mean of one is none.")
    base = mean_probability(of_some(before, asked))
    best: relearn.Relearned | None = None
    sides = forget.select(learned), forget.select(asked)
    for rate in RATES:
        found = tried(partial(target.relearned, *sides, base, rate * how.lr))
        if isinstance(found, SisaError):  # a rate that breaks the model recovers nothing
            continue
        if best is None or _best(found)[1] > _best(best)[1]:
            best = found
    if best is None:
        raise ConfigurationError("Relearning came to no finite loss at any learning rate.")
    unlearned, (attacked, recovered) = best.curve[0][1], _best(best)
    return Relearning(
        items=len(asked),
        tuned_on="forget items",
        steps=how.steps,
        lr=best.lr,
        recovery=Recovery(
            metric=METRIC, base=base, unlearned=unlearned, attacked=attacked, recovered=recovered
        ),
    )


def quantisation(target: Target, forget: Batch, before: RowStatistics) -> Quantisation:
    """Round the weights to 8 and 4 bits, and look for the forget items.

    Args:
        target: The model under attack.
        forget: Items to forget.
        before: What the model said of them before.

    Raises:
        IncompleteError: There are fewer than two items, or no layer that can be quantised.
        DataError: A weight is not a finite number.
    """
    if len(forget) < 2:
        raise IncompleteError("A statistic over one item means nothing.")
    found = target.quantised(forget, mean_probability(before))
    return Quantisation(
        items=len(forget),
        bits={
            "8" if q.bits == 8 else "4": Recovery(
                metric=METRIC,
                base=q.original,
                unlearned=q.unlearned,
                attacked=q.metric,
                recovered=_cut(q.original, q.unlearned, q.metric),
            )
            for q in found
        },
    )


def _scores(subject: Subject, seen: Seen) -> dict[str, scored.Array]:
    sizes = _sizes(subject, seen.items)
    return scored.scores(Observed(seen.rows, sizes, seen.reference, seen.gradients))


def _attack(found: Measured) -> Attack:
    """Rates of the better direction: standing out as unknown gives the forgotten away too."""
    at: dict[float, float | NotEvaluated] = {
        rate.fpr: max(rate.tpr, back.tpr) if rate.resolvable else NOT_EVALUATED
        for rate, back in zip(found.rates, found.reversed_rates, strict=True)
    }
    return Attack(auc=found.auc, tpr_at_1_percent=at[0.01], tpr_at_01_percent=at[0.001])


def _best(found: relearn.Relearned) -> tuple[float, float]:
    """The metric that comes nearest to that of before, and the recovered share."""
    start = found.curve[0][1]
    shares = [(_cut(found.original, start, metric), metric) for _, metric in found.curve]
    share, metric = max(shares)
    return metric, share


def _cut(original: float, unlearned: float, attacked: float) -> float:
    """Recovered share from 0 to 1; 1 where nothing was forgotten, but for rounding."""
    share = recovered_share(original, unlearned, attacked)
    if share is None or abs(original - unlearned) < ROUNDING:
        return 1.0
    return min(max(share, 0.0), 1.0)


def _sizes(subject: Subject, items: Any) -> Any:
    """Compressed sizes of the texts of items; examples of a classifier have none."""
    if not isinstance(items, Items) or not isinstance(subject, LanguageModel):
        return None
    if subject.tokenizer is None:
        return None
    learned = (
        t[own != IGNORED].tolist() for t, own in zip(items.tokens, items.labels, strict=True)
    )
    return zlib_sizes(subject.tokenizer.decode(tokens) for tokens in learned)
