"""What the numbers of a table say, in sentences made from the numbers alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from unlearning_classifier.page import FIXED, FLOOR, Line

COLLAPSED = 0.5
"""Share of the base's test accuracy under which a model has collapsed."""

Holds = Callable[[Line], bool]


def sentences(lines: Sequence[Line], of_kind: bool) -> list[str]:
    """What collapsed, what is as near to the retrain as another retrain, and what U-LiRA finds.

    Args:
        lines: All of a scenario.
        of_kind: Whether a kind of records is forgotten.
    """
    fixed = {line.name: line for line in lines if line.name in FIXED}
    own = [line for line in lines if line.name not in FIXED]
    base, second = (fixed[name].said for name in ("nothing", "retrain, other seed"))
    assert base is not None and second is not None

    def useful(line: Line) -> bool:
        return line.said is not None and line.said.test >= FLOOR * base.test

    found: dict[str, Holds] = {
        f"Test accuracy of the chosen try is under {COLLAPSED:.0%} of the base's, a collapse": (
            lambda line: line.said is None or line.said.test < COLLAPSED * base.test
        ),
        "Another try of it collapsed so": lambda line: (
            line.worst < COLLAPSED * base.test
            and (line.said is None or line.said.test > line.worst)
        ),
        f"No try kept {FLOOR:.0%} of the base's test accuracy": lambda line: not useful(line),
        "Kept it, and is as near to the retrain on the forget set as a second retrain is (TV at "
        f"most {second.tv_forget:.3f})": lambda line: (
            useful(line) and line.said is not None and line.said.tv_forget <= second.tv_forget
        ),
        "Kept it, and is farther from the retrain on the forget set than doing nothing (TV above "
        f"{base.tv_forget:.3f})": lambda line: (
            useful(line) and line.said is not None and line.said.tv_forget > base.tv_forget
        ),
    }
    if of_kind:
        found |= _of_kind(useful)
    else:
        found |= _attacks(fixed, useful)
    return [_told(what, own, holds) for what, holds in found.items()]


def _of_kind(useful: Holds) -> Mapping[str, Holds]:
    """Whether the kind is known still."""

    def knows(line: Line, more: float, less: float) -> bool:
        return useful(line) and line.said is not None and more <= line.said.unseen < less

    return {
        "Kept it, and gives under 5 % of the test records of the class their label, as the retrain "
        "gives none": lambda line: knows(line, 0, 0.05),
        "Kept it, and gives half of them or more their label": lambda line: knows(line, 0.5, 2),
    }


def _attacks(fixed: Mapping[str, Line], useful: Holds) -> Mapping[str, Holds]:
    """What U-LiRA finds of methods beside what it finds of retrains and of nothing."""
    retrain, nothing = fixed["retrain"].lira, fixed["nothing"].lira
    assert retrain is not None and nothing is not None

    def between(line: Line, low: float, high: float) -> bool:
        return line.lira is not None and not line.lira.failed and low < line.lira.auc <= high

    middle = (retrain.auc + nothing.auc) / 2
    return {
        f"Kept it, and U-LiRA does no better on it than on retrains (AUC at most {retrain.high:.3f}"
        ", the upper end of their interval)": (
            lambda line: useful(line) and between(line, 0, retrain.high)
        ),
        f"U-LiRA does as well or better on it than on doing nothing (AUC {nothing.low:.3f}, the "
        "lower end, or more)": lambda line: between(line, nothing.low - 1e-12, 1),
        f"Kept it, and took more than half of the way from the AUC of nothing, {nothing.auc:.3f}, "
        f"to that of retrains, {retrain.auc:.3f}": (
            lambda line: useful(line) and between(line, 0, middle)
        ),
        "Held against models that have unlearned nothing, gives its records away more than doing "
        f"nothing does (AUC before above {nothing.high:.3f}, the upper end)": (
            lambda line: line.lira is not None and line.lira.auc_before > nothing.high
        ),
    }


def _told(what: str, lines: Iterable[Line], holds: Holds) -> str:
    names = [f"`{line.name}`" for line in lines if holds(line)]
    return f"{what}: {', '.join(names) or 'none'}."
