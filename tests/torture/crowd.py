"""Many clients submit at once, some the same, while the work is done: one certificate each."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from .children import Outcome, Tell, forked, forked_all, prepare
from .log import Log
from .scenario import Scene, certified

DUPLICATES = 0.3
PAUSE = 0.25
"""Seconds between two requests, of whichever client: faster, and no build would ever be through."""

SEARCH = ("runtime.erasure.residue=scan",)
"""The search for residue reads the ledger's own file while others open and close it."""

STOP = "stop"
"""File beside the workspace that tells the worker that all is submitted."""


def submit(ws: Any, subject: str) -> tuple[str, int]:
    """Submit one request under an external id. Returns its id and the generation."""
    done = ws.submit(subjects=[subject], external_id=f"T-{subject}")
    return done.requests[0].id, ws.status().generation


def draw(seed: int, clients: int, requests: int) -> list[list[str]]:
    """Subjects that each client names, in order; a share of them is named before by somebody."""
    random_ = random.Random(seed)
    distinct = [f"p{n}" for n in range(requests - round(requests * DUPLICATES))]
    named = distinct + random_.choices(distinct, k=requests - len(distinct))
    random_.shuffle(named)
    return [named[n::clients] for n in range(clients)]


def campaign(scene: Scene, log: Log, seed: int, clients: int, requests: int) -> None:
    """One run."""
    name = f"{seed}/{clients}/{requests}"
    if log.holds(name):
        return
    shares = draw(seed, clients, requests)
    subjects = sorted({s for share in shares for s in share})
    folder, started = scene.folder / "crowd", time.monotonic()
    built = forked(lambda tell: _build(tell, scene.folder, folder, len(subjects)))
    if built.faults:
        raise RuntimeError(built.faults[0])
    pause = 2 * PAUSE * clients
    acts = [lambda tell, s=share: _client(tell, folder, s, pause) for share in shares]
    outcomes = forked_all([*acts, lambda tell: _worker(tell, folder)], _stopper(folder))
    final = forked(lambda tell: _final(tell, folder))
    broken = judged(outcomes, final, subjects)
    said = [x for o in outcomes for x in o.of("submitted")]
    log.add(
        {
            "trial": name,
            "clients": clients,
            "requests": len(said),
            "distinct": len(subjects),
            "works": sum(len(o.of("worked")) for o in outcomes),
            "busy": sum(len(o.of("busy")) for o in outcomes),
            "seconds": round(time.monotonic() - started, 3),
            "broken": broken,
            "detail": {"faults": [f for o in (*outcomes, final) for f in o.faults]},
        }
    )
    shutil.rmtree(folder)


def judged(outcomes: list[Outcome], final: Outcome, subjects: list[str]) -> list[str]:
    """What does not hold."""
    broken = ["a traceback or a hang"] if any(o.faults for o in (*outcomes, final)) else []
    ids: dict[str, set[str]] = defaultdict(set)
    for outcome in outcomes:
        seen = [generation for _, _, generation in outcome.of("submitted")]
        if seen != sorted(seen):
            broken.append("a version went back")
        for subject, request, _ in outcome.of("submitted"):
            ids[subject].add(request)
    if not final.of("final"):
        return broken
    (end,) = final.of("final")
    if sorted(ids) != subjects or any(len(found) != 1 for found in ids.values()):
        broken.append("a subject has no request, or more than one")
    named = {request for found in ids.values() for request in found}
    if named != set(end["requests"]) or len(named) != len(subjects):
        broken.append("a request is lost or shared")
    if any(end["external"].get(f"T-{s}") not in found for s, found in ids.items()):
        broken.append("an external id stands for another request")
    if set(end["requests"].values()) != {"certified"}:
        broken.append("a request is not certified")
    if Counter(end["certificates"]) != Counter(named):
        broken.append("not one certificate a request")
    if end["failed"]:
        broken.append("verify fails")
    if end["erased"] != len(subjects):
        broken.append("somebody is not erased")
    return broken


def _build(tell: Tell, sources: Path, folder: Path, subjects: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from sisa.workspace import Workspace

    prepare(lambda report: None)
    rows = np.arange(2 * (subjects + 20))
    random_ = np.random.default_rng(0)
    table = pa.table(
        {
            "record_id": [f"r{i}" for i in rows],
            "subject_id": [f"p{i % (subjects + 20)}" for i in rows],
            "label": random_.integers(0, 3, len(rows)),
            "a": random_.normal(size=len(rows)),
            "b": random_.normal(size=len(rows)),
        }
    )
    pq.write_table(table, sources / "crowd.parquet")
    choices: dict[str, Any] = {"record_id": "record_id", "subject_id": "subject_id"}
    choices |= {"target": "label", "shards": 4, "slices": 2, "epochs": 1.0, "learner": "logistic"}
    Workspace.init(folder, sources / "crowd.parquet", **choices)
    with Workspace.open(folder, exact=True) as ws:
        ws.ingest(sources / "crowd.parquet")
        ws.train()


def _client(tell: Tell, folder: Path, subjects: list[str], pause: float) -> None:
    from sisa.errors import BusyError
    from sisa.workspace import Workspace

    prepare(lambda report: None)
    for subject in subjects:
        time.sleep(random.uniform(0, pause))
        with Workspace.open(folder, exact=True) as ws:
            while True:
                try:
                    tell({"submitted": [subject, *submit(ws, subject)]})
                    break
                except BusyError:
                    tell({"busy": subject})


def _worker(tell: Tell, folder: Path) -> None:
    from sisa.errors import BusyError
    from sisa.workspace import Workspace

    prepare(lambda report: None)
    last = False
    while not last:
        last = folder.with_name(STOP).exists()
        with Workspace.open(folder, SEARCH, exact=True) as ws:
            try:
                tell({"worked": len(ws.work().requests)})
            except BusyError:
                last = False
                tell({"busy": "work"})


def _stopper(folder: Path) -> Any:
    """Called when all clients have ended, before the worker is waited for."""
    stop = folder.with_name(STOP)
    stop.unlink(missing_ok=True)
    return stop.touch


def _final(tell: Tell, folder: Path) -> None:
    from sisa.workspace import Workspace

    prepare(lambda report: None)
    with Workspace.open(folder, exact=True) as ws:
        requests = {r.id: r.status for r in ws.status().requests}
        ws.context.ledger.check_log()
        checks = ws.verify(replay=False).checks
        tell(
            {
                "final": {
                    "requests": requests,
                    "external": {r.external_id: r.id for r in ws.status().requests},
                    "certificates": certified(folder),
                    "failed": [c.name for c in checks if not c.passed],
                    "erased": len(ws.context.ledger.tombstones()),
                }
            }
        )


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of a campaign."""
    names = ("clients", "requests", "distinct", "works", "busy")
    return {n: sum(x[n] for x in lines) for n in names} | {
        "broken": sum(bool(x["broken"]) for x in lines)
    }
