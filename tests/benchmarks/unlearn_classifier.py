"""Approximate methods on a classifier of images, beside the exact retrain and doing nothing.

A small network is trained here from a random start; each method then has the same passes over what
is to be forgotten and the same number of tries. What was trained, tried and attacked is kept in
`build/unlearning-classifier`, so that an interrupted call goes on where it was; remove that folder
after a change of the code.

    SISA_TEST_DATA=/where/data/lies .venv/bin/python tests/benchmarks/unlearn_classifier.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import common
import torch
from unlearning_classifier import about, grid, page, plot, summary, trials
from unlearning_classifier.images import SCENARIOS
from unlearning_classifier.page import Line
from unlearning_classifier.shadows import Attack, Attacked

BUILD = common.ROOT / "build" / "unlearning-classifier"
SHADOWS = BUILD / "shadows"
DOCS = common.ROOT / "docs"
PAGE = DOCS / "approximate-classifiers.md"

TITLES = {"class": "A class", "random": "Random records"}

FORGET = plot.Panel(
    "accuracy on the forget set", lambda line: (line.said.forget,) if line.said else None
)
TEST = plot.Panel("accuracy on test records", lambda line: (line.said.test,) if line.said else None)
LIRA = plot.Panel("AUC of U-LiRA, with its interval", lambda line: _area(line.lira))
PANELS = {"class": (FORGET, TEST), "random": (LIRA, TEST)}


def measured(made: trials.Made) -> list[Line]:
    """Everything that is in the tables of a scenario."""
    fixed = trials.baselines(made)
    base = fixed["nothing"].said
    assert base is not None
    lines = [Line(name, (each,), each) for name, each in fixed.items()]
    for method, settings in grid.tried(made.scenario.name).items():
        tries = tuple(trials.trial(made, method, each) for each in settings)
        lines.append(Line(method, tries, page.best(tries, base.test)))
        print(method, told(lines[-1]), flush=True)
    return lines


def attacked(lines: list[Line]) -> list[Line]:
    """The same lines with U-LiRA, where it is not left out."""
    attack, found = Attack.of(SHADOWS), []
    for line in lines:
        lira = _lira(attack, line)
        found.append(Line(line.name, line.tries, line.chosen, lira))
        if lira is not None:
            print(f"U-LiRA {line.name} {lira.failed or f'{lira.auc:.3f}'}", flush=True)
    return found


def _lira(attack: Attack, line: Line) -> Attacked | None:
    if line.name in page.FIXED:
        kinds = {"nothing": attack.on_nothing, "retrain": attack.on_retrains}
        return kinds[line.name]() if line.name in kinds else None
    if line.chosen is None or line.name in grid.NO_LIRA:
        return None
    return attack.by(line.name, line.chosen.settings)


def _area(lira: Attacked | None) -> tuple[float, ...] | None:
    return None if lira is None or lira.failed else (lira.auc, lira.low, lira.high)


def told(line: Line) -> str:
    """One line about a method, for who waits."""
    said, chosen = line.said, line.chosen
    if said is None or chosen is None:
        return "no number in any try"
    return f"{page.chosen(chosen)}: TV {said.tv_forget:.3f}, test accuracy {said.test:.3f}"


def section(name: str) -> tuple[list[str], float]:
    """The section of a scenario, and the processor time of all of it, earlier calls included."""
    made = trials.made(BUILD, SCENARIOS[name]())
    of_kind, sides = name == "class", made.scenario.sides
    lines = measured(made)
    spent = trials.spent(made.folder)
    if not of_kind:
        lines = attacked(lines)
        spent += trials.spent(SHADOWS)
    lines, plotted = page.ordered(lines), DOCS / f"approximate-classifier-{name}.svg"
    plot.draw(lines, PANELS[name], plotted)
    return [
        *common.text(
            f"To forget: {len(sides.forget):,} records. Kept: {len(sides.retain):,}.",
            *about.costs(made.log, sides.forget),
        ),
        *page.answers(lines, of_kind),
        "",
        *([] if of_kind else [*page.attacks(lines), ""]),
        f"![{' and '.join(each.title for each in PANELS[name])}]({plotted.name})",
        "",
        *(f"- {sentence}" for sentence in summary.sentences(lines, of_kind)),
    ], spent


def main() -> None:
    """Write the sections that are named, or all."""
    torch.set_num_threads(1)
    common.HEADS[PAGE] = about.head()
    for name in sys.argv[1:] or SCENARIOS:
        lines, seconds = section(name)
        common.publish(TITLES[name], Path(__file__).name, lines, seconds, PAGE)


if __name__ == "__main__":
    main()
