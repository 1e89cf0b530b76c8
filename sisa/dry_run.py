"""A child process that takes dry steps of a learner on made-up records: a recipe in, digests out.

Step A is taken from one state as a worker would take it; the parent asks for it once, or again and
again with another step between. What differs then is decided by more than state, records and plan.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_index import keys
from data_index.schema import RECORD_KEY, TARGET, Feature
from sisa import checkpoint, determinism, learners
from sisa.config import Data, Recipe
from sisa.determinism import StagePlan
from sisa.errors import SisaError
from sisa.learners.protocol import Learner, State
from sisa.learners.records import Encoding, Records
from sisa.learners.user_code import reason

BATCH = 32
"""Records of a dry batch, unless the recipe has fewer or needs more."""

STEPS = 3

TICK = 1.1
"""Seconds between two of the steps: a clock that counts seconds has moved by then."""

PREDICTIONS = "predictions"

REFUSED = re.compile(r"(\S+) does not have a deterministic implementation")

Digests = dict[str, str]
"""sha256 of each array of a state, and of the predictions made from it, by name."""


def main() -> None:
    """Answer the one question on standard input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what user code prints must not reach the answer
    answers.write(json.dumps(_answer(json.loads(sys.stdin.read()))))
    answers.flush()


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    learners.find_in(tuple(asked["import_paths"]))
    recipe = Recipe.model_validate(asked["recipe"])
    try:
        learner = learners.load(recipe)
        determinism.pin_threads(recipe.training.threads)
        outcomes = list(_outcomes(learner, recipe, asked["repeat"]))
    except Exception as error:  # user code may raise anything; the records are made up
        return {"error": _told(error)}
    return {
        "error": None,
        "outcomes": outcomes,
        "fingerprint": determinism.fingerprint(learner.uses_torch),
    }


def _told(error: Exception) -> dict[str, Any]:
    """Message and remedy, and the operator that torch refused, if that was it."""
    refused = None
    cause: BaseException | None = error
    while cause is not None and refused is None:
        refused = REFUSED.search(str(cause))
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, SisaError):
        told = {"message": error.message, "remedy": error.remedy}
    else:
        told = {
            "message": f"A dry step of the learner failed: {reason(error)}.",
            "remedy": "Correct the learner's code.",
        }
    return {**told, "operator": refused and refused[1]}


def _outcomes(learner: Learner, recipe: Recipe, repeat: bool) -> Iterator[Digests]:
    """Digests of step A: once; or twice, after a while, and after another step."""
    training = recipe.training
    # Both before the first step: a fresh process must have done the same up to there.
    states = [_stored(learner.init(determinism.init_seed(training, s))) for s in (0, 1)]
    size = max(training.min_batch, min(training.batch_size, BATCH))
    records = made_up(recipe.data, STEPS * size)

    def step(shard: int) -> Digests:
        state = states[shard]
        done = learner.advance(state, records, _plan(recipe, shard, size, records))
        after = _stored(done.state) if done.failure is None else state
        return _digests(after) | {PREDICTIONS: _sha256(learner.predict(after, records))}

    yield step(0)
    if repeat:
        yield step(0)
        time.sleep(TICK)
        yield step(0)
        step(1)
        yield step(0)


def _stored(state: State) -> State:
    return checkpoint.load(checkpoint.dump(state))


def _plan(recipe: Recipe, shard: int, size: int, records: Records) -> StagePlan:
    """One epoch in batches of a size, whatever the recipe's are."""
    slices = recipe.partition.slices
    changes = {"epochs": (slices + 1) / 2, "batch_size": size}
    return StagePlan(recipe.training.model_copy(update=changes), slices, shard, 1, records.words)


def _digests(state: State) -> Digests:
    return {name: checkpoint.tensors_digest({name: array}) for name, array in state.items()}


def _sha256(values: npt.NDArray[np.float64]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def made_up(data: Data, count: int) -> Records:
    """n records of random values that fit what a recipe declares, the same in every process."""
    random = np.random.default_rng(0)
    columns = data.columns()
    made = np.sort(random.integers(0, 2**63, (count, 2)).astype(">u8"), axis=0)
    table = {RECORD_KEY: keys.to_arrow(made.view(np.uint8).reshape(count, keys.KEY_BYTES))}
    if columns.classes is None:
        table[TARGET] = pa.array(random.standard_normal(count))
    else:
        table[TARGET] = pa.array(np.arange(count, dtype=np.int32) % len(columns.classes))
    for feature in columns.features:
        known = data.categories.get(feature.name, ())
        table[feature.column] = _column(feature, known, count, random)
    return Encoding.of(data).encode(pa.table(table))


def _column(
    feature: Feature, known: tuple[str, ...], count: int, random: np.random.Generator
) -> pa.Array:
    """A column as partitions hold it; every seventh value is null where it may be."""
    if feature.kind == "array":
        values = _numbers(feature, (count, feature.size), random)
        return pa.array([row.tobytes() for row in values], feature.arrow)
    null = np.arange(count) % 7 == 6
    if feature.kind == "text":
        words = [*known, *(f"word {i}" for i in range(9))]
        chosen = [words[i] for i in random.integers(0, len(words), count)]
        return pa.array(chosen, feature.arrow, mask=null)
    return pa.array(_numbers(feature, (count,), random), feature.arrow, mask=null)


def _numbers(
    feature: Feature, shape: tuple[int, ...], random: np.random.Generator
) -> npt.NDArray[Any]:
    if feature.dtype.kind == "f":
        return random.standard_normal(shape).astype(feature.dtype)
    return random.integers(0, 2 if feature.element == "bool" else 100, shape).astype(feature.dtype)


if __name__ == "__main__":
    main()
