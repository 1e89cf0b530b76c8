"""Train served stages again in a clean process, from nothing, and compare them bit by bit."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence

from data_index.storage import Store
from data_index.view import PartitionView
from sisa import stage_log
from sisa.build import Walk, build
from sisa.context import Context
from sisa.executor import ProcessExecutor
from sisa.generation import Constituent, Generation, Stage
from sisa.results import Check, ShardReplay
from sisa.retention import LAST
from sisa.stage import Link
from sisa.stage_log import StageRecord

EQUAL = "equal, bit for bit"

Records = Mapping[str, StageRecord]


def replay_shards(
    context: Context,
    generation: Generation,
    chains: Mapping[int, tuple[Link, ...]],
    views: Sequence[PartitionView],
    chosen: Sequence[Constituent],
) -> tuple[ShardReplay, ...]:
    """Train the served stages of some constituents into a store of its own, and compare.

    Args:
        context: The workspace.
        generation: What is served.
        chains: Each shard's stages over the data.
        views: The data without what is accepted but not rewritten yet.
        chosen: Constituents of the generation.
    """
    output = Store(context.store.scratch())
    executor = ProcessExecutor(context.config.runtime.executor.workers)
    try:
        walks = [_walk(c, chains.get(c.shard, ()), views) for c in chosen]
        build(
            context.store,
            generation.recipe,
            generation.training,
            [w for w in walks if w.links],
            executor,
            context.report.stage,
            output=output,
            import_paths=context.import_paths,
            retention=LAST,
        )
        return tuple(
            _compare(
                c,
                stage_log.read_shard(context.store, c.shard),
                stage_log.read_shard(output, c.shard),
            )
            for c in chosen
        )
    finally:
        executor.close()
        shutil.rmtree(output.root, ignore_errors=True)


def replayed(shards: Sequence[ShardReplay], constituents: int) -> Check:
    """The verdict: false as soon as one shard differs in the environment it was trained in."""
    count = f"{len(shards)} of {constituents} shards"
    different = [s for s in shards if s.detail != EQUAL]
    if not different:
        return Check(name="replay", passed=True, detail=f"{count} came out bit for bit")
    detail = "; ".join(f"shard {s.shard}: {s.detail}" for s in different)
    wrong = any(s.comparable for s in different)
    return Check(name="replay", passed=False if wrong else None, detail=detail)


def _walk(
    constituent: Constituent, links: tuple[Link, ...], views: Sequence[PartitionView]
) -> Walk:
    """Nothing of it stored, as far as it is served; a failed stage is tried again as well."""
    own = tuple(v for v in views if v.shard == constituent.shard)
    last = constituent.failed or (constituent.stages[-1] if constituent.stages else None)
    served = tuple(link for link in links if last is not None and link.slice <= last.slice)
    return Walk(constituent.shard, own, served, ())


def _compare(constituent: Constituent, stored: Records, again: Records) -> ShardReplay:
    """Every served stage against its replay, tensors and steps."""
    differs = [s for s in constituent.stages if not _same(s, again.get(s.key))]
    last = constituent.stages[-1] if constituent.stages else None
    replay = again.get(last.key) if last else None
    detail, comparable = EQUAL, True
    if differs:
        first = differs[0]
        comparable = _same_environment(stored.get(first.key), again.get(first.key))
        elsewhere = "" if comparable else ", in another environment than it was trained in"
        detail = f"slice {first.slice} differs{elsewhere}"
    elif constituent.failed and not _failed(again.get(constituent.failed.key)):
        detail = "it failed, and its replay did not"
    return ShardReplay(
        shard=constituent.shard,
        digest=last.tensors if last else None,
        replay_digest=(replay.tensors or None) if replay else None,
        comparable=comparable,
        detail=detail,
    )


def _same(stage: Stage, again: StageRecord | None) -> bool:
    return again is not None and (again.tensors, again.steps) == (stage.tensors, stage.steps)


def _failed(again: StageRecord | None) -> bool:
    return again is not None and again.failure is not None


def _same_environment(stored: StageRecord | None, again: StageRecord | None) -> bool:
    return stored is None or again is None or stored.fingerprint == again.fingerprint
