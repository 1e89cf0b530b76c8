"""When the batching window closes, and why: a function of requests, the ensemble and settings."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_index.requests import Request, iso
from sisa.config import Erasure, Recipe
from sisa.generation import Constituent, Failure, Generation, Stage
from sisa.tempo import Tempo, Work, behind
from sisa.window import window

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
NONE = timedelta(0)
DATA = {"record_id": "id", "target": "y", "classes": [0, 1], "features": {"a": "float64"}}


def request(number: int = 1, age: timedelta = NONE, due: timedelta = 720 * HOUR, **values: Any):
    received = NOW - age
    made = Request(
        id=f"er_{number}",
        sequence=number,
        status="accepted",
        received=iso(received),
        due=iso(received + due),
        records=1,
        subjects=1,
        places=((0, 1),),
        generation_before=1,
        certificate=None,
    )
    return replace(made, **values)


def served(*depths: int, shards: int | None = None, failed: tuple[int, ...] = ()) -> Generation:
    """An ensemble whose constituents have so many of four stages."""
    recipe = Recipe.model_validate(
        {"data": DATA, "partition": {"shards": shards or len(depths), "slices": 4}}
    )
    constituents = (
        Constituent(
            shard,
            tuple(Stage(i + 1, f"{shard}-{i}", "t", None, 5) for i in range(depth)),
            4,
            Failure(4, "k") if shard in failed else None,
        )
        for shard, depth in enumerate(depths)
    )
    return Generation(recipe, "training", tuple(constituents), (), "train", None)


WHOLE = served(*[4] * 10)


def closing(
    *requests: Request, of: Generation | None = WHOLE, needs: timedelta = NONE, **rules: Any
):
    return window(requests, of, Erasure(**rules), needs, NOW)


def test_nothing_open_has_no_window() -> None:
    done = [request(i, status=s) for i, s in enumerate(("certified", "cancelled", "denied"))]
    assert closing() is None and closing(*done) is None


def test_a_window_opens_and_closes_with_its_oldest_request() -> None:
    found = closing(request(2, age=HOUR / 4), request(1, age=HOUR / 2), max_wait="1h")
    assert (found.opens, found.closes) == (NOW - HOUR / 2, NOW + HOUR / 2)
    assert (found.reason, found.requests) == ("max_wait", ("er_1", "er_2"))
    assert not found.closed(NOW) and found.closed(NOW + HOUR / 2)


def test_a_due_date_closes_it_early_enough_to_be_kept() -> None:
    soon = request(1, age=HOUR, due=3 * HOUR)
    found = closing(soon, request(2), needs=HOUR / 2, max_wait="5d")
    assert (found.reason, found.closes) == ("due", NOW + 1.5 * HOUR)
    assert closing(soon, needs=3 * HOUR, max_wait="5d").closed(NOW)


@pytest.mark.parametrize(
    ("depths", "rules", "reason"),
    [
        ([4] * 9 + [1], {}, "max_wait"),
        ([4] * 9 + [0], {}, "max_wait"),
        ([4] * 8 + [0, 2], {}, "depth"),
        ([4] * 8 + [0, 2], {"min_depth": 0.8}, "max_wait"),
        ([2] * 10, {"min_depth": 0}, "max_wait"),
        ([4] * 6 + [0] * 4, {"min_depth": 0}, "max_wait"),
        ([4] * 5 + [0] * 5, {"min_depth": 0}, "quorum"),
        ([4] * 4 + [0] * 6, {"min_depth": 0}, "quorum"),
        ([0] * 10, {"min_depth": 0}, "quorum"),
        ([4] * 10, {"quorum": 1}, "quorum"),
    ],
)
def test_a_weakened_ensemble_closes_it_now(depths, rules, reason) -> None:
    found = closing(request(), of=served(*depths), **rules)
    assert found.reason == reason
    assert found.closed(NOW) == (reason != "max_wait")


def test_constituents_that_failed_do_not_keep_it_closed() -> None:
    assert served(4, 4, 4, 4, 3, 4, failed=(4,)).depth == 1
    assert closing(request(), of=served(4, 4, 4, 4, 3, 4, failed=(4,))).reason == "max_wait"


def test_before_the_first_training_only_time_closes_it() -> None:
    assert closing(request(), of=None).reason == "max_wait"


def test_requests_on_hold_do_not_count() -> None:
    held = request(1, age=5 * HOUR, due=HOUR, hold="lawsuit")
    assert closing(held, of=served(0, 0)) is None
    found = closing(held, request(2), max_wait="1h")
    assert (found.requests, found.closes) == (("er_2",), NOW + HOUR)


def test_what_was_begun_is_finished_at_once() -> None:
    found = closing(request(1, status="published"), request(2))
    assert found.reason == "unfinished" and found.closed(NOW)


def test_what_is_blocked_is_tried_again_in_its_time() -> None:
    later = iso(NOW + 5 * HOUR)
    blocked = request(1, status="published", blocked="the mirror is down", retry=later)
    found = closing(blocked, of=served(0, 0))
    assert (found.reason, found.closes) == ("retry", NOW + 5 * HOUR)
    assert closing(blocked, request(2), max_wait="1h").reason == "max_wait"


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3000),
            st.integers(1, 3000),
            st.sampled_from(["accepted", "published", "certified"]),
            st.sampled_from([None, "hold"]),
        ),
        max_size=6,
    ),
    st.lists(st.integers(0, 4), min_size=1, max_size=6),
    st.integers(0, 500),
)
def test_it_never_closes_too_late_for_anybody(found, depths, minutes) -> None:
    needs, minute = timedelta(minutes=minutes), timedelta(minutes=1)
    made = [
        request(i, age=a * minute, due=d * minute, status=s, hold=h)
        for i, (a, d, s, h) in enumerate(found)
    ]
    mine = [r for r in made if r.status != "certified" and r.hold is None]
    got = closing(*made, of=served(*depths), needs=needs, max_wait="1h")
    assert (got is None) == (not mine)
    if got is not None:
        assert got.requests == tuple(r.id for r in mine)
        for waiting in (r for r in mine if r.status == "accepted"):
            assert got.closes <= datetime.fromisoformat(waiting.received) + HOUR
            assert got.closes <= datetime.fromisoformat(waiting.due) - needs


def test_the_work_behind_a_slice_is_that_of_its_stages() -> None:
    recipe = WHOLE.recipe.model_copy(
        update={"training": WHOLE.recipe.training.model_copy(update={"epochs": 5})}
    )
    rows = {1: 10, 2: 20, 4: 30}
    assert behind(recipe, rows, 1) == Work(3, 2 * (10 + 30 + 60), 1)
    assert behind(recipe, rows, 2) == Work(2, 2 * (30 + 60), 1)
    assert behind(recipe, rows, 3) == Work(1, 2 * 60, 1)
    assert behind(recipe, rows, 5) == Work(0, 0, 0)


def test_workers_share_shards_but_no_shard() -> None:
    pace = Tempo(stage=1.0, sample=0.1)
    assert pace.seconds(Work(4, 60, 2), workers=8) == pytest.approx(5)
    assert pace.seconds(Work(4, 60, 2), workers=1) == pytest.approx(10)
    assert Tempo.of(()).seconds(Work(4, 60, 2)) == 0
