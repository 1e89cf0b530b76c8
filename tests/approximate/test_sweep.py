"""The search for settings: at a utility floor, going on where it was, and honest about failing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sisa.approximate import statement, sweep, unlearn
from sisa.approximate.carry_out import carried_out
from sisa.approximate.plan import Plan, look
from sisa.approximate.request import Request
from sisa.errors import ConfigurationError, DivergedError, IncompleteError, WorkerError

from .shop import call, fits

FEW = ("items_per_batch=6", "checkpoint_every=0", "epochs=3")


def asked(shop: Path, tmp_path: Path, *settings: str, **changes: Any) -> Request:
    plain = Request(
        "gradient-difference",
        shop / "forget.jsonl",
        shop / "base",
        tmp_path / "new",
        shop / "retain.jsonl",
        holdout=shop / "holdout.jsonl",
        evidence=False,
        settings=(*FEW, *settings),
    )
    return replace(plain, **changes)


def run_in(folder: Path) -> sweep.Run:
    return lambda plan: void(carried_out(plan, folder / "try", lambda metrics, step: None))


def void(_: object) -> None:
    return None


def test_the_best_of_those_above_the_floor_is_taken(shop: Path, tmp_path: Path) -> None:
    """What a model comes to is made up here, so that the best is known."""
    plan, seen = look(asked(shop, tmp_path)), list[dict[str, Any]]()

    def run(tried: Plan) -> None:
        lr = tried.chosen.settings["lr"]
        seen.append({name: tried.chosen.settings[name] for name in ("lr", "gamma", "epochs")})
        with torch.no_grad():  # the further, the more is forgotten, and the less is kept
            for p in tried.subject.module.parameters():
                p.mul_(1 - min(lr * 300, 0.9))

    found, made = sweep.search(plan, 8, tmp_path, run)
    assert len(made) == len(seen) == 8 and len({s["lr"] for s in seen}) == 8
    assert all(s["epochs"] == 3 for s in seen), "it was set"
    good = [t for t in made if t.utility is not None and t.utility >= sweep.FLOOR]
    assert 0 < len(good) < 8
    best = min(t.distance for t in good if t.distance is not None)
    (chosen,) = [t for t in good if t.settings["lr"] == found.chosen.settings["lr"]]
    assert chosen.distance == best
    assert found.chosen.settings["gamma"] == chosen.settings["gamma"]


def test_an_interrupted_search_goes_on(shop: Path, tmp_path: Path) -> None:
    plan = look(asked(shop, tmp_path))
    told: list[int] = []

    def report(number: int, made: sweep.Try) -> None:
        told.append(number)
        if number == 2 and len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep.search(plan, 4, tmp_path, lambda tried: None, report)
    _, made = sweep.search(plan, 4, tmp_path, lambda tried: None, report)
    assert told == [1, 2, 3, 4] and len(made) == 4


def test_settings_that_break_the_model_are_tries_that_failed(shop: Path, tmp_path: Path) -> None:
    plan, count = look(asked(shop, tmp_path)), iter(range(9))

    def run(tried: Plan) -> None:
        if next(count) % 2:
            raise DivergedError("A loss is no longer a number.")

    _, made = sweep.search(plan, 4, tmp_path, run)
    assert [t.distance is None for t in made] == [False, True, False, True]


def test_a_machine_that_is_lost_says_nothing_of_a_setting(shop: Path, tmp_path: Path) -> None:
    plan, count = look(asked(shop, tmp_path)), iter(range(9))

    def run(tried: Plan) -> None:
        if next(count) == 1:
            raise WorkerError("A worker died.")

    with pytest.raises(WorkerError):
        sweep.search(plan, 3, tmp_path, run)
    _, made = sweep.search(plan, 3, tmp_path, run)
    assert [t.distance is None for t in made] == [False, False, False]


def test_a_floor_that_nothing_meets_is_said(shop: Path, tmp_path: Path) -> None:
    plan = look(asked(shop, tmp_path, "floor=1.0"))

    def run(tried: Plan) -> None:
        with torch.no_grad():
            for p in tried.subject.module.parameters():
                p.mul_(0.5)

    with pytest.raises(IncompleteError, match="None of 3 tries kept 1 of the utility"):
        sweep.search(plan, 3, tmp_path, run)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"holdout": None}, "--retrained"),
        ({"settings": (*FEW, "lr=1", "gamma=1")}, "no setting left"),
    ],
)
def test_a_search_without_aim_or_freedom_is_refused(
    changes: Mapping[str, Any], words: str, shop: Path, tmp_path: Path
) -> None:
    plan = look(replace(asked(shop, tmp_path), **changes))
    with pytest.raises(ConfigurationError) as caught:
        sweep.search(plan, 2, tmp_path, lambda tried: None)
    assert words in f"{caught.value.message} {caught.value.remedy}"


def test_the_command_takes_the_settings_that_it_finds(shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "new"
    words = ["--holdout", str(shop / "holdout.jsonl"), "--sweep", "3", "--no-evidence"]
    words += [word for text in (*FEW, "floor=0.1") for word in ("--set", text)]
    done = call(shop, out, *words, "--yes", "--output", "json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    fits("unlearn", document)
    table = json.loads((out / sweep.FILE).read_text())
    assert len(table) == 3 and any("best of 3 tries" in text for text in document["warnings"])
    stated = statement.read((out / statement.FILE).read_bytes())
    assert statement.differences(stated, out) == []
    said = {name: stated.predicate.settings[name] for name in table[0]["settings"]}
    assert said in [row["settings"] for row in table]
    assert list(tmp_path.glob(".unlearn-*")) == []

    again = asked(shop, tmp_path, out=tmp_path / "again")
    same = tuple(f"{name}={value!r}" for name, value in said.items())
    unlearn.run(replace(again, settings=(*FEW, "floor=0.1", *same)))
    weights = [(f / "model.safetensors").read_bytes() for f in (out, tmp_path / "again")]
    assert weights[0] == weights[1], "the model is that of the same settings without a search"


def test_another_aim_is_another_search(shop: Path, tmp_path: Path) -> None:
    """Tries are judged by what is aimed at, so they may not be taken for those of another aim."""
    other = tmp_path / "holdout.jsonl"
    other.write_text((shop / "holdout.jsonl").read_text().partition("\n")[2])
    plain, searched = asked(shop, tmp_path), asked(shop, tmp_path, tries=2)
    changes = [{}, {"holdout": other}, {"retrained": shop / "base"}]
    assert len({look(replace(searched, **each)).identity for each in changes}) == 3
    assert len({look(replace(plain, **each)).identity for each in changes}) == 1
