"""What is done once and no more: forwards of a step, models in memory, forwards of the evidence."""

from __future__ import annotations

import gc
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from sisa.approximate import attacked, carry_out, loop, models, reference, targets, unlearn
from sisa.approximate.asked import Asked
from sisa.approximate.controllers import Measured
from sisa.approximate.evidence import NOT_EVALUATED
from sisa.approximate.examine import Examination
from sisa.approximate.methods import METHODS, OBJECTIVES
from sisa.approximate.models import LanguageModel
from sisa.approximate.plan import look
from sisa.approximate.targets import Attacks
from sisa.approximate.unlearn import Request
from sisa.errors import IncompleteError

from .language import VOCABULARY, llama, made

FORGET = made([9, 6, 12, 7], seed=1, name="forget")
RETAIN = made([8, 11, 6, 9, 7], seed=2, name="retain")

FORWARDS: dict[str, tuple[int, int]] = {
    # of an epoch of two batches of each side: of the model, of the reference
    "gradient-ascent": (2, 0),
    "gradient-difference": (4, 0),
    "label-flip": (4, 0),
    "idk": (4, 0),
    "dpo": (4, 2),  # a pair goes through at once
    "npo": (4, 2),
    "simnpo": (4, 0),
    "wga": (4, 0),
    "satimp": (4, 0),
    "loss-selection": (4, 0),
    "temperature": (4, 0),
    "undial": (2, 2),
    "ce-u": (2, 0),
    "pdu": (4, 0),
    "rmu": (5, 2),  # one tells the width of the control vector
    "scrub": (5, 5),  # three batches are all that is retained
    "icu": (4, 2),
    "eul": (5, 5),
}

WITH_KL = {"gradient-difference": (4, 2), "npo": (4, 4), "wga": (4, 2), "undial": (4, 4)}


def counted(subject: Any) -> list[int]:
    """One entry for each forward of the decoder, one that stops in its middle included."""
    found: list[int] = []
    decoder = subject.module.get_decoder()
    decoder.register_forward_pre_hook(lambda *_: found.append(1))
    return found


def steady(wants: Any, active: Any) -> Measured:
    return Measured(None, dict.fromkeys(active, 1.0))


CASES = {
    name: (name, dict[str, Any](), FORWARDS.get(name)) for name in (m.name for m in OBJECTIVES)
}
CASES |= {
    f"{name} with KL": (name, {"retain": "kl", "alpha": 1.0}, expected)
    for name, expected in WITH_KL.items()
}
CASES["rmu"][1]["layer"] = 1


@pytest.mark.parametrize("case", CASES)
def test_a_step_has_one_forward_for_each_batch(case: str) -> None:
    name, settings, expected = CASES[case]
    subject, was = LanguageModel(llama()), LanguageModel(llama())
    now, then = counted(subject), counted(was)
    loop.run(
        subject,
        METHODS[name].configured(**settings),
        FORGET,
        RETAIN,
        loop.Settings(epochs=1, items_per_batch=2, lr=1e-3, chunk_rows=5),
        None,
        reference.Live(was),
        alternatives=made([8, 7, 9, 6], seed=3, name="other"),
        neighbours=made([7, 7, 8, 8], seed=4, name="near"),
        measure=steady,
    )
    assert (len(now), len(then)) == expected


@pytest.mark.parametrize("name", ["gradient-difference", "npo"])
def test_what_is_kept_costs_one_forward_before_and_none_later(name: str) -> None:
    subject, kl = LanguageModel(llama()), name == "gradient-difference"
    method = METHODS[name].configured(**{"retain": "kl"} if kl else {})
    found = counted(subject)
    kept = reference.keep(subject, [RETAIN if kl else FORGET], top=VOCABULARY if kl else None)
    assert len(found) == 1
    settings = loop.Settings(epochs=3, items_per_batch=2, lr=1e-3)
    loop.run(subject, method, FORGET, RETAIN, settings, None, kept)
    assert len(found) == 1 + 3 * 4


def request(shop: Path, out: Path, method: str, *settings: str, **more: Any) -> Request:
    files = {name: shop / f"{name}.jsonl" for name in ("forget", "retain")}
    given: dict[str, Any] = {"evidence": False, **files, **more}
    chosen = ("epochs=1", "items_per_batch=6", *settings)
    return Request(method=method, model=shop / "base", out=out, settings=chosen, **given)


WITHOUT = ["gradient-ascent", "gradient-difference", "simnpo", "wga", "satimp", "pdu"]


@pytest.mark.parametrize("name", WITHOUT)
def test_a_reference_that_nobody_asks_is_not_made(name: str, shop: Path, tmp_path: Path) -> None:
    def fail(*_: Any) -> Any:
        raise AssertionError("nobody asks for it")

    plan = look(request(shop, tmp_path / "new", name, "reference=second"))
    assert carry_out.reference_of(plan, None, second=fail, keep=fail) is None


def in_memory() -> int:
    """Models of the shop's kind that exist at this moment."""
    from transformers import LlamaForCausalLM

    gc.collect()
    return sum(type(found) is LlamaForCausalLM for found in gc.get_objects())


@pytest.mark.parametrize(
    ("name", "setting", "expected"),
    [(name, "reference=second", 1) for name in WITHOUT]
    + [("npo", "reference=kept", 1), ("npo", "reference=second", 2)],
)
def test_a_model_folder_is_loaded_once_unless_a_second_one_is_asked_for(
    name: str,
    setting: str,
    expected: int,
    shop: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded, there, load = list[Path](), list[int](), models.load

    def loading(folder: Path, *more: Any) -> LanguageModel:
        loaded.append(folder)
        return load(folder, *more)

    monkeypatch.setattr(models, "load", loading)
    before = in_memory()
    asked = request(shop, tmp_path / "new", name, setting)
    unlearn.run(asked, report=lambda *_: there.append(in_memory() - before))
    assert loaded == [shop / "base"] * expected
    assert there == [expected]


def test_one_forward_of_a_batch_tells_everything_that_is_known_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But for the attacks that change the model or ask for its gradients."""

    def left_out(*_: Any) -> Any:
        raise IncompleteError("It was left out.")

    monkeypatch.setattr(targets, "gradient_norms", lambda losses, parameters: None)
    monkeypatch.setattr(attacked, "relearning", left_out)
    monkeypatch.setattr(attacked, "quantisation", left_out)
    sides = {name: made([9, 8, 7, 9, 6, 8, 7], i, name=name) for i, name in enumerate(SIDES)}
    wrong = tuple(made([9, 8, 7, 9, 6, 8, 7], 9 + i, name="wrong") for i in range(2))
    model, never = LanguageModel(llama()), LanguageModel(llama(1))
    now, then = counted(model), counted(never)

    begun = Examination.begin(
        model, Asked(**sides, wrong=wrong), Attacks(lr=1e-3, items=3, chunk=5), never
    )
    batches = 3 * (len(sides) + len(wrong))
    assert (len(now), len(then)) == (batches, batches)
    with torch.no_grad():
        model.module.lm_head.weight.mul_(0.5)
    found, _ = begun.end(model)
    assert (len(now), len(then)) == (2 * batches, batches)
    parts = (found.memorisation, found.truth, found.utility, found.oracle, found.membership)
    assert NOT_EVALUATED not in parts
    assert found.membership != NOT_EVALUATED
    assert found.membership.attacks.keys() == {"loss", "min_k", "min_k_plus_plus", "reference"}


SIDES = ("forget", "retain", "holdout", "paraphrased")


def test_the_retrained_model_is_loaded_and_asked_once(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked, loaded, load = tmp_path / "retrained", list[int](), Counter[str](), models.load
    shutil.copytree(shop / "base", folder)

    def loading(path: Path, *more: Any) -> LanguageModel:
        loaded[path.name] += 1
        found = load(path, *more)
        if path.name == folder.name:
            found.module.get_decoder().register_forward_pre_hook(lambda *_: asked.append(1))
        return found

    monkeypatch.setattr(models, "load", loading)
    given = {"holdout": shop / "holdout.jsonl", "retrained": folder, "evidence": True}
    call = request(shop, tmp_path / "new", "gradient-difference", "relearn_steps=1", **given)
    assert unlearn.run(call).verdict == "evaluated"
    assert loaded == {"base": 1, "retrained": 1}
    assert len(asked) == 1 + 2 + 1, "batches of six of what is forgotten, kept and held out"
