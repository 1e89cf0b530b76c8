"""What our own arithmetic gives, pinned: whoever changes it must raise `config.ARITHMETIC`.

The bits differ between instruction sets, so numbers are compared to six digits; any change of
order, seeds, rates, standardisation or step moves them by far more.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sisa import learners
from sisa.config import ARITHMETIC, Recipe
from sisa.determinism import StagePlan, init_seed
from sisa.learners.records import Records

SOFT = {
    "schedule": "cosine",
    "warmup": 0.2,
    "last_stage_epochs": 2,
    "label_smoothing": 0.1,
    "class_weights": [1, 2, 0.5],
    "clip_norm": 0.3,
}
RECIPES = {
    "logistic": {"learner": {"factory": "logistic"}},
    "logistic carried": {
        "learner": {"factory": "logistic"},
        "training": {"optimizer_state": "carry", "weight_decay": 0.01},
    },
    "mlp": {"learner": {"params": {"hidden": [8]}}},
    "mlp adam dropout norm": {
        "learner": {"params": {"hidden": [8], "dropout": 0.5, "batch_norm": True}},
        "training": {"optimizer": "adam", "lr": 0.01, "optimizer_state": "carry"},
    },
    "mlp decay": {
        "learner": {"params": {"hidden": [8]}},
        "training": {"schedule": "last_stage_linear"},
    },
    "cnn": {"learner": {"factory": "cnn", "params": {"widths": [4], "dense": 8}}},
    "logistic soft": {"learner": {"factory": "logistic"}, "training": SOFT},
    "mlp soft": {"learner": {"params": {"hidden": [8]}}, "training": SOFT},
}
SCALES = {"mlp soft": {"v": [100, 50]}}

GOLDEN: dict[str, list[float]] = {
    "logistic": [0.01766499979, 2.123330922, 1.993633034, 0.3016083754],
    "logistic carried": [
        0.01223514835,
        0.08512459155,
        0.864249655,
        2.123330922,
        1.993633034,
        0.3583456537,
    ],
    "mlp": [1.031620264, 14.02612019, 0.141815424, 4.044473648, 2.123330922, 1.993633034],
    "mlp adam dropout norm": [
        1.037435532,
        15.7476635,
        0.7733644843,
        53.0,
        1.356054544,
        0.9250735641,
        7.114071846,
        0.2993659973,
        3.432200909,
        5.206024056e-09,
        5.724576883e-17,
        53.0,
        0.1503852606,
        0.004341036547,
        53.0,
        0.01487425901,
        0.0001454050071,
        53.0,
        0.01437638793,
        0.0001390297548,
        53.0,
        0.02379576862,
        0.0008169092471,
        53.0,
        0.2145704627,
        0.004986238666,
        53.0,
        2.123330922,
        1.993633034,
    ],
    "cnn": [0.3867559433, 6.30836153, 1.040561676, 24.4679184, 0.3067552447, 5.099099159, 0.0, 0.0],
    "logistic soft": [0.9993707527, 2.123330922, 1.993633034, 1.508876867],
    "mlp soft": [1.147879839, 14.05483246, 0.8805810213, 4.283339977, 2.123330922, 1.993633034],
    "mlp decay": [1.030902147, 14.12372208, 0.1418526322, 4.114766121, 2.123330922, 1.993633034],
}


def recipe(name: str) -> Recipe:
    data = {
        "record_id": "id",
        "target": "y",
        "classes": [0, 1, 2],
        "features": {"a": "float64", "b": "int64", "t": "text", "v": "uint8[3]"},
        "hash_buckets": 4,
        "scales": SCALES.get(name, {}),
    }
    if name == "cnn":
        data["features"] = {"v": "uint8[36]"}
    body = {"data": data, "partition": {"shards": 1, "slices": 2}, **RECIPES[name]}
    return Recipe.model_validate(body)


def rows(count: int) -> Records:
    n = np.arange(count)
    numbers = np.stack([np.sin(n), n % 5.0], axis=1)
    numbers[::7, 0] = np.nan
    return Records(
        words=n.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15),
        target=n % 3,
        numbers=numbers,
        codes=(n % 5)[:, None],
        arrays=(np.stack([n % 251, n % 7, n % 3], axis=1).astype(np.uint8),),
    )


def images(count: int) -> Records:
    n = np.arange(count)
    pixels = (n[:, None] * np.arange(1, 37) % 251).astype(np.uint8)
    nothing = np.zeros((count, 0))
    return replace(rows(count), numbers=nothing, codes=nothing.astype(np.int64), arrays=(pixels,))


def trained(name: str) -> list[float]:
    """Two stages; the sums of all arrays in name order."""
    chosen = recipe(name)
    learner = learners.load(chosen)
    state = learner.init(init_seed(chosen.training, 0))
    for slice_, count in ((1, 150), (2, 301)):
        records = images(count) if name == "cnn" else rows(count)
        plan = StagePlan(chosen.training, 2, 0, slice_, records.words)
        state = learner.advance(state, records, plan).state
    return [float(np.abs(state[name]).sum()) for name in sorted(state) if name != "init.seed"]


@pytest.mark.parametrize("name", RECIPES)
def test_arithmetic_is_what_it_was(name: str) -> None:
    assert ARITHMETIC == 1, "record new golden numbers with the new version"
    assert trained(name) == pytest.approx(GOLDEN[name], rel=1e-6)
