"""Forget quality, and how much was forgotten, against utility: one point a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from unlearning.lines import BASELINES, FLOOR, Line, geometric, log_p

AXES: Mapping[str, Callable[[dict[str, Any]], float]] = {
    "forget quality: log10 of the p-value": lambda said: log_p(said["p_value"]),
    "log10 of the geometric mean probability of forget items": lambda said: geometric(said["each"]),
}
"""What is horizontal in each part, as it comes from what a model says."""

APART = (0.18, 0.017)
"""Shares of the width and height of a part within which two names would touch."""


class Point(NamedTuple):
    """A model in a part."""

    name: str
    x: float
    y: float


def plot(lines: Sequence[Line], title: str, file: Path) -> None:
    """Draw what was chosen of each method with its name, other trials pale, into an SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": title, "svg.fonttype": "none", "font.size": 8})
    from matplotlib import pyplot

    figure, parts = pyplot.subplots(1, 2, figsize=(11, 7.5), sharey=True, layout="constrained")
    for axes, (label, across) in zip(parts, AXES.items(), strict=True):
        axes.set_xlabel(label)
        _draw(axes, lines, across)
    parts[0].set_ylabel("utility: mean probability of retained items")
    figure.suptitle(
        f"{title}: blue is chosen, grey are other trials, dashes are what was asked for"
    )
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
    file.write_text("".join(f"{line.rstrip()}\n" for line in file.read_text().splitlines()))


def _draw(axes: Any, lines: Sequence[Line], across: Callable[[dict[str, Any]], float]) -> None:
    """One part."""
    fixed = {line.name: line for line in lines if line.name in BASELINES}
    own = [line for line in lines if line.name not in fixed]
    tried = [trial["said"] for line in own for trial in line.trials if trial["said"]]
    chosen = {line.name: line.chosen["said"] for line in lines if line.chosen}
    axes.scatter([across(said) for said in tried], [s["utility"] for s in tried], s=8, color="0.8")
    points = [Point(name, across(said), said["utility"]) for name, said in chosen.items()]
    colours = ["tab:red" if point.name in fixed else "tab:blue" for point in points]
    axes.scatter([p.x for p in points], [p.y for p in points], s=20, c=colours, zorder=3)
    axes.axhline(FLOOR * chosen["nothing"]["utility"], color="0.6", linewidth=0.8, linestyle="--")
    axes.axvline(across(chosen["retrain"]), color="0.6", linewidth=0.8, linestyle="--")
    axes.set_ylim(-0.05, 1.2)
    axes.margins(x=0.26)
    _name(axes, points)


def _name(axes: Any, points: Sequence[Point]) -> None:
    """Write names beside points, as near in height as none stands on another."""
    low, high = axes.get_xlim()
    bottom, top = axes.get_ylim()
    near_x, near_y = APART[0] * (high - low), APART[1] * (top - bottom)
    used: list[Point] = []

    def free(y: float, x: float) -> bool:
        inside = bottom + near_y < y < top - near_y
        return inside and all(abs(y - u.y) >= near_y or abs(x - u.x) >= near_x for u in used)

    for point in sorted(points, key=lambda each: -each.y):
        moves = (step * way * near_y / 4 for step in count() for way in (1, -1))
        at = next(point.y + move for move in moves if free(point.y + move, point.x))
        used.append(point._replace(y=at))
        axes.annotate(
            point.name,
            (point.x, point.y),
            (point.x + 0.015 * (high - low), at),
            fontsize=7,
            va="center",
            arrowprops={"arrowstyle": "-", "linewidth": 0.3, "color": "0.6"},
        )
