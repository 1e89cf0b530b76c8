"""The attacks that a verdict asks for, made on one model: parts of the evidence.

Membership is asked of items that no model ever saw beside those to forget; relearning and
quantisation ask what of the forget items' probability comes back.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sisa.approximate.answers import CHUNK, ITEMS, mean_probability, of_some, statistics
from sisa.approximate.attacks import membership as scored
from sisa.approximate.attacks import quantise, relearn
from sisa.approximate.attacks.membership import Observed, gradient_norms, zlib_sizes
from sisa.approximate.attacks.recovered import recovered_share
from sisa.approximate.attacks.roc import Measured, measure
from sisa.approximate.batches import Batch, Items
from sisa.approximate.chunks import row_values
from sisa.approximate.evidence import (
    NOT_EVALUATED,
    Attack,
    Membership,
    NotEvaluated,
    Quantisation,
    Recovery,
    Relearning,
)
from sisa.approximate.metrics.privacy import auc, privacy_leakage
from sisa.approximate.metrics.statistics import RowStatistics
from sisa.approximate.models import Classifier, LanguageModel, Subject, merged
from sisa.approximate.objectives.rows import nll
from sisa.approximate.rows import IGNORED
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
class Attacks:
    """How a model is attacked.

    Attributes:
        lr: Learning rate of relearning, which tries multiples of it too, see `RATES`.
        steps: Optimizer steps of relearning, at each rate.
        seed: Of the split of relearning.
        items: Items that go through the model at once.
        chunk: Rows whose logits exist at once.
    """

    lr: float
    steps: int = 20
    seed: int = 0
    items: int = ITEMS
    chunk: int = CHUNK


@dataclass(frozen=True)
class Seen:
    """Items, and what models say of them.

    Attributes:
        items: Those that were to be forgotten, or those that no model ever saw.
        rows: What the model under attack says of them.
        reference: What a model says that never saw any of them, if there is one.
    """

    items: Batch
    rows: RowStatistics
    reference: RowStatistics | None = None


def membership(subject: Subject, forget: Seen, never: Seen, how: Attacks) -> Membership:
    """Tell forget items from items that were never seen, by every attack there is.

    Args:
        subject: The model under attack, not changed.
        forget: Items to forget.
        never: Items that no model ever saw.
        how: Batches.

    Raises:
        IncompleteError: There are too few of either.
        DataError: A statistic is not a finite number.
    """
    found = [_scores(subject, side, how) for side in (forget, never)]
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


def relearning(subject: Subject, forget: Batch, before: RowStatistics, how: Attacks) -> Relearning:
    """Fine-tune copies on half of the forget items, and look for the other half.

    Args:
        subject: The model under attack, not changed.
        forget: Items to forget.
        before: What the model said of them before.
        how: Rates, steps and batches.

    Raises:
        IncompleteError: There are fewer than two items.
        ConfigurationError: It came to no finite loss at any rate.
    """
    learned, asked = (part.tolist() for part in relearn.split(len(forget), 0.5, how.seed))
    if len(asked) < 2:
        raise IncompleteError("Relearning leaves one item to ask about, and a mean of one is none.")
    kept, base = forget.select(asked), mean_probability(of_some(before, asked))
    batches = [forget.select(learned[i : i + how.items]) for i in range(0, len(learned), how.items)]
    best: relearn.Relearned | None = None
    for rate in RATES:
        try:
            found = relearn.relearn(
                subject.module,
                batches,
                lambda module, batch: _loss(around(subject, module), batch, how.chunk),
                lambda module: _probability(around(subject, module), kept, how),
                base,
                steps=how.steps,
                lr=rate * how.lr,
                every=max(1, how.steps // 4),
                seed=how.seed,
            )
        except SisaError:  # a rate that breaks the model recovers nothing
            continue
        if best is None or _best(found)[1] > _best(best)[1]:
            best = found
    if best is None:
        raise ConfigurationError("Relearning came to no finite loss at any learning rate.")
    unlearned, (attacked, recovered) = best.curve[0][1], _best(best)
    return Relearning(
        items=len(kept),
        tuned_on="forget items",
        steps=how.steps,
        lr=best.lr,
        recovery=Recovery(
            metric=METRIC, base=base, unlearned=unlearned, attacked=attacked, recovered=recovered
        ),
    )


def quantisation(
    subject: Subject, forget: Batch, before: RowStatistics, how: Attacks
) -> Quantisation:
    """Round the weights to 8 and 4 bits, and look for the forget items.

    Args:
        subject: The model under attack, not changed.
        forget: Items to forget.
        before: What the model said of them before.
        how: Batches.

    Raises:
        IncompleteError: There are fewer than two items, or no layer that can be quantised.
        DataError: A weight is not a finite number.
    """
    if len(forget) < 2:
        raise IncompleteError("A statistic over one item means nothing.")
    whole = _whole(subject)
    found = quantise.evaluate(
        whole.module,
        lambda module: _probability(around(whole, module), forget, how),
        mean_probability(before),
    )
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


def around(subject: Subject, module: nn.Module) -> Subject:
    """A subject of the same kind with another module of the same build."""
    if isinstance(subject, LanguageModel):
        return LanguageModel(module, subject.tokenizer)
    return Classifier(module)


def _whole(subject: Subject) -> Subject:
    """With its adapter in the weights, as it would be quantised to be served."""
    if isinstance(subject, LanguageModel) and subject.adapted:
        return merged(LanguageModel(copy.deepcopy(subject.module), subject.tokenizer))
    return subject


def _scores(subject: Subject, seen: Seen, how: Attacks) -> dict[str, scored.Array]:
    with _every(subject) as parameters:
        gradients = gradient_norms(_losses(subject, seen.items, how.chunk), parameters)
    sizes = _sizes(subject, seen.items)
    return scored.scores(Observed(seen.rows, sizes, seen.reference, gradients))


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


def _losses(subject: Subject, items: Batch, chunk: int) -> Iterator[Tensor]:
    """Mean nll of each item, with a graph."""
    with torch.enable_grad():
        for index in range(len(items)):
            yield _loss(subject, items.select([index]), chunk)


def _loss(subject: Subject, batch: Any, chunk: int) -> Tensor:
    """Mean nll over the rows of a batch."""
    return row_values(subject.rows(batch), [nll], None, chunk).mean()


@contextmanager
def _every(subject: Subject) -> Iterator[Sequence[Tensor]]:
    """All parameters, each with a gradient: an attacker need not leave any frozen."""
    found = [p for p in subject.module.parameters() if p.is_floating_point()]
    frozen = [p for p in found if not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield found
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _probability(subject: Subject, items: Batch, how: Attacks) -> float:
    """Mean probability that a model gives to items."""
    return mean_probability(statistics(subject, items, how.items, how.chunk))
