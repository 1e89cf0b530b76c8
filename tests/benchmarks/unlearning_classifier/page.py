"""The tables of a scenario."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import common

from unlearning_classifier.measured import Said
from unlearning_classifier.shadows import Attacked
from unlearning_classifier.trials import Trial

FLOOR = 0.95
"""Least test accuracy, as a share of the base's, of a try that is chosen for its forgetting."""

FIXED = ("nothing", "retrain", "retrain, other seed")
"""Lines that are no method's."""


@dataclass(frozen=True)
class Line:
    """A model in the tables.

    Attributes:
        name: Of the method.
        tries: All of it.
        chosen: One of them, or None where all failed.
        lira: U-LiRA on the method as it was chosen; None where that was left out.
    """

    name: str
    tries: tuple[Trial, ...]
    chosen: Trial | None
    lira: Attacked | None = None

    @property
    def said(self) -> Said | None:
        """What the chosen model says."""
        return None if self.chosen is None else self.chosen.said

    @property
    def worst(self) -> float:
        """Lowest test accuracy of all tries; 0 where one has no number."""
        return min(each.said.test if each.said else 0.0 for each in self.tries)


def best(tries: Sequence[Trial], base: float) -> Trial | None:
    """The try nearest to the retrain on the forget set at `FLOOR` of the base's test accuracy.

    Args:
        tries: Of one method.
        base: Test accuracy of the base.

    Returns:
        The one with the highest test accuracy where none keeps as much; None where none has a
        number.
    """
    told = [(each, each.said) for each in tries if each.said is not None]
    useful = [pair for pair in told if pair[1].test >= FLOOR * base]
    if useful:
        return min(useful, key=lambda pair: pair[1].tv_forget)[0]
    return max(told, key=lambda pair: pair[1].test, default=(None, None))[0]


def ordered(lines: Sequence[Line]) -> list[Line]:
    """What is no method's first, then the nearest to the retrain on the forget set first."""
    fixed = [line for line in lines if line.name in FIXED]
    own = [line for line in lines if line.name not in FIXED]
    return [*fixed, *sorted(own, key=lambda line: line.said.tv_forget if line.said else 2.0)]


def answers(lines: Sequence[Line], of_kind: bool) -> list[str]:
    """What the models say.

    Args:
        lines: In their order.
        of_kind: Whether a kind of records is forgotten, that test records are of too.
    """
    unseen = ("unseen",) if of_kind else ()
    head = ("model", "forget", "retain", "test", *unseen, "TV forget", "TV test", "KL", "same")
    head = (*head, "TPR", "s", "worst", "chosen")
    return common.table(head, [_said(line, of_kind, len(head)) for line in lines])


def attacks(lines: Sequence[Line]) -> list[str]:
    """What U-LiRA finds."""
    head = ("model", "AUC", "interval", "TPR 1 %", "TPR 0.1 %", "AUC before")
    there = [line for line in lines if line.lira is not None]
    there.sort(key=lambda line: (line.name not in FIXED, line.lira.auc if line.lira else 0.0))
    return common.table(head, [_attacked(line, len(head)) for line in there])


def _said(line: Line, of_kind: bool, width: int) -> list[str]:
    said = line.said
    if said is None or line.chosen is None:
        return [line.name, *["-"] * (width - 2), "no number in any try"]
    accuracies = (said.forget, said.retain, said.test, *((said.unseen,) if of_kind else ()))
    distances = (said.tv_forget, said.tv_test, said.kl_forget, said.agreement)
    return [
        line.name,
        *(f"{value:.3f}" for value in (*accuracies, *distances)),
        f"{said.tpr:.2f} {said.attack.replace('_', '-')}",
        f"{line.chosen.seconds:.2f}",
        "" if line.name in FIXED else f"{line.worst:.3f}",
        chosen(line.chosen),
    ]


def chosen(trial: Trial) -> str:
    """What a try differs in from the others of its method."""
    first = next(iter(trial.settings.items()), None)
    return "" if first is None or first[0] == "epochs" else f"{first[0]}={first[1]:g}"


def _attacked(line: Line, width: int) -> list[str]:
    lira = line.lira
    if lira is None or lira.failed:
        return [line.name, *["-"] * (width - 1)]
    interval = f"{lira.low:.3f} to {lira.high:.3f}"
    rates = (lira.tpr, lira.strict, lira.auc_before)
    return [line.name, f"{lira.auc:.3f}", interval, *(f"{value:.3f}" for value in rates)]
