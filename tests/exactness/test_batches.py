"""Erasures that wait for each other: one roll-back, one build, and what that saves."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_index import lineage, partition
from data_index.storage import canonical_json, sha256
from sisa import rate, stage_log
from sisa.errors import IncompleteError, UsageError
from sisa.rate import Load
from sisa.served import Served

CHOICES = {"shards": 3, "slices": 4, "epochs": 3, "learner": "logistic"}
BATCH = "runtime.erasure.rollback=batch"
PEOPLE = [f"p{i}" for i in range(40)]


def crowd(people: list[str] = PEOPLE, rows: int = 6) -> pa.Table:
    """Some rows of each person, the features tell the label."""
    rng = np.random.default_rng(7)
    label = rng.integers(0, 3, len(people) * rows)
    return pa.table(
        {
            "record_id": [f"{p}-{i}" for p in people for i in range(rows)],
            "subject_id": [p for p in people for _ in range(rows)],
            "label": label,
            "a": label + rng.normal(size=len(label)),
            "b": rng.normal(size=len(label)),
        }
    )


@pytest.fixture
def make(lab) -> Callable[..., Any]:
    def trained(name: str, *settings: str) -> Any:
        made = lab.workspace(name, crowd(), *settings, **CHOICES)
        made.train()
        return made

    return trained


@pytest.fixture
def oracle(lab) -> Callable[..., Any]:
    def never_had(*gone: str) -> Any:
        return lab.oracle("oracle", crowd(), {"subject_id": list(gone)}, **CHOICES)

    return never_had


def place(ws: Any, person: str) -> tuple[int, int]:
    row = ws.lineage(subject=person).records[0]
    return row.shard, row.slice


def at(ws: Any, shard: int, slice_: int) -> str:
    """A person who sits there."""
    return next(p for p in PEOPLE if place(ws, p) == (shard, slice_))


def reasons(ws: Any) -> list[str]:
    return [g.reason for g in ws.history().generations]


def test_in_a_batch_nothing_is_rolled_back_at_acceptance(make) -> None:
    ws = make("ws", BATCH)
    before = ws.status()
    done = ws.forget(subjects=["p1"], wait=False)
    assert done.status == "accepted" and done.rolled_back_seconds is None
    assert (ws.status().generation, ws.status().digest) == (before.generation, before.digest)
    assert ws.status().depth == 1
    verified = ws.verify()
    assert verified.exact is None and verified.exit_code == 6
    (chain,) = (c for c in verified.checks if c.name == "chain")
    assert chain.passed is None and "rolled back" in chain.detail


@pytest.mark.parametrize("closing", ["work", "train", "forget"])
def test_one_roll_back_for_the_whole_group_comes_before_the_build(
    make, oracle, same, closing
) -> None:
    ws = make("ws", BATCH)
    gone = [at(ws, 0, 3), at(ws, 1, 2), at(ws, 2, 4)]
    trained = ws.context.served()[1]
    for person in gone[:2]:
        ws.forget(subjects=[person], wait=False)
    rolled: list[Any] = []

    def look(shard: int) -> None:
        rolled.append(ws.context.served()[1])

    ws.context.make_executor().between = look
    if closing == "forget":
        done = ws.forget(subjects=gone[2:])
        assert done.rolled_back_seconds >= done.accepted_seconds
    else:
        ws.forget(subjects=gone[2:], wait=False)
        getattr(ws, closing)()
    assert reasons(ws) == ["train", "roll-back", "train" if closing == "train" else "erasure"]
    first = {0: 3, 1: 2, 2: 4}
    for old, new in zip(trained.constituents, rolled[0].constituents, strict=True):
        assert new.stages == tuple(s for s in old.stages if s.slice < first[old.shard])
    ws.work()
    assert reasons(ws).count("roll-back") == 1, "what is built already is not rolled back again"
    same(ws, oracle(*gone))
    assert ws.verify().exact is True


def test_immediate_roll_backs_are_one_a_request(make) -> None:
    ws = make("ws")
    for person in ("p1", "p2"):
        ws.forget(subjects=[person], wait=False)
    ws.work()
    assert reasons(ws) == ["train", "roll-back", "roll-back", "erasure"]


def test_a_group_that_was_cut_off_before_its_build_is_finished(
    make, lab, oracle, same, monkeypatch
) -> None:
    class Crash(BaseException):
        pass

    def crash(*_: object) -> None:
        raise Crash

    ws = make("ws", BATCH)
    ws.forget(subjects=["p1", "p2"], wait=False)
    with monkeypatch.context() as patch:
        patch.setattr("sisa.publish._build", crash)
        with pytest.raises(Crash):
            ws.work()
    again = lab.open("ws", BATCH)
    assert reasons(again) == ["train", "roll-back"]
    again.work()
    assert reasons(again) == ["train", "roll-back", "erasure"]
    same(again, oracle("p1", "p2"))


def test_requests_together_train_each_shard_once_from_its_earliest_slice(make, same) -> None:
    together, apart = make("together"), make("apart")
    gone = [at(apart, 0, 4), at(apart, 0, 2), at(apart, 1, 3), at(apart, 0, 1)]
    one_by_one = sum(apart.forget(subjects=[p]).samples_trained for p in gone)
    for person in gone:
        together.forget(subjects=[person], wait=False)
    executor = together.context.make_executor()
    executor.done.clear()
    done = together.work()
    assert len(done.requests) == 4 and done.samples_trained < one_by_one
    assert {j.shard: [link.slice for link in j.links] for j in executor.done} == {
        0: [1, 2, 3, 4],
        1: [3, 4],
    }
    same(together, apart)


@pytest.mark.parametrize(
    ("opened", "then", "settings"),
    [
        ([3], [1], ()),
        ([1], [3], ()),
        ([1, 2], [], ()),
        ([2, 4], [2], ("runtime.checkpoints.max_share=0.5",)),
        ([4], [4], ("runtime.checkpoints.max_share=0.5",)),
    ],
)
def test_what_waiting_saves_is_counted_to_the_sample(make, lab, settings, opened, then) -> None:
    """Each is forecast in one workspace and done in others, that of shard 1 besides."""
    ws = make("ws", *settings)
    first = [at(ws, 0, s) for s in opened]
    second = [*(p for s in then for p in PEOPLE if place(ws, p) == (0, s) and p not in first)][:1]
    second.append(at(ws, 1, 2))
    for person in first:
        ws.forget(subjects=[person], wait=False)
    found = ws.plan(subjects=second)
    apart, alone = make("apart", *settings), make("alone", *settings)
    costs = [apart.forget(subjects=p).samples_trained for p in (first, second)]
    assert found.waiting.open.samples == costs[0]
    assert found.waiting.one_after_other.samples == sum(costs)
    assert found.waiting.alone.samples == alone.forget(subjects=second).samples_trained
    both = ws.forget(subjects=second).samples_trained
    assert found.samples == found.waiting.together.samples == both
    assert found.waiting.saved_by_waiting.samples == sum(costs) - both
    assert found.waiting.open.seconds > 0 and found.waiting.one_after_other.seconds > 0
    assert sorted(found.window.requests) == sorted(r.id for r in ws.status().requests[:-1])


def test_with_nothing_open_there_is_nothing_to_save(make) -> None:
    found = make("ws").plan(subjects=["p1"])
    assert found.waiting.alone == found.waiting.together == found.waiting.one_after_other
    assert found.waiting.open.samples == found.waiting.saved_by_waiting.samples == 0
    assert found.window is None


@pytest.mark.parametrize("joins", [1, 4])
def test_a_request_for_the_shard_being_trained_is_joined(make, lab, oracle, same, joins) -> None:
    """An earlier slice starts the shard again from there, a later one goes on from what is done."""
    ws = make("ws")
    first, second = at(ws, 0, 2), at(ws, 0, joins)
    other, spent = lab.open("ws"), []
    executor = ws.context.make_executor()
    executor.done.clear()

    def submit(shard: int) -> None:
        stored = stage_log.read_shard(ws.context.store, shard)
        spent.append(sum(stored[link.key].samples for link in executor.done[-1].links))
        if len(spent) == 1:
            assert other.forget(subjects=[second], wait=False).status == "accepted"

    executor.between = submit
    done = ws.forget(subjects=[first])
    trained = [[link.slice for link in job.links] for job in executor.done]
    assert trained == [[2, 3, 4], list(range(joins, 5))]
    assert done.status == "certified" and done.samples_trained == sum(spent)
    same(ws, oracle(first, second))
    assert {r.status for r in ws.status().requests} == {"certified"}


def test_a_window_reads_no_partition_and_a_plan_no_row_that_stays(make, monkeypatch) -> None:
    ws = make("ws")
    touched = {place(ws, p) for p in ("p1", "p2")}
    ws.forget(subjects=["p1"], wait=False)
    read: list[tuple[int, ...]] = []
    whole, index = partition.read, lineage.open_index

    def reading(data: bytes, names: list[str] | None = None) -> pa.Table:
        found = whole(data, names)
        read.append((found.num_rows, found.num_columns))
        return found

    def opening(store: Any, ref: Any) -> pq.ParquetFile:
        assert ref.path.startswith(("lineage", "partitions"))
        read.extend([(0, 1)] * ref.path.startswith("partitions"))
        return index(store, ref)

    monkeypatch.setattr(partition, "read", reading)
    monkeypatch.setattr(lineage, "open_index", opening)
    assert ws.window() is not None and read == []
    ws.plan(subjects=["p2"])
    monkeypatch.undo()
    at_most = {p.rows for p in ws.context.dataset().partitions} & {r[0] for r in read if r[1] > 1}
    assert 0 < len(at_most) <= len(touched) < len(ws.context.dataset().partitions)


def test_everything_rolled_back_is_a_defined_state(make, tmp_path) -> None:
    ws = make("ws")
    earliest = [at(ws, shard, 1) for shard in range(3)]
    ws.forget(subjects=earliest, wait=False)
    status = ws.status()
    assert (status.voting, status.depth, status.quorate) == (0, 0, False)
    assert status.digest == sha256(canonical_json(["mean"]))
    file = tmp_path / "rows.parquet"
    pq.write_table(crowd(), file)
    for call in (lambda: ws.predict(crowd()), lambda: ws.evaluate(file)):
        with pytest.raises(IncompleteError, match="No constituent votes") as error:
            call()
        assert error.value.exit_code == 6 and "sisa work" in error.value.remedy
    found = ws.window()
    assert found.reason in ("depth", "quorum")
    assert ws.work().requests[0].status == "certified"
    assert ws.status().voting == 3 and ws.predict(crowd()).num_rows == 240


def test_a_model_without_votes_loads_and_says_why_it_refuses(make, tmp_path) -> None:
    from mlflow.exceptions import MlflowException

    from sisa.pyfunc import ServedModel

    ws = make("ws")
    ws.forget(subjects=PEOPLE, wait=False)
    served = Served.of(7, ws.context.served()[1], 0.5)
    (tmp_path / "ensemble.json").write_bytes(canonical_json(served.to_json()))
    model = ServedModel()
    model.load_context(SimpleNamespace(artifacts={"ensemble": str(tmp_path)}))
    with pytest.raises(MlflowException, match=r"Generation 7 .*No constituent votes") as error:
        model.predict(None, crowd().to_pandas())
    assert error.value.error_code == "TEMPORARILY_UNAVAILABLE"


def test_a_store_without_any_record_is_a_defined_state(make, lab, tmp_path) -> None:
    ws = make("ws")
    done = ws.forget(subjects=PEOPLE)
    assert done.status == "certified" and done.records_erased == 240
    assert done.certificate and done.digest == sha256(canonical_json(["mean"]))
    status = ws.status()
    assert (status.records, status.voting, status.depth, status.quorate) == (0, 0, 0, False)
    with pytest.raises(IncompleteError, match="No constituent votes"):
        ws.predict(crowd())
    with pytest.raises(IncompleteError, match="no record"):
        ws.train()
    with pytest.raises(IncompleteError, match="no record"):
        ws.plan(rate="1/day")
    verified = ws.verify()
    assert verified.exact is True and verified.shards == ()
    assert ws.work().requests == () and ws.window() is None
    assert ws.plan(subjects=["p1"]).samples == 0
    assert ws.forget(subjects=["p1"]).certificate == done.certificate
    assert ws.forget(subjects=["nobody"]).status == "not_found"
    pq.write_table(crowd(["new-1", "new-2", "new-3"]), tmp_path / "more.parquet")
    assert ws.ingest(tmp_path / "more.parquet").records == 18
    assert ws.train().voting > 0
    fresh = lab.workspace("fresh", crowd(["new-1", "new-2", "new-3"]), **CHOICES)
    assert fresh.train().digest == ws.status().digest


def test_the_expected_cost_of_one_request_is_that_of_all_records(lab) -> None:
    """No wait and a low rate: each request is carried out alone."""
    ws = lab.workspace("ws", crowd(rows=20), "runtime.erasure.max_wait=0s", **CHOICES)
    ws.train()
    rows = crowd(rows=20)["record_id"].to_pylist()[::20]
    mean = np.mean([ws.plan(records=[r]).samples for r in rows])
    found = ws.plan(rate="1/day")
    assert found.requests_per_batch == 1
    assert found.samples_per_day == pytest.approx(mean, rel=0.15)
    assert ws.plan(rate="2/hour").samples_per_day == pytest.approx(48 * found.samples_per_day)


@pytest.mark.parametrize(("shards", "slices", "mean"), [(5, 1, 4.0), (4, 6, 0.0), (8, 3, 12.0)])
def test_the_expected_cost_of_a_batch_is_that_of_draws(make, shards, slices, mean) -> None:
    """Against the definition: draw K places, train each shard from the earliest of its own."""
    training = make("ws").context.config.recipe.training
    load, records, rng = Load(mean, 1.0), 24_000, np.random.default_rng(1)
    epochs = [float(rate.stage_epochs(training, slices, q)) for q in range(1, slices + 1)]
    costs = []
    for _ in range(4000):
        drawn = rng.integers(0, shards * slices, 1 + rng.poisson(mean))
        first = {s: min(c % slices for c in drawn if c // slices == s) for s in drawn // slices}
        cells = records / (shards * slices)
        costs.append(
            sum(epochs[q] * (q + 1) * cells for f in first.values() for q in range(f, slices))
        )
    expected = rate.batch(training, shards, slices, records, load).samples
    error = np.std(costs) / np.sqrt(len(costs))
    assert abs(np.mean(costs) - expected) < 4 * error + 1e-6


def test_formulas_of_sharding_and_slicing_are_special_cases(make) -> None:
    training = make("ws").context.config.recipe.training
    one = rate.batch(training, 8, 5, 4000, Load(1e-9, 0.0)).samples
    assert one == pytest.approx(3 * 500 * (2 / 3 + 1 / 15))
    many = rate.batch(training, 8, 1, 4000, Load(5.0, 1.0)).samples
    assert many == pytest.approx(3 * 4000 * (1 - (1 - 1 / 8) * np.exp(-5 / 8)))


def test_a_rate_names_the_cheapest_choice_whose_stages_are_not_too_small(lab) -> None:
    ws = lab.workspace("ws", crowd(rows=20), "recipe.training.batch_size=2", **CHOICES)
    ws.train()
    found = ws.plan(rate="20/day")
    assert found.best == min(
        (c for c in found.choices if c.steps >= rate.STEPS), key=lambda c: (c.seconds, c.samples)
    )
    (present,) = (c for c in found.choices if c.present)
    assert (present.shards, present.slices) == (3, 4)
    assert present.samples == found.samples_per_day
    assert all(c.steps >= rate.STEPS for c in found.choices if not c.present)
    for wrong in ("20", "0/day", "x/day", "-1/day", "1/year"):
        with pytest.raises(UsageError, match="rate"):
            ws.plan(rate=wrong)
    with pytest.raises(UsageError, match="exclude"):
        ws.plan(subjects=["p1"], rate="1/day")
