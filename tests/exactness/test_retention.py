"""Checkpoints left out change what an erasure costs, and no bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sisa import stage_log
from sisa.config import Checkpoints
from sisa.retention import ALL, LAST, Retention

SLICES = 9
SHARE = 0.34
KEPT = sorted(Retention(SHARE).kept(SLICES, 1))
THIN = f"runtime.checkpoints.max_share={SHARE}"


def table() -> pa.Table:
    rng = np.random.default_rng(7)
    label = rng.integers(0, 3, 400)
    columns = {f"f{i}": label * (i == 0) + rng.normal(size=400) for i in range(4)}
    return pa.table({"record_id": np.arange(400), "label": label, **columns})


def extra(kept: tuple[int, ...], length: int) -> int:
    """Slices visited to get back to the stage before each slice, summed over slices."""
    total = 0
    for hit in range(1, length + 1):
        last = max((k for k in kept if k < hit), default=0)
        total += sum(range(last + 1, hit))
    return total


def best(length: int, count: int) -> int:
    """The least that any choice of kept stages costs, by dynamic programming."""
    between = [[0] * (length + 1) for _ in range(length + 1)]
    for a in range(length + 1):
        for b in range(a + 1, length + 1):
            between[a][b] = sum(sum(range(a + 1, hit)) for hit in range(a + 1, b + 1))
    least: list[float] = [0.0] + [float("inf")] * length
    for _ in range(count):
        least = [
            min((least[a] + between[a][b] for a in range(b)), default=float("inf"))
            for b in range(length + 1)
        ]
    return int(least[length])


@pytest.mark.parametrize("length", [1, 2, 5, 17, 50])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_as_many_as_allowed_are_kept_the_last_among_them(length: int, share: float) -> None:
    kept = Retention(share).kept(length, 1)
    assert len(kept) == max(1, int(share * length))
    assert max(kept) == length and min(kept) >= 1


@pytest.mark.parametrize(("length", "count"), [(20, 4), (50, 5), (50, 12), (50, 25)])
def test_the_choice_is_nearly_the_best_there_is(length: int, count: int) -> None:
    kept = Retention(count / length).kept(length, 1)
    evenly = tuple(round(length * i / count) for i in range(1, count + 1))
    assert extra(tuple(kept), length) <= 1.05 * best(length, count)
    assert extra(tuple(kept), length) < extra(evenly, length)


def test_bytes_limit_what_a_chain_keeps() -> None:
    section = Checkpoints(max_bytes=4000)
    assert Retention.of(section, shards=2) == Retention(1.0, 2000)
    assert len(Retention.of(section, shards=2).kept(50, size=500)) == 4
    assert len(Retention.of(section, shards=2).kept(50, size=5000)) == 1
    assert len(Retention.of(Checkpoints(), shards=2).kept(50, size=5000)) == 50


@pytest.fixture(params=["logistic", "mlp"])
def case(request: Any, lab: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    yield lab, {"shards": 2, "slices": SLICES, "epochs": 6, "learner": request.param}


def files(ws: Any) -> list[list[int]]:
    """Slices of each constituent whose checkpoints are kept."""
    return [[s.slice for s in c.stages if s.file] for c in ws.context.served()[1].constituents]


def test_a_thinned_chain_has_the_same_bits(case: Any) -> None:
    lab, choices = case
    whole = lab.workspace("whole", table(), **choices)
    thin = lab.workspace("thin", table(), THIN, **choices)
    assert whole.train().digest == thin.train().digest
    assert files(thin) == [KEPT, KEPT]
    assert files(whole) == [list(range(1, SLICES + 1))] * 2
    assert len(list(thin.context.store.list("checkpoints"))) == 2 * len(KEPT)
    tensors = [
        [s.tensors for c in ws.context.served()[1].constituents for s in c.stages]
        for ws in (whole, thin)
    ]
    assert tensors[0] == tensors[1]
    assert thin.verify().exact is True
    assert thin.train().samples_trained == 0


def test_an_erasure_goes_back_to_the_last_kept_checkpoint(case: Any, same: Any) -> None:
    lab, choices = case
    thin = lab.workspace("thin", table(), THIN, **choices)
    whole = lab.workspace("whole", table(), **choices)
    thin.train(), whole.train()
    gone: list[int] = []
    for hit in (SLICES, 6, 2):
        record = record_in(thin, hit)
        gone.append(record)
        plan = thin.plan(records=[record])
        assert plan.samples > whole.plan(records=[record]).samples or hit - 1 in (0, *KEPT)
        accepted = thin.forget(records=[record], wait=False)
        shard = accepted.shards_affected[0]
        served = thin.context.served()[1].constituents[shard]
        below = [k for k in KEPT if k < hit]
        assert [s.slice for s in served.stages][-1:] == below[-1:]
        assert thin.work().samples_trained == plan.samples
        whole.forget(records=[record])
        oracle = lab.oracle(f"oracle{hit}", table(), {"record_id": gone}, THIN, **choices)
        same(thin, oracle)
        assert thin.status().digest == whole.status().digest
    assert thin.verify().exact is True


def record_in(ws: Any, slice_: int) -> int:
    """A stored record of a slice of some shard."""
    for record in range(400):
        found = ws.lineage(record=record).records
        if found and found[0].slice == slice_:
            return record
    raise AssertionError(slice_)


def test_a_lost_checkpoint_is_trained_again_from_the_one_before(case: Any) -> None:
    lab, choices = case
    ws = lab.workspace("thin", table(), THIN, **choices)
    digest = ws.train().digest
    stages = ws.context.served()[1].constituents[0].stages
    ws.context.store.delete([stages[-1].file.path])
    again = ws.train()
    assert again.digest == digest
    assert again.samples_trained > 0
    assert ws.verify().exact is True


def test_keeping_more_later_changes_nothing_that_is_stored(case: Any) -> None:
    lab, choices = case
    thin = lab.workspace("thin", table(), THIN, **choices)
    digest = thin.train().digest
    thin.close()
    more = lab.open("thin")
    assert more.train().samples_trained == 0
    record = record_in(more, 8)
    more.forget(records=[record])
    assert more.status().digest != digest
    assert max(map(len, files(more))) > len(KEPT)
    assert more.verify().exact is True


def test_a_failing_stage_leaves_a_thinned_chain_consistent(lab: Any) -> None:
    """The stage before the failing one may have no checkpoint."""
    ws = lab.workspace(
        "ws",
        table(),
        THIN,
        "recipe.training.lr=1e25",
        shards=2,
        slices=SLICES,
        epochs=6,
        learner="mlp",
    )
    result = ws.train()
    assert result.failed_shards == (0, 1)
    checks = {c.name: c.passed for c in ws.verify().checks}
    assert checks["chain"] and checks["replay"]
    ws.forget(records=[record_in(ws, 5)])
    assert ws.train().samples_trained == 0


def test_a_record_with_a_checkpoint_wins_over_one_without(lab: Any) -> None:
    ws = lab.workspace("ws", table(), shards=1, slices=3, epochs=2, learner="logistic")
    ws.train()
    store = ws.context.store
    records = stage_log.read_shard(store, 0)
    bare = [dataclasses.replace(r, file=None) for r in records.values()]
    for name in ("0", "z"):  # before and after the one that has them
        stage_log.write_segment(store, f"{stage_log.FOLDER}/0000/{name}-000001.json", bare)
    assert stage_log.read_shard(store, 0) == records


def test_all_and_last() -> None:
    assert ALL.kept(7, 1) == frozenset(range(1, 8))
    assert LAST.kept(7, 1) == {7}
