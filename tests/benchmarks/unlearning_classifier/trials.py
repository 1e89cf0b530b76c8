"""Tries of a scenario, each kept as JSON: an interrupted benchmark goes on with what is missing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import common

from data_index.storage import canonical_json, sha256
from sisa.approximate.declaration import Setting
from sisa.errors import SisaError
from unlearning_classifier import training
from unlearning_classifier.applied import change
from unlearning_classifier.grid import MIXED
from unlearning_classifier.images import Scenario
from unlearning_classifier.measured import Said, said
from unlearning_classifier.training import Model, copied

OTHER = common.SEED + 1
"""Seed of a second retrain: how far apart two of them are is as near as a method can come."""

timed = partial(common.kept, clock=time.process_time)
"""What a file holds, or what is found, with the processor time that took."""


@dataclass(frozen=True)
class Made:
    """The models of a scenario.

    Attributes:
        folder: Of what is found.
        scenario: It.
        base: The model that has learned all.
        retrain: The exact retrain.
        log: Of the base's updates.
    """

    folder: Path
    scenario: Scenario
    base: Model
    retrain: Model
    log: Path


@dataclass(frozen=True)
class Trial:
    """A method with settings.

    Attributes:
        method: Its name.
        settings: What it was given; the first is what differs between tries.
        seconds: Processor time in the method.
        said: What the model says; None if it has collapsed to no number, or the method refused.
        notes: What the method notes.
        failed: Why nothing is said.
    """

    method: str
    settings: Mapping[str, Setting]
    seconds: float = 0.0
    said: Said | None = None
    notes: tuple[str, ...] = ()
    failed: str = ""


def made(build: Path, scenario: Scenario) -> Made:
    """Train the models of a scenario, or find them where an earlier call left them.

    Both scenarios have the base in common: its order is a hash of ids, whatever is forgotten later.
    """
    folder, sides = build / scenario.name, scenario.sides
    folder.mkdir(parents=True, exist_ok=True)
    base = training.kept(build / "base", sides.forget + sides.retain, common.SEED, logged=True)
    retrain = training.kept(folder / "retrain", sides.retain, common.SEED)
    change(copied(base), *MIXED, sides)  # the first steps of a process pay for imports
    return Made(folder, scenario, base, retrain, training.log_of(build / "base"))


def spent(folder: Path) -> float:
    """Processor time of all that was found in a folder, whenever."""
    files = folder.glob("*/*.json")  # models are described by such files too
    return float(sum(json.loads(file.read_text()).get("took", 0.0) for file in files))


def trial(made: Made, method: str, settings: Mapping[str, Setting]) -> Trial:
    """Let a method change the base, and ask what came of it."""
    named = sha256(canonical_json([method, settings]))[:16]
    file = made.folder / "trials" / f"{_plain(method)}-{named}.json"
    return _read(timed(file, partial(_changed, made, method, settings)))


def baselines(made: Made) -> dict[str, Trial]:
    """Models that no method changed: the base, the exact retrain, and a second retrain."""
    found = {
        "nothing": lambda: copied(made.base),
        "retrain": lambda: training.trained(made.scenario.sides.retain, common.SEED),
        "retrain, other seed": lambda: training.trained(made.scenario.sides.retain, OTHER),
    }
    folder = made.folder / "baselines"
    return {
        name: _read(timed(folder / f"{_plain(name)}.json", partial(_as_is, made, name, of)))
        for name, of in found.items()
    }


def _changed(made: Made, method: str, settings: Mapping[str, Setting]) -> dict[str, Any]:
    model, began = copied(made.base), time.process_time()
    notes: tuple[str, ...] = ()
    try:
        notes = change(model, method, settings, made.scenario.sides, made.log)
        seconds = time.process_time() - began
        found = said(model.subject, made.scenario, made.retrain.subject)
    except SisaError as error:
        seconds = time.process_time() - began
        return asdict(Trial(method, settings, seconds, None, notes, error.message))
    return asdict(Trial(method, settings, seconds, found, notes))


def _as_is(made: Made, name: str, of: Callable[[], Model]) -> dict[str, Any]:
    model = of()
    found = said(model.subject, made.scenario, made.retrain.subject)
    return asdict(Trial(name, {}, model.seconds, found))


def _plain(name: str) -> str:
    """A name as that of a file."""
    return name.replace(", ", "-").replace(" ", "-")


def _read(found: Mapping[str, Any]) -> Trial:
    plain = {name: value for name, value in found.items() if name != "took"}
    plain["said"] = None if found["said"] is None else Said(**found["said"])
    return Trial(**{**plain, "notes": tuple(found["notes"])})
