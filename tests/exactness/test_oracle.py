"""After an erasure everything equals what a first training without the subject gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

ADAM = ("recipe.training.optimizer=adam", "recipe.training.lr=0.002")
CARRY = ("recipe.training.optimizer_state=carry",)
DROPOUT = ("recipe.learner.params={hidden: [32], dropout: 0.3}",)
NORM = ("recipe.learner.params={hidden: [32], batch_norm: true}",)
BOTH = ("recipe.learner.params={hidden: [32], batch_norm: true, dropout: 0.2}",)
DECAY = ("recipe.training.schedule=last_stage_linear",)
SOFT = (
    "recipe.training.schedule=cosine",
    "recipe.training.warmup=0.1",
    "recipe.training.last_stage_epochs=3",
    "recipe.training.label_smoothing=0.1",
    "recipe.training.clip_norm=0.5",
)

TRAININGS = {
    "momentum": (4, ()),
    "momentum carried, ten slices": (10, CARRY),
    "adam, one slice": (1, ADAM),
    "adam carried": (4, (*ADAM, *CARRY)),
    "dropout": (4, DROPOUT),
    "batch norm carried": (4, (*NORM, *CARRY)),
    "batch norm, dropout, adam carried, ten slices": (10, (*BOTH, *ADAM, *CARRY)),
    "cosine, warm-up, long last stage, smoothing, clipping": (4, SOFT),
    "last stage decays, log mean": (4, (*DECAY, "recipe.aggregation=log_mean")),
}


def ids(table: Any, column: str, count: int, seed: int = 0) -> list[Any]:
    found = sorted(set(table[column].to_pylist()))
    return list(np.random.default_rng(seed).permutation(found)[:count])


TABLES = {
    "patients": ("subject_id", 3, None, ()),
    "parkinsons": ("subject_id", 3, None, ("subject_no", "total_updrs", "motor_updrs")),
    "adult": ("record_id", 8, 1200, ("income",)),
    "fashion_mnist": ("record_id", 8, 1200, ()),
}
"""What is forgotten, how many, of how many rows, and what is no feature."""


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("name", TABLES)
def test_the_forgotten_leave_no_trace_under_any_training(lab, data, same, name, training) -> None:
    column, count, rows, drop = TABLES[name]
    slices, settings = TRAININGS[training]
    table = data(name, rows)
    choices = {"shards": 3, "slices": slices, "epochs": 2, "drop": drop}
    gone = ids(table, column, count)
    ws = lab.workspace("ws", table, *settings, **choices)
    before = ws.train()
    named = {"subjects" if column == "subject_id" else "records": gone}
    plan = ws.plan(**named)
    done = ws.forget(**named)
    assert done.status == "certified" and done.records_erased >= count
    assert done.samples_trained == plan.samples and done.digest != before.digest
    same(ws, lab.oracle("oracle", table, {column: gone}, *settings, **choices))


@pytest.mark.parametrize("learner", ["mlp", "logistic"])
@pytest.mark.parametrize("count", [1, 8, 25])
def test_forgotten_records_leave_no_trace(lab, data, same, learner, count) -> None:
    table = data("digits")
    choices = {"shards": 4, "slices": 4, "epochs": 3, "learner": learner}
    gone = ids(table, "record_id", count, seed=count)
    ws = lab.workspace("ws", table, **choices)
    ws.train()
    assert ws.forget(records=gone).records_erased == count
    same(ws, lab.oracle("oracle", table, {"record_id": gone}, **choices))


def test_images_under_convolutions_leave_no_trace(lab, data, same) -> None:
    table = data("digits", 600)
    settings = ("recipe.learner.params={widths: [4, 8], dense: 16}",)
    choices = {"shards": 2, "slices": 3, "epochs": 2, "learner": "cnn"}
    gone = ids(table, "record_id", 5)
    ws = lab.workspace("ws", table, *settings, **choices)
    before = ws.train()
    assert ws.forget(records=gone).digest != before.digest
    same(ws, lab.oracle("oracle", table, {"record_id": gone}, *settings, **choices))


def test_a_regression_forgets_as_well(lab, data, same) -> None:
    table = data("diabetes")
    choices = {"shards": 3, "slices": 3, "epochs": 5}
    gone = ids(table, "record_id", 5)
    ws = lab.workspace("ws", table, "recipe.aggregation=median", **choices)
    ws.train()
    ws.forget(records=gone)
    gone_too = {"record_id": gone}
    same(ws, lab.oracle("oracle", table, gone_too, "recipe.aggregation=median", **choices))


@pytest.mark.parametrize(
    ("name", "drop"),
    [("fashion_mnist", ()), ("adult", ("income",))],
    ids=["fashion_mnist", "adult"],
)
def test_real_records_leave_no_trace(lab, data, same, name, drop) -> None:
    """All rows of the real data; 1, then 8, then 25 records, each held against its oracle."""
    table = data(name)
    choices = {"shards": 10, "slices": 4, "epochs": 1, "drop": drop}
    ws = lab.workspace("ws", table, **choices)
    ws.train()
    everyone = ids(table, "record_id", 34)
    gone: list[Any] = []
    for count in (1, 8, 25):
        more, everyone = everyone[:count], everyone[count:]
        gone += more
        plan = ws.plan(records=more)
        done = ws.forget(records=more)
        assert done.records_erased == count
        assert done.samples_trained == plan.samples < done.samples_full
        same(ws, lab.oracle(f"oracle-{count}", table, {"record_id": gone}, **choices))


def test_real_patients_leave_no_trace(lab, data, same) -> None:
    """1, then 3 patients with all their rows."""
    table = data("parkinsons")
    drop = ("subject_no", "total_updrs", "motor_updrs")
    choices = {"shards": 4, "slices": 4, "epochs": 2, "drop": drop}
    ws = lab.workspace("ws", table, **choices)
    ws.train()
    everyone = ids(table, "subject_id", 4)
    for count, gone in ((1, everyone[:1]), (3, everyone[1:])):
        done = ws.forget(subjects=gone)
        assert done.records_erased > 100 * count
        upto = {"subject_id": everyone[:1] if count == 1 else everyone}
        same(ws, lab.oracle(f"oracle-{count}", table, upto, **choices))
