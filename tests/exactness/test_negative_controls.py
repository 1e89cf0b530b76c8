"""A tainted store must not pass: each kind of taint makes verify say no."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import sqlalchemy as sa

from data_index import ledger as ledger_module
from data_index.tables import pointer
from sisa import stage_log
from sisa.errors import ExactnessError, UsageError
from sisa.generation import Generation
from sisa.workspace import Workspace

CHOICES = {"shards": 3, "slices": 3, "epochs": 3, "learner": "logistic"}


@pytest.fixture
def ws(lab, data, stock) -> Workspace:
    def fill(first) -> None:
        made = first.workspace("ws", data("patients"), **CHOICES)
        made.train()
        assert made.verify().exact is True

    lab.copied(stock.lab("negative controls", fill))
    return lab.open("ws")


def failing(ws: Workspace) -> list[str]:
    found = ws.verify()
    assert found.exact is False and found.exit_code == 4
    return [c.name for c in found.checks if c.passed is False]


def plant(ws: Workspace, generation: Generation) -> None:
    """Publish a forged generation, consistent in all its digests."""
    manifest = generation.save(ws.context.store)
    with ws.context.ledger.write() as connection:
        now = ws.context.ledger.clock()
        ledger_module.add_generation(connection, manifest, generation.digest, "train", now)


def forge(ws: Workspace, other: Workspace, shard: int) -> None:
    """Serve another workspace's states of a shard under this one's stage keys, log included."""
    _, mine = ws.context.served()
    _, its = other.context.served()
    store = ws.context.store
    forged = []
    for own, foreign in zip(mine.constituents, its.constituents, strict=True):
        if own.shard != shard:
            forged.append(own)
            continue
        for stage in foreign.stages:
            data = other.context.store.read(stage.file)
            store.put("checkpoints", ".safetensors", data)
        stages = tuple(
            dataclasses.replace(a, tensors=b.tensors, file=b.file)
            for a, b in zip(own.stages, foreign.stages, strict=True)
        )
        forged.append(dataclasses.replace(own, stages=stages))
        relog(ws, shard, {s.key: s for s in stages})
    plant(ws, dataclasses.replace(mine, constituents=tuple(forged)))


def relog(ws: Workspace, shard: int, stages: dict[str, Any]) -> None:
    store = ws.context.store
    for name in list(store.list(f"{stage_log.FOLDER}/{shard:04d}")):
        records = [
            dataclasses.replace(r, tensors=stages[r.key].tensors, file=stages[r.key].file)
            if r.key in stages
            else r
            for r in stage_log.read_segment(store, name)
        ]
        stage_log.write_segment(store, name, records)


def test_every_flipped_byte_of_a_checkpoint_is_noticed(ws) -> None:
    for stage in ws.context.served()[1].constituents[1].stages:
        path = ws.context.store.path(stage.file.path)
        whole = path.read_bytes()
        for position in (9, len(whole) // 2, len(whole) - 1):
            path.write_bytes(
                whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]
            )
            assert failing(ws) == ["files"]
        path.write_bytes(whole)
    assert ws.verify().exact is True


def test_a_flipped_byte_stops_serving(ws, data) -> None:
    stage = ws.context.served()[1].constituents[0].stages[-1]
    path = ws.context.store.path(stage.file.path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ExactnessError):
        ws.predict(data("patients", 5))


def test_a_flipped_byte_of_a_partition_is_noticed(ws) -> None:
    path = ws.context.store.path(ws.context.dataset().partitions[0].file.path)
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    assert "files" in failing(ws)


@pytest.mark.clean_process
def test_a_stage_trained_with_one_extra_record(ws, lab, data) -> None:
    table = data("patients")
    record = table["record_id"][900].as_py()
    shard = ws.lineage(record=record).records[0].shard
    less = lab.oracle("less", table, {"record_id": [record]}, **CHOICES)
    more = ws
    forge(less, more, shard)
    assert failing(less) == ["replay"]
    (wrong,) = [s for s in less.verify().shards if s.digest != s.replay_digest]
    assert wrong.shard == shard and wrong.comparable


def test_another_learning_rate(ws, lab, data) -> None:
    rate = "recipe.training.lr=0.0501"
    other = lab.workspace("other", data("patients"), rate, **CHOICES)
    other.train()
    forge(ws, other, 2)
    assert failing(ws) == ["replay"]


def test_swapped_shards(ws) -> None:
    _, mine = ws.context.served()
    a, b, c = mine.constituents
    swapped = (dataclasses.replace(b, shard=0), dataclasses.replace(a, shard=1), c)
    plant(ws, dataclasses.replace(mine, constituents=swapped))
    assert failing(ws) == ["chain"]


@pytest.mark.clean_process
def test_swapped_states_under_the_right_keys(ws) -> None:
    _, mine = ws.context.served()
    a, b, c = mine.constituents

    def dressed(own: Any, foreign: Any) -> Any:
        pairs = zip(own.stages, foreign.stages, strict=True)
        stages = tuple(dataclasses.replace(x, tensors=y.tensors, file=y.file) for x, y in pairs)
        return dataclasses.replace(own, stages=stages)

    forged = (dressed(a, b), dressed(b, a), c)
    plant(ws, dataclasses.replace(mine, constituents=forged))
    assert failing(ws) == ["chain"], "the stage log tells"
    for constituent in forged:
        relog(ws, constituent.shard, {s.key: s for s in constituent.stages})
    assert failing(ws) == ["replay"]


def test_a_partition_that_was_never_rewritten(ws) -> None:
    """The data set before an erasure is brought back, with all its files, consistently."""
    store = ws.context.store
    before = ws.context.ledger.dataset()
    kept = {p: store.path(p).read_bytes() for p in store.list()}
    ws.forget(subjects=["patient-7"])
    for path, data in kept.items():
        store.put_named(path, data)
    with ws.context.ledger.write() as connection:
        connection.execute(
            sa.update(pointer).values(path=before.path, sha256=before.sha256, size=before.size)
        )
    assert "tombstones" in failing(ws)


def test_a_file_of_the_forgotten_that_nothing_points_to(ws) -> None:
    store = ws.context.store
    kept = {p: store.path(p).read_bytes() for p in store.list("partitions")}
    ws.forget(subjects=["patient-7"])
    for path, data in kept.items():
        store.put_named(path, data)
    assert failing(ws) == ["tombstones"]


def test_an_index_that_lacks_a_row(ws) -> None:
    """A lineage that has lost a record would not find it when it is to be forgotten."""
    from data_index import keys, lineage, rewrite

    context = ws.context
    dataset = context.dataset()
    row = next(iter(lineage.scan(context.store, dataset.by_record))).slice(0, 1)
    gone = lineage.Selection(keys.empty(), keys.from_arrow(row["record_key"]))
    less = rewrite.without(context.store, context.ring, context.columns, dataset, gone)
    forged = dataclasses.replace(dataset, by_subject=less.by_subject, by_record=less.by_record)
    with context.ledger.writer() as lease:
        context.ledger.commit_dataset(forged.save(context.store), lease)
    assert failing(ws) == ["lineage"]


def test_a_generation_of_other_data(ws, lab, data) -> None:
    other = lab.workspace("other", data("patients").slice(0, 1500), **CHOICES)
    other.train()
    _, its = other.context.served()
    for constituent in its.constituents:
        for stage in constituent.stages:
            data_bytes = other.context.store.read(stage.file)
            ws.context.store.put("checkpoints", ".safetensors", data_bytes)
    plant(ws, its)
    assert failing(ws) == ["chain"]


def test_two_attempts_with_different_bits_are_refused(ws) -> None:
    store = ws.context.store
    (name, *_) = store.list(f"{stage_log.FOLDER}/0000")
    record = stage_log.read_segment(store, name)[0]
    other = dataclasses.replace(record, tensors="0" * 64)
    stage_log.write_segment(store, f"{stage_log.FOLDER}/0000/other-000001.json", [other])
    with pytest.raises(ExactnessError, match="different bits"):
        ws.train()


def test_other_bits_in_another_environment_are_not_comparable(ws, lab, data) -> None:
    other = lab.workspace("other", data("patients"), "recipe.training.lr=0.0501", **CHOICES)
    other.train()
    forge(ws, other, 1)
    store = ws.context.store
    for name in list(store.list(f"{stage_log.FOLDER}/0001")):
        records = [
            dataclasses.replace(r, fingerprint={**r.fingerprint, "instruction_set": "another"})
            for r in stage_log.read_segment(store, name)
        ]
        stage_log.write_segment(store, name, records)
    found = ws.verify()
    assert found.exact is None and found.exit_code == 6


@pytest.mark.clean_process
def test_a_replay_of_some_shards_proves_nothing_of_the_others(ws) -> None:
    one = ws.verify(shard=1)
    assert one.exact is None and one.exit_code == 0 and [s.shard for s in one.shards] == [1]
    assert len(ws.verify(sample=2).shards) == 2
    assert ws.verify(sample=3).exact is True
    with pytest.raises(UsageError):
        ws.verify(shard=99)
    with pytest.raises(UsageError):
        ws.verify(shard=1, sample=1)
