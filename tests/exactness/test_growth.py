"""Corrections and additions: whatever came when, the model is that of the data as it is."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_index import keys
from sisa.errors import DataError, IncompleteError
from sisa.workspace import Workspace

CHOICES = {"shards": 2, "slices": 2, "epochs": 2, "learner": "logistic"}
RING = keys.derive(bytes.fromhex("5a" * 32))

Row = tuple[int, str, int]
"""Record, subject and a value that all else of the row follows from."""

SCHEMA = pa.schema(
    [
        ("record_id", pa.string()),
        ("subject_id", pa.string()),
        ("label", pa.int64()),
        *((f"f{i}", pa.float64()) for i in range(3)),
    ]
)


def table(rows: Sequence[Row]) -> pa.Table:
    """Rows whose features are noise of record and value."""
    drawn = [np.random.default_rng((record, value)) for record, _, value in rows]
    noise = np.array([d.normal(size=3) for d in drawn]).reshape(-1, 3)
    columns = [
        pa.array([f"r{record}" for record, _, _ in rows], pa.string()),
        pa.array([who for _, who, _ in rows], pa.string()),
        pa.array([int(d.integers(3)) for d in drawn], pa.int64()),
        *(pa.array(noise[:, i]) for i in range(3)),
    ]
    return pa.table(columns, schema=SCHEMA)


TEMPLATE = table([(n, f"s{n}", 0) for n in range(30)])


def shard_of(who: str) -> tuple[int, int]:
    shard, slice_ = keys.place(keys.subject_keys(RING, [who.encode()]), 2, 2)
    return int(shard[0]), int(slice_[0])


def somebody(shard: int, slice_: int, nth: int = 0) -> str:
    """A subject that is placed there."""
    found = (f"p{n}" for n in range(999) if shard_of(f"p{n}") == (shard, slice_))
    return [next(found) for _ in range(nth + 1)][nth]


@dataclass
class Call:
    """What an accepted call took in: (life of the record, row), without what was left out."""

    correct: bool
    append: bool
    rows: list[tuple[int, Row]] = field(default_factory=list)


@dataclass
class History:
    """A workspace, a model of what it must hold, and its calls for an oracle to repeat."""

    folder: Path
    lab: Any
    lives: int = 0
    held: dict[int, tuple[int, Row]] = field(default_factory=dict)
    waiting: dict[int, Row] = field(default_factory=dict)
    erased: set[str | int] = field(default_factory=set)
    calls: list[Call] = field(default_factory=list)
    oracles: int = 0

    def __post_init__(self) -> None:
        self.ws = self.lab.empty("ws", TEMPLATE, **CHOICES)

    def take(self, rows: Sequence[Row], correct: bool = False, append: bool = False) -> Any:
        """Ingest, and check every count against the model."""
        call = Call(correct, append)
        differ = skipped = tombstoned = 0
        for row in rows:
            record, who, _ = row
            if self.erased & {record, who} or record in self.waiting:
                tombstoned += 1
            elif record not in self.held:
                call.rows.append((self.lives + len(call.rows), row))
            elif self.held[record][1] == row:
                skipped += 1
            else:
                differ += 1
                call.rows.append((self.held[record][0], row))
        if (differ and not correct) or (not rows and not append):
            with pytest.raises(DataError):
                self._ingest(self.ws, rows, correct, append)
            return None
        done = self._ingest(self.ws, rows, correct, append)
        assert (done.records, done.corrected) == (len(call.rows) - differ, differ)
        assert (done.skipped, done.tombstoned) == (skipped, tombstoned)
        self.calls.append(call)
        assert done.append == (sum(c.append for c in self.calls) if append else None)
        self.held |= {row[0]: (life, row) for life, row in call.rows}
        self.lives += len(call.rows)
        assert done.total_records == len(self.held) + len(self.waiting)
        return done

    def forget(self, who: str | int, wait: bool = True) -> Any:
        """Forget a subject (text) or a record (a number)."""
        there = {r: row for r, (_, row) in self.held.items()} | self.waiting
        gone = {r for r, row in there.items() if who in row[:2]}
        if isinstance(who, int):
            done = self.ws.forget(records=[f"r{who}"], wait=wait)
        else:
            done = self.ws.forget(subjects=[who], wait=wait)
        assert (done.status == "not_found") == (not gone and who not in self.erased)
        if gone:
            self.erased.add(who)
        self.waiting |= {r: self.held.pop(r)[1] for r in gone if r in self.held}
        if wait:
            self.waiting = {}
        return done

    def oracle(self) -> Workspace:
        """The same calls without the forgotten.

        A record that was a forgotten subject's and is another one's now comes with its present
        row from the start.
        """
        self.oracles += 1
        made = self.lab.empty(f"oracle-{self.oracles}", TEMPLATE, **CHOICES)
        alive = dict(self.held.values())
        for call in self.calls:
            rows = [
                alive[life] if self.erased & set(row[:2]) else row
                for life, row in call.rows
                if life in alive
            ]
            if rows or call.append:
                self._ingest(made, rows, call.correct, call.append)
        return made

    def check(self, same: Any) -> None:
        """After everything accepted was carried out and trained."""
        self.ws.work()
        self.waiting = {}
        oracle = self.oracle()
        if not self.held:
            return
        self.ws.train()
        oracle.train()
        same(self.ws, oracle)
        checks = self.ws.verify(replay=False).checks
        assert [c for c in checks if not c.passed] == []

    def _ingest(self, ws: Workspace, rows: Sequence[Row], correct: bool, append: bool) -> Any:
        path = self.folder / "call.parquet"
        pq.write_table(table(rows), path)
        return ws.ingest(path, correct=correct, append=append)


@pytest.fixture
def history(lab, tmp_path) -> History:
    return History(tmp_path, lab)


def crowd(count: int = 40, first: int = 0) -> list[Row]:
    return [(first + n, f"s{n % 13}", 0) for n in range(count)]


def trained(ws: Workspace) -> list[tuple[int, int]]:
    """Train; which stages it trained."""
    executor = ws.context.make_executor()
    executor.done.clear()
    ws.train()
    return sorted((job.shard, link.slice) for job in executor.done for link in job.links)


def test_an_append_trains_one_stage_a_shard(history, same) -> None:
    history.take(crowd())
    history.ws.train()
    before = history.ws.context.served()[1]
    history.take(crowd(20, first=100), append=True)
    assert trained(history.ws) == [(0, 3), (1, 3)]
    after = history.ws.context.served()[1]
    for old, new in zip(before.constituents, after.constituents, strict=True):
        assert new.stages[:-1] == old.stages and new.stages[-1].slice == 3
    assert history.ws.status().depth == 1
    history.check(same)
    assert history.ws.verify().exact is True


def test_what_tells_about_a_workspace_knows_appended_slices(history) -> None:
    history.take(crowd())
    history.ws.train()
    history.take(crowd(20, first=100), append=True)
    told = [f.message for f in history.ws.doctor().findings if f.check == "generation"]
    assert told == ["The data changed since the current generation was trained."]
    assert history.ws.verify(replay=False).exit_code == 6
    history.ws.train()
    status, entries = history.ws.status(), history.ws.history().generations
    assert (status.depth, status.records, status.partitions) == (1, 60, 6)
    assert [e.reason for e in entries] == ["train", "train"] and entries[-1].current
    found = history.ws.doctor()
    assert [f.check for f in found.findings if f.check == "generation"] == []
    assert found.exit_code == 0
    seen = history.ws.lineage(record="r100")
    assert [r.slice for r in seen.records] == [3] == [s.slice for s in seen.stages]
    assert seen.generations == (2,)


def test_an_append_to_one_shard_leaves_the_other(history, same) -> None:
    history.take(crowd())
    history.ws.train()
    history.take([(100 + n, somebody(1, 1), 0) for n in range(6)], append=True)
    assert trained(history.ws) == [(1, 3)]
    history.check(same)


def test_an_append_to_a_shard_without_earlier_records(history, same) -> None:
    history.take([(n, somebody(0, 1 + n % 2), 0) for n in range(12)])
    history.ws.train()
    assert len(history.ws.context.served()[1].constituents) == 1
    history.take([(100 + n, somebody(1, 2), 0) for n in range(6)], append=True)
    assert trained(history.ws) == [(1, 3)]
    assert [len(c.stages) for c in history.ws.context.served()[1].constituents] == [2, 1]
    assert history.ws.status().depth == 1
    history.check(same)
    history.forget(somebody(0, 1))
    history.check(same)


def test_an_append_of_nothing_new_trains_nothing_and_counts(history, same) -> None:
    history.take(crowd())
    first = history.ws.train()
    history.take(crowd(), append=True)
    again = history.ws.train()
    assert (again.samples_trained, again.generation) == (0, first.generation)
    history.take(crowd(9, first=100), append=True)
    assert trained(history.ws) == [(0, 4), (1, 4)]
    assert {s.slice for s in history.ws.lineage(record="r100").stages} == {4}
    history.check(same)


def test_the_rows_of_an_append_may_all_have_been_the_forgotten_ones(history, same) -> None:
    history.take(crowd())
    history.take([(100 + n, "s5", 0) for n in range(4)], append=True)
    history.take([(200 + n, "s6", 0) for n in range(4)], append=True)
    history.ws.train()
    history.forget("s5")
    history.check(same)
    assert {p.slice for p in history.ws.context.dataset().partitions} == {1, 2, 4}


def test_a_subject_in_the_base_and_in_appended_slices(history, same) -> None:
    history.take(crowd())
    history.take([(100 + n, f"s{n % 13}", 0) for n in range(13)], append=True)
    history.take([(200 + n, f"s{n % 13}", 0) for n in range(13)], append=True)
    history.ws.train()
    shard, slice_ = shard_of("s4")
    seen = history.ws.lineage(subject="s4")
    assert sorted({r.slice for r in seen.records}) == [slice_, 3, 4]
    assert {s.slice for s in seen.stages} == set(range(slice_, 5))
    plan = history.ws.plan(subjects=["s4"])
    assert plan.shards_affected == (shard,) and plan.stages == 5 - slice_
    done = history.forget("s4")
    assert done.records_erased == len(seen.records) and done.samples_trained == plan.samples
    history.check(same)


def test_a_subject_in_an_appended_slice_only_costs_its_stage(history, same) -> None:
    history.take(crowd())
    late = [(100 + n, "late", 0) for n in range(3)]
    history.take([*late, *crowd(13, first=300)], append=True)
    history.take(crowd(13, first=200), append=True)
    history.ws.train()
    assert history.ws.plan(subjects=["late"]).stages == 2
    history.forget("late", wait=False)
    served = history.ws.context.served()[1].constituents
    assert [len(c.stages) for c in served if c.shard == shard_of("late")[0]] == [2]
    assert history.ws.status().depth < 1
    history.check(same)


def test_a_correction_retrains_from_its_slice_on(history, same) -> None:
    history.take(crowd())
    history.take(crowd(26, first=100), append=True)
    before = history.ws.train()
    serving = history.ws.status().digest
    who = next(w for _, w, _ in crowd() if shard_of(w)[1] == 2)
    record = next(r for r, w, _ in crowd() if w == who)
    done = history.take([(record, who, 1)], correct=True)
    assert done.corrected == 1
    assert history.ws.status().digest == serving, "serving keeps the generation until train"
    assert history.ws.verify(replay=False).exact is None
    shard = shard_of(who)[0]
    assert trained(history.ws) == [(shard, 2), (shard, 3)]
    assert history.ws.status().digest != before.digest
    history.check(same)


def test_a_correction_back_reuses_what_was_trained(history) -> None:
    history.take(crowd())
    before, data = history.ws.train(), history.ws.context.dataset()
    history.take([(3, "s4", 1), (5, "s5", 2)], correct=True)
    assert history.ws.train().digest != before.digest
    history.take([(3, "s3", 0), (5, "s5", 0)], correct=True)
    after = history.ws.context.dataset()
    assert (after.partitions, after.by_record) == (data.partitions, data.by_record)
    assert after.by_subject == data.by_subject
    again = history.ws.train()
    assert (again.digest, again.samples_trained) == (before.digest, 0)


def test_the_superseded_row_is_in_no_file(history) -> None:
    history.take(crowd())
    history.ws.train()
    store = history.ws.context.store
    before = set(store.list("partitions"))
    history.take([(3, "s4", 1)], correct=True)
    after = set(store.list("partitions"))
    assert before - after and after == {
        p.file.path for p in history.ws.context.dataset().partitions
    }
    (where,) = history.ws.lineage(record="r3").records
    assert (where.source, where.row) == ("call.parquet", 0)


@pytest.mark.parametrize("forgotten", ["s3", "s4"])
@pytest.mark.parametrize("train", [True, False])
def test_forgetting_who_had_or_has_a_corrected_record(history, same, forgotten, train) -> None:
    history.take(crowd())
    history.take([(100, "s3", 0), *crowd(20, first=200)], append=True)
    history.ws.train()
    history.take([(3, "s4", 1), (100, "s4", 0)], correct=True)
    if train:
        history.ws.train()
    history.forget(forgotten)
    history.check(same)
    assert history.ws.verify().exact is True
    assert bool(history.ws.lineage(record="r3").records) == (forgotten == "s3")


@pytest.mark.parametrize("forgotten", ["former", "present", "record"])
def test_a_move_that_was_not_trained_leaves_serving_with_who_is_forgotten(
    history, same, forgotten
) -> None:
    """The served stages saw the record where it was; where it is now does not tell."""
    shard, slice_ = shard_of("s3")
    present = somebody(1 - shard, 2)
    history.take([*crowd(), (100, "s3", 0)])
    history.ws.train()
    history.take([(100, present, 0)], correct=True)
    history.forget({"former": "s3", "present": present, "record": 100}[forgotten], wait=False)
    (found,) = [c for c in history.ws.context.served()[1].constituents if c.shard == shard]
    assert all(s.slice < slice_ for s in found.stages)
    history.check(same)


def test_a_move_that_was_trained_is_rolled_back_where_it_is_alone(history) -> None:
    shard = shard_of("s3")[0]
    history.take([*crowd(), (100, "s3", 0)])
    history.ws.train()
    history.take([(100, somebody(1 - shard, 2), 0)], correct=True)
    history.ws.train()
    done = history.forget(100, wait=False)
    assert done.shards_affected == (1 - shard,)
    (request,) = history.ws.status().requests
    assert request.shards_affected == done.shards_affected
    history.take([(200, "s3", 0)])
    assert history.ws.context.dataset().moved == ()


def test_a_request_that_comes_during_a_correction_is_seen(history, same, monkeypatch) -> None:
    """A record that is on its way from a subject must not escape that subject's erasure."""
    from data_index import ingest as ingestion

    history.take(crowd())
    history.ws.train()
    other = history.lab.open("ws")
    whole, came = ingestion.ingest, []

    def slow(*given: Any) -> Any:
        done = whole(*given)
        if not came:
            came.append(other.forget(subjects=["s3"], wait=False))
        return done

    monkeypatch.setattr(ingestion, "ingest", slow)
    path = history.folder / "move.parquet"
    pq.write_table(table([(3, "s4", 1)]), path)
    done = history.ws.ingest(path, correct=True)
    assert (done.corrected, done.tombstoned) == (0, 1)
    history.erased.add("s3")
    history.held = {r: x for r, x in history.held.items() if x[1][1] != "s3"}
    history.check(same)


def test_negative_control_a_correction_that_the_lineage_does_not_know(history) -> None:
    """The former row left in the index by subject: verify must say so."""
    import dataclasses

    history.take(crowd())
    stale = history.ws.context.dataset().by_subject
    data = history.ws.context.store.read(stale)
    history.take([(3, "s4", 1)], correct=True)
    history.ws.train()
    context = history.ws.context
    forged = dataclasses.replace(context.dataset(), by_subject=stale)
    context.store.put_named(stale.path, data)
    with context.ledger.writer() as lease:
        context.ledger.commit_dataset(forged.save(context.store), lease)
    found = history.ws.verify(replay=False)
    assert [c.name for c in found.checks if c.passed is False] == ["lineage"]


def test_negative_control_an_append_that_did_not_count(history, same) -> None:
    """An oracle that leaves out an append of the forgotten only has other slices."""
    history.take(crowd())
    history.take([(100 + n, "late", 0) for n in range(4)], append=True)
    history.take(crowd(20, first=200), append=True)
    history.ws.train()
    history.forget("late")
    del history.calls[1]
    with pytest.raises(AssertionError):
        history.check(same)


WHO = st.sampled_from([f"s{n}" for n in range(5)])
ROWS = st.lists(
    st.tuples(st.integers(0, 11), WHO, st.integers(0, 1)),
    max_size=6,
    unique_by=lambda row: row[0],
)
STEPS = st.one_of(
    st.tuples(st.just("take"), ROWS, st.booleans(), st.booleans()),
    st.tuples(st.just("take"), ROWS, st.just(True), st.booleans()),
    st.tuples(
        st.just("forget"),
        st.one_of(WHO, st.integers(0, 11)),
        st.booleans(),
    ),
    st.tuples(st.just("train")),
)


@pytest.mark.slow
@given(steps=st.lists(STEPS, min_size=2, max_size=9))
@settings(max_examples=25, deadline=None, suppress_health_check=[*HealthCheck])
def test_any_history_equals_its_oracle(lab, same, steps) -> None:
    with tempfile.TemporaryDirectory() as folder:
        own = type(lab)(Path(folder))
        history = History(Path(folder), own)
        history.take([(n, f"s{n % 5}", 0) for n in range(6)])
        for step in steps:
            match step:
                case ("take", rows, correct, append):
                    history.take(rows, correct, append)
                case ("forget", who, wait):
                    history.forget(who, wait)
                    if wait and history.ws.status().generation:
                        history.check(same)
                case _:
                    try:
                        history.ws.train()
                    except IncompleteError:
                        assert not history.held
        history.check(same)
        own.close()
