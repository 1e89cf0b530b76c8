"""What the numbers of a table say, in sentences made from the numbers alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from unlearning.lines import BASELINES, FLOOR, Line, geometric

COLLAPSED = 0.5
"""Share of the base's utility under which a model has collapsed."""

LEVEL = 0.05
"""Of the test: under it, forget items are told from those of the exact retrain."""

MORE = 2
"""Times what relearning teaches the exact retrain, above which a model had not forgotten."""

KNOWN = 0.5
"""Share of the base's probability of forget items above which hardly anything was forgotten."""


def sentences(lines: Sequence[Line]) -> list[str]:
    """What collapsed, what is near to the retrain, what forgot too little or too much.

    Args:
        lines: All of a data set, with `nothing` and `retrain`.
    """
    own = [line for line in lines if line.name not in BASELINES]
    base, never = (_line(lines, name).said for name in BASELINES)
    relearned = _line(lines, "retrain").relearned
    assert base is not None and never is not None and relearned is not None

    def useful(line: Line) -> bool:
        return line.said is not None and line.said.utility >= FLOOR * base.utility

    def collapsed(said: Mapping[str, float] | None) -> bool:
        return said is None or said["utility"] < COLLAPSED * base.utility

    told: Mapping[str, Callable[[Line], bool]] = {
        f"Collapsed, with under {COLLAPSED:.0%} of the base's utility, in every trial": (
            lambda line: all(collapsed(trial["said"]) for trial in line.trials)
        ),
        "Collapsed in some trial": (
            lambda line: any(collapsed(trial["said"]) for trial in line.trials)
        ),
        f"Kept {FLOOR:.0%} of the base's utility in no trial": lambda line: not useful(line),
        f"Kept as much, and forget items are not told from the retrain's at {LEVEL:.0%}": (
            lambda line: useful(line) and line.said is not None and line.said.p_value >= LEVEL
        ),
        f"Kept as much, and still gives forget items over {KNOWN:.0%} of the base's probability": (
            lambda line: (
                useful(line) and line.said is not None and line.said.forget > KNOWN * base.forget
            )
        ),
        "Gives forget items a smaller geometric mean probability than the retrain, which marks them"
        " as well": (
            lambda line: line.said is not None and geometric(line.said.each) < geometric(never.each)
        ),
        f"Relearning brings the other half of the forget items to over {MORE:g} times the "
        f"{relearned:.3f} that it reaches on the retrain": (
            lambda line: line.relearned is not None and line.relearned > MORE * relearned
        ),
    }
    return [_told(what, own, holds) for what, holds in told.items()]


def _line(lines: Iterable[Line], name: str) -> Line:
    return next(line for line in lines if line.name == name)


def _told(what: str, lines: Sequence[Line], holds: Callable[[Line], bool]) -> str:
    names = [f"`{line.name}`" for line in lines if holds(line)]
    if names and len(names) == len(lines):
        return f"{what}: all {len(lines)}."
    return f"{what}: {', '.join(names) or 'none'}."
