"""Two processes that each hold a part of a model do what one process does."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sisa.approximate.answers import statistics
from sisa.approximate.models import LanguageModel
from sisa.approximate.targets import Held

from ..approximate import language
from . import pair

pytestmark = pytest.mark.slow

each_case = pytest.mark.parametrize("name", pair.CASES)

ULP = 1e-5
"""How far sums in another order may lead, in units of the larger of 1 and the value."""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two processes have left what came out."""
    folder = tmp_path_factory.mktemp("pair")
    for name, case in pair.CASES.items():
        if case.taken_up:
            with pytest.raises(InterruptedError):
                pair.alone(case, language, folder / name, stop_after=3)
            assert list((folder / name).glob("*2.progress.safetensors"))
    paths = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, pair.__file__, language.__file__, str(folder)]
    started = [
        subprocess.Popen([*command, rank], env=os.environ | {"PYTHONPATH": paths})
        for rank in ("0", "1")
    ]
    assert [process.wait(300) for process in started] == [0, 0]
    return folder


@functools.cache
def alone(name: str) -> pair.Found:
    """What one process makes of a case."""
    return pair.alone(pair.CASES[name], language)


@each_case
def test_a_step_of_two_is_the_step_of_one(both: Path, name: str) -> None:
    found = pair.Found(**torch.load(both / f"{name}.pt"))
    one = alone(name)
    assert found.losses == pytest.approx(one.losses, rel=ULP, abs=ULP)
    assert len(found.losses) == pair.CASES[name].steps
    # AdamW divides the scale of a gradient out: its norm alone tells a mean from a sum
    taken_up = len(one.norms) - len(found.norms)
    assert taken_up == (2 if pair.CASES[name].taken_up else 0)
    assert found.norms == pytest.approx(one.norms[taken_up:], rel=ULP)
    assert found.parameters.keys() == one.parameters.keys()
    for key, tensor in one.parameters.items():
        torch.testing.assert_close(found.parameters[key], tensor.detach(), rtol=0, atol=ULP)


@each_case
def test_two_say_of_items_what_one_says(both: Path, name: str) -> None:
    found = pair.Found(**torch.load(both / f"{name}.pt"))
    one = alone(name)
    assert torch.equal(found.before, one.before)
    torch.testing.assert_close(found.after, one.after, rtol=1e-4, atol=1e-4)


def test_changed_parameters_are_what_the_next_forward_has(both: Path) -> None:
    one = LanguageModel(language.llama())
    pair.halve(one.trainable())
    expected = statistics(one, pair.items(language)[0], 2).nll
    for rank in (0, 1):
        assert torch.equal(torch.load(both / f"halved-{rank}.pt"), expected)


def test_two_go_on_with_a_text_as_one_does(both: Path) -> None:
    subject = pair.CASES["icu"].made(language)
    true = [rest for _, rest in pair.continued(subject, pair.items(language)[0])]
    expected = pair.said(language, subject)

    def equal(said: list[torch.Tensor], other: list[torch.Tensor]) -> int:
        return sum(torch.equal(*each) for each in zip(said, other, strict=True))

    assert equal(expected[0], true) >= 3 > equal(expected[1], true)
    for rank in (0, 1):
        found = torch.load(both / f"said-{rank}.pt")
        assert [equal(*each) for each in zip(found, expected, strict=True)] == [6, 6]


def test_a_collapse_that_one_sees_is_heard_of_by_both(both: Path) -> None:
    assert [torch.load(both / f"heard-{rank}.pt") for rank in (0, 1)] == [True, True]


@pytest.mark.parametrize("name", pair.ATTACKED)
def test_attacks_of_two_come_to_those_of_one(both: Path, name: str) -> None:
    case, size = pair.ATTACKED[name]
    how, model = pair.attacks_with(size), pair.unlearned(case, language)
    one = pair.attacks_of(language, Held(model, how), how)
    for rank in (0, 1):
        found = torch.load(both / f"attacks-{rank}.pt")[name]
        for own, other in zip(found["gradients"], one["gradients"], strict=True):
            assert own == pytest.approx(other, rel=1e-4)
        assert found["relearning"] == approximately(one["relearning"])
        assert found["quantisation"] == approximately(one["quantisation"])
    for part in (one["relearning"]["recovery"], *one["quantisation"]["bits"].values()):
        assert part["attacked"] != pytest.approx(part["unlearned"], rel=4e-3)  # it does something


def test_attacks_on_a_collapse_come_to_an_end_for_both(both: Path) -> None:
    how = pair.attacks_with(4)
    one = pair.attacks_of(language, Held(pair.collapsed(language), how), how)
    assert "no finite loss at any learning rate" in one["relearning"]
    assert "no finite log probability" in one["quantisation"]
    for rank in (0, 1):
        found = torch.load(both / f"attacks-{rank}.pt")["collapsed"]
        for own, other in zip(found.pop("gradients"), one["gradients"], strict=True):
            assert own == pytest.approx(other, rel=1e-4, nan_ok=True)
        assert found == {name: one[name] for name in found}


def test_a_copy_that_one_cannot_read_ends_the_run_of_both(both: Path) -> None:
    assert [torch.load(both / f"unread-{rank}.pt") for rank in (0, 1)] == [True, True]


def test_workers_that_see_different_checkpoints_do_not_begin(both: Path) -> None:
    assert [torch.load(both / f"elsewhere-{rank}.pt") for rank in (0, 1)] == [True, True]


def approximately(value: Any) -> Any:
    """The same, with numbers that may differ as sums in another order do."""
    if isinstance(value, dict):
        return {name: approximately(inner) for name, inner in value.items()}
    return pytest.approx(value, rel=1e-3, abs=1e-6) if isinstance(value, float) else value
