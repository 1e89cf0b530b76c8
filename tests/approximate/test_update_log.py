"""The log of updates holds what the parameters went through, and outlives a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sisa.approximate.edits.mappings import of_module
from sisa.approximate.edits.recorder import Recorder
from sisa.approximate.edits.updates import Log
from sisa.errors import ConfigurationError, IncompleteError, NotFoundError

Optimizer = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.AdamW(p, 0.01),
}


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def train(
    module: nn.Module,
    recorder: Recorder,
    steps: range,
    optimizer: Optimizer = OPTIMIZERS["momentum"],
) -> list[dict[str, Tensor]]:
    """The parameters before the first step and after each; step s holds items s and s + 1."""
    stepper = optimizer(module.parameters())
    dtype = next(module.parameters()).dtype
    seen = [of_module(module)]
    for step in steps:
        draws = torch.Generator().manual_seed(step)
        x = torch.randn(4, 5, generator=draws, dtype=torch.float64).to(dtype)
        stepper.zero_grad()
        module(x).square().mean().backward()
        with recorder.step([f"item-{step + 1}", f"item-{step}"]):
            stepper.step()
        seen.append(of_module(module))
    return seen


def record(folder: Path, steps: int = 4, share: float = 1.0, **how: Optimizer) -> list:
    module = network()
    with Recorder.start(folder, dict(module.named_parameters()), share) as recorder:
        return train(module, recorder, range(steps), **how)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_what_is_logged_is_what_the_parameters_went_through(
    tmp_path: Path, optimizer: Optimizer
) -> None:
    seen = record(tmp_path / "log", optimizer=optimizer)
    log = Log.open(tmp_path / "log", steps=4)
    for step in log.steps:
        assert step.items == (f"item-{step.number}", f"item-{step.number + 1}")
        changes = log.read(step)
        assert changes.keys() == seen[0].keys()
        for name, change in changes.items():
            actual = seen[step.number + 1][name] - seen[step.number][name]
            assert change.places is None
            assert torch.equal(change.values, actual.flatten())
            assert actual.any()


def test_a_change_under_momentum_is_not_the_rate_times_the_gradient(tmp_path: Path) -> None:
    """Control: what toolkits log that take the gradient for the update."""
    record(tmp_path / "log")
    module, log = network(), Log.open(tmp_path / "log")
    found = [log.read(step)["0.weight"].values for step in log.steps]
    for step in range(2):
        draws = torch.Generator().manual_seed(step)
        x = torch.randn(4, 5, generator=draws, dtype=torch.float64)
        module.zero_grad()
        module(x).square().mean().backward()
        gradient = module[0].weight.grad.flatten() + 0.01 * module[0].weight.detach().flatten()
        assert torch.allclose(found[step], -0.1 * gradient, rtol=1e-9) == (step == 0)
        with torch.no_grad():
            for name, p in module.named_parameters():
                p += log.read(log.steps[step])[name].values.view(p.shape)


@pytest.mark.parametrize(("share", "kept"), [(0.1, 4), (0.5, 18), (1.0, 35), (0.001, 1)])
def test_a_pruned_log_keeps_exactly_the_largest_of_each_layer(
    tmp_path: Path, share: float, kept: int
) -> None:
    record(tmp_path / "whole")
    record(tmp_path / "pruned", share=share)
    whole, pruned = Log.open(tmp_path / "whole"), Log.open(tmp_path / "pruned")
    for long, short in zip(whole.steps, pruned.steps, strict=True):
        all_of, some_of = whole.read(long), pruned.read(short)
        assert len(some_of["0.weight"].values) == kept  # of 35
        for name, change in some_of.items():
            values = all_of[name].values
            assert len(change.values) == max(1, round(share * len(values)))
            places = torch.arange(len(values)) if change.places is None else change.places
            assert places.unique().equal(places)
            assert torch.equal(change.values, values[places])
            rest = values.abs().clone()
            rest[places] = 0
            assert change.values.abs().min() >= rest.max()
            again = all_of[name].pruned(share, len(values))
            assert torch.equal(again.values, change.values)


def test_pruning_a_pruned_change_keeps_a_share_of_the_layer_not_of_what_was_kept(
    tmp_path: Path,
) -> None:
    record(tmp_path / "log", share=0.5)
    record(tmp_path / "less", share=0.2)
    log, less = Log.open(tmp_path / "log"), Log.open(tmp_path / "less")
    change, wanted = log.read(log.steps[0])["0.weight"], less.read(less.steps[0])["0.weight"]
    found = change.pruned(0.2, 35)
    assert torch.equal(found.places, wanted.places)
    assert torch.equal(found.values, wanted.values)
    assert change.pruned(0.9, 35) is change


def test_size_is_that_of_the_files_and_shrinks_with_the_share(tmp_path: Path) -> None:
    sizes = {}
    for share in (1.0, 0.1):
        torch.manual_seed(0)
        module = nn.Linear(200, 100)
        with Recorder.start(tmp_path / str(share), dict(module.named_parameters()), share) as log:
            for step in range(3):
                with log.step([str(step)]), torch.no_grad():
                    module.weight += torch.randn(100, 200)
        files = (tmp_path / str(share) / "steps").iterdir()
        sizes[share] = Log.open(tmp_path / str(share)).size
        assert sizes[share] == sum(file.stat().st_size for file in files)
    assert sizes[1.0] > 3 * 20100 * 4
    assert sizes[0.1] < 0.22 * sizes[1.0]  # a value and its place each


def test_half_precision_is_logged_without_rounding(tmp_path: Path) -> None:
    p = torch.tensor([1.0, 256.0, 0.01], dtype=torch.bfloat16)
    before = p.clone()
    with Recorder.start(tmp_path, {"p": p}) as recorder, recorder.step(["a"]):
        p += torch.tensor([3.0, -255.0, 1.0], dtype=torch.bfloat16)
    log = Log.open(tmp_path)
    change = log.read(log.steps[0])["p"].values
    assert torch.equal(change.double(), p.double() - before.double())
    assert not torch.equal((p - before).double(), p.double() - before.double())


def test_a_step_that_raises_is_not_logged(tmp_path: Path) -> None:
    p = torch.zeros(2)
    with Recorder.start(tmp_path, {"p": p}) as recorder:
        with pytest.raises(RuntimeError), recorder.step(["a"]):
            raise RuntimeError
        with recorder.step(["b"]):
            p += 1
    (step,) = Log.open(tmp_path).steps
    assert step.items == ("b",)


KILLED = """
import sys, torch
from sisa.approximate.edits.recorder import Recorder
torch.manual_seed(0)
p = torch.zeros(20000)
recorder = Recorder.start(sys.argv[1], {"p": p})
for number in range(100000):
    with recorder.step([f"item-{number}"]):
        p += 1
    print(number, flush=True)
"""


def test_a_killed_recorder_leaves_a_readable_log(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "log")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert child.stdout
    for line in child.stdout:
        if int(line) == 20:
            child.send_signal(signal.SIGKILL)
            break
    rest = child.stdout.read()
    assert child.wait() == -signal.SIGKILL
    announced = int(([*rest.split()] or ["20"])[-1]) + 1
    log = Log.open(tmp_path / "log")
    assert announced <= len(log.steps) <= announced + 1
    for step in log.steps:
        assert log.read(step)["p"].values.eq(1).all()
    with pytest.raises(IncompleteError, match="the training took 100000"):
        Log.open(tmp_path / "log", steps=100000)
    p = torch.full((20000,), 10.0)
    with Recorder.resume(tmp_path / "log", {"p": p}, step=10) as recorder, recorder.step(["new"]):
        p += 2
    log = Log.open(tmp_path / "log", steps=11)
    assert log.steps[10].items == ("new",)
    assert log.read(log.steps[10])["p"].values.eq(2).all()
    assert len([*(tmp_path / "log" / "steps").iterdir()]) == 11
    assert not any((tmp_path / "log" / "tmp").iterdir())


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_torn_last_line_is_no_step(tmp_path: Path, cut: int) -> None:
    record(tmp_path)
    index = tmp_path / "index.jsonl"
    index.write_bytes(index.read_bytes()[:-cut])
    assert len(Log.open(tmp_path).steps) == 3


def test_a_damaged_line_in_the_middle_is_refused(tmp_path: Path) -> None:
    record(tmp_path)
    index = tmp_path / "index.jsonl"
    lines = index.read_bytes().split(b"\n")
    index.write_bytes(b"\n".join([*lines[:2], lines[2][:-3], *lines[3:]]))
    with pytest.raises(IncompleteError, match="cannot be read"):
        Log.open(tmp_path)
    index.write_bytes(b"\n".join([*lines[:2], *lines[3:]]))
    with pytest.raises(IncompleteError, match="holds 3 steps"):
        Log.open(tmp_path)


def test_a_damaged_update_is_refused(tmp_path: Path) -> None:
    record(tmp_path)
    log = Log.open(tmp_path)
    path = tmp_path / log.steps[1].file.path
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert log.read(log.steps[0])
    with pytest.raises(IncompleteError, match="step 1 is missing or damaged"):
        log.read(log.steps[1])


def test_without_a_log_the_error_says_that_none_was_kept(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="logs of this training were not kept") as caught:
        Log.open(tmp_path / "log")
    assert caught.value.exit_code == 5
    assert "method that needs no log" in caught.value.remedy
    assert not (tmp_path / "log").exists()


def test_a_resumed_training_logs_what_an_unbroken_one_logs(tmp_path: Path) -> None:
    record(tmp_path / "whole", steps=6, optimizer=OPTIMIZERS["sgd"])
    module = network()
    with Recorder.start(tmp_path / "broken", dict(module.named_parameters())) as recorder:
        seen = train(module, recorder, range(5), OPTIMIZERS["sgd"])
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(seen[3][name])
    with Recorder.resume(tmp_path / "broken", dict(module.named_parameters()), 3) as recorder:
        train(module, recorder, range(3, 6), OPTIMIZERS["sgd"])
    whole, broken = Log.open(tmp_path / "whole"), Log.open(tmp_path / "broken")
    assert whole.steps == broken.steps
    files = [{p.name for p in (tmp_path / f / "steps").iterdir()} for f in ("whole", "broken")]
    assert files[0] == files[1]


def test_a_log_is_neither_overwritten_nor_continued_by_another_model(tmp_path: Path) -> None:
    record(tmp_path)
    with pytest.raises(ConfigurationError, match="already"):
        Recorder.start(tmp_path, of_module(network()))
    with pytest.raises(ConfigurationError, match="other parameters"):
        Recorder.resume(tmp_path, {"p": torch.zeros(2)}, 4)
    with pytest.raises(IncompleteError, match="holds 4 steps, the checkpoint 5"):
        Recorder.resume(tmp_path, of_module(network()), 5)
    assert len(Log.open(tmp_path, steps=4).steps) == 4


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(tmp_path: Path, share: float) -> None:
    with pytest.raises(ConfigurationError, match="not in"):
        Recorder.start(tmp_path / "log", of_module(network()), share)
    assert not (tmp_path / "log").exists()


def test_what_is_removed_is_neither_named_nor_stored(tmp_path: Path) -> None:
    record(tmp_path)
    log = Log.open(tmp_path)
    kept = [step.file.path for step in log.steps if "item-2" not in step.items]
    after = log.remove(["item-2"])
    assert after.steps == Log.open(tmp_path).steps
    assert sorted(f"steps/{file.name}" for file in (tmp_path / "steps").iterdir()) == sorted(kept)
    assert b"item-2" not in (tmp_path / "index.jsonl").read_bytes()
    assert [step.items for step in after.steps][1:3] == [("item-1",), ("item-3",)]
    assert [step.file is None for step in after.steps] == [False, True, True, False]
    assert after.read(after.steps[1]) == {}
    with pytest.raises(IncompleteError, match="1 of 2 items are in no step"):
        after.holding(["item-2", "item-1"])


def test_a_removal_that_broke_off_can_be_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tmp_path)

    def killed(_: Log) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Log, "write", killed)
        Log.open(tmp_path).remove(["item-2"])
    log = Log.open(tmp_path)
    with pytest.raises(IncompleteError):
        log.read(log.steps[1])
    assert log.remove(["item-2"]).steps[1].file is None
    assert len([*(tmp_path / "steps").iterdir()]) == 2


def test_steps_with_equal_updates_do_not_share_a_file(tmp_path: Path) -> None:
    p = torch.zeros(3)
    with Recorder.start(tmp_path, {"p": p}) as recorder:
        for item in "ab":
            with recorder.step([item]):
                p += 1
    log = Log.open(tmp_path).remove(["a"])
    assert log.read(log.steps[1])["p"].values.eq(1).all()


def test_the_index_is_json_with_a_line_about_the_model(tmp_path: Path) -> None:
    record(tmp_path, share=0.5)
    about, *steps = map(json.loads, (tmp_path / "index.jsonl").read_text().splitlines())
    assert about["share"] == 0.5
    assert about["parameters"]["0.weight"] == [7, 5]
    assert [step["number"] for step in steps] == [0, 1, 2, 3]
