"""What a model says of items before and after a method, and what that comes to as evidence.

One forward pass over the items feeds all figures. The three attacks are in `attacked.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from sisa.approximate import attacked
from sisa.approximate.answers import CHUNK, ITEMS, statistics
from sisa.approximate.attacked import Attacks, Seen
from sisa.approximate.batches import Batch
from sisa.approximate.evidence import (
    NOT_EVALUATED,
    Change,
    Evidence,
    Membership,
    Memorisation,
    NotEvaluated,
    Oracle,
    Utility,
)
from sisa.approximate.metrics import memory, probability
from sisa.approximate.metrics.quality import forget_quality
from sisa.approximate.metrics.scores import Scores
from sisa.approximate.metrics.statistics import RowStatistics
from sisa.approximate.models import Subject
from sisa.errors import IncompleteError, SisaError

Part = TypeVar("Part")


@dataclass(frozen=True)
class Asked:
    """Items that models are asked about, each with a labelled position.

    Attributes:
        forget: Of what is to be forgotten.
        retain: Of what is kept, if anything is given.
        holdout: Of what no model ever saw, if anything is given.
    """

    forget: Batch
    retain: Batch | None = None
    holdout: Batch | None = None

    @classmethod
    def of(
        cls, forget: Batch, retain: Batch | None, holdout: Batch | None, most: int | None = None
    ) -> Asked:
        """Choose items by their digests, so that no order of files matters.

        Args:
            forget: What is to be forgotten.
            retain: What is kept, or None.
            holdout: What no model ever saw, or None.
            most: Most of each; None for all.
        """
        others = (None if side is None else _some(side, most) for side in (retain, holdout))
        return cls(_some(forget, most), *others)


@dataclass(frozen=True)
class Known:
    """What one model says of the items, row by row; None where there are none."""

    forget: RowStatistics
    retain: RowStatistics | None
    holdout: RowStatistics | None


def known(subject: Subject, asked: Asked, together: int = ITEMS, chunk: int = CHUNK) -> Known:
    """Ask a model: one forward pass over all items; see `answers.statistics`."""
    others = (
        None if side is None else statistics(subject, side, together, chunk)
        for side in (asked.retain, asked.holdout)
    )
    return Known(statistics(subject, asked.forget, together, chunk), *others)


@dataclass(frozen=True)
class Examination:
    """Of one model, begun before a method changes it and ended afterwards.

    Attributes:
        asked: The items.
        before: What the model said of them before.
        attacks: How it is attacked afterwards.
        retrained: What a model says that never saw the items to forget, if there is one.
    """

    asked: Asked
    before: Known
    attacks: Attacks
    retrained: Known | None = None

    @classmethod
    def begin(
        cls, subject: Subject, asked: Asked, attacks: Attacks, retrained: Subject | None = None
    ) -> Examination:
        """Ask the model as it is, and the retrained one.

        Raises:
            SisaError: One of them has collapsed already.
        """
        before = known(subject, asked, attacks.items, attacks.chunk)
        return cls.of(asked, before, attacks, retrained)

    @classmethod
    def of(
        cls, asked: Asked, before: Known, attacks: Attacks, retrained: Subject | None
    ) -> Examination:
        """Take what the model said before, and ask the retrained one.

        Raises:
            SisaError: It has collapsed.
        """
        never = None
        if retrained is not None:
            never = known(retrained, asked, attacks.items, attacks.chunk)
        return cls(asked, before, attacks, never)

    def end(self, subject: Subject, after: Known | None = None) -> tuple[Evidence, tuple[str, ...]]:
        """Measure all that can be measured of the model as it is now; it is not changed.

        A part that cannot be measured is "not evaluated", and a sentence tells why.

        Args:
            subject: The model.
            after: What it says of the items, if it was asked already.

        Returns:
            The evidence, and sentences on what is missing.
        """
        asked, before, attacks = self.asked, self.before, self.attacks
        lacking: list[str] = []

        def part(name: str, measure: Callable[[], Part]) -> Part | NotEvaluated:
            try:
                return measure()
            except SisaError as error:
                lacking.append(f"{name} was not evaluated. {error.message}")
                return NOT_EVALUATED

        said = part("Anything", lambda: self._known(subject)) if after is None else after
        if isinstance(said, str):
            return Evidence(), tuple(lacking)
        now: Known = said
        forget = (asked.forget, before.forget, attacks)
        found = Evidence(
            memorisation=part("Memorisation", lambda: memorisation(before.forget, now.forget)),
            utility=part("Utility", lambda: _utility(before, now)),
            oracle=part("The comparison", lambda: self._oracle(now)),
            membership=part("Membership", lambda: self._membership(subject, now)),
            relearning=part("Relearning", lambda: attacked.relearning(subject, *forget)),
            quantisation=part("Quantisation", lambda: attacked.quantisation(subject, *forget)),
        )
        return found, tuple(lacking)

    def _known(self, subject: Subject) -> Known:
        return known(subject, self.asked, self.attacks.items, self.attacks.chunk)

    def _oracle(self, after: Known) -> Oracle | NotEvaluated:
        if self.retrained is None:
            return NOT_EVALUATED
        return oracle(after.forget, self.retrained.forget)

    def _membership(self, subject: Subject, after: Known) -> Membership:
        if self.asked.holdout is None or after.holdout is None:
            raise IncompleteError(
                "No items were given that no model ever saw.", "Name them with --holdout."
            )
        never = self.retrained
        return attacked.membership(
            subject,
            Seen(self.asked.forget, after.forget, None if never is None else never.forget),
            Seen(self.asked.holdout, after.holdout, None if never is None else never.holdout),
            self.attacks,
        )


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


def oracle(after: RowStatistics, retrained: RowStatistics) -> Oracle:
    """How far the forget items' probabilities are from those of a model that never saw them.

    Raises:
        IncompleteError: There is one item or none.
    """
    _require_several(after.items, "item to forget")
    found = forget_quality(probability.probability(after), probability.probability(retrained))
    if found.distance is None or found.p_value is None:
        raise IncompleteError(f"{found.reason}.")
    return Oracle(
        items=after.items,
        statistic="probability",
        distance=found.distance,
        p_value=found.p_value,
    )


def _utility(before: Known, after: Known) -> Utility:
    if after.retain is not None and before.retain is not None:
        return utility(before.retain, after.retain, held_out=False)
    if after.holdout is not None and before.holdout is not None:
        return utility(before.holdout, after.holdout, held_out=True)
    raise IncompleteError("There are no items to keep, and none that were held out.")


def _change(
    measure: Callable[[RowStatistics], Scores], before: RowStatistics, after: RowStatistics
) -> Change:
    """The mean over items of a score of each of both models."""
    means = [measure(side).mean().value for side in (before, after)]
    if None in means:
        raise IncompleteError("No item has a labelled position.")
    return Change(before=means[0] or 0.0, after=means[1] or 0.0)


def _some(items: Any, most: int | None) -> Any:
    """Labelled items, those of the smallest digests, in their own order."""
    labelled = [i for i, count in enumerate(items.counts()) if count]
    if most is not None and len(labelled) > most:
        digests = [*items.digests()]
        labelled = sorted(sorted(labelled, key=lambda i: digests[i])[:most])
    return items.select(labelled)


def _require_several(count: int, what: str) -> None:
    if count < 2:
        raise IncompleteError(f"A statistic over {count} {what} means nothing.")
