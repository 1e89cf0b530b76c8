"""Mark and sweep: what cannot be reached from the current data set and generation is destroyed.

There is no list of what to delete. Whatever an interrupted run, a retired generation or an old data
set left behind is unreachable, and goes.
"""

from __future__ import annotations

from dataclasses import dataclass

from data_index import ledger
from data_index.lineage import Selection
from sisa import plan, stage_log
from sisa.context import Context


@dataclass(frozen=True, slots=True)
class Swept:
    """How many files were destroyed, by the folder of the store they lay in."""

    files: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Marked:
    """What is reachable: paths of files, and keys of stages."""

    paths: frozenset[str]
    stages: frozenset[str]


def purge(context: Context) -> Swept:
    """Destroy what is unreachable; the caller holds the writer's lease."""
    marked = _mark(context)
    doomed = [path for path in context.store.list() if path not in marked.paths and _swept(path)]
    count: dict[str, int] = {}
    for path in doomed:
        folder = path.partition("/")[0]
        count[folder] = count.get(folder, 0) + 1
    context.store.delete(doomed)
    _sweep_generations(context, count)
    _sweep_stage_log(context, marked.stages, count)
    context.ledger.compact()
    return Swept(count)


def reachable(context: Context) -> frozenset[str]:
    """Paths of all files that are reachable, the stage log and the epochs left aside."""
    return _mark(context).paths


def _swept(path: str) -> bool:
    """Folders that are swept by path; the others are below, or are never swept."""
    folder = path.partition("/")[0]
    return folder in ("partitions", "lineage", "journal", "datasets", "checkpoints")


def _mark(context: Context) -> _Marked:
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
            paths |= {s.file.path for s in constituent.stages}
    for walk in plan.walks_without(context, Selection.nothing()):
        stages |= {r.key for r in walk.stored}
        paths |= {r.file.path for r in walk.stored if r.file is not None}
    return _Marked(frozenset(paths), frozenset(stages))


def _sweep_generations(context: Context, count: dict[str, int]) -> None:
    """Retired manifests and temporary files, inside a transaction.

    A submitter writes its rolled-back manifest inside its own transaction, so none is half made.
    """
    with context.ledger.write() as connection:
        entry = ledger.current_generation(connection)
        ledger.retire_generations(connection, {entry.number} if entry else set())
        keep = {entry.manifest.path} if entry and entry.manifest else set()
        old = [p for p in context.store.list("generations") if p not in keep]
        count["generations"] = context.store.delete(old)
        count["tmp"] = context.store.remove_scratch()


def _sweep_stage_log(context: Context, keep: frozenset[str], count: dict[str, int]) -> None:
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
    count["stages"] = store.delete(doomed)
