"""Random histories: whatever came when, and wherever it crashed, the model is the oracle's."""

from __future__ import annotations

import shutil
import time
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from . import seam
from .children import Outcome, Report, Tell, command, forked, prepare
from .log import Line, Log
from .points import POINTS, At, Point, watch_calls
from .scenario import Scene, look

SUBJECTS = 6
OFTEN = [p for p in POINTS if p.what in ("begin", "commit", "call") or p.place == "log"]
CRASHES = st.one_of(
    st.none(),
    st.tuples(st.sampled_from(OFTEN), st.just(1)),
    st.tuples(st.sampled_from(OFTEN), st.integers(1, 3)),
    st.tuples(st.sampled_from(POINTS), st.integers(1, 3)),
)
"""Where a command is killed, if it gets there: rather at points that many commands reach."""

BATCH = 10
"""Histories in a line of the log."""

WHO = st.integers(0, SUBJECTS - 1)

NAMES = st.sampled_from([f"T-{n}" for n in range(4)])
"""External ids."""

ENDS = {"certified", "cancelled", "duplicate", "not_found"}
"""How a request can end."""

Row = tuple[int, int]
"""Record and version; its subject follows from the record."""


@dataclass
class Call:
    """A call of ingest."""

    words: tuple[str, ...]
    rows: list[Row]


@dataclass
class Model:
    """What the workspace must hold.

    Attributes:
        calls: Calls of ingest, each with the rows that were taken.
        versions: The last version of each record that ever came.
        erasing: Open or certified requests, and whom each erases.
        acknowledged: Requests that were acknowledged, whatever became of them.
        seen: Requests that the ledger had after an earlier command.
        names: External ids that were submitted, and whom each names.
    """

    calls: list[Call] = field(default_factory=list)
    versions: dict[int, int] = field(default_factory=dict)
    erasing: dict[str, int] = field(default_factory=dict)
    acknowledged: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    names: dict[str, int] = field(default_factory=dict)

    def alive(self, record: int) -> bool:
        """Whether its subject is not erased."""
        return record % SUBJECTS not in self.erasing.values()

    def known(self, who: int) -> bool:
        """Whether there is anything of a subject to erase, or an erasure."""
        rows = (n for call in self.calls for n, _ in call.rows)
        return who in self.erasing.values() or any(n % SUBJECTS == who for n in rows)

    def come_back(self, who: int) -> None:
        """Consent is given again: what was erased stays gone, what comes from now on is taken."""
        self.erasing = {r: w for r, w in self.erasing.items() if w != who}
        _leave_out(self.calls, who)


@dataclass
class Copy:
    """An old copy of ledger and store, and the calls of ingest that are in it."""

    folder: Path
    calls: list[Call]


class Histories(RuleBasedStateMachine):
    """One history; `scene` and `counts` are set before it is run."""

    scene: Scene
    counts: dict[str, int]

    def __init__(self) -> None:
        super().__init__()
        self.folder = self.scene.folder / "history"
        self.model = Model()
        self.old: Copy | None = None

    @initialize()
    def begin(self) -> None:
        """An ingested workspace."""
        shutil.rmtree(self.folder, ignore_errors=True)
        _whole(forked(lambda tell: _init(tell, self.scene.folder, self.folder)))
        self._ingest((), [(n, 0) for n in range(2 * SUBJECTS)], None)

    @rule(count=st.integers(1, 5), append=st.booleans(), crash=CRASHES)
    def ingest(self, count: int, append: bool, crash: tuple[Point, int] | None) -> None:
        """New records come in, to the slices that are there or to a further one."""
        first = len(self.model.versions)
        self._ingest(("--append",) if append else (), [(first + n, 0) for n in range(count)], crash)

    @rule(records=st.sets(st.integers(0, 11), min_size=1, max_size=3), crash=CRASHES)
    def correct(self, records: set[int], crash: tuple[Point, int] | None) -> None:
        """Other rows for records that are there."""
        rows = [(n, self.model.versions[n] + 1) for n in sorted(records)]
        self._ingest(("--correct",), rows, crash)

    @rule(crash=CRASHES)
    def train(self, crash: tuple[Point, int] | None) -> None:
        """Build and publish."""
        self._run(crash, "train")

    @rule(who=WHO, wait=st.booleans(), crash=CRASHES)
    def forget(self, who: int, wait: bool, crash: tuple[Point, int] | None) -> None:
        """Forget a subject."""
        known = self.model.known(who)
        words = ("forget", "--subject", f"p{who}", "--yes", *(() if wait else ("--no-wait",)))
        self._run(crash, *words)
        self._entered(who, known)

    @rule(who=WHO, name=NAMES, crash=CRASHES)
    def submit(self, who: int, name: str, crash: tuple[Point, int] | None) -> None:
        """Submit a request under an external id; the id of another one is refused."""
        known = self.model.known(who)
        words = ("request", "submit", "--subject", f"p{who}", "--external-id", name, "--yes")
        if self.model.names.setdefault(name, who) == who:
            self._run(crash, *words)
            self._entered(who, known)
        else:
            assert self._refused(*words) == 2

    @rule(crash=CRASHES)
    def work(self, crash: tuple[Point, int] | None) -> None:
        """Finish what is accepted."""
        self._run(crash, "work")

    @precondition(lambda self: self.model.names)
    @rule(name=NAMES, verb=st.sampled_from(("hold", "release")), crash=CRASHES)
    def hold(self, name: str, verb: str, crash: tuple[Point, int] | None) -> None:
        """A request is held or released, if it is still possible."""
        because = ("--reason", "a case") if verb == "hold" else ()
        self._tried(crash, "request", verb, name, *because)

    @precondition(lambda self: self.model.names)
    @rule(name=NAMES, crash=CRASHES)
    def cancel(self, name: str, crash: tuple[Point, int] | None) -> None:
        """A request is cancelled, if it is still possible."""
        if self._tried(crash, "request", "cancel", name, "--reason", "withdrawn"):
            request = self._ledger()["names"][name]
            self.model.erasing.pop(request, None)

    @rule(who=WHO, crash=CRASHES)
    def readmit(self, who: int, crash: tuple[Point, int] | None) -> None:
        """Consent is given again, unless a request is open."""
        done = self._tried(crash, "request", "readmit", "--subject", f"p{who}")
        if done and who in self.model.erasing.values():
            self.model.come_back(who)
            if self.old is not None:  # its rows stay gone, also where a copy brings them back
                _leave_out(self.old.calls, who)

    @rule()
    def keep(self) -> None:
        """Make a copy of ledger and store."""
        folder = self.folder.with_name("history-copy")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder, folder)
        self.old = Copy(folder, deepcopy(self.model.calls))

    @precondition(lambda self: self.old is not None)
    @rule(what=st.sampled_from(("ledger", "store", "both")), crash=CRASHES)
    def restore(self, what: str, crash: tuple[Point, int] | None) -> None:
        """An old copy is put back: all but `work` refuse, and `work` brings all up to date.

        Of both together, the log alone is the newest. A store in which nothing but the log has
        changed since is brought up to date by any command.
        """
        assert self.old is not None
        same = what == "store" and _besides_log(self.folder) == _besides_log(self.old.folder)
        entries = len(list((self.folder / "store/log").iterdir()))
        behind = entries > len(list((self.old.folder / "store/log").iterdir()))
        self._put_back(self.old.folder, what)
        self.counts["restores"] += behind
        if behind:
            assert self._refused("status") == (0 if same else 4)
            if what != "ledger":
                self.model.calls = deepcopy(self.old.calls)
        self._run(crash, "work")
        assert not behind or what == "ledger" or self._ledger()["open"] == self._ledger()["held"]

    def _put_back(self, old: Path, what: str) -> None:
        if what != "store":
            for file in self.folder.glob("ledger.db*"):
                file.unlink()
            for file in old.glob("ledger.db*"):
                shutil.copy(file, self.folder / file.name)
        if what != "ledger":
            log = self.folder / "newest-log"
            shutil.move(self.folder / "store/log", log)
            shutil.rmtree(self.folder / "store")
            shutil.copytree(old / "store", self.folder / "store")
            if what == "both":
                shutil.rmtree(self.folder / "store/log")
                shutil.copytree(log, self.folder / "store/log")
            shutil.rmtree(log)

    def teardown(self) -> None:
        """The oracle's digest, and all invariants of the end."""
        if not self.folder.exists():
            return
        for name in sorted(self.model.names):
            self._tried(None, "request", "release", name)
        self._run(None, "work")
        if any(map(self.model.alive, self.model.versions)):
            self._run(None, "train")
            oracle = self._oracle()
            mine, its = self.scene.look(self.folder), self.scene.look(oracle)
            assert mine["digest"] == its["digest"], "the digest is not the oracle's"
            assert not mine["failed"] and not mine["unsure"], (mine["failed"], mine["unsure"])
            assert set(mine["requests"].values()) <= ENDS, mine["requests"]
            assert self.model.acknowledged <= set(mine["requests"]), "a request is lost"
            certified = {r for r, status in mine["requests"].items() if status == "certified"}
            assert certified <= set(mine["certificates"]), "a certificate is missing"
            assert not mine["log"], mine["log"]
            self.counts["compared"] += 1
        self.counts["histories"] += 1
        shutil.rmtree(self.folder)

    def _ingest(
        self, words: tuple[str, ...], rows: list[Row], crash: tuple[Point, int] | None
    ) -> None:
        path = _write(self.scene, rows)
        before = self._records()
        killed = self._child(crash, "ingest", str(path), *words)
        taken = "--append" in words and self._records() != before
        if killed and not taken:  # the same call again; an append that counted is not repeated
            self._child(None, "ingest", str(path), *words)
        rows = [row for row in rows if self.model.alive(row[0])]
        self.model.calls.append(Call(words, rows))
        self.model.versions |= dict(rows)

    def _entered(self, who: int, known: bool) -> None:
        """Every new request is one of this subject; without anything to erase it is none."""
        for request in self._ledger()["requests"]:
            if request not in self.model.seen:
                self.model.seen.add(request)
                if known:
                    self.model.erasing[request] = who

    def _ledger(self) -> dict[str, Any]:
        done = forked(lambda tell: _ledger(tell, self.folder))
        found: dict[str, Any] = _whole(done).of("ledger")[0]
        return found

    def _tried(self, crash: tuple[Point, int] | None, *words: str) -> bool:
        """Run a command that may be refused. Returns whether it was carried out."""
        done = self._forked(crash, *words)
        again = self._forked(None, *words) if done.killed else done
        (answer,) = again.of("command")
        assert answer["code"] in (0, 2, 5), answer
        return bool(answer["code"] == 0)

    def _refused(self, *words: str) -> int:
        (answer,) = self._forked(None, *words).of("command")
        return int(answer["code"])

    def _records(self) -> tuple[int, int]:
        done = forked(lambda tell: _records(tell, self.folder))
        return tuple(_whole(done).of("records")[0])

    def _run(self, crash: tuple[Point, int] | None, *words: str) -> None:
        if self._child(crash, *words):
            self._child(None, *words)

    def _child(self, crash: tuple[Point, int] | None, *words: str) -> bool:
        """Run a command. Returns whether it was killed."""
        done = self._forked(crash, *words)
        for answer in done.of("command"):
            assert answer["code"] in self._allowed(words), answer
        return done.killed

    def _forked(self, crash: tuple[Point, int] | None, *words: str) -> Outcome:
        def act(tell: Tell) -> None:
            if crash is not None:
                at = At(*crash)
                seam.install(self.folder / "store", at)
                watch_calls(at)
            prepare(tell)
            command(tell, self.folder, *words)

        done = forked(act)
        self.counts["commands"] += 1
        self.counts["kills"] += done.killed
        self.model.acknowledged |= set(done.of("accepted"))
        assert not done.faults, done.faults[0]
        return done

    def _allowed(self, words: tuple[str, ...]) -> tuple[int, ...]:
        """Exit codes that are in order: nothing may be left to train on, or to ingest."""
        alone = not any(map(self.model.alive, self.model.versions))
        return (0, 6) if words[0] == "train" and alone else (0,)

    def _oracle(self) -> Path:
        folder = self.scene.folder / "history-oracle"
        shutil.rmtree(folder, ignore_errors=True)
        _whole(forked(lambda tell: _init(tell, self.scene.folder, folder)))
        for call in self.model.calls:
            rows = [row for row in call.rows if self.model.alive(row[0])]
            if rows or "--append" in call.words:
                path = str(_write(self.scene, rows))
                words = ("ingest", path, *call.words)
                _whole(forked(lambda t, w=words: _one(t, folder, w)))
        _whole(forked(lambda tell: _one(tell, folder, ("train",))))
        return folder


def _leave_out(calls: list[Call], who: int) -> None:
    for call in calls:
        call.rows = [row for row in call.rows if row[0] % SUBJECTS != who]


def _besides_log(folder: Path) -> set[str]:
    """Files of a store, named by their content, without its log."""
    store = folder / "store"
    names = {p.relative_to(store).as_posix() for p in store.rglob("*") if p.is_file()}
    return {name for name in names if not name.startswith("log/")}


def _one(tell: Tell, folder: Path, words: tuple[str, ...]) -> Report:
    prepare(tell)
    return command(tell, folder, *words)


def _whole(done: Outcome) -> Outcome:
    assert not done.faults, done.faults[0]
    assert all(c["code"] == 0 for c in done.of("command")), done.of("command")
    return done


def _records(tell: Tell, folder: Path) -> None:
    from sisa.workspace import Workspace

    with Workspace.open(folder, exact=True) as ws:
        dataset = ws.context.dataset()
        tell({"records": [dataset.records, dataset.appends]})


def _ledger(tell: Tell, folder: Path) -> None:
    from sisa.workspace import Workspace

    with Workspace.open(folder, exact=True) as ws:
        found = ws.context.ledger.requests()
        held = [r.id for r in found if r.hold is not None]
        tell(
            {
                "ledger": {
                    "requests": [r.id for r in found],
                    "names": {r.external_id: r.id for r in found if r.external_id},
                    "open": [r.id for r in found if r.status in ("accepted", "published")],
                    "held": held,
                }
            }
        )


def _init(tell: Tell, scene: Path, folder: Path) -> None:
    from sisa.workspace import Workspace

    source = scene / "template.parquet"
    _table(source, [(n, 0) for n in range(60)])
    choices: dict[str, Any] = {"record_id": "record_id", "subject_id": "subject_id"}
    choices |= {"target": "label", "shards": 2, "slices": 2, "epochs": 2.0, "learner": "logistic"}
    Workspace.init(folder, source, **choices)


def _write(scene: Scene, rows: list[Row]) -> Path:
    path = scene.folder / "call.parquet"
    _whole(forked(lambda tell: _table(path, rows)))
    return path


def _table(path: Path, rows: list[Row]) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    drawn = [np.random.default_rng(row) for row in rows]
    columns = {
        "record_id": pa.array([f"r{n}" for n, _ in rows], pa.string()),
        "subject_id": pa.array([f"p{n % SUBJECTS}" for n, _ in rows], pa.string()),
        "label": pa.array([int(d.integers(3)) for d in drawn], pa.int64()),
        "a": pa.array([float(d.normal()) for d in drawn], pa.float64()),
        "b": pa.array([float(d.normal()) for d in drawn], pa.float64()),
    }
    pq.write_table(pa.table(columns), path)


def campaign(scene: Scene, log: Log, seed: int, count: int, steps: int = 10) -> None:
    """So many histories, a few at a time; a failing one is shown."""
    for first in range(0, count, BATCH):
        if not log.holds(name := f"{seed}/{first}"):
            log.add(
                {"trial": name, **_some(scene, seed * 100_003 + first, min(BATCH, count), steps)}
            )


def _some(scene: Scene, seed: int, count: int, steps: int) -> Line:
    counts = {"histories": 0, "compared": 0, "commands": 0, "kills": 0, "restores": 0}
    machine = type("Machine", (Histories,), {"scene": scene, "counts": counts})
    made = settings(
        max_examples=count,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    started, broken = time.monotonic(), []
    try:
        run_state_machine_as_test(seeded(seed)(machine), settings=made)
    except AssertionError as error:
        broken = [str(error)[:3000], *getattr(error, "__notes__", [])]
    spent = round(time.monotonic() - started, 3)
    return {**counts, "seconds": spent, "broken": broken}


def summary(lines: list[Line]) -> dict[str, Any]:
    """Figures of a campaign."""
    names = ("histories", "compared", "commands", "kills", "restores")
    return {n: sum(x[n] for x in lines) for n in names} | {
        "broken": sum(bool(x["broken"]) for x in lines)
    }


__all__ = ["Histories", "campaign", "look", "summary"]
