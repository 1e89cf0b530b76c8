"""Small data sets, recipes and plans for the learners' tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from sisa.config import Recipe
from sisa.determinism import StagePlan, scatter
from sisa.learners.protocol import Learner, State
from sisa.learners.records import Records


def recipe(
    factory: str = "mlp",
    params: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    **training: Any,
) -> Recipe:
    """A recipe over two numbers and three classes, unless `data` says otherwise."""
    section = {
        "record_id": "id",
        "target": "y",
        "features": {"a": "float64", "b": "float64"},
        "classes": [0, 1, 2],
        **(data or {}),
    }
    if section.get("task") == "regression":
        del section["classes"]
    return Recipe.model_validate(
        {
            "data": section,
            "learner": {"factory": factory, "params": params or {}},
            "training": training,
        }
    )


def records(
    numbers: Any = None,
    target: Any = None,
    codes: Any = None,
    arrays: tuple[Any, ...] = (),
) -> Records:
    """Records of the given blocks; their keys are those of row numbers."""
    blocks = [b for b in (numbers, codes, *arrays) if b is not None]
    count = len(blocks[0])
    return Records(
        scatter(np.arange(count, dtype=np.uint64), 7),
        None if target is None else np.asarray(target),
        np.zeros((count, 0)) if numbers is None else np.asarray(numbers, dtype=np.float64),
        np.zeros((count, 0), dtype=np.int64) if codes is None else np.asarray(codes),
        tuple(arrays),
    )


def blobs(count: int = 120, seed: int = 0) -> Records:
    """Three overlapping clouds in the plane, of the classes 0, 1 and 2."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 3, count)
    centres = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    return records(centres[target] + rng.normal(size=(count, 2)), target)


def plan(chosen: Recipe, data: Records, slice_: int = 1, slices: int = 1) -> StagePlan:
    """The plan of one stage over all of the records."""
    return StagePlan(chosen.training, slices, 0, slice_, data.words)


def train(learner: Learner, chosen: Recipe, data: Records, stages: int = 1) -> State:
    """Train stages over growing shares of the records, each from the bytes of the one before."""
    state = learner.init(5)
    for stage in range(1, stages + 1):
        part = data.take(np.arange(len(data) * stage // stages))
        done = learner.advance(through_bytes(state), part, plan(chosen, part, stage, stages))
        assert done.failure is None
        state = done.state
    return state


def through_bytes(state: State) -> State:
    """What a checkpoint gives back: read-only arrays of the same bytes."""
    from safetensors.numpy import load, save

    found = load(save(dict(state)))
    for array in found.values():
        array.flags.writeable = False
    return found


def same(left: State, right: State) -> bool:
    """Whether two states agree in names, types, shapes and bytes."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].tobytes() == right[name].tobytes()
        for name in left
    )


def accuracy(learner: Learner, chosen: Recipe, data: Records) -> float:
    """Share of a quarter of the records that is read rightly after four stages on the others."""
    held_out = np.arange(len(data)) % 4 == 0
    state = train(learner, chosen, data.take(~held_out), stages=4)
    test = data.take(held_out)
    found = learner.predict(state, test)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    return float((found.argmax(axis=1) == test.target).mean())
