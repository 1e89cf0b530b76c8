"""Requests one after the other on one model: what is left of each, and of what is kept."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import common

from sisa.approximate import models, sequence, unlearn
from sisa.approximate.batches import read_texts
from sisa.approximate.item_values import mean_probability
from unlearning import brought, grid
from unlearning.training import Trained
from unlearning.trials import alone

TITLE = "tofu, in turn"

REQUESTS = 4
"""Into which the items to forget are split, in their order: of tofu, one for each author."""

CHOSEN: Mapping[str, str] = {
    "npo": "lr=1e-3",
    "satimp": "lr=1e-3",
    "scrub": "lr=3e-4",
    "gradient-difference": "lr=1e-4",
}
"""Methods, with the rate that is chosen of each where all is forgotten at once."""


def section(made: Trained) -> tuple[list[str], float]:
    """The section, and the seconds that all of it took, earlier calls included."""
    found = {name: _measured(made, name) for name in CHOSEN}
    rows = [
        [name, str(number or "-"), f"{each['kept']:.3f}", *_cells(each["forgotten"])]
        for name, kept in {**_baselines(made), **found}.items()
        for number, each in kept["after"]
    ]
    head = ["model", "after", "keep", *(f"request {n}" for n in range(1, REQUESTS + 1))]
    return [
        *common.text(
            f"The items to forget come in {REQUESTS} requests, one for each author, and each",
            "request starts from the model that the one before it left",
            "(`sisa unlearn sequence`); settings are those of the table of tofu at the rates",
            f"{', '.join(f'`{name}` {rate}' for name, rate in CHOSEN.items())}. Columns are mean",
            "probabilities: of the items to keep, and of the items of each request so far. That a",
            "request brings an earlier one back shows as a number that rises again downwards.",
        ),
        *common.table(head, rows),
    ], sum(each["took"] for each in found.values())


def _cells(forgotten: list[float]) -> list[str]:
    return [f"{value:.3f}" for value in forgotten] + [""] * (REQUESTS - len(forgotten))


def _baselines(made: Trained) -> dict[str, Any]:
    """Doing nothing, and the exact retrain."""
    folders = {"nothing": made.base, "retrain": made.retrain}
    return {
        name: common.kept(
            made.folder / "in-turn" / f"{name}.json", lambda f=folder: alone(_asked, made, f)
        )
        for name, folder in folders.items()
    }


def _measured(made: Trained, name: str) -> dict[str, Any]:
    file = made.folder / "in-turn" / f"{name}.json"
    return common.kept(file, lambda: alone(_in_turn, made, name))


def _asked(made: Trained, folder: Path) -> dict[str, Any]:
    subject = models.load(folder)

    def mean(file: Path) -> float:
        return mean_probability(subject, read_texts(file, subject.tokenizer))

    each = {
        "kept": mean(made.files["retain"]),
        "forgotten": [mean(f) for f in brought.parts(made, REQUESTS)],
    }
    return {"after": [(0, each)]}


def _in_turn(made: Trained, name: str) -> dict[str, Any]:
    out = made.folder / "in-turn" / name
    shutil.rmtree(out, ignore_errors=True)
    parts, rate = brought.parts(made, REQUESTS), CHOSEN[name]
    (settings,) = (each for each in grid.tried()[name] if each[0] == rate)
    request = unlearn.Request(
        name,
        parts[0],
        made.base,
        out,
        retain=made.files["retain"],
        evidence=False,
        settings=settings,
    )
    done = sequence.run(request, parts).requests
    after = [{"kept": each.kept, "forgotten": list(each.forgotten)} for each in done]
    return {"after": list(enumerate(after, 1))}
