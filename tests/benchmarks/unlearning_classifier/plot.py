"""A figure of a scenario: one row a model, one panel a measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearning_classifier.page import FIXED, Line

COLOURS = {True: "tab:red", False: "tab:blue"}
"""Of what is no method's, and of methods."""


@dataclass(frozen=True)
class Panel:
    """A measure of all models.

    Attributes:
        title: What it is.
        value: Of a model, with the ends of its interval if it has one; none leaves the row empty.
    """

    title: str
    value: Callable[[Line], tuple[float, ...] | None]


def draw(lines: Sequence[Line], panels: Sequence[Panel], file: Path) -> None:
    """Write the figure as SVG, the same bytes for the same numbers."""
    figure(lines, panels).savefig(file, metadata={"Date": None})
    file.write_text("\n".join(each.rstrip() for each in file.read_text().splitlines()) + "\n")


def figure(lines: Sequence[Line], panels: Sequence[Panel]) -> Any:
    """All models in their order, the first on top; a dashed line marks the exact retrain."""
    import matplotlib as mpl

    mpl.rcParams.update({"svg.hashsalt": "sisa", "svg.fonttype": "none", "font.size": 8})
    from matplotlib.figure import Figure

    size = (3.2 * len(panels) + 1, 0.19 * len(lines) + 0.8)
    made = Figure(figsize=size, layout="constrained")
    axes = made.subplots(1, len(panels), sharey=True)
    for axis, panel in zip(axes, panels, strict=True):
        _fill(axis, lines, panel)
    axes[0].set_yticks(range(len(lines)), [line.name for line in lines])
    axes[0].invert_yaxis()
    return made


def _fill(axis: Any, lines: Sequence[Line], panel: Panel) -> None:
    found = [(row, line.name, panel.value(line)) for row, line in enumerate(lines)]
    there = [(row, name, value) for row, name, value in found if value is not None]
    for fixed, colour in COLOURS.items():
        own = [(row, value) for row, name, value in there if (name in FIXED) is fixed]
        axis.scatter([v[0] for _, v in own], [row for row, _ in own], s=14, color=colour, zorder=3)
        ends = [(row, *value[1:]) for row, value in own if value[1:]]
        if ends:
            axis.hlines(*zip(*ends, strict=True), color=colour, linewidth=1)
    for _, name, value in there:
        if name == "retrain":
            axis.axvline(value[0], color=COLOURS[True], linewidth=0.6, linestyle="--", zorder=1)
    axis.set_title(panel.title, fontsize=8)
    axis.grid(axis="y", color="0.9", linewidth=0.5)
    axis.set_axisbelow(True)
