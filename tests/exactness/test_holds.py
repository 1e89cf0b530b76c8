"""Held, cancelled and readmitted, in any order: the bytes are those of the data that counts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from data_index import keys, rewrite
from data_index.lineage import Selection
from data_index.requests import Pending
from sisa import certificate, forget, publish, purge
from sisa.errors import BusyError, NotFoundError, UsageError
from sisa.workspace import Workspace

CHOICES = {"shards": 2, "slices": 2, "epochs": 2, "learner": "logistic"}
RING = keys.derive(bytes.fromhex("5a" * 32))
NAMES = [f"s{n}" for n in range(12)]


def rows(first: int, count: int, value: int = 0, owners: list[str] = NAMES) -> pa.Table:
    """Rows whose owners take turns, and whose features are noise of number and value."""
    drawn = [np.random.default_rng((n, value)) for n in range(first, first + count)]
    noise = np.array([d.normal(size=3) for d in drawn])
    return pa.table(
        {
            "record_id": [f"r{n}" for n in range(first, first + count)],
            "subject_id": [owners[n % len(owners)] for n in range(first, first + count)],
            "label": pa.array([int(d.integers(3)) for d in drawn], pa.int64()),
            **{f"f{i}": noise[:, i] for i in range(3)},
        }
    )


TABLE = rows(0, 60)


def mates() -> tuple[str, str, str]:
    """Two subjects of one shard, the first in no later slice, and one of the other shard."""
    shard, slice_ = keys.place(keys.subject_keys(RING, [n.encode() for n in NAMES]), 2, 2)
    placed = sorted(zip(slice_.tolist(), shard.tolist(), NAMES, strict=True))
    here = [name for _, s, name in placed if s == 0]
    return here[0], here[-1], next(name for _, s, name in placed if s == 1)


A, B, C = mates()


@pytest.fixture
def ws(lab) -> Workspace:
    made = lab.workspace("ws", TABLE, **CHOICES)
    made.train()
    return made


@pytest.fixture
def equals(lab, same) -> Callable[..., None]:
    """Asserts that a workspace is the one that never held some subjects or records."""
    made: list[str] = []

    def check(ws: Workspace, *gone: str, records: tuple[str, ...] = (), more: tuple = ()) -> None:
        made.append(f"oracle-{len(made)}")
        out = {"subject_id": [*gone], "record_id": [*records]}
        oracle = lab.oracle(made[-1], TABLE, out, **CHOICES)
        for step in more:
            step(oracle)
        oracle.train()
        same(ws, oracle)

    return check


def waits_only(ws: Workspace) -> None:
    """Nothing is wrong with what is stored and served but that rows wait."""
    checks = {c.name: c.passed for c in ws.verify(replay=False).checks}
    assert checks.pop("tombstones") is None
    assert all(checks.values())


def taken(ws: Workspace, *subjects: str, records: tuple[str, ...] = (), **fields: str) -> str:
    (request,) = ws.submit(subjects, records, **fields).requests
    return request.id


def status_of(ws: Workspace, request: str) -> str:
    return ws.request(request).request.status


def test_a_held_request_stays_while_others_are_carried_out(ws, lab, equals) -> None:
    held = taken(ws, A, hold="court order")
    free, other = taken(ws, B), taken(ws, C)
    done = ws.work()
    assert {r.id for r in done.requests} == {free, other} and done.exit_code == 0
    assert [(r.id, r.status) for r in done.waiting] == [(held, "on_hold")]
    oracle = lab.oracle("model", TABLE, {"subject_id": [A, B, C]}, **CHOICES)
    assert ws.status().digest == oracle.status().digest, "the held one is in no build"
    stored = lab.oracle("stored", TABLE, {"subject_id": [B, C]}, **CHOICES)
    assert ws.context.dataset().partitions == stored.context.dataset().partitions
    waits_only(ws)
    assert ws.work().requests == () and status_of(ws, held) == "on_hold"
    assert ws.release(held).request.status == "published"
    assert [r.id for r in ws.work().requests] == [held]
    equals(ws, A, B, C)
    assert ws.verify().exact is True


def test_the_steps_that_are_left_are_told(ws) -> None:
    held = taken(ws, A, hold="court order")

    def done() -> list[str]:
        return [s.name for s in ws.request(held).steps if s.done]

    assert done() == ["rolled_back"]
    ws.work()
    assert done() == ["rolled_back", "rebuilt"]
    ws.release(held)
    ws.work()
    assert done() == ["rolled_back", "rebuilt", "rewritten", "purged", "certified"]
    assert [e.what for e in ws.request(held).events] == [
        "accepted",
        "held",
        "published",
        "released",
        "certified",
    ]


@pytest.mark.parametrize("worked", [False, True])
@pytest.mark.parametrize("beside", [(), (C,)])
def test_a_cancelled_request_leaves_the_generation_as_it_was(ws, equals, worked, beside) -> None:
    before = ws.status()
    held = taken(ws, A, hold="court order")
    others = [taken(ws, who) for who in beside]
    if worked:
        ws.work()
    assert ws.status().digest != before.digest
    done = ws.cancel(held, "withdrawn")
    assert (done.request.status, done.request.reason) == ("cancelled", "withdrawn")
    if not beside:
        assert (done.digest, done.samples_trained) == (before.digest, 0)
        assert ws.status().reason == "cancelled"
    elif worked:
        assert done.samples_trained == 0
    ws.work()
    equals(ws, *beside)
    assert ws.verify(replay=False).exit_code == 0
    assert status_of(ws, held) == "cancelled"
    assert all(status_of(ws, other) == "certified" for other in others)
    assert ws.forget(subjects=[A]).status == "certified", "it may be asked for again"
    equals(ws, A, *beside)


def test_negative_control_without_the_further_walk_a_cancel_has_to_train(
    ws, equals, monkeypatch
) -> None:
    held = taken(ws, A, hold="court order")
    monkeypatch.setattr(
        purge.plan, "walks_over", lambda context, _: purge.plan.walks_without(context, NOTHING)
    )
    monkeypatch.setattr(purge.plan, "walks_without", walks_without)
    ws.work()
    monkeypatch.undo()
    assert ws.cancel(held, "withdrawn").samples_trained > 0
    equals(ws)


NOTHING = Selection.nothing()


def walks_without(context, gone):
    """As it would be if nothing were kept for a return."""
    views = purge.plan.through(
        context.store,
        context.ring,
        context.columns,
        context.dataset(),
        context.ledger.pending().gone | gone,
    )
    return purge.plan.build.walk(context.store, views, context.training)


def test_negative_control_a_hold_that_is_not_looked_at(ws, monkeypatch) -> None:
    held = taken(ws, A, hold="court order")
    monkeypatch.setattr(Pending, "held", property(lambda self: NOTHING))
    everything = Pending.named_by
    monkeypatch.setattr(
        Pending, "named_by", lambda self, _: everything(self, {r.id for r in self.requests})
    )
    taken(ws, C)
    ws.work()
    monkeypatch.undo()
    with pytest.raises(UsageError, match="rewritten already"):
        ws.cancel(held, "withdrawn")


STEPS = {
    "before the build": (forget, "_published"),
    "before publishing": (publish, "_publish"),
    "before rewriting": (forget, "_rewrite"),
    "while rewriting": (rewrite, "without"),
}


def between(monkeypatch, step: tuple[object, str], act: Callable[[], object]) -> list[object]:
    """Let something happen once, just before a step."""
    whole = getattr(*step)
    done: list[object] = []

    def first(*given, **named):
        if not done:
            done.append(None)
            done[0] = act()
        return whole(*given, **named)

    monkeypatch.setattr(*step, first)
    return done


@pytest.mark.parametrize("step", STEPS)
def test_a_hold_that_comes_meanwhile_is_respected(ws, lab, equals, monkeypatch, step) -> None:
    before = ws.status().digest
    first, other = taken(ws, A), taken(ws, C)
    there = lab.open("ws")
    between(monkeypatch, STEPS[step], partial(there.hold, first, "court order"))
    assert [r.id for r in ws.work().requests] == [other]
    assert status_of(ws, first) == "on_hold"
    assert ws.lineage(subject=A).erased
    ws.cancel(first, "withdrawn")
    assert ws.status().digest != before
    equals(ws, C)


@pytest.mark.parametrize("step", [*STEPS, "while sweeping"])
def test_a_release_that_comes_meanwhile_is_joined(ws, lab, equals, monkeypatch, step) -> None:
    held = taken(ws, A, hold="court order")
    there = lab.open("ws")
    at = STEPS.get(step, (purge, "purge"))
    between(monkeypatch, at, partial(there.release, held))
    done = {r.id for r in ws.work().requests}
    assert done == {held}
    equals(ws, A)


@pytest.mark.parametrize("step", [(purge, "purge"), (certificate, "issue")])
@pytest.mark.parametrize("verb", ["hold", "cancel"])
def test_rows_that_are_rewritten_can_neither_be_held_nor_returned(
    ws, lab, equals, monkeypatch, step, verb
) -> None:
    request = taken(ws, A)
    there = lab.open("ws")

    def late() -> str:
        expected = UsageError if verb == "hold" else BusyError
        with pytest.raises(expected, match="rewritten" if verb == "hold" else "writer") as error:
            getattr(there, verb)(request, "too late")
        return str(error.value)

    told = between(monkeypatch, step, late)
    ws.work()
    assert told[0] and status_of(ws, request) == "certified"
    for verb_ in ("hold", "cancel"):
        with pytest.raises(UsageError, match="its state is certified"):
            getattr(ws, verb_)(request, "too late")
    with pytest.raises(UsageError, match="its state is certified"):
        ws.release(request)
    equals(ws, A)


def test_after_a_crash_between_rewriting_and_certificate_nothing_returns(
    ws, lab, equals, monkeypatch
) -> None:
    request = taken(ws, A)

    def crash(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(purge, "purge", crash)
        with pytest.raises(KeyboardInterrupt):
            ws.work()
    again = lab.open("ws")
    assert status_of(again, request) == "published"
    assert [s.name for s in again.request(request).steps if not s.done] == ["purged", "certified"]
    for verb in (again.hold, again.cancel):
        with pytest.raises(UsageError, match="rewritten already"):
            verb(request, "too late")
    again.work()
    equals(again, A)


def test_a_row_that_a_held_and_another_request_name_stays_until_both_may_go(ws, equals) -> None:
    record = TABLE.filter(pc.equal(TABLE["subject_id"], A))["record_id"][0].as_py()
    held = taken(ws, A, hold="court order")
    single = taken(ws, records=(record,))
    both = taken(ws, A, C)
    done = ws.work()
    assert done.requests == ()
    assert {r.id for r in done.waiting} == {held, single, both}
    assert ws.request(single).waits_for == (held,) == ws.request(both).waits_for
    assert ws.lineage(subject=C).records == ()
    ws.release(held)
    assert {r.id for r in ws.work().requests} == {held, single, both}
    equals(ws, A, C)


def test_a_tombstone_that_two_requests_made_stays_while_one_is_open(ws, equals) -> None:
    before = ws.status().digest
    first, second = taken(ws, A), taken(ws, A, C)
    assert ws.cancel(first, "withdrawn").standing == ()
    assert ws.lineage(subject=A).erased
    assert ws.ingest().tombstoned == sum(s in (A, C) for s in TABLE["subject_id"].to_pylist())
    done = ws.cancel(second, "withdrawn")
    assert (done.digest, done.samples_trained) == (before, 0)
    assert not ws.lineage(subject=A).erased
    equals(ws)


def test_a_duplicate_stands_by_itself_once_the_other_is_taken_back(ws, equals) -> None:
    before = ws.status().digest
    first, second, third = taken(ws, A), taken(ws, A), taken(ws, A)
    assert ws.request(second).request.duplicate_of == first
    assert ws.cancel(first, "withdrawn").standing == (second,)
    assert status_of(ws, second) == "accepted"
    assert ws.request(third).request.duplicate_of == second
    assert ws.cancel(third, "withdrawn").standing == ()
    assert ws.status().digest != before
    assert ws.cancel(second, "denied", denied=True).digest == before
    assert [r.status for r in ws.requests().requests] == ["cancelled", "denied", "cancelled"]
    assert not ws.context.ledger.pending().gone and len(ws.context.ledger.tombstones()) == 0
    equals(ws)


def test_a_duplicate_that_stands_is_carried_out(ws, equals) -> None:
    first, second = taken(ws, A), taken(ws, A)
    ws.cancel(first, "withdrawn")
    (finished,) = ws.work().requests
    assert finished.id == second and finished.records == 5
    equals(ws, A)


BETWEEN: dict[str, Callable[[Workspace], object]] = {
    "train": lambda ws: ws.train(),
    "append": lambda ws: ws.ingest(more(ws, rows(100, 12, owners=["t1", "t2"])), append=True),
    "append and train": lambda ws: (BETWEEN["append"](ws), ws.train()),
    "correct": lambda ws: ws.ingest(more(ws, rows(7, 1, value=1, owners=[B] * 12)), correct=True),
}


def more(ws: Workspace, table: pa.Table) -> str:
    path = ws.context.folder / "more.parquet"
    pq.write_table(table, path)
    return str(path)


@pytest.mark.parametrize("what", BETWEEN)
def test_what_comes_between_acceptance_and_cancel_is_in_what_returns(ws, equals, what) -> None:
    request = taken(ws, A)
    BETWEEN[what](ws)
    ws.cancel(request, "withdrawn")
    equals(ws, more=(BETWEEN[what],))
    assert ws.verify(replay=False).exit_code == 0


def test_a_request_that_comes_during_a_cancel_is_joined(ws, lab, equals, monkeypatch) -> None:
    request = taken(ws, A)
    there = lab.open("ws")
    between(monkeypatch, (publish, "_publish"), partial(taken, there, C))
    ws.cancel(request, "withdrawn")
    assert ws.lineage(subject=C).erased and not ws.lineage(subject=A).erased
    ws.work()
    equals(ws, C)


def test_a_crash_during_a_cancel_leaves_the_request_or_the_generation_of_before(
    ws, lab, equals, monkeypatch
) -> None:
    before = ws.status().digest
    request = taken(ws, A)

    def crash(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publish, "_publish", crash)
        with pytest.raises(KeyboardInterrupt):
            ws.cancel(request, "withdrawn")
    again = lab.open("ws")
    assert status_of(again, request) == "accepted" and again.status().digest != before
    assert again.cancel(request, "withdrawn").digest == before
    assert again.cancel(request, "withdrawn").request.reason == "withdrawn", "once more is the same"
    equals(again)


def test_a_cancel_waits_for_the_writer(ws, lab) -> None:
    request = taken(ws, A)
    there = lab.open("ws")
    with ws.context.ledger.writer(), pytest.raises(BusyError) as error:
        there.cancel(request, "withdrawn")
    assert error.value.exit_code == 75 and status_of(ws, request) == "accepted"


def test_cancelling_before_the_first_training(lab, equals) -> None:
    early = lab.workspace("early", TABLE, **CHOICES)
    request = taken(early, A)
    done = early.cancel(request, "withdrawn")
    assert (done.generation, done.request.status) == (None, "cancelled")
    early.train()
    equals(early)


@pytest.mark.parametrize("trained", [False, True])
def test_a_readmitted_subject_is_as_if_it_had_always_been_there(ws, equals, trained) -> None:
    ws.forget(subjects=[A, C])
    assert ws.ingest().tombstoned == 10
    done = ws.readmit(subjects=[A, "nobody"])
    assert (done.readmitted, done.not_found) == (1, ("nobody",))
    assert (taken_in := ws.ingest()).records == 5 and taken_in.tombstoned == 5
    if trained:
        ws.train()
        equals(ws, C)
        assert ws.verify(replay=False).exit_code == 0
    again = ws.forget(subjects=[A])
    assert (again.status, again.records_erased) == ("certified", 5)
    equals(ws, A, C)
    assert ws.ingest().tombstoned == 10
    assert ws.readmit(subjects=[A]).readmitted == 1


def test_a_record_is_readmitted_alone(ws, equals) -> None:
    ws.forget(records=["r1", "r2"])
    assert ws.readmit(records=["r1"]).readmitted == 1
    assert ws.ingest().records == 1
    ws.train()
    equals(ws, records=("r2",))


def test_what_an_open_request_names_is_not_readmitted(ws) -> None:
    request = taken(ws, A)
    with pytest.raises(UsageError, match="open request") as error:
        ws.readmit(subjects=[A])
    assert error.value.exit_code == 2 and ws.lineage(subject=A).erased
    ws.cancel(request, "withdrawn")
    assert ws.readmit(subjects=[A]).readmitted == 0
    with pytest.raises(UsageError, match="No id"):
        ws.readmit()


@pytest.mark.parametrize("step", STEPS)
def test_a_readmission_during_a_rebuild_changes_nothing_of_it(
    ws, lab, equals, monkeypatch, step
) -> None:
    ws.forget(subjects=[C])
    taken(ws, A)
    there = lab.open("ws")
    between(monkeypatch, STEPS[step], partial(there.readmit, subjects=[C]))
    ws.work()
    equals(ws, A, C)
    ws.ingest()
    ws.train()
    equals(ws, A)


def test_unknown_requests_are_not_found(ws) -> None:
    for call in (
        ws.request,
        ws.release,
        partial(ws.hold, reason="x"),
        partial(ws.cancel, reason="x"),
    ):
        with pytest.raises(NotFoundError) as error:
            call("er_nothing")
        assert error.value.exit_code == 5 and "er_nothing" not in str(error.value)
