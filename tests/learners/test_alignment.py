"""Where records lie in memory changes no bit.

The bits of a matrix product depend on whether its operands begin at a multiple of 16 bytes, so what
a learner multiplies must lie in memory of torch's or NumPy's own, never in a view into a file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from sisa.determinism import pin_threads
from sisa.learners import load
from sisa.learners.records import Records

from .helpers import plan, recipe, records, same

WIDTHS = {"a": "float64", "p": "uint8[7]", "q": "float32[5]"}


def beginning_at(array: npt.NDArray[Any], offset: int) -> npt.NDArray[Any]:
    """The same array, so many bytes behind a multiple of 64."""
    memory = np.empty(array.nbytes + 128, dtype=np.uint8)
    start = -memory.ctypes.data % 64 + offset
    placed = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    placed[:] = array
    assert placed.ctypes.data % 64 == offset
    return placed


def placed(data: Records, steps: int) -> Records:
    """Records whose blocks begin some elements behind a multiple of 64 bytes."""
    target = data.target
    assert target is not None
    numbers, *arrays = (
        beginning_at(block, steps * block.itemsize % 64) for block in (data.numbers, *data.arrays)
    )
    return Records(data.words, target, numbers, data.codes, tuple(arrays))


def some(count: int = 90) -> Records:
    rng = np.random.default_rng(1)
    arrays = (
        rng.integers(0, 256, (count, 7)).astype(np.uint8),
        rng.normal(size=(count, 5)).astype(np.float32),
    )
    return records(rng.normal(size=(count, 1)), rng.integers(0, 3, count), None, arrays)


@pytest.mark.parametrize("factory", ["logistic", "mlp"])
def test_a_stage_and_its_predictions_do_not_depend_on_the_place_of_records(factory: str) -> None:
    params = {} if factory == "logistic" else {"hidden": [17]}
    chosen = recipe(factory, params, {"features": WIDTHS}, epochs=2, batch_size=11)
    learner, found = load(chosen), []
    for steps in (0, 1, 3):
        data = placed(some(), steps)
        done = learner.advance(learner.init(0), data, plan(chosen, data))
        found.append((done.state, learner.predict(done.state, data)))
    for state, predicted in found[1:]:
        assert same(state, found[0][0])
        assert np.array_equal(predicted, found[0][1])


def test_the_bits_of_a_product_do_depend_on_it() -> None:
    """The negative control: on a machine where this fails, the other tests show nothing."""
    pin_threads(1)
    torch.manual_seed(0)
    apart = 0
    for rows, width, outputs in ((1, 16, 10), (3, 17, 10), (11, 18, 17), (33, 17, 64)):
        x, w = torch.randn(rows, width), torch.randn(outputs, width)
        first, *others, last = (
            nn.functional.linear(torch.from_numpy(beginning_at(x.numpy(), offset)), w)
            for offset in (0, 4, 8, 12, 16)
        )
        assert torch.equal(first, last)
        apart += sum(not torch.equal(first, other) for other in others)
    if not apart:
        pytest.skip("the products of this machine have the same bits everywhere")
