"""A run that was killed goes on to the same bits, and a checkpoint is whole or absent."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sisa.approximate import loop, progress, reference
from sisa.approximate.methods import METHODS
from sisa.approximate.models import LanguageModel
from sisa.approximate.progress import Progress
from sisa.errors import ConfigurationError

from . import killed
from .language import llama

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("name", "moment", "steps"),
    [
        ("npo", "step", 9),
        ("pdu", "checkpoint", 9),
        ("rmu", "step", 9),
        ("scrub", "checkpoint", 21),  # in the middle of its first pass over what is retained
    ],
)
def test_a_killed_run_goes_on_to_the_same_bits(
    name: str, moment: str, steps: int, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.approximate.killed", name, str(tmp_path), moment]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert child.returncode == -signal.SIGKILL, child.stderr
    (file,) = tmp_path.glob("*.progress.safetensors")
    assert file.name.startswith(f"{killed.DIES_AT - 2:09d}")

    told: list[int] = []
    again, resumed = killed.go(name, tmp_path, lambda metrics, step: told.append(step))
    whole, expected = killed.go(name, None)
    assert told[0] == killed.DIES_AT - 1, "it went on, and did not begin anew"
    assert resumed.steps == expected.steps == steps
    assert resumed.losses == expected.losses
    assert all(torch.equal(again[p], whole[p]) for p in whole)


def test_without_the_state_of_its_controller_it_would_not(tmp_path: Path) -> None:
    # the negative control: the same checkpoint with another multiplier
    kept = killed.go("pdu", None)[1].losses

    class Enough(Exception):
        pass

    def enough(metrics: object, step: int) -> None:
        if step == 5:
            raise Enough

    with pytest.raises(Enough):
        killed.go("pdu", tmp_path, enough)
    (file,) = tmp_path.glob("*.progress.safetensors")
    with progress.safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert '"multiplier":' in metadata["progress"]
    assert killed.go("pdu", tmp_path)[1].losses == kept

    for other in tmp_path.glob("*.progress.safetensors"):
        other.unlink()
    with pytest.raises(Enough):
        killed.go("pdu", tmp_path, enough)
    tensors = load_file(file)
    changed = metadata["progress"].replace('"multiplier":', '"multiplier":1')
    save_file(tensors, file, metadata={"progress": changed})
    assert killed.go("pdu", tmp_path)[1].losses != kept


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first, _ = killed.go("npo", tmp_path)
    told: list[int] = []
    again, outcome = killed.go("npo", tmp_path, lambda metrics, step: told.append(step))
    assert not told and outcome.steps == 9
    assert all(torch.equal(first[p], again[p]) for p in first)


def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    killed.go("npo", tmp_path)
    subject = LanguageModel(llama())
    kept = reference.keep(subject, [killed.FORGET])
    others = [
        (subject, METHODS["npo"].configured(beta=0.2), killed.SETTINGS),
        (subject, METHODS["npo"], replace(killed.SETTINGS, lr=1e-3)),
        (LanguageModel(llama(seed=1)), METHODS["npo"], killed.SETTINGS),
    ]
    for model, method, settings in others:
        with pytest.raises(ConfigurationError, match="checkpoint of another run"):
            loop.run(model, method, killed.FORGET, killed.RETAIN, settings, tmp_path, kept)
    more = replace(killed.SETTINGS, checkpoint_every=5)
    loop.run(subject, METHODS["npo"], killed.FORGET, killed.RETAIN, more, tmp_path, kept)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    progress.write(tmp_path, Progress("run", 3, {"parameter/a": torch.ones(4)}, {"x": 1}))
    assert progress.read(tmp_path, "run") is not None
    file = progress.last(tmp_path)
    assert file is not None
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ConfigurationError, match="cannot be read"):
        progress.read(tmp_path, "run")


def test_only_the_last_checkpoint_is_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        progress.write(tmp_path, Progress("run", step, {"a": torch.full((2,), step)}, {}))
    assert [path.name for path in tmp_path.iterdir()] == ["000000010.progress.safetensors"]
    found = progress.read(tmp_path, "run")
    assert found is not None and found.step == 10 and found.tensors["a"].tolist() == [10, 10]
    assert progress.read(tmp_path / "none", "run") is None
