"""`sisa work --every`: rounds that wait for windows, and go on whatever comes between."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sisa import forget, rounds, stage_log
from sisa.errors import ConfigurationError, ExactnessError, NotFoundError, UsageError, WorkerError
from sisa.results import Round
from sisa.rounds import Schedule, Stop

CHOICES = {"shards": 2, "slices": 3, "epochs": 3, "learner": "logistic"}
START = datetime(2030, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
TIME_ALONE = ("runtime.erasure.min_depth=0", "runtime.erasure.quorum=0.1")
"""Nothing but time closes the window of these two shards."""


@dataclass
class Time:
    """Passes when it is waited for, and only then."""

    at: datetime = START
    waits: list[float] = field(default_factory=list)
    between: Callable[[], None] = lambda: None

    def now(self) -> datetime:
        return self.at

    def wait(self, seconds: float) -> None:
        assert seconds > 0, "rounds would spin"
        self.waits.append(seconds)
        self.at += timedelta(seconds=seconds)
        self.between()


def crowd() -> pa.Table:
    rng = np.random.default_rng(3)
    label = rng.integers(0, 2, 120)
    who = [f"p{i // 6}" for i in range(120)]
    columns = {"record_id": [f"r{i}" for i in range(120)], "subject_id": who, "label": label}
    return pa.table({**columns, "a": label + rng.normal(size=120), "b": rng.normal(size=120)})


@dataclass
class House:
    """A trained workspace, its rounds, and what they told."""

    lab: Any
    settings: tuple[str, ...]
    time: Time = field(default_factory=Time)
    stop: Stop = field(default_factory=Stop)
    told: list[Round] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)

    def open(self) -> Any:
        found = self.lab.open("ws", *self.settings)
        found.context.ledger.clock = self.time.now
        return found

    def submit(self, person: str) -> None:
        with self.open() as other:
            assert other.forget(subjects=[person], wait=False).status == "accepted"

    def rounds(self, every: int = 10, **schedule: Any) -> Any:
        made = Schedule(every * MINUTE, **schedule)
        return rounds.run(
            self.open, made, self.stop, self.told.append, self.warned.append, self.time
        )

    @property
    def minutes(self) -> list[float]:
        """When each round ended."""
        return [(datetime.fromisoformat(r.time) - START) / MINUTE for r in self.told]


@pytest.fixture
def house(lab) -> Callable[..., House]:
    def make(*settings: str) -> House:
        lab.workspace("ws", crowd(), **CHOICES).train()
        return House(lab, settings or (*TIME_ALONE, "runtime.erasure.max_wait=25m"))

    return make


def test_requests_wait_until_their_window_closes(house) -> None:
    home = house()
    home.submit("p1")
    home.time.between = lambda: len(home.time.waits) == 1 and home.submit("p2")
    done = home.rounds(times=5)
    assert [r.state for r in home.told] == ["waiting", "waiting", "waiting", "worked", "idle"]
    assert home.minutes == pytest.approx([0, 10, 20, 25, 35])
    assert [len(r.window.requests) if r.window else 0 for r in home.told] == [1, 2, 2, 0, 0]
    assert {r.status for r in done.requests} == {"certified"} and len(done.requests) == 2
    assert (done.rounds, done.exit_code, home.warned) == (5, 0, [])
    assert done.samples_trained == sum(r.samples_trained for r in home.told) > 0
    assert done.digest == home.open().status().digest


def test_the_end_of_the_time_is_kept(house) -> None:
    home = house()
    assert home.rounds(every=10, duration=25 * MINUTE).rounds == 3
    assert home.time.at - START == 25 * MINUTE


def test_what_a_crash_left_undone_is_finished_in_the_first_round(house, monkeypatch) -> None:
    class Crash(BaseException):
        pass

    def crash(*_: object) -> None:
        raise Crash

    home = house()
    with monkeypatch.context() as patch, home.open() as ws:
        patch.setattr(forget, "_rewrite", crash)
        with pytest.raises(Crash):
            ws.forget(subjects=["p1"])
        (left,) = ws.status().requests
        assert left.status == "published" and ws.window().reason == "unfinished"
    done = home.rounds(times=1)
    assert [r.id for r in done.requests] == [left.id] and done.requests[0].status == "certified"


def test_rounds_go_on_beside_another_writer(house) -> None:
    """Busy for some tries: one sentence, not one a try."""
    home = house("runtime.erasure.max_wait=0s")
    home.submit("p1")
    other = home.open()
    lease = other.context.ledger.writer()
    lease.__enter__()
    home.time.between = lambda: len(home.time.waits) == 3 and lease.__exit__(None, None, None)
    done = home.rounds(times=1)
    assert len(done.requests) == 1 and home.told[0].state == "worked"
    assert home.time.waits == pytest.approx([1, 2, 4])
    (said,) = home.warned
    assert "is the writer" in said and said.endswith("tried again.")


@pytest.mark.parametrize(
    "error", [WorkerError("The worker died."), OSError(errno.ENOSPC, "No space left on device")]
)
def test_a_round_that_fails_is_told_and_the_next_one_goes_on(house, monkeypatch, error) -> None:
    home, whole = house("runtime.erasure.max_wait=0s"), forget.work
    home.submit("p1")

    def failing(*found: Any) -> Any:
        if home.time.at < START + 15 * MINUTE:
            raise error
        return whole(*found)

    monkeypatch.setattr(forget, "work", failing)
    done = home.rounds(times=3)
    assert [r.state for r in home.told] == ["failed", "worked", "idle"]
    assert home.told[0].error.message and len(home.warned) == 1
    assert len(done.requests) == 1 and done.exit_code == 0


@pytest.mark.parametrize(
    "error",
    [
        ExactnessError("Two attempts gave different bits."),
        OSError(errno.EIO, "Input/output error"),
        UsageError("wrong"),
        ValueError("a mistake of ours"),
    ],
)
def test_what_does_not_pass_ends_the_rounds(house, monkeypatch, error) -> None:
    def failing(*_: Any) -> Any:
        raise error

    home = house()
    monkeypatch.setattr(forget, "work", failing)
    with pytest.raises(type(error)):
        home.rounds()
    assert home.told == [] and home.time.waits == []


def test_a_damaged_checkpoint_is_not_passed_over(house) -> None:
    """The real thing: a stage log that two attempts disagree on."""
    home = house("runtime.erasure.max_wait=0s")
    home.submit("p1")
    with home.open() as ws:
        store = ws.context.store
        first, *rest = stage_log.read_shard(store, 0).values()
        other = replace(first, tensors="0" * 64)
        stage_log.write_segment(store, "stages/0000/other-000001.json", [other, *rest])
    with pytest.raises(ExactnessError, match="different bits") as found:
        home.rounds()
    assert found.value.exit_code == 4


@pytest.mark.parametrize("error", [ConfigurationError, NotFoundError])
def test_a_configuration_may_be_wrong_for_a_while_but_not_at_the_start(house, error) -> None:
    home = house()
    opened, count = home.open, []

    def open_() -> Any:
        count.append(1)
        if len(count) in wrong:
            raise error("Something is wrong.")
        return opened()

    home.open, wrong = open_, {2, 3}
    assert home.rounds(times=2).rounds == 2 and len(home.warned) == 1
    count.clear()
    wrong = {1}
    with pytest.raises(error):
        home.rounds(times=2)


def test_told_to_stop_it_ends_between_stages_and_loses_nothing(house, lab, same) -> None:
    home = house("runtime.erasure.max_wait=0s")
    home.submit("p1")
    opened = home.open
    stages: list[int] = []

    def open_() -> Any:
        found = opened()
        report = home.stop.between_stages(replace(found.context.report))

        def stage(record: Any, count: int) -> None:
            stages.append(record.slice)
            home.stop.told.set()
            report.stage(record, count)

        object.__setattr__(found.context.report, "stage", stage)
        return found

    home.open = open_
    done = home.rounds()
    assert len(stages) == 1 and home.told == []
    assert (done.interrupted, done.exit_code, done.requests) == (True, 130, ())
    ws = opened()
    assert ws.status().requests[0].status == "accepted"
    assert ws.work().requests[0].status == "certified"
    same(ws, lab.oracle("oracle", crowd(), {"subject_id": ["p1"]}, **CHOICES))


def test_a_request_that_came_after_the_publication_waits_for_its_own_window(
    house, monkeypatch
) -> None:
    home, rewrite = house(), forget._rewrite
    home.submit("p1")

    def late(*found: Any) -> Any:
        monkeypatch.undo()
        home.submit("p2")
        return rewrite(*found)

    home.time.at += 25 * MINUTE
    monkeypatch.setattr(forget, "_rewrite", late)
    done = home.rounds(times=1)
    assert len(done.requests) == 1 and len(home.told[0].window.requests) == 1
    assert home.open().lineage(subject="p2").status == "accepted"


@pytest.mark.parametrize("text", ["10", "m", "0m", "ten", "1.5h", "-1m"])
def test_a_time_that_is_none_is_refused(text) -> None:
    with pytest.raises(UsageError):
        Schedule.parse(text)
    assert Schedule.parse("90s", "8h", 3) == Schedule(1.5 * MINUTE, 480 * MINUTE, 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_cleanly(house, tmp_path, kind) -> None:
    """Beside a mirror that is down, in a real process."""
    home = house("runtime.erasure.max_wait=0s")
    home.submit("p1")
    command = [Path(sys.executable).parent / "sisa", "-C", tmp_path / "ws", "work"]
    environment = os.environ | {
        "SISA_SECRET_KEY": "5a" * 32,
        "SISA__RUNTIME__EXECUTOR__KIND": "process",
        "SISA__RUNTIME__ERASURE__MAX_WAIT": "0s",
        "SISA__RUNTIME__TRACKING__URI": "http://127.0.0.1:9",
    }
    process = subprocess.Popen(
        [*command, "--every", "1h", "--output", "json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(500, process.kill)
    watchdog.start()
    first = json.loads(process.stdout.readline())
    assert first["state"] == "worked" and first["requests"][0]["status"] == "certified"
    process.send_signal(kind)
    out, errors = process.communicate()
    watchdog.cancel()
    final = json.loads(out)
    assert (process.returncode, final["interrupted"], final["rounds"]) == (130, True, 1)
    assert final["requests"] == first["requests"] and "Traceback" not in errors
    assert home.open().status().requests[0].status == "certified"
