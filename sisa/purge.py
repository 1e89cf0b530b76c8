"""Mark and sweep: what cannot be reached from the current data set and generation is destroyed.

There is no list of what to delete. Whatever an interrupted run, a retired generation or an old data
set left behind is unreachable, and goes.
"""

from __future__ import annotations

from dataclasses import dataclass

from data_index import ledger
from data_index.leases import Lease
from data_index.lineage import Selection
from data_index.storage import TEMPORARY
from sisa import plan, ray_folders, stage_log
from sisa.context import Context

DATA = ("partitions", "lineage", "journal", "datasets")
"""Folders of the store that hold rows or name them."""

MODELS = ("checkpoints", "generations")
"""Folders of the store that hold what was learned from rows."""


@dataclass(frozen=True, slots=True)
class Swept:
    """How many files were destroyed, by the folder of the store they lay in."""

    files: dict[str, int]


@dataclass(frozen=True, slots=True)
class Marked:
    """What is reachable: paths of files, and keys of stages."""

    paths: frozenset[str]
    stages: frozenset[str]


def purge(context: Context, lease: Lease, folders: tuple[str, ...] = DATA + MODELS) -> Swept:
    """Destroy what is unreachable, in a transaction that the writer alone can make.

    A submitter writes its rolled-back manifest inside a transaction of its own, so none is half
    made; and one who has lost the lease destroys nothing by an old mark.

    Raises:
        BusyError: The lease was lost.
    """
    there = list(context.store.list())  # listed before it is marked: what comes later is spared
    marked = mark(context)
    with context.ledger.write() as connection:
        lease.check(connection)
        keep = set(marked.paths)
        entry = ledger.current_generation(connection)
        if entry is not None and entry.manifest is not None:
            keep.add(entry.manifest.path)
        doomed = [p for p in there if p.partition("/")[0] in folders and p not in keep]
        count = _count(doomed)
        context.store.delete(doomed)
        count[TEMPORARY] = context.store.remove_scratch()
        if "checkpoints" in folders:
            count["ray"] = ray_folders.sweep(context.folder)
            ledger.retire_generations(connection, {entry.number} if entry else set())
            count[stage_log.FOLDER] = _sweep_stage_log(context, marked.stages)
        context.store.settle((*folders, stage_log.FOLDER))
    return Swept(count)


def mark(context: Context) -> Marked:
    """All that is reachable, the epochs and certificates left aside."""
    paths: set[str] = set()
    stages: set[str] = set()
    ref = context.ledger.dataset()
    if ref is not None:
        paths |= {ref.path, *(f.path for f in context.dataset().files())}
    current = context.current()
    if current is not None:
        entry, generation = current
        if entry.manifest is not None:
            paths.add(entry.manifest.path)
        for constituent in generation.constituents:
            stages |= {s.key for s in constituent.stages}
            paths |= {s.file.path for s in constituent.stages if s.file is not None}
    # What is stored of rows that wait to be rewritten is what a cancelled request returns to.
    gone = context.ledger.pending().gone
    for left_out in (gone, Selection.nothing()) if gone else (gone,):
        for walk in plan.walks_over(context, left_out):
            stages |= {r.key for r in walk.stored}
            paths |= {r.file.path for r in walk.stored if r.file is not None}
    return Marked(frozenset(paths), frozenset(stages))


def unreachable(context: Context) -> int:
    """How many files a purge would destroy."""
    there = list(context.store.list())
    marked = mark(context).paths
    return sum(p.partition("/")[0] in DATA + MODELS and p not in marked for p in there)


def _count(paths: list[str]) -> dict[str, int]:
    folders = [p.partition("/")[0] for p in paths]
    return {folder: folders.count(folder) for folder in sorted(set(folders))}


def _sweep_stage_log(context: Context, keep: frozenset[str]) -> int:
    """Write segments anew that hold an unreachable stage, then destroy the old ones."""
    store = context.store
    doomed: list[str] = []
    for name in list(store.list(stage_log.FOLDER)):
        records = stage_log.read_segment(store, name)
        kept = [r for r in records if r.key in keep]
        if len(kept) == len(records):
            continue
        doomed.append(name)
        if kept:
            stage_log.write_segment(store, f"{name.removesuffix('.json')}p.json", kept)
    store.flush()
    return store.delete(doomed)
