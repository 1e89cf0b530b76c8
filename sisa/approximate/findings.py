"""What answers before and after come to: parts of the evidence that need no attack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from sisa.approximate.asked import Asked, Known
from sisa.approximate.batches import Items
from sisa.approximate.evidence import (
    NOT_EVALUATED,
    Change,
    Continuation,
    Memorisation,
    NotEvaluated,
    Oracle,
    Predictions,
    Truth,
    Utility,
)
from sisa.approximate.metrics import memory, probability
from sisa.approximate.metrics.classifier import prediction_distance
from sisa.approximate.metrics.quality import forget_quality
from sisa.approximate.metrics.scores import Figure, Scores
from sisa.approximate.metrics.statistics import RowStatistics
from sisa.approximate.rows import IGNORED
from sisa.errors import ConfigurationError, IncompleteError, SisaError


def memorisation(before: RowStatistics, after: RowStatistics) -> Memorisation:
    """What is still known of the forget items.

    Raises:
        IncompleteError: There is one item or none.
    """
    _require_several(after.items, "item to forget")
    return Memorisation(
        items=after.items,
        probability=_change(probability.probability, before, after),
        exact=_change(memory.exact_memorisation, before, after),
        extraction_strength=_change(memory.extraction_strength, before, after),
    )


def utility(before: RowStatistics, after: RowStatistics, held_out: bool) -> Utility:
    """What is still known of others.

    Raises:
        IncompleteError: There is one item or none.
    """
    _require_several(after.items, "item to keep")
    return Utility(
        items=after.items,
        held_out=held_out,
        probability=_change(probability.probability, before, after),
        exact=_change(memory.exact_memorisation, before, after),
    )


def utility_of(before: Known, after: Known) -> Utility:
    """What is still known of the items to keep, or else of those that were held out.

    Raises:
        IncompleteError: There are none, or there is one.
    """
    if after.retain is not None and before.retain is not None:
        return utility(before.retain, after.retain, held_out=False)
    if after.holdout is not None and before.holdout is not None:
        return utility(before.holdout, after.holdout, held_out=True)
    raise IncompleteError("There are no items to keep, and none that were held out.")


def continuation(items: Items, before: Known, after: Known) -> Continuation:
    """How much of the forget items a model says by itself.

    Args:
        items: Those that were continued.
        before: What the model said before.
        after: What it says now.

    Raises:
        IncompleteError: There is one item or none, or nothing was said.
    """
    _require_several(len(items), "item to forget")
    (recall_before, f1_before), (recall_after, f1_after) = map(_repeated, (before, after))
    _require_several(len(f1_after.values), "item to forget that is more than its beginning")
    return Continuation(
        items=len(f1_after.values),
        begun=_begun(items),
        recall=_changed(recall_before.mean(), recall_after.mean()),
        f1=_changed(f1_before.mean(), f1_after.mean()),
    )


def _repeated(known: Known) -> tuple[Scores, Scores]:
    """Recall and F1 of what was said."""
    if known.said is None:
        raise IncompleteError("Nobody asked it to go on.")
    if isinstance(known.said, SisaError):
        raise known.said
    return known.said


def _begun(items: Items) -> Literal["questions", "passages", "both"]:
    """A passage is learned from its first token; before an answer stands its question."""
    asked = [bool((labels[:1] == IGNORED).all()) for labels in items.labels]
    return "both" if len({*asked}) == 2 else "questions" if asked[0] else "passages"


def truth(asked: Asked, before: Known, after: Known, never: Known | None) -> Truth:
    """How probable wrong answers are beside right ones.

    Args:
        asked: With the wrong answers.
        before: What the model said before.
        after: What it says now.
        never: What a model says that never saw the items, if there is one.

    Raises:
        IncompleteError: There is one item or none.
    """
    was, now = _ratios(before), _ratios(after)
    _require_several(len(now.values), "item to forget")
    return Truth(
        items=len(now.values),
        answers=len(asked.wrong),
        paraphrased=asked.paraphrased is not None,
        ratio=_changed(*map(probability.truth_ratio_of_forgotten, (was, now))),
        oracle=NOT_EVALUATED if never is None else _apart("truth ratio", now, _ratios(never)),
    )


def _ratios(known: Known) -> Scores:
    """Logarithms of the truth ratios of the forget items."""
    right = known.forget if known.paraphrased is None else known.paraphrased
    return probability.log_truth_ratio(right, known.wrong)


def oracle(after: Known, never: Known) -> Oracle:
    """How far the forget items' probabilities are from those of a model that never saw them.

    Raises:
        IncompleteError: There is one item or none.
    """
    _require_several(after.forget.items, "item to forget")
    now, clean = (probability.probability(known.forget) for known in (after, never))
    return _apart("probability", now, clean, _predictions(after, never))


def _apart(
    statistic: Literal["probability", "truth ratio"],
    after: Scores,
    never: Scores,
    predictions: Predictions | NotEvaluated = NOT_EVALUATED,
) -> Oracle:
    found = forget_quality(after, never)
    if found.distance is None or found.p_value is None:
        raise IncompleteError(f"{found.reason}.")
    return Oracle(
        items=len(after.values),
        statistic=statistic,
        distance=found.distance,
        p_value=found.p_value,
        predictions=predictions,
    )


def _predictions(after: Known, never: Known) -> Predictions | NotEvaluated:
    if after.outputs is None or never.outputs is None:
        return NOT_EVALUATED
    if after.outputs.shape != never.outputs.shape:
        raise ConfigurationError(
            "The retrained model has another number of classes.", "Retrain the same model."
        )
    found = prediction_distance([(after.outputs, never.outputs)])
    return Predictions(
        total_variation=_value(found.total_variation),
        kl=_value(found.kl),
        same=_value(found.agreement),
    )


def _value(figure: Figure) -> float:
    """A figure that is one.

    Raises:
        IncompleteError: It is none.
    """
    if figure.value is None:
        raise IncompleteError("No item has a labelled position.")
    return figure.value


def _change(
    measure: Callable[[RowStatistics], Scores], before: RowStatistics, after: RowStatistics
) -> Change:
    """The mean over items of a score of each of both models."""
    return _changed(*(measure(side).mean() for side in (before, after)))


def _changed(before: Figure, after: Figure) -> Change:
    """Both figures.

    Raises:
        IncompleteError: There is one that is none.
    """
    return Change(before=_value(before), after=_value(after))


def _require_several(count: int, what: str) -> None:
    if count < 2:
        raise IncompleteError(f"A statistic over {count} {what} means nothing.")
