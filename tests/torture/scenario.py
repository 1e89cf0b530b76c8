"""A small workspace in every state that matters, what is done to it, and what must come of it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import points, seam
from .children import Outcome, Report, Tell, command, forked, prepare, warm

SHAPE = {"shards": 2, "slices": 2, "epochs": 2.0, "learner": "logistic"}
ROWS, SUBJECTS = 240, 40
ROOM = 32 << 20
"""Bytes that must be free in memory; a campaign takes a few MiB, and others may take some too."""

DOOMED = ("partitions", "lineage", "journal", "checkpoints")
EMPTY: dict[str, Any] = {"requests": {}, "generation": None}
ERASED = ("p0", "p11")
"""Data subjects that are forgotten in every story with an erasure: one sits in the first slice of
its shard, one in the second, so that part of that shard's stage log stays."""

Words = tuple[str, ...]

INGEST = ("ingest", "first.parquet")
TRAIN = ("train",)
FORGET = ("forget", "--subject", ERASED[0], "--subject", ERASED[1], "--yes")
ACCEPT = (*FORGET, "--no-wait")
SUBMIT = (
    *("request", "submit", "--subject", ERASED[0], "--subject", ERASED[1]),
    *("--external-id", "T-1", "--yes"),
)
HOLD = ("request", "hold", "T-1", "--reason", "a case")
RELEASE = ("request", "release", "T-1")
CANCEL = ("request", "cancel", "T-1", "--reason", "withdrawn")
READMIT = ("request", "readmit", "--subject", ERASED[0], "--subject", ERASED[1])
SIGNING = ("keys", "rotate", "--signing")
ROTATE = ("keys", "rotate", "--yes", "--set", "runtime.erasure.backups=0s")
WORK = ("work",)
SCAN = ("work", "--set", "runtime.erasure.residue=scan")
CLEAN = ("!clean",)
STRAY = "stray.bin"
"""File of the store that the search finds in one story, and that `CLEAN` removes."""

APPEND = ("ingest", "second.parquet", "--append")
CORRECT = ("ingest", "other.parquet", "--correct")


@dataclass(frozen=True)
class Story:
    """What is disturbed, and how it is finished.

    Attributes:
        name: Its name.
        start: The state that it starts from.
        act: The commands that are disturbed, in one process each after the other.
        finish: The commands that finish it afterwards, whatever came of the first ones.
        oracle: Whose digest comes of it: `all` rows, or those `without` the erased.
        purged: Whether the erased must be gone when it is finished.
    """

    name: str
    start: str
    act: tuple[Words, ...]
    finish: tuple[Words, ...]
    oracle: str | None = None
    purged: bool = False
    blocked: bool = False
    """Whether, undisturbed, it stops at what the search finds, with exit code 75."""


def maybe(words: Words) -> Words:
    """A command that may be refused, because it was carried out before."""
    return ("?", *words)


STORIES = (
    Story("first", "new", (INGEST,), (INGEST, TRAIN), "all"),
    Story("ingest", "empty", (INGEST,), (INGEST, TRAIN), "all"),
    Story("train", "ingested", (TRAIN,), (TRAIN,), "all"),
    Story("forget", "trained", (FORGET,), (WORK, FORGET, INGEST, TRAIN), "without", True),
    Story("accept", "trained", (ACCEPT,), (WORK, FORGET, INGEST, TRAIN), "without", True),
    Story("submit", "trained", (SUBMIT,), (SUBMIT, WORK, SUBMIT, INGEST, TRAIN), "without", True),
    Story("work", "accepted", (WORK,), (WORK, INGEST, TRAIN), "without", True),
    Story("search", "accepted", (SCAN,), (SCAN, INGEST, TRAIN), "without", True),
    Story(
        *("blocked", "strayed", (SCAN,), (maybe(SCAN), CLEAN, SCAN, INGEST, TRAIN)),
        *("without", True, True),
    ),
    Story(
        *("hold", "accepted", (HOLD, WORK, RELEASE, WORK)),
        *((maybe(RELEASE), WORK, INGEST, TRAIN), "without", True),
    ),
    Story("cancel", "accepted", (CANCEL,), (maybe(CANCEL), TRAIN, WORK), "all"),
    Story("readmit", "certified", (READMIT, INGEST, TRAIN), (READMIT, INGEST, TRAIN), "all"),
    Story(
        *("rotate", "certified", (ROTATE, ROTATE)),
        *((ROTATE, ROTATE, TRAIN), "without", True),
    ),
    Story("sign", "accepted", (SIGNING, WORK), (WORK, INGEST, TRAIN), "without", True),
    Story("early", "ingested", (FORGET, TRAIN), (FORGET, WORK, INGEST, TRAIN), "without", True),
    Story("append", "trained", (APPEND, TRAIN), (APPEND, TRAIN)),
    Story("correct", "trained", (CORRECT, TRAIN), (CORRECT, TRAIN)),
    Story("again", "certified", (INGEST, TRAIN), (INGEST, TRAIN), "without", True),
)
"""One line each. A story with an erasure ends with all sources once more: nobody may come back."""


@dataclass(frozen=True)
class Rehearsed:
    """What a story does when nothing disturbs it.

    Attributes:
        before: What its start holds, as `look` tells it.
        digest: The digest that it ends with.
        doomed: Files of its start that must be gone before a certificate is there.
        counts: How often its acts reach each step.
        seconds: How long these take.
    """

    before: dict[str, Any]
    digest: str
    doomed: list[str]
    counts: Counter[tuple[str, str]]
    seconds: float


@dataclass
class Scene:
    """The states, built once below a folder.

    Attributes:
        folder: Holds sources, the states, and the copies that are disturbed.
        keys: Subject and record keys of the erased, 16 bytes each.
    """

    folder: Path
    keys: list[bytes] = field(default_factory=list)
    _rehearsed: dict[Story, Rehearsed] = field(default_factory=dict)

    def rehearsed(self, story: Story) -> Rehearsed:
        """Run it undisturbed, once."""
        if story not in self._rehearsed:
            self._rehearsed[story] = _rehearse(self, story)
        return self._rehearsed[story]

    def look(self, folder: Path) -> dict[str, Any]:
        """What a workspace holds; see `look`."""
        found: dict[str, Any] = _report(forked(lambda tell: look(tell, folder, self.keys)), "seen")[
            0
        ]
        return found

    def copy(self, state: str, name: str) -> Path:
        """A fresh copy of a state."""
        folder = self.folder / name
        shutil.copytree(self.folder / "states" / state, folder)
        return folder

    def words(self, words: Words) -> Words:
        """A command with its source files named in full."""
        return tuple(str(self.folder / w) if w.endswith(".parquet") else w for w in words)

    def play(self, tell: Tell, folder: Path, commands: tuple[Words, ...]) -> list[Report]:
        """Run commands in this child."""
        prepare(tell)
        reports = []
        for words in commands:
            if words == CLEAN:
                (folder / "store" / STRAY).unlink(missing_ok=True)
            else:
                may = words[0] == "?"
                reports.append(command(tell, folder, *self.words(words[may:]), may=may))
        return reports


@contextmanager
def scene() -> Iterator[Scene]:
    """Build all states, in memory where the machine has a file system there."""
    warm()
    with tempfile.TemporaryDirectory(prefix="sisa-torture-", dir=_memory()) as folder:
        made = Scene(Path(folder))
        _report(forked(lambda tell: _sources(tell, made.folder)))
        _report(forked(lambda tell: _states(tell, made)))
        made.keys += [bytes.fromhex(k) for k in _report(forked(lambda t: _keys(t, made)), "keys")]
        (made.folder / "states" / "strayed" / "store" / STRAY).write_bytes(made.keys[0])
        yield made


def _memory() -> Path | None:
    """A file system in memory with room for all states: a kill loses no page, a disk costs time."""
    found = Path("/dev/shm")
    usable = found.is_dir() and os.access(found, os.W_OK)
    return found if usable and shutil.disk_usage(found).free > ROOM else None


def _report(outcome: Outcome, kind: str = "") -> list[Any]:
    if outcome.faults or outcome.signal:
        raise RuntimeError(f"the scene cannot be built: {outcome.faults or outcome.signal}")
    wrong = [c for c in outcome.of("command") if c["code"] != 0 and not c["may"]]
    if wrong:
        raise RuntimeError(f"the scene cannot be built: {wrong[0]}")
    return outcome.of(kind)


def _sources(tell: Tell, folder: Path) -> None:
    """Digits as rows of 40 subjects; a file that brings more, and one with other rows."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from sklearn.datasets import load_digits

    def table(first: int, count: int, shift: int = 0) -> pa.Table:
        found = load_digits()
        at = np.arange(first, first + count)
        pixels = pa.array(found.data[at + shift].astype(np.uint8).ravel())
        return pa.table(
            {
                "record_id": [f"r{i}" for i in at],
                "subject_id": [f"p{i % SUBJECTS}" for i in at],
                "label": found.target[at],
                "image": pa.FixedSizeListArray.from_arrays(pixels, 64),
            }
        )

    first = table(0, ROWS)
    gone = np.isin(first["subject_id"].to_pylist(), ERASED)
    pq.write_table(first, folder / "first.parquet")
    pq.write_table(first.filter(pa.array(~gone)), folder / "without.parquet")
    pq.write_table(table(ROWS - 20, 80), folder / "second.parquet")
    pq.write_table(table(10, 6, shift=400), folder / "other.parquet")


def _states(tell: Tell, scene: Scene) -> None:
    from sisa.workspace import Workspace

    states = scene.folder / "states"
    choices: dict[str, Any] = {"record_id": "record_id", "subject_id": "subject_id"}
    choices |= {"target": "label", **SHAPE}
    Workspace.init(states / "empty", scene.folder / "first.parquet", **choices)
    shutil.copytree(states / "empty", states / "new")
    shutil.rmtree(states / "new" / "store")
    for file in (states / "new").glob("ledger.db*"):
        file.unlink()
    steps = (("ingested", INGEST), ("trained", TRAIN), ("accepted", SUBMIT), ("certified", WORK))
    before = "empty"
    for name, words in steps:
        shutil.copytree(states / before, states / name)
        scene.play(tell, states / name, (words,))
        before = name
    shutil.copytree(states / "accepted", states / "strayed")
    shutil.copytree(states / "empty", states / "oracle")
    scene.play(tell, states / "oracle", (("ingest", "without.parquet"), TRAIN))


def _keys(tell: Tell, scene: Scene) -> None:
    """Subject and record keys of the erased."""
    from data_index import keys

    ring = keys.derive(bytes.fromhex("5a" * 32))
    subjects = [s.encode() for s in ERASED]
    records = [f"r{i}".encode() for i in range(ROWS) if f"p{i % SUBJECTS}" in ERASED]
    for found in (keys.subject_keys(ring, subjects), keys.record_keys(ring, records)):
        for key in found:
            tell({"keys": key.tobytes().hex()})


def _rehearse(scene: Scene, story: Story) -> Rehearsed:
    folder = scene.copy(story.start, f"undisturbed-{story.name}")
    before = set(files(folder))
    acted = forked(lambda tell: _counted(tell, scene, folder, story))
    _report(acted)
    _report(forked(lambda tell: _noop(scene.play(tell, folder, story.finish))))
    seen, start = scene.look(folder), scene.folder / "states" / story.start
    if story.oracle:
        state = "oracle" if story.oracle == "without" else "trained"
        if scene.look(scene.folder / "states" / state)["digest"] != seen["digest"]:
            raise RuntimeError(f"undisturbed, {story.name} does not end with the oracle's digest")
    doomed = before - set(files(folder)) if story.purged and story.start != "certified" else set()
    if doomed and not seen_keys(start, scene.keys):
        raise RuntimeError("no key of the erased is found where they are")
    shutil.rmtree(folder)
    return Rehearsed(
        scene.look(start) if story.start != "new" else EMPTY,
        seen["digest"],
        sorted(f for f in doomed if f.startswith(DOOMED)),
        Counter({(w, p): n for w, p, n in acted.of("counts")[0]}),
        acted.seconds,
    )


def _counted(tell: Tell, scene: Scene, folder: Path, story: Story) -> None:
    counting = points.Counting()
    seam.install(folder / "store", counting)
    points.watch_calls(counting)
    scene.play(tell, folder, tuple(map(maybe, story.act)) if story.blocked else story.act)
    tell({"counts": [[*step, n] for step, n in counting.seen.items()]})


def _noop(_: object) -> None:
    pass


def files(folder: Path) -> list[str]:
    """All files of a workspace's store, relative to it."""
    store = folder / "store"
    return sorted(p.relative_to(store).as_posix() for p in store.rglob("*") if p.is_file())


def seen_keys(folder: Path, keys: list[bytes]) -> list[str]:
    """Files below a folder that hold one of the keys."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if any(key in data for key in keys):
                found.append(path.relative_to(folder).as_posix())
    return found


def look(tell: Tell, folder: Path, keys: list[bytes], verify: bool = True) -> None:
    """Tell what a workspace holds: the facts that invariants are about."""
    from sisa.errors import IncompleteError
    from sisa.workspace import Workspace

    prepare(lambda report: None)
    with Workspace.open(folder, exact=True) as ws:
        status, requests = ws.status(), ws.context.ledger.requests()
        generations = [g.number for g in ws.history().generations]
        predicted: str | int = 0
        if status.generation is not None:
            try:
                predicted = ws.predict(questions(ws)).num_rows
            except IncompleteError:
                predicted = "too few votes"
        checks = ws.verify(replay=False).checks if verify and status.generation else ()
        tell(
            {
                "seen": {
                    "generation": status.generation,
                    "generations": generations,
                    "digest": status.digest,
                    "quorate": status.quorate,
                    "requests": {r.id: r.status for r in requests},
                    "external": {r.external_id: r.id for r in requests if r.external_id},
                    "certificates": sorted(certified(folder)),
                    "log": _log(ws),
                    "predicted": predicted,
                    "failed": [f"{c.name}: {c.detail}" for c in checks if c.passed is False],
                    "unsure": [f"{c.name}: {c.detail}" for c in checks if c.passed is None],
                    "keys": seen_keys(folder, keys),
                    "temporary": [f for f in files(folder) if f.startswith("tmp/")],
                }
            }
        )


def _log(ws: Any) -> str:
    """What is wrong between the store's log and the ledger's, empty if nothing is."""
    from sisa.errors import ExactnessError

    try:
        ws.context.ledger.check_log()
    except ExactnessError as error:
        return str(error)
    return ""


def certified(folder: Path) -> list[str]:
    """The request of each certificate in the store."""
    found = []
    for name in files(folder):
        if name.startswith("certificates/"):
            envelope = json.loads((folder / "store" / name).read_bytes())
            statement = json.loads(base64.b64decode(envelope["payload"]))
            found.append(statement["predicate"]["request"])
    return found


def questions(ws: Any) -> Any:
    """Five rows to be predicted."""
    import numpy as np
    import pyarrow as pa

    if "image" not in ws.context.config.recipe.data.features:
        return pa.table({"a": np.linspace(-1, 1, 5), "b": np.linspace(2, 1, 5)})
    pixels = pa.array(np.arange(64 * 5, dtype=np.int64).astype(np.uint8) % 16)
    return pa.table({"image": pa.FixedSizeListArray.from_arrays(pixels, 64)})
