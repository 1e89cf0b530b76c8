"""Controllers as sequences of states, which a checkpoint keeps as JSON."""

from __future__ import annotations

import json
import math

import pytest

from sisa.approximate.controllers import (
    Alternating,
    Controller,
    Dual,
    Measured,
    PerItemStop,
    State,
    Together,
    UtilityFloor,
)

LOSSES = [2.0, 2.5, 1.0, 3.0, 0.2, 2.2]


def kept(state: State) -> State:
    """Give what a checkpoint gives back."""
    return dict(json.loads(json.dumps(state, allow_nan=False)))


def test_constant() -> None:
    constant = Controller()
    state = constant.stepped(constant.start(), 0, 3.0)
    assert constant.weights(state) == (1.0, 1.0)
    assert constant.sides(state, 4) == (("forget", "retain"),)
    assert constant.active(state, ["a", "b"]) == [True, True]
    assert constant.stopped(state) is None
    assert constant.notes(state) == ()
    assert constant.wants == frozenset()


def test_the_multiplier_rises_above_epsilon_and_falls_below_it() -> None:
    dual = Dual(epsilon=2.0, eta=0.5, first=0.3, warmup_epochs=0)
    state, expected = dual.start(), 0.3
    for loss in LOSSES:
        state = dual.stepped(state, 0, loss)
        expected = max(0.0, expected + 0.5 * (loss - 2.0))
        assert dual.weights(state).retain == pytest.approx(expected, abs=1e-15)
    assert dual.weights(state).forget == 1.0


def test_the_multiplier_never_falls_below_zero() -> None:
    dual = Dual(epsilon=5.0, first=1.0, warmup_epochs=0)
    assert dual.weights(dual.stepped(dual.start(), 0, 0.0)).retain == 0.0


def test_the_multiplier_rests_while_warming_up() -> None:
    dual = Dual(epsilon=1.0, first=50.0, warmup_epochs=2)
    state = dual.start()
    for epoch in (0, 1):
        state = dual.stepped(state, epoch, 9.0)
        assert dual.weights(state).retain == 50.0
    assert dual.weights(dual.stepped(state, 2, 9.0)).retain == 58.0


def test_epsilon_is_a_little_above_the_first_retain_loss() -> None:
    dual = Dual(first=10.0, warmup_epochs=0)
    state = dual.stepped(dual.start(), 0, 2.0)
    assert dual.weights(state).retain == pytest.approx(10.0 - 0.1)
    assert dual.weights(dual.stepped(state, 0, 3.0)).retain == pytest.approx(9.9 + 0.9)


def test_the_multiplier_is_bounded_and_says_so() -> None:
    dual = Dual(epsilon=0.1, eta=1.0, first=50.0, warmup_epochs=0, ceiling=60.0)
    state = dual.start()
    for _ in range(8):
        state = dual.stepped(state, 0, 6.0)
    assert dual.weights(state).retain == 60.0
    (note,) = dual.notes(state)
    assert note.startswith("The retain multiplier was held at 60 7 times")
    assert dual.notes(dual.stepped(dual.start(), 0, 6.0)) == ()


def test_a_multiplier_that_was_never_moved_is_told() -> None:
    dual = Dual(epsilon=1.0, first=50.0, warmup_epochs=2)
    resting = dual.stepped(dual.start(), 1, 9.0)
    assert dual.notes(resting)[0].startswith("The retain multiplier stayed at 50")
    assert dual.notes(dual.stepped(resting, 2, 9.0)) == ()


@pytest.mark.parametrize("loss", [None, math.nan, math.inf])
def test_a_loss_that_is_none_or_not_finite_moves_nothing(loss: float | None) -> None:
    dual = Dual(epsilon=1.0, warmup_epochs=0)
    assert dual.stepped(dual.start(), 0, loss) == dual.start()


def test_items_stop_one_by_one_and_for_good() -> None:
    icu = PerItemStop(below=0.3)
    assert icu.wants == {"similarity"}
    state = icu.epoch_ended(icu.start(), 0, Measured(similarity={"a": 0.9, "b": 0.1, "c": 0.3}))
    assert icu.active(state, ["a", "b", "c"]) == [True, False, True]
    assert icu.stopped(state) is None
    state = icu.epoch_ended(state, 1, Measured(similarity={"a": 0.2, "c": 0.2}))
    assert icu.active(state, ["c", "b", "a"]) == [False, False, False]
    assert icu.stopped(state) == "Every item is forgotten."


def test_what_cannot_be_compared_stays_active() -> None:
    icu = PerItemStop()
    state = icu.epoch_ended(icu.start(), 0, Measured(similarity={"a": math.nan}))
    assert icu.active(state, ["a"]) == [True]
    assert icu.stopped(state) is None


def test_phases_alternate_at_first() -> None:
    scrub = Alternating(2)
    passes = [scrub.sides({}, epoch) for epoch in range(3)]
    assert passes == [(("forget",), ("retain",)), (("forget",), ("retain",)), (("retain",),)]


def test_phases_alternate_to_the_end_and_begin_with_either() -> None:
    eul = Alternating(None, "retain")
    assert {eul.sides({}, epoch) for epoch in (0, 1, 99)} == {(("retain",), ("forget",))}


@pytest.mark.parametrize(("low", "told"), [(0.49, "0.49"), (math.nan, "nan")])
def test_the_run_ends_below_the_floor(low: float, told: str) -> None:
    floor = UtilityFloor(0.5)
    assert floor.wants == {"utility"}
    state = floor.epoch_ended(floor.start(), 0, Measured(utility=0.5))
    assert floor.stopped(state) is None
    state = kept(floor.epoch_ended(state, 1, Measured(utility=low)))
    assert floor.stopped(state) == f"Utility is {told}, below the floor of 0.5."
    assert state["good_epoch"] == 0


def test_an_epoch_without_a_measurement_changes_nothing() -> None:
    floor = UtilityFloor(0.5)
    assert floor.stopped(floor.epoch_ended(floor.start(), 0, Measured())) is None


def test_several_controllers_at_once() -> None:
    both = Together((Dual(epsilon=1.0, first=3.0, warmup_epochs=0), PerItemStop(0.3)))
    all_of_it = Together((both, Alternating(1), UtilityFloor(0.5)))
    assert all_of_it.wants == {"utility", "similarity"}
    state = all_of_it.stepped(all_of_it.start(), 0, 2.0)
    assert all_of_it.weights(state) == (1.0, 4.0)
    assert all_of_it.sides(state, 0) == (("forget",), ("retain",))
    state = all_of_it.epoch_ended(state, 0, Measured(0.7, {"a": 0.1, "b": 0.9}))
    assert all_of_it.active(state, ["a", "b"]) == [False, True]
    assert all_of_it.stopped(state) is None
    state = all_of_it.epoch_ended(state, 1, Measured(0.4, {"b": 0.9}))
    assert "below the floor" in str(all_of_it.stopped(state))


@pytest.mark.parametrize(
    "controller",
    [
        Dual(eta=0.7, warmup_epochs=1, ceiling=51.0),
        PerItemStop(0.4),
        UtilityFloor(0.3),
        Together((Dual(epsilon=0.5, warmup_epochs=0), PerItemStop(0.4), UtilityFloor(0.1))),
    ],
)
@pytest.mark.parametrize("cut", range(len(LOSSES)))
def test_a_run_continued_from_a_checkpoint_is_the_same(controller: Controller, cut: int) -> None:
    def run(broken_at: int | None) -> State:
        state = controller.start()
        for step, loss in enumerate(LOSSES):
            if step == broken_at:
                state = kept(state)
            state = controller.stepped(state, step, loss)
            measured = Measured(1 - step / 6, {"a": 1 - step / 3, "b": 0.9})
            state = controller.epoch_ended(state, step, measured)
        return state

    assert run(cut) == run(None)
