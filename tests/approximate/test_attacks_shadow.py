"""Shadow models: a balanced plan, resuming to the same results, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sisa.approximate.attacks import roc, shadow
from sisa.approximate.attacks.lira import log_odds
from sisa.errors import DataError, ExactnessError, IncompleteError, UsageError

E, S = 40, 12
PLAN = shadow.Plan(examples=E, models=S, about="a", seed=3, forget_share=0.25)


class Killed(BaseException):
    pass


class Lab:
    """A "model" is the nll of every example: lower for members, drawn from torch's generator."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.trained: list[list[int]] = []
        self.requests: list[tuple[list[int], list[int]]] = []
        self.stop_after = stop_after

    def train(self, members: Any) -> torch.Tensor:
        if len(self.trained) == self.stop_after:
            raise Killed
        self.trained.append(members.tolist())
        nll = torch.rand(E, dtype=torch.float64) + 1.5
        nll[torch.from_numpy(members)] -= 1
        return nll

    def unlearn(self, model: torch.Tensor, forget: Any, retain: Any) -> torch.Tensor:
        self.requests.append((forget.tolist(), retain.tolist()))
        model[torch.from_numpy(forget)] = torch.rand(len(forget), dtype=torch.float64) + 1.5
        return model

    def run(self, folder: Path, plan: shadow.Plan = PLAN, **changes: Any) -> shadow.Shadows:
        calls: dict[str, Callable[..., Any]] = {"train": self.train, "nll": lambda m: m}
        if plan.forget_share:
            calls["unlearn"] = self.unlearn
        return shadow.run(plan, folder, **(calls | changes))


def test_every_example_is_in_as_many_models_and_forgotten_by_as_many() -> None:
    members, forgotten = PLAN.members, PLAN.forgotten
    assert members.shape == forgotten.shape == (S, E)
    assert (members.sum(0) == 6).all()
    assert (forgotten.sum(0) == 3).all()
    assert not (forgotten & ~members).any()
    assert len({tuple(column) for column in members.T}) > E // 2
    assert (members == PLAN.members).all()
    other = shadow.Plan(examples=E, models=S, about="a", seed=4, forget_share=0.25)
    assert (members != other.members).any()


def test_models_see_what_the_plan_says(tmp_path: Path) -> None:
    lab = Lab()
    found = lab.run(tmp_path)
    assert len(lab.trained) == len(lab.requests) == S
    for s in range(S):
        forget, retain = lab.requests[s]
        assert lab.trained[s] == np.flatnonzero(found.members[s]).tolist()
        assert forget == np.flatnonzero(found.forgotten[s]).tolist()
        assert sorted(forget + retain) == lab.trained[s]
    assert found.after is not None
    assert (found.before != found.after).sum() == found.forgotten.sum()
    assert (found.after == found.before)[~found.forgotten].all()


def test_a_killed_driver_goes_on_to_the_same_results(tmp_path: Path) -> None:
    whole = Lab().run(tmp_path / "whole")
    with pytest.raises(Killed):
        Lab(stop_after=5).run(tmp_path / "killed")
    torch.manual_seed(99)
    state = torch.get_rng_state()
    lab, told = Lab(), []
    found = lab.run(tmp_path / "killed", report=lambda done, of: told.append((done, of)))
    assert len(lab.trained) == S - 5
    assert told == [(n + 1, S) for n in range(S)]
    assert (found.before == whole.before).all()
    assert found.after is not None
    assert whole.after is not None
    assert (found.after == whole.after).all()
    assert torch.equal(torch.get_rng_state(), state)
    again = Lab(stop_after=0).run(tmp_path / "killed")
    assert (again.before == whole.before).all()


def test_results_of_another_plan_are_not_taken(tmp_path: Path) -> None:
    Lab().run(tmp_path)
    other = shadow.Plan(examples=E, models=S, about="b", seed=3, forget_share=0.25)
    with pytest.raises(Killed):
        Lab(stop_after=0).run(tmp_path, other)


def test_a_damaged_result_is_refused(tmp_path: Path) -> None:
    Lab().run(tmp_path)
    file = sorted((tmp_path / PLAN.digest).iterdir())[4]
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ExactnessError, match="cannot be read"):
        Lab().run(tmp_path)


def test_members_are_found_and_what_was_unlearned_well_is_not(tmp_path: Path) -> None:
    """Members' nll is in [0.5, 1.5], others' and the unlearned's in [1.5, 2.5]."""
    plan = shadow.Plan(examples=E, models=40, about="a", forget_share=0.25)
    found = Lab().run(tmp_path, plan)
    assert roc.auc(*found.lira()) > 0.97
    for baseline in ("before", "after"):
        assert roc.auc(*found.u_lira(baseline)) == pytest.approx(0.5, abs=0.06)
    nothing = Lab()
    kept = nothing.run(tmp_path / "kept", plan, unlearn=lambda model, forget, retain: model)
    assert roc.auc(*kept.u_lira()) > 0.97


def test_the_baseline_after_unlearning_does_not_see_what_befalls_the_whole_model(
    tmp_path: Path,
) -> None:
    """Unlearning that forgets, and spoils all: only against models before it does it stand out."""
    plan = shadow.Plan(examples=E, models=40, about="a", forget_share=0.25)
    lab = Lab()

    def spoil(model: torch.Tensor, forget: Any, retain: Any) -> torch.Tensor:
        return lab.unlearn(model, forget, retain) + 2

    found = lab.run(tmp_path, plan, unlearn=spoil)
    assert roc.auc(*found.u_lira("before")) > 0.97
    assert roc.auc(*found.u_lira("after")) == pytest.approx(0.5, abs=0.06)


def test_scores_are_log_odds(tmp_path: Path) -> None:
    plan = shadow.Plan(examples=E, models=6, about="a")
    seen: list[torch.Tensor] = []
    lab = Lab()
    found = lab.run(tmp_path, plan, nll=lambda m: seen.append(m) or m)
    assert found.after is None
    assert (found.before == np.stack([log_odds(m) for m in seen])).all()
    with pytest.raises(IncompleteError, match="has unlearned"):
        found.u_lira()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"examples": 0}, "two examples"),
        ({"examples": 1}, "two examples"),
        ({"models": 8}, "fewer than 3"),
        ({"models": 0}, "fewer than 3"),
        ({"examples": 2, "models": 40}, "no example to learn or to forget"),
    ],
)
def test_what_is_too_little_is_refused(
    tmp_path: Path, changes: dict[str, int], message: str
) -> None:
    plan = {"examples": E, "models": S} | changes
    with pytest.raises(IncompleteError, match=message):
        Lab().run(tmp_path, shadow.Plan(about="a", forget_share=0.25, **plan))


def test_bad_calls_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Shares"):
        Lab().run(tmp_path, shadow.Plan(E, S, "a", member_share=0.3, forget_share=0.5))
    with pytest.raises(UsageError, match="forget_share"):
        Lab().run(tmp_path, unlearn=None)
    with pytest.raises(DataError, match="39 likelihoods for 40"):
        Lab().run(tmp_path, nll=lambda m: m[1:])
    with pytest.raises(DataError, match="not a finite"):
        Lab().run(tmp_path, nll=lambda m: m * float("nan"))
    assert not list(tmp_path.rglob("*.safetensors"))
