"""Whatever comes between acceptance and certificate, the forgotten are in no build."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sisa import certificate, forget, publish, purge
from sisa.errors import BusyError

CHOICES = {"shards": 3, "slices": 4, "epochs": 3, "learner": "logistic"}


UNHURRIED = """
import os
import time

from torch import nn


class Model(nn.Linear):
    def forward(self, batch):
        time.sleep(float(os.environ.get("PACE", "0")))
        return super().forward(batch)
"""
"""A learner that takes its time in a process that is told to."""


class Crash(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.fixture
def ws(lab, data, stock):
    def fill(first) -> None:
        first.workspace("ws", data("patients"), **CHOICES).train()

    lab.copied(stock.lab("interleavings", fill))
    return lab.open("ws")


@pytest.fixture
def oracle_without(data, stock):
    """Trained once; to be looked at only."""

    def make(*gone: str):
        def fill(first) -> None:
            first.oracle("oracle", data("patients"), {"subject_id": list(gone)}, **CHOICES)

        return stock.lab(f"without {' '.join(gone)}", fill).open("oracle")

    return make


def test_train_after_acceptance_never_sees_the_forgotten(ws, oracle_without, same) -> None:
    accepted = ws.forget(subjects=["patient-7"], wait=False)
    assert accepted.status == "accepted" and accepted.certificate is None
    oracle = oracle_without("patient-7")
    assert ws.train().digest == oracle.status().digest
    assert ws.verify().exact is None, "rows still wait to be rewritten"
    (finished,) = ws.work().requests
    assert finished.status == "certified"
    same(ws, oracle)
    assert ws.verify().exact is True


def test_roll_back_takes_the_influence_out_of_serving_at_once(ws) -> None:
    before = ws.context.served()[1]
    where = ws.lineage(subject="patient-7").records[0]
    ws.forget(subjects=["patient-7"], wait=False)
    entry, after = ws.context.served()
    assert entry.reason == "roll-back" and entry.digest != before.digest
    for old, new in zip(before.constituents, after.constituents, strict=True):
        if old.shard == where.shard:
            assert new.stages == tuple(s for s in old.stages if s.slice < where.slice)
        else:
            assert new == old
    assert ws.status().depth < 1


STEPS = {
    "after acceptance": (forget, "_published"),
    "after the build": (publish, "_publish"),
    "after publishing": (forget, "_rewrite"),
    "after rewriting": (purge, "purge"),
    "after the purge": (certificate, "issue"),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("then", ["work", "train and work"])
def test_a_crash_is_finished_by_work(
    ws, lab, oracle_without, same, monkeypatch, step, then
) -> None:
    def crash(*_, **__):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(*STEPS[step], crash)
        with pytest.raises(Crash):
            ws.forget(subjects=["patient-7", "patient-11"])
    again = lab.open("ws")
    assert again.status().requests[0].status in ("accepted", "published")
    oracle = oracle_without("patient-7", "patient-11")
    if then == "train and work":
        assert again.train().digest == oracle.status().digest
    assert again.work().requests[0].status == "certified"
    same(again, oracle)
    assert again.verify().exact is True
    assert again.work().requests == ()


def test_overlapping_requests_are_carried_out_together(ws, oracle_without, same) -> None:
    first = ws.forget(subjects=["patient-7", "patient-8"], wait=False)
    second = ws.forget(subjects=["patient-8", "patient-9", "patient-10"], wait=False)
    assert first.request_id != second.request_id
    assert {r.status for r in ws.work().requests} == {"certified"}
    same(ws, oracle_without("patient-7", "patient-8", "patient-9", "patient-10"))
    held = ws.lineage(subject="patient-8")
    assert held.erased
    named = {c.file: c.request for c in ws.certificates().certificates}
    assert named[held.certificate] == first.request_id


def test_a_request_that_comes_during_a_build_is_joined(ws, lab, oracle_without, same) -> None:
    other = lab.open("ws")
    came: list[str] = []

    def submit(shard: int) -> None:
        if not came:
            came.append("patient-20")
            assert other.forget(subjects=came, wait=False).status == "accepted"

    ws.context.make_executor().between = submit
    done = ws.forget(subjects=["patient-7"])
    assert came and done.status == "certified"
    same(ws, oracle_without("patient-7", "patient-20"))
    assert {r.status for r in ws.status().requests} == {"certified"}


def test_acceptance_does_not_wait_for_a_writer(ws, lab) -> None:
    other = lab.open("ws")
    with ws.context.ledger.writer():
        assert other.forget(subjects=["patient-7"], wait=False).status == "accepted"
        with pytest.raises(BusyError):
            other.work()
        blocked = other.forget(subjects=["patient-8"])
        assert (blocked.status, blocked.exit_code, blocked.records_erased > 0) == (
            "blocked",
            75,
            True,
        )
    assert {r.status for r in ws.work().requests} == {"certified"}
    assert ws.lineage(subject="patient-8").erased


def test_erased_rows_do_not_come_back_with_the_same_file(ws, lab, oracle_without, same) -> None:
    done = ws.forget(subjects=["patient-7"])
    again = ws.ingest()
    assert again.records == 0 and again.tombstoned == done.records_erased
    assert again.skipped == again.total_records
    same(ws, oracle_without("patient-7"))


def test_rows_of_an_accepted_subject_do_not_come_in_either(ws, oracle_without, same) -> None:
    ws.forget(subjects=["patient-7"], wait=False)
    assert ws.ingest().tombstoned > 0
    ws.work()
    same(ws, oracle_without("patient-7"))


def test_forgetting_before_the_first_training(lab, data, oracle_without, same) -> None:
    early = lab.workspace("early", data("patients"), **CHOICES)
    done = early.forget(subjects=["patient-7"])
    assert done.status == "certified" and done.samples_trained == 0 and done.generation is None
    early.train()
    same(early, oracle_without("patient-7"))


def test_forgetting_twice_answers_with_the_first_certificate(ws) -> None:
    first = ws.forget(subjects=["patient-7"])
    second = ws.forget(subjects=["patient-7"])
    assert second.status == "certified" and second.records_erased == 0
    assert second.certificate == first.certificate and second.generation == first.generation


def test_a_record_of_a_subject_and_then_the_subject(ws, data, oracle_without, same) -> None:
    table = data("patients")
    rows = table.filter([s == "patient-50" for s in table["subject_id"].to_pylist()])
    record = rows["record_id"][0].as_py()
    assert ws.forget(records=[record]).records_erased == 1
    assert ws.forget(subjects=["patient-50"]).records_erased == rows.num_rows - 1
    same(ws, oracle_without("patient-50"))


def test_only_stages_from_the_first_affected_slice_are_trained(ws) -> None:
    before = ws.context.served()[1]
    seen = ws.lineage(subject="patient-7")
    plan, dry = ws.plan(subjects=["patient-7"]), ws.forget(subjects=["patient-7"], dry_run=True)
    executor = ws.context.make_executor()
    executor.done.clear()
    done = ws.forget(subjects=["patient-7"])
    assert done.samples_trained == plan.samples == dry.samples_trained
    (job,) = executor.done
    assert [(job.shard, link.slice) for link in job.links] == [
        (s.shard, s.slice) for s in seen.stages
    ]
    after = ws.context.served()[1]
    for old, new in zip(before.constituents, after.constituents, strict=True):
        assert old.shard == job.shard or old == new


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_digest(lab, data, tmp_path) -> None:
    """The driver is killed as soon as a first stage is durable; its worker ends with it.

    The one worker then has seconds of sleep ahead of it in this shard, and a whole one to come.
    """
    choices = {"shards": 2, "slices": 4, "epochs": 10, "learner": "unhurried:Model"}
    for name in ("whole", "ws"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "unhurried.py").write_text(UNHURRIED)
    whole = lab.workspace("whole", data("digits"), **choices)
    expected = whole.train()
    lab.workspace("ws", data("digits"), **choices)
    command = [Path(sys.executable).parent / "sisa", "-C", tmp_path / "ws", "train"]
    environment = os.environ | {
        "SISA_SECRET_KEY": "5a" * 32,
        "SISA__RUNTIME__EXECUTOR__KIND": "process",
        "SISA__RUNTIME__EXECUTOR__WORKERS": "1",
        "SISA__RUNTIME__TRACKING__URI": "null",
        "PACE": "0.05",
    }
    driver = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    stages = tmp_path / "ws" / "store" / "stages"
    while not list(stages.rglob("*.json")) and driver.poll() is None:
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL, "it ended before it was killed"
    again = lab.open("ws")
    assert again.status().generation is None
    resumed = again.train()
    assert resumed.samples_reused > 0 and resumed.samples_trained > 0
    assert resumed.samples_trained + resumed.samples_reused == expected.samples_trained
    assert resumed.digest == expected.digest


def test_nothing_changed_means_nothing_trained_or_published(ws) -> None:
    first, again = ws.status(), ws.train()
    assert again.samples_trained == 0
    assert (again.generation, again.digest) == (first.generation, first.digest)


def test_the_store_holds_nothing_of_the_forgotten_afterwards(ws, data) -> None:
    before = {p: ws.context.store.path(p).read_bytes() for p in ws.context.store.list()}
    ws.forget(subjects=["patient-7"])
    left = set(ws.context.store.list())
    kept = purge.mark(ws.context).paths
    folders = ("partitions", "lineage", "journal", "datasets", "checkpoints", "generations", "tmp")
    assert {p for p in left if p.startswith(folders)} == {p for p in kept if p.startswith(folders)}
    gone = set(before) - left
    assert {p.partition("/")[0] for p in gone} >= {"partitions", "lineage", "checkpoints"}
    assert any(pq.ParquetFile(ws.context.store.path(p)) for p in left if p.endswith(".parquet"))
