"""Bad bytes in every kind of file: no silent acceptance, no hang, no traceback."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .children import Tell, forked, prepare
from .log import Line, Log
from .scenario import ERASED, Scene, files

BATCH, LIMIT = 500, 20
"""Cases a child, and seconds after which a case hangs."""

FOLDERS = (
    "partitions",
    "lineage",
    "journal",
    "datasets",
    "generations",
    "checkpoints",
    "stages",
    "epochs",
    "certificates",
    "log",
)
"""Folders of the store whose files are mutated, as far as there are any."""


def flip_bit(data: bytes, draw: random.Random, other: bytes) -> bytes:
    """One bit."""
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def change_byte(data: bytes, draw: random.Random, other: bytes) -> bytes:
    """One byte becomes another one that may stand in a text."""
    at = draw.randrange(len(data))
    return data[:at] + draw.choice(b'0123456789abcdef",:{}[] ').to_bytes() + data[at + 1 :]


def cut(data: bytes, draw: random.Random, other: bytes) -> bytes:
    """The end is missing."""
    return data[: draw.randrange(len(data))]


def extend(data: bytes, draw: random.Random, other: bytes) -> bytes:
    """Something follows."""
    return data + draw.choice((b"\0", b"\n", b"}", data, draw.randbytes(64)))


def zero_block(data: bytes, draw: random.Random, other: bytes) -> bytes:
    """A block is zeros."""
    at = draw.randrange(len(data))
    size = min(draw.choice((8, 64, 512, 4096)), len(data) - at)
    return data[:at] + bytes(size) + data[at + size :]


def drop_middle(data: bytes, draw: random.Random, other: bytes) -> bytes:
    """Some bytes are missing in between."""
    at = draw.randrange(len(data))
    return data[:at] + data[at + draw.randint(1, 16) :]


def swap(data: bytes, draw: random.Random, other: bytes) -> bytes:
    """The content of another file of the folder."""
    return other


MUTATIONS = (flip_bit, flip_bit, change_byte, cut, extend, zero_block, drop_middle, swap)
"""One line each; what stands here twice is drawn twice as often."""

Answer = Any
Reader = Callable[[Any], Answer]


def verify(ws: Any) -> Answer:
    """What the checks say without a replay."""
    return {c.name: c.passed for c in ws.verify(replay=False).checks}


def predict(ws: Any) -> Answer:
    """Predictions of a few rows."""
    from .scenario import questions

    return ws.predict(questions(ws)).to_pydict()


def plan(ws: Any) -> Answer:
    """Cost of an erasure, its seconds aside: they are an estimate of a clock."""
    return ws.plan(subjects=["p5"]).model_dump(exclude={"seconds"})


def dry_run(ws: Any) -> Answer:
    """The same as `forget --dry-run` says it."""
    return ws.forget(subjects=["p5"], records=["r20"], dry_run=True).model_dump()


def lineage(ws: Any) -> Answer:
    """Where a subject sits."""
    return ws.lineage(subject="p5").model_dump()


def erased(ws: Any) -> Answer:
    """What is known of one who is erased."""
    return ws.lineage(subject=ERASED[0]).model_dump()


def status(ws: Any) -> Answer:
    """The current generation and all requests."""
    return ws.status().model_dump(exclude={"workspace"})


READERS: tuple[Reader, ...] = (verify, verify, predict, plan, dry_run, lineage, erased, status)
"""One line each."""


def train(ws: Any) -> Answer:
    """A build over what is stored; what is damaged and reachable may be made again."""
    return ws.train().digest


WRITERS: tuple[Reader, ...] = (train,)
"""What may mend the workspace; it gets a copy of its own each time."""


class HangError(Exception):
    """A case took too long."""


@contextmanager
def limited() -> Iterator[None]:
    """Raise if it takes too long."""

    def ring(*_: object) -> None:
        raise HangError

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)


def asked(folder: Path, reader: Reader) -> tuple[str, Answer]:
    """What a reader says of a workspace: `answer`, or the code of its named error."""
    from sisa.errors import SisaError
    from sisa.workspace import Workspace

    try:
        with limited(), Workspace.open(folder, exact=True) as ws:
            return "answer", reader(ws)
    except SisaError as error:
        if not error.message.rstrip().endswith(".") or "\n" in error.message:
            return "no sentence", error.message
        return "refused", error.code
    except HangError:
        return "hang", None
    except Exception as error:  # what is looked for
        return "traceback", repr(error)[:300]


REMADE = ("checkpoints", "stages")
"""Folders of what can be trained again, so that damage makes an erasure dearer."""

COSTS = ("stages", "samples", "samples_trained", "waiting")
"""What a plan says of that."""


def judged(
    reader: Reader, said: tuple[str, Answer], whole: Answer, reachable: bool, folder: str
) -> list[str]:
    """What is wrong with an answer over mutated bytes."""
    kind, answer = said
    if kind == "refused":
        return []
    if kind != "answer":
        return [kind]
    if reader is verify:
        noticed = any(passed is not True for passed in answer.values())
        return [] if noticed or not reachable else ["silent: verify passes"]
    if answer == whole or (folder in REMADE and _dearer(answer, whole)):
        return []
    return [f"silent: {reader.__name__} answers otherwise"]


def _dearer(answer: Answer, whole: Answer) -> bool:
    """Whether more is to be trained, and nothing else differs: what is damaged is made again."""
    if not isinstance(answer, dict) or not isinstance(whole, dict):
        return False
    same = all(answer[k] == whole[k] for k in whole if k not in COSTS)
    return same and all(answer[k] >= whole[k] for k in COSTS[:-1] if k in whole)


def cases(tell: Tell, scene: Scene, seed: int, numbers: list[int]) -> None:
    """Many cases in this process."""
    prepare(lambda report: None)
    folder = scene.copy("certified", "mutated")
    store = folder / "store"
    whole = {reader: asked(folder, reader)[1] for reader in (*READERS, *WRITERS)}
    by_folder = {f: [n for n in files(folder) if n.startswith(f"{f}/")] for f in FOLDERS}
    kinds = [f for f in FOLDERS if by_folder[f]]
    current = _reachable(folder)
    for number in numbers:
        draw = random.Random(f"{seed}/{number}")
        kind = kinds[number % len(kinds)]
        name = draw.choice(by_folder[kind])
        mutation = draw.choice(MUTATIONS)
        reader = draw.choice(READERS) if draw.random() < 0.95 else draw.choice(WRITERS)
        data = (store / name).read_bytes()
        mutated = mutation(data, draw, (store / draw.choice(by_folder[kind])).read_bytes())
        if mutated == data:
            tell({"case": {"number": number, "same": True, "broken": []}})
            continue
        at = scene.copy("certified", "mending") if reader in WRITERS else folder
        (at / "store" / name).write_bytes(mutated)
        started = time.monotonic()
        said = asked(at, reader)
        broken = judged(reader, said, whole[reader], name in current, kind)
        if reader in WRITERS:
            shutil.rmtree(at)
        else:
            (store / name).write_bytes(data)
        report = {
            "number": number,
            "folder": kind,
            "mutation": mutation.__name__,
            "reader": reader.__name__,
            "outcome": said[0],
            "seconds": round(time.monotonic() - started, 3),
            "broken": broken,
        }
        tell({"case": {**report, **({"detail": {"refused": [said, name]}} if broken else {})}})
    shutil.rmtree(folder)


def _reachable(folder: Path) -> set[str]:
    """Files that the current state names; what else there is verify may leave aside."""
    from sisa import purge
    from sisa.workspace import Workspace

    with Workspace.open(folder, exact=True) as ws:
        marked = purge.mark(ws.context).paths
    return set(marked) | {f for f in files(folder) if f.startswith(("stages/", "epochs/"))}


def campaign(scene: Scene, log: Log, seed: int, count: int) -> None:
    """All cases that the log does not hold yet, many a child."""
    todo = [n for n in range(count) if not log.holds(f"{seed}/{n}")]
    while todo:
        batch, todo = todo[:BATCH], todo[BATCH:]
        done = forked(lambda tell, b=batch: cases(tell, scene, seed, b), limit=BATCH * LIMIT)
        for case in done.of("case"):
            log.add({"trial": f"{seed}/{case['number']}", **case})
        if done.faults or done.signal:
            last = max((c["number"] for c in done.of("case")), default=batch[0] - 1) + 1
            log.add({"trial": f"{seed}/{last}", "broken": [*done.faults, f"signal {done.signal}"]})
            shutil.rmtree(scene.folder / "mutated", ignore_errors=True)
            todo = [n for n in batch if n > last] + todo


def summary(lines: list[Line]) -> dict[str, Any]:
    """Figures of a campaign."""
    made = [x for x in lines if not x.get("same")]
    return {
        "mutations": len(made),
        "by folder": dict(Counter(x.get("folder", "?") for x in made)),
        "refused": sum(x.get("outcome") == "refused" for x in made),
        "broken": sum(bool(x["broken"]) for x in made),
    }
