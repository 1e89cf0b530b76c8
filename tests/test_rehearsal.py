"""Dry steps show which learners are functions of state, records and plan, and which are not."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sisa import dry_run, rehearsal
from sisa.config import Recipe
from sisa.executor import environment
from sisa.rehearsal import Rehearsed

MODULES = '''
import functools
import os
import random
import time

import torch
from torch import nn


class Base(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)


class Fine(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        parts = nn.Linear(inputs, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, outputs)
        self.parts = nn.Sequential(*parts)

    def forward(self, batch):
        return self.parts(batch) + random.random()  # seeded for each step


class Counter(Base):
    seen = 0

    def forward(self, batch):
        Counter.seen += 1
        return self.linear(batch) * (1 + Counter.seen / 100)


class Previous(Base):
    """Is shifted by how the weights before were other ones: repeating a step does not show it."""

    last = None

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.shift = None

    def forward(self, batch):
        if self.shift is None and len(batch) > 2 and self.training:
            now = float(self.linear.weight.detach().sum())
            self.shift = 0.0 if Previous.last is None else Previous.last - now
            Previous.last = now
        return self.linear(batch) * (1 + (self.shift or 0.0))


class Clock(Base):
    """Draws from a generator of its own, seeded by the time."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.random = random.Random(time.time())

    def forward(self, batch):
        return self.linear(batch) * (1 + self.random.random())


class Seconds(Base):
    def forward(self, batch):
        return self.linear(batch) * (1 + int(time.time()) % 100 / 100)


class Process(Base):
    def forward(self, batch):
        return self.linear(batch) * (1 + os.getpid() / 1e6)


class Kept(Base):
    """Remembers in a plain attribute, which a fresh module would not."""

    total = 0.0

    def forward(self, batch):
        self.total += float(batch.abs().sum())
        return self.linear(batch) + self.total / 1e6


@functools.cache
def kept(inputs, outputs):
    return Kept(inputs, outputs)


GENERATOR = torch.Generator().manual_seed(0)


class Own(Base):
    def forward(self, batch):
        return self.linear(batch) + torch.rand(1, generator=GENERATOR)


class Put(Base):
    """An operator that has no deterministic form on a CPU."""

    def forward(self, batch):
        found = self.linear(batch)
        return torch.zeros_like(found).put_(torch.arange(found.numel()), found.flatten())


class Wild(Base):
    """Its training is a function of its arguments, what it predicts is not."""

    def forward(self, batch):
        noise = 0 if self.training else int.from_bytes(os.urandom(2), "big")
        return self.linear(batch) * (1 + noise)


def dies(inputs, outputs):
    print("never mind")
    os._exit(3)
'''


def recipe_of(folder: Path, factory: str, **data: Any) -> Recipe:
    (folder / "rehearsed.py").write_text(MODULES)
    features = {"a": "float32", "b": "uint8[6]", "c": "text", "d": "bool", "e": "float64[3]"}
    body = {"record_id": "id", "target": "y", "features": features, "hash_buckets": 4}
    chosen = {"classes": [0, 1, 2], **data}
    return Recipe.model_validate({"data": body | chosen, "learner": {"factory": factory}})


def rehearse(folder: Path, factory: str, **data: Any) -> Rehearsed:
    recipe = recipe_of(folder, factory, **data)
    with rehearsal.under_way(recipe, [str(folder)]) as outcome:
        return outcome()


@pytest.mark.parametrize("factory", ["logistic", "mlp", "rehearsed:Fine"])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_function_of_its_arguments_has_no_finding(
    tmp_path: Path, factory: str, task: str
) -> None:
    classes = [0, 1, 2] if task == "classification" else []
    done = rehearse(tmp_path, factory, task=task, classes=classes)
    assert done.findings == ()
    assert done.fingerprint is not None and ("torch" in done.fingerprint) == (factory != "logistic")


@pytest.mark.parametrize(
    ("factory", "check", "what"),
    [
        ("Counter", "state", "module.linear.weight"),
        ("Previous", "state", "module.linear.weight"),
        ("kept", "state", "module.linear.weight"),
        ("Own", "state", "module.linear.weight"),
        ("Clock", "determinism", "module.linear.weight"),
        ("Seconds", "determinism", "a second later"),
        ("Process", "determinism", "in another process"),
        ("Put", "determinism", "put_"),
        ("Wild", "determinism", "other bits in predictions."),
        ("dies", "learner", "ended its process"),
        ("nothing", "learner", "rehearsed:nothing cannot be called"),
    ],
)
def test_what_else_decides_bits_is_an_error(
    tmp_path: Path, factory: str, check: str, what: str
) -> None:
    (found,) = rehearse(tmp_path, f"rehearsed:{factory}").findings
    assert (found.severity, found.check) == ("error", check)
    assert what in found.message and found.remedy


def test_a_clock_that_counts_seconds_moves_between_steps(tmp_path: Path) -> None:
    """In one process alone, whatever the other one's clock says."""
    asked = {
        "recipe": recipe_of(tmp_path, "rehearsed:Seconds").model_dump(mode="json"),
        "import_paths": [str(tmp_path)],
        "repeat": True,
    }
    done = subprocess.run(
        [sys.executable, "-m", "sisa.dry_run"],
        input=json.dumps(asked),
        env=environment(1),
        capture_output=True,
        text=True,
        check=True,
    )
    _, before, later, _ = json.loads(done.stdout)["outcomes"]
    assert before["module.linear.weight"] != later["module.linear.weight"]


@pytest.mark.parametrize(
    ("repeated", "fresh", "check"),
    [
        ("aaaa", "a", None),
        ("aaab", "a", "state"),
        ("abcd", "a", "state"),
        ("aabb", "a", "determinism"),
        ("aaaa", "b", "determinism"),
        ("abcd", "e", "determinism"),
    ],
)
def test_what_differs_tells_what_is_wrong(repeated: str, fresh: str, check: str | None) -> None:
    outcomes = [{"w": digest, "same": "0"} for digest in repeated]
    found = list(rehearsal.compared(outcomes, {"w": fresh, "same": "0"}))
    assert [f.check for f in found] == ([check] if check else [])
    assert all(f.message.endswith("bits in w.") for f in found)


def test_a_dry_step_that_never_ends_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "endless.py").write_text("import time\n\ndef build(*_): time.sleep(600)\n")
    monkeypatch.setattr(rehearsal, "PATIENCE", 4.0)
    started = time.monotonic()
    (found,) = rehearse(tmp_path, "endless:build").findings
    assert found.severity == "error" and time.monotonic() - started < 30


def test_made_up_records_fit_the_recipe_and_are_the_same_everywhere() -> None:
    features = {f"x{i}": kind for i, kind in enumerate(("bool", "int8", "uint64", "float64"))}
    recipe = Recipe.model_validate(
        {
            "data": {
                "record_id": "id",
                "target": "y",
                "classes": ["no", "yes"],
                "features": {**features, "t": "text", "v": "float32[5]"},
                "categories": {"t": ["one", "two"]},
            }
        }
    )
    made, again = (dry_run.made_up(recipe.data, 50) for _ in range(2))
    assert made.target is not None and set(made.target) == {0, 1}
    assert np.isnan(made.numbers).any(axis=0).all() and not np.isnan(made.numbers).all(axis=0).any()
    assert {0, 1, 2} <= set(made.codes[:, 0]) and made.arrays[0].shape == (50, 5)
    assert (made.words[1:] > made.words[:-1]).all()
    assert (made.words == again.words).all() and (made.arrays[0] == again.arrays[0]).all()
