"""Erasures that empty something: a slice, a shard, a class, all of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data_index import keys

RING = keys.derive(bytes.fromhex("5a" * 32))


def places(subjects: list[str], shards: int, slices: int) -> dict[str, tuple[int, int]]:
    """Where subjects will be put."""
    found = keys.subject_keys(RING, [s.encode() for s in subjects])
    shard, slice_ = keys.place(found, shards, slices)
    return dict(zip(subjects, zip(shard.tolist(), slice_.tolist(), strict=True), strict=True))


def crowd(sizes: dict[str, int], classes: int = 3, seed: int = 0) -> pa.Table:
    """Rows of subjects of given sizes; the features tell the class."""
    rng = np.random.default_rng(seed)
    owner = [name for name, size in sizes.items() for _ in range(size)]
    label = rng.integers(0, classes, len(owner))
    columns = {f"f{i}": label * (i == 0) + rng.normal(size=len(owner)) for i in range(4)}
    return pa.table(
        {
            "record_id": [f"r{i}" for i in range(len(owner))],
            "subject_id": owner,
            "label": label,
            **columns,
        }
    )


def erase(lab: Any, same: Any, table: pa.Table, gone: list[str], *settings: str, **choices: Any):
    ws = lab.workspace("ws", table, *settings, epochs=3, **choices)
    ws.train()
    plan = ws.plan(subjects=gone)
    done = ws.forget(subjects=gone)
    assert done.samples_trained == plan.samples
    # The oracle's own data may lack a class: the recipe declares it all the same.
    classes = sorted(set(table["label"].to_pylist()))
    oracle = lab.oracle(
        "oracle",
        table.filter(pa.array([s not in gone for s in table["subject_id"].to_pylist()])),
        {},
        f"recipe.data.classes={classes}",
        *settings,
        epochs=3,
        **choices,
    )
    same(ws, oracle)
    assert ws.verify().exact is True
    return ws, oracle


@pytest.fixture(params=["mlp", "logistic"])
def learner(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.clean_process
def test_uneven_shards(lab, same, learner) -> None:
    sizes = {f"s{i}": 1 + i * i for i in range(20)}
    erase(lab, same, crowd(sizes), ["s19", "s3"], shards=5, slices=3, learner=learner)


def test_a_subject_that_owns_a_third_of_a_shard(lab, same, learner) -> None:
    table = crowd({"giant": 100, **{f"s{i}": 5 for i in range(80)}})
    ws, _ = erase(lab, same, table, ["giant"], shards=2, slices=4, learner=learner)
    assert ws.status().records == 400


def test_a_shard_that_loses_its_last_record(lab, same, learner) -> None:
    subjects = [f"s{i}" for i in range(12)]
    at = places(subjects, 6, 2)
    counts = Counter(shard for shard, _ in at.values())
    lonely = [s for s in subjects if counts[at[s][0]] == 1]
    assert lonely, "the secret places no subject alone; change the number of subjects"
    ws, _ = erase(
        lab,
        same,
        crowd(dict.fromkeys(subjects, 9)),
        lonely[:1],
        shards=6,
        slices=2,
        learner=learner,
    )
    assert at[lonely[0]][0] not in [c.shard for c in ws.context.served()[1].constituents]


@pytest.mark.parametrize("where", ["first", "last"])
def test_a_slice_that_becomes_empty(lab, same, learner, where) -> None:
    subjects = [f"s{i}" for i in range(30)]
    at = places(subjects, 3, 6)
    counts = Counter(at.values())
    alone = sorted((s for s in subjects if counts[at[s]] == 1), key=lambda s: at[s][1])
    chosen = alone[0] if where == "first" else alone[-1]
    table = crowd(dict.fromkeys(subjects, 7))
    ws, _ = erase(lab, same, table, [chosen], shards=3, slices=6, learner=learner)
    assert at[chosen] not in [(p.shard, p.slice) for p in ws.context.dataset().partitions]


def test_a_class_that_vanishes(lab, same, learner) -> None:
    table = crowd({f"s{i}": 10 for i in range(20)}, classes=2)
    label = [2 if s == "s7" else y for s, y in zip(*columns(table), strict=True)]
    table = table.set_column(table.column_names.index("label"), "label", pa.array(label))
    ws, _ = erase(lab, same, table, ["s7"], shards=2, slices=3, learner=learner)
    assert ws.context.columns.classes == (0, 1, 2)


def columns(table: pa.Table) -> tuple[list[Any], list[Any]]:
    return table["subject_id"].to_pylist(), table["label"].to_pylist()


def test_slices_too_small_for_a_step(lab, same, learner) -> None:
    """Single records under min_batch take no step, and a state without a step never votes."""
    table = crowd({f"s{i}": 1 for i in range(16)})
    setting = "recipe.training.min_batch=4"
    ws, oracle = erase(lab, same, table, ["s2"], setting, shards=4, slices=4, learner=learner)
    assert ws.status().voting == oracle.status().voting < 4


def test_everybody_leaves(lab) -> None:
    table = crowd({f"s{i}": 5 for i in range(6)})
    ws = lab.workspace("ws", table, shards=2, slices=2, epochs=2, learner="logistic")
    ws.train()
    done = ws.forget(subjects=[f"s{i}" for i in range(6)])
    assert done.status == "certified" and done.records_erased == 30
    status = ws.status()
    assert (status.records, status.voting, status.quorate) == (0, 0, False)
    left = [f for f in ws.context.store.list() if f.endswith((".parquet", ".safetensors"))]
    assert left == []
