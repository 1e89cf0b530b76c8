"""Records: typed blocks out of partition columns, and the standardiser."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from data_index.schema import TARGET
from sisa.config import Data
from sisa.learners import design
from sisa.learners.design import Scales
from sisa.learners.records import Encoding, Standardiser

from .helpers import records


def encoding(features: dict[str, str], **more: object) -> Encoding:
    section = {"record_id": "id", "target": "y", "classes": ["n", "p"], "features": features}
    return Encoding.of(Data.model_validate(section | more))


def test_null_numbers_become_nan_and_booleans_numbers() -> None:
    table = pa.table(
        {"x_a": pa.array([1, None, 3], pa.int64()), "x_b": pa.array([True, False, None])}
    )
    found = encoding({"b": "bool", "a": "int64"}).encode(table)
    np.testing.assert_array_equal(found.numbers, [[1, 1], [np.nan, 0], [3, np.nan]])
    assert found.target is None
    assert len(found.words) == 0


def test_text_has_buckets_for_null_for_declared_values_and_for_the_rest() -> None:
    enc = encoding({"t": "text"}, categories={"t": ("red", "blue")}, hash_buckets=4)
    table = pa.table({"x_t": pa.array(["blue", None, "red", "other", "other"])})
    codes = enc.encode(table).codes[:, 0]
    assert enc.text_widths == (7,)
    assert list(codes[:3]) == [2, 0, 1]
    assert 3 <= codes[3] < 7
    assert codes[3] == codes[4]


def test_a_text_is_encoded_the_same_whatever_stands_beside_it() -> None:
    enc = encoding({"t": "text"}, hash_buckets=1000)
    alone = enc.encode(pa.table({"x_t": ["zebra"]})).codes
    chunked = pa.chunked_array([["ant", "zebra"], [None, "zebra"]], pa.string())
    crowd = enc.encode(pa.table({"x_t": chunked})).codes
    assert alone[0, 0] == crowd[1, 0] == crowd[3, 0]
    assert crowd[0, 0] != crowd[1, 0]


def test_two_text_features_do_not_share_their_hash() -> None:
    enc = encoding({"t": "text", "u": "text"}, hash_buckets=1_000_000)
    codes = enc.encode(pa.table({"x_t": ["zebra"], "x_u": ["zebra"]})).codes
    assert codes[0, 0] != codes[0, 1]


def test_classes_are_indices_and_values_floats() -> None:
    table = pa.table({"x_a": [1.0, 2.0], TARGET: pa.array([1, 0], pa.int32())})
    assert encoding({"a": "float64"}).encode(table).target.dtype == np.int64
    regression = encoding({"a": "float64"}, task="regression", classes=())
    assert regression.encode(table).target.dtype == np.float64
    assert regression.outputs == 1


def test_a_table_without_rows_is_no_records() -> None:
    enc = encoding({"a": "float64", "t": "text", "v": "uint8[3]"})
    table = pa.table(
        {
            "x_a": pa.array([], pa.float64()),
            "x_t": pa.array([], pa.string()),
            "x_v": pa.array([], pa.binary(3)),
        }
    )
    found = enc.encode(table)
    assert len(found) == 0
    assert found.arrays[0].shape == (0, 3)
    assert found.codes.shape == (0, 1)


def test_take_keeps_all_blocks_in_step() -> None:
    whole = records([[1.0], [2.0], [3.0]], [0, 1, 0], [[4], [5], [6]], (np.eye(3),))
    part = whole.take(np.array([2, 0]))
    assert len(part) == 2
    np.testing.assert_array_equal(part.numbers, [[3], [1]])
    np.testing.assert_array_equal(part.target, [0, 0])
    np.testing.assert_array_equal(part.codes, [[6], [4]])
    np.testing.assert_array_equal(part.arrays[0], [[0, 0, 1], [1, 0, 0]])
    np.testing.assert_array_equal(part.words, whole.words[[2, 0]])


def test_the_standardiser_leaves_nulls_out_and_puts_zero_for_them() -> None:
    values = np.array([[1.0, 5.0], [np.nan, 7.0], [3.0, np.nan]])
    found = Standardiser.fit(values)
    np.testing.assert_array_equal(found.mean, [2, 6])
    np.testing.assert_array_equal(found.deviation, [1, 1])
    np.testing.assert_array_equal(found.apply(values), [[-1, -1], [0, 1], [1, 0]])
    assert np.isnan(values[1, 0]), "the caller's array stays as it is"


def test_the_standardiser_agrees_with_scikit_learn() -> None:
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    values = np.random.default_rng(0).normal(50, 9, size=(200, 4))
    values[::7, 2] = np.nan
    reference = preprocessing.StandardScaler().fit(values)
    found = Standardiser.fit(values)
    np.testing.assert_allclose(found.mean, reference.mean_, rtol=1e-12)
    np.testing.assert_allclose(found.deviation, reference.scale_, rtol=1e-12)


@pytest.mark.parametrize(
    ("column", "deviation"),
    [([0.0, 0.0], 1.0), ([np.nan, np.nan], 1.0), ([1e9, 1e9], 1e3), ([4.0, 4.0], 4e-6)],
)
def test_a_constant_column_is_not_blown_up(column: list[float], deviation: float) -> None:
    found = Standardiser.fit(np.array([column]).T)
    assert found.deviation[0] == pytest.approx(deviation)
    np.testing.assert_array_equal(found.apply(np.array([column]).T), [[0], [0]])


def test_the_estimate_does_not_depend_on_memory_layout() -> None:
    values = np.random.default_rng(0).normal(size=(1000, 3)) * 1e3
    left, right = Standardiser.fit(values), Standardiser.fit(np.asfortranarray(values))
    assert left.mean.tobytes() == right.mean.tobytes()
    assert left.deviation.tobytes() == right.deviation.tobytes()


def test_columns_of_the_design_matrix_are_in_their_documented_order() -> None:
    enc = encoding(
        {"n": "float64", "t": "text", "p": "uint8[2]", "q": "float32[1]"}, hash_buckets=1
    )
    data = records(
        [[1.0], [np.nan], [3.0]],
        [0, 1, 1],
        [[0], [1], [1]],
        (
            np.array([[0, 255], [51, 0], [0, 0]], dtype=np.uint8),
            np.array([[1.0], [3.0], [5.0]], dtype=np.float32),
        ),
    )
    scales = Scales.fit(enc, data)
    blocks = design.blocks(enc, data, scales, np.float32)
    left, images, right = (block.values for block in blocks)
    np.testing.assert_array_equal(left, [[-1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 0, 1]])
    assert images.dtype == np.uint8
    np.testing.assert_allclose(right[:, 0], [-(1.5**0.5), 0, 1.5**0.5], rtol=1e-6)
    assert {left.dtype, right.dtype} == {np.dtype(np.float32)}
    assert design.inputs(enc) == left.shape[1] + images.shape[1] + right.shape[1]


def test_images_alone_are_one_block_that_is_not_copied() -> None:
    enc = encoding({"p": "uint8[2]"})
    data = records(arrays=(np.zeros((4, 2), dtype=np.uint8),), target=[0, 1, 0, 1])
    (block,) = design.blocks(enc, data, Scales.fit(enc, data), np.float32)
    assert block.values is data.arrays[0]
