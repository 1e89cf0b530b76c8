"""Every approximate method on a small language model, beside the exact retrain and doing nothing.

A Llama of a million parameters is trained here from a random start until it knows its items by
heart; each method then has the same passes over what is to be forgotten and the same number of
trials. What was trained, tried and attacked is kept in `build/unlearning`, so that an interrupted
call goes on where it was; remove that folder after a change of the code.

    SISA_TEST_DATA=/where/data/lies .venv/bin/python tests/benchmarks/unlearn_language.py [SET...]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common
import torch
from unlearning import about, brought, grid, in_turn, plot, summary, table, training, trials
from unlearning.lines import Line, best, told
from unlearning.people import SETS, Sides

BUILD = common.ROOT / "build" / "unlearning"
DOCS = common.ROOT / "docs"
PAGE = DOCS / "approximate-results.md"


def measured(made: training.Trained) -> list[Line]:
    """Everything that is in the table of a data set, nearest to the retrain first."""
    nothing = trials.baseline(made, "nothing", made.base)
    retrain = trials.baseline(made, "retrain", made.retrain)

    def line(name: str, tried: tuple[dict[str, Any], ...]) -> Line:
        said = (nothing["said"]["utility"], retrain["said"]["each"])
        chosen = best(tried, *said)
        evidence = trials.attacked(made, Path(chosen["folder"])) if chosen else {}
        print(name, told(tried), flush=True)
        return Line(name, tried, chosen, evidence.get("evidence", {}))

    found = [
        line(method, tuple(trials.trial(made, method, each) for each in settings))
        for method, settings in grid.tried().items()
    ]
    fixed = [line("nothing", (nothing,)), line("retrain", (retrain,))]
    return [*fixed, *sorted(found, key=_order)]


def _order(line: Line) -> tuple[float, float]:
    """Nearest to the retrain first, then the most useful; what has no number comes last."""
    return (2.0, 0.0) if line.said is None else (line.said.distance, -line.said.utility)


@contextmanager
def models(name: str) -> Iterator[tuple[Sides, training.Trained]]:
    """The sides of a data set, and the models that are made of them."""
    sides = SETS[name]()
    with tempfile.TemporaryDirectory(prefix="sisa-bench-") as scratch:
        files = sides.write(Path(scratch))
        yield sides, trials.alone(training.trained, name, sides, BUILD, files)


def section(name: str) -> tuple[list[str], float]:
    """The section of a data set, and the seconds that all of it took, earlier calls included."""
    if name == in_turn.TITLE:
        with models("tofu") as (_, made):
            return in_turn.section(made)
    with models(name) as (sides, made):
        found, (size, steps) = measured(made), brought.size(made)
    plotted = DOCS / f"approximate-{name}.svg"
    plot.plot(found, name, plotted)
    return [
        *common.text(
            f"To forget: {len(sides.forget)} items of {sides.subjects['forget']} subjects. Kept:",
            f"{len(sides.retain)} of {sides.subjects['retain']}. Never seen:",
            f"{len(sides.holdout)} of {sides.subjects['holdout']}. Both models had",
            f"{training.EPOCHS[name]} epochs of training. The update log of the base holds",
            f"{steps:,} steps, {size / 2**30:.1f} GiB.",
        ),
        *table.table(found),
        "",
        f"![Utility against forget quality and against forgetting]({plotted.name})",
        "",
        *(f"- {sentence}" for sentence in summary.sentences(found)),
    ], trials.seconds(made)


def main() -> None:
    """Write the sections that are named, or all."""
    torch.set_num_threads(1)
    common.HEADS[PAGE] = about.head()
    for name in sys.argv[1:] or [*SETS, in_turn.TITLE]:
        lines, seconds = section(name)
        common.publish(name, Path(__file__).name, lines, seconds, PAGE)


if __name__ == "__main__":
    main()
