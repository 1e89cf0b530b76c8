"""Amnesiac unlearning takes back what was logged, to the bit where floats allow, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sisa.approximate.edits.amnesiac import undo
from sisa.approximate.edits.mappings import of_module
from sisa.approximate.edits.recorder import Recorder
from sisa.approximate.edits.updates import Log
from sisa.errors import ConfigurationError, IncompleteError, SisaError

STEPS = 12


def train(folder: Path, dtype: torch.dtype = torch.float32, share: float = 1.0) -> list:
    """Parameters before each step and at the end; step s holds items 2s and 2s + 1."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4)).to(dtype)
    optimizer = torch.optim.SGD(module.parameters(), 0.5, momentum=0.9)
    seen = []
    with Recorder.start(folder, dict(module.named_parameters()), share) as recorder:
        for step in range(STEPS):
            seen.append(of_module(module))
            x, y = torch.randn(8, 20).to(dtype), torch.randint(4, (8,))
            optimizer.zero_grad()
            cross_entropy(module(x), y).backward()
            with recorder.step([str(2 * step), str(2 * step + 1)]):
                optimizer.step()
    return [*seen, of_module(module)]


def exact(before: Tensor, after: Tensor) -> Tensor:
    """Where Sterbenz's lemma makes the difference exact: y / 2 <= x <= 2 y, or one is 0."""
    within = (before.abs() <= 2 * after.abs()) & (after.abs() <= 2 * before.abs())
    return (within & (before * after >= 0)) | (before == 0) | (after == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_undoing_the_last_step_gives_the_bits_before_it(tmp_path: Path, dtype: torch.dtype) -> None:
    *_, before, after = train(tmp_path, dtype)
    found = undo(after, Log.open(tmp_path, STEPS), [str(2 * STEPS - 1)])
    counts = torch.zeros(3, dtype=torch.int64)
    for name, value in found.items():
        sure = exact(before[name], after[name])
        assert torch.equal(value[sure], before[name][sure])
        # one rounding of the logged difference, one of the result
        unit = torch.finfo(dtype).eps / 2
        bound = unit * ((after[name] - before[name]).abs() * (1 + unit) + before[name].abs()) * 1.01
        assert ((value - before[name]).abs() <= bound).all()
        assert not torch.equal(value, after[name])
        off = value != before[name]
        counts += torch.stack([sure.sum(), (~sure).sum(), off.sum()])
    assert counts[0] > counts[1] > 0  # both kinds occur
    assert counts[2] <= counts[1]


def test_a_bound_of_no_error_does_not_hold_everywhere(tmp_path: Path) -> None:
    """Control: outside Sterbenz's condition bits do differ, so the test above can fail."""
    p = torch.tensor([1.0 + 2**-23, 1.0])
    before = p.clone()
    with Recorder.start(tmp_path, {"p": p}) as recorder, recorder.step(["a"]):
        p.copy_(torch.tensor([-(2.0**24), 1.5]))
    found = undo({"p": p}, Log.open(tmp_path), ["a"])["p"]
    assert found[1] == before[1]
    assert found[0] != before[0]
    assert exact(before, p).tolist() == [False, True]


def test_undoing_several_steps_is_their_sum_in_float64(tmp_path: Path) -> None:
    *_, after = seen = train(tmp_path, torch.float64)
    found = undo(after, Log.open(tmp_path), ["4", "5", "19"])  # steps 2 and 9
    for name in after:
        wanted = after[name] - (seen[3][name] - seen[2][name]) - (seen[10][name] - seen[9][name])
        torch.testing.assert_close(found[name], wanted, rtol=1e-13, atol=1e-15)


def test_undoing_every_step_gives_the_start(tmp_path: Path) -> None:
    first, *_, after = train(tmp_path)
    found = undo(after, Log.open(tmp_path), map(str, range(2 * STEPS)))
    for name in after:
        torch.testing.assert_close(found[name], first[name], rtol=0, atol=1e-6)
        assert (after[name] - first[name]).abs().max() > 1e-2


def test_steps_without_a_forget_item_are_not_even_read(tmp_path: Path) -> None:
    *_, after = train(tmp_path)
    log = Log.open(tmp_path)
    found = undo(after, log, ["6"])
    for step in log.steps:
        if step.number != 3:
            (tmp_path / step.file.path).unlink()
    again = undo(after, log, ["6"])
    assert all(torch.equal(found[name], again[name]) for name in after)
    with pytest.raises(IncompleteError, match="step 2 is missing"):
        undo(after, log, ["4"])


def test_the_input_is_not_changed(tmp_path: Path) -> None:
    *_, after = train(tmp_path)
    copies = {name: value.clone() for name, value in after.items()}
    undo(after, Log.open(tmp_path), ["0"])
    assert all(torch.equal(after[name], copies[name]) for name in after)


def test_a_pruned_log_does_what_a_share_of_a_whole_log_does(tmp_path: Path) -> None:
    *_, after = train(tmp_path / "whole", torch.float64)
    train(tmp_path / "pruned", torch.float64, share=0.2)
    whole = undo(after, Log.open(tmp_path / "whole"), ["6"], share=0.2)
    pruned = undo(after, Log.open(tmp_path / "pruned"), ["6"])
    for name, value in whole.items():
        assert torch.equal(value, pruned[name])
        moved = int((value != after[name]).sum())
        assert moved == max(1, round(0.2 * value.numel()))


def test_a_second_request_does_not_subtract_a_step_again(tmp_path: Path) -> None:
    *_, after = train(tmp_path, torch.float64)
    both = undo(after, Log.open(tmp_path), ["6", "7"])
    log = Log.open(tmp_path)
    first = undo(after, log, ["6"])
    assert all(torch.equal(first[name], both[name]) for name in after)
    twice = undo(first, log, ["7"])  # control: the step is still in this log
    assert not torch.equal(twice["0.weight"], both["0.weight"])
    second = undo(first, log.remove(["6"]), ["7"])
    assert all(torch.equal(second[name], both[name]) for name in after)


def test_a_log_of_half_precision_is_undone_in_full(tmp_path: Path) -> None:
    p = torch.tensor([1.0, 256.0, 0.01], dtype=torch.bfloat16)
    before = p.clone()
    with Recorder.start(tmp_path, {"p": p}) as recorder, recorder.step(["a"]):
        p += torch.tensor([3.0, -255.0, 1.0], dtype=torch.bfloat16)
    found = undo({"p": p}, Log.open(tmp_path), ["a"])["p"]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, before)


@pytest.mark.parametrize("forget", [[], ["unknown"], ["6", "unknown"]])
def test_items_that_no_step_held_are_refused(tmp_path: Path, forget: list[str]) -> None:
    *_, after = train(tmp_path)
    with pytest.raises(IncompleteError) as caught:
        undo(after, Log.open(tmp_path), forget)
    assert "unknown" not in str(caught.value)


def test_a_log_of_another_model_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(ConfigurationError, match="no tensor"):
        undo({"0.weight": torch.zeros(2)}, Log.open(tmp_path), ["6"])


def test_an_update_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    p = torch.zeros(3)
    with Recorder.start(tmp_path, {"p": p}) as recorder, recorder.step(["a"]):
        p += torch.tensor([1.0, float("nan"), 2.0])
    with pytest.raises(SisaError, match="not finite"):
        undo({"p": p}, Log.open(tmp_path), ["a"])
