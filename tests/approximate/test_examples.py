"""Examples of a classifier are read as its folder says, and named by what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from sisa.approximate import inputs
from sisa.approximate.batches import Examples
from sisa.approximate.classifier_folder import About, FolderClassifier
from sisa.approximate.examples import read_examples
from sisa.approximate.models import Classifier
from sisa.errors import ConfigurationError, DataError, NotFoundError, SisaError

SECRET = "zq-7731"
PIXELS = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
LABELS = [2, 0, 1, 2]


def classifier(input: Any = "image", width: int = 6, outputs: int = 3, **more: Any) -> Any:
    told: dict[str, Any] = {"columns": {"input": input, **more.pop("columns", {})}, "classes": 3}
    told |= {"factory": "torch.nn:Linear", **more}
    module = nn.Sequential(nn.Flatten(), nn.Linear(width, outputs))
    return FolderClassifier(module, About.model_validate(told))


def written(folder: Path, table: Mapping[str, Any], name: str = "f.parquet") -> Path:
    pq.write_table(pa.table(dict(table)), folder / name)
    return folder / name


def listed(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    flat = pa.array(values.ravel(), kind)
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def binary(values: np.ndarray) -> pa.Array:
    return pa.array([row.tobytes() for row in values], pa.binary(values.shape[1]))


ARRAYS = {
    "bytes": binary(PIXELS),
    "uint8": listed(PIXELS, pa.uint8()),
    "float32": listed(PIXELS, pa.float32()),
    "float64": listed(PIXELS, pa.float64()),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_any_storage_are_the_same_examples(kind: str, tmp_path: Path) -> None:
    subject = classifier(scale=10.0, shape=[1, 2, 3])
    path = written(tmp_path, {"image": ARRAYS[kind], "label": LABELS})
    found = read_examples(path, "forget", subject)
    assert found.inputs.shape == (4, 1, 2, 3) and found.inputs.dtype == torch.float32
    assert found.inputs.flatten().tolist() == list(range(24))
    assert found.labels.dtype == torch.int64 and found.labels.tolist() == LABELS
    other = written(tmp_path, {"label": LABELS, "image": ARRAYS["bytes"]}, "other.parquet")
    assert found.ids == read_examples(other, "forget", subject).ids
    assert len(set(found.ids)) == 4


def test_several_chunks_and_a_slice_are_read_whole(tmp_path: Path) -> None:
    subject = classifier()
    for name in ("bytes", "uint8"):
        whole = ARRAYS[name]
        chunks = pa.chunked_array([whole[:1], whole[1:3], whole[3:]])
        path = written(tmp_path, {"image": chunks, "label": LABELS})
        found = read_examples(path, "forget", subject)
        assert found.inputs.tolist() == PIXELS.tolist()


@pytest.mark.parametrize("name", ["f.csv", "f.jsonl", "f.parquet"])
def test_columns_of_numbers_are_put_side_by_side(name: str, tmp_path: Path) -> None:
    path, subject = tmp_path / name, classifier(["b", "a"], width=2)
    if name == "f.csv":
        path.write_text("a,b,label\n1,0.5,2\n-3,4,0\n")
    elif name == "f.jsonl":
        path.write_text('{"a": 1, "b": 0.5, "label": 2}\n{"a": -3, "b": 4.0, "label": 0}\n')
    else:
        written(tmp_path, {"a": [1, -3], "b": [0.5, 4.0], "label": [2, 0]})
    found = read_examples(path, "forget", subject)
    assert found.inputs.tolist() == [[0.5, 1.0], [4.0, -3.0]] and found.labels.tolist() == [2, 0]


def test_the_dtype_is_the_models_and_ids_do_not_depend_on_it(tmp_path: Path) -> None:
    path = written(tmp_path, {"image": ARRAYS["uint8"], "label": LABELS})
    wide = classifier()
    narrow = FolderClassifier(classifier().module.bfloat16(), wide.about)
    one, other = (read_examples(path, "forget", s) for s in (wide, narrow))
    assert other.inputs.dtype == torch.bfloat16 and one.ids == other.ids


def test_ids_are_opaque_and_of_their_column(tmp_path: Path) -> None:
    subject = classifier(columns={"id": "who"})
    table = {"image": ARRAYS["uint8"], "label": LABELS}
    names = [f"{SECRET}-{i}" for i in range(4)]
    found = read_examples(written(tmp_path, {**table, "who": names}), "forget", subject)
    assert len(set(found.ids)) == 4 and not any(SECRET in name for name in found.ids)
    moved = {"image": ARRAYS["uint8"].take(pa.array([3, 2, 1, 0])), "label": [0] * 4}
    again = read_examples(written(tmp_path, {**moved, "who": names}), "forget", subject)
    assert again.ids == found.ids
    without = read_examples(written(tmp_path, table), "forget", classifier())
    assert set(without.ids).isdisjoint(found.ids)


def test_an_example_without_a_label_has_none(tmp_path: Path) -> None:
    labels = pa.array([2, None, -100, 1], pa.int32())
    path = written(tmp_path, {"image": ARRAYS["uint8"], "label": labels})
    found = inputs.read(path, "forget", classifier(), "", None)
    assert isinstance(found, Examples)
    assert found.labels.tolist() == [2, -100, -100, 1]
    assert inputs.check(found, {}) == ("2 items of the forget file have no labelled position.",)


def test_no_label_at_all_and_no_row_are_refused(tmp_path: Path) -> None:
    bare = {"image": ARRAYS["uint8"], "label": pa.nulls(4)}
    with pytest.raises(DataError, match="No item of the retain file has a labelled position"):
        inputs.read(written(tmp_path, bare), "retain", classifier(), "", None)
    empty = {"image": ARRAYS["uint8"][:0], "label": pa.array([], pa.int64())}
    with pytest.raises(DataError, match="The forget file holds no item"):
        inputs.read(written(tmp_path, empty), "forget", classifier(), "", None)


def test_other_labels_are_drawn_by_the_seed() -> None:
    labels = torch.arange(10).repeat(300)
    found = Examples(tuple(map(str, range(3000))), torch.arange(3000.0)[:, None], labels)
    other = inputs.other_labels(found, 10, seed=1)
    assert other.ids == found.ids and torch.equal(other.inputs, found.inputs)
    assert not (other.labels == labels).any() and len(other.labels.unique()) == 10
    assert torch.equal(other.labels, inputs.other_labels(found, 10, seed=1).labels)
    assert not torch.equal(other.labels, inputs.other_labels(found, 10, seed=2).labels)
    assert inputs.check(found, {"alternatives": other}) == ()


def test_a_classifier_of_no_folder_has_no_columns(tmp_path: Path) -> None:
    path = written(tmp_path, {"image": ARRAYS["uint8"], "label": LABELS})
    with pytest.raises(ConfigurationError, match="columns of this classifier"):
        inputs.read(path, "forget", Classifier(nn.Linear(6, 3)), "", None)


IMAGE = {"image": ARRAYS["float64"]}
GAP = pa.FixedSizeListArray.from_arrays(pa.array([1.0, None, 3.0, 4.0] * 6), 6)
WRONG: Mapping[str, tuple[Any, Mapping[str, Any], type[SisaError], str]] = {
    "no input": (classifier(), {"label": LABELS}, DataError, "no column image"),
    "no label": (classifier(), IMAGE, DataError, "no column label"),
    "no id": (
        classifier(columns={"id": "who"}),
        {**IMAGE, "label": LABELS},
        DataError,
        "no column who",
    ),
    "lists of any size": (
        classifier(),
        {"image": PIXELS.tolist(), "label": LABELS},
        DataError,
        r"image of the forget file is list<.*>, not arrays of one size",
    ),
    "texts": (
        classifier(["image"]),
        {"image": [SECRET] * 4, "label": LABELS},
        DataError,
        "is string, not numbers",
    ),
    "a gap": (
        classifier(["a"], width=1),
        {"a": [1.0, None, 2.0, 3.0], "label": LABELS},
        DataError,
        "Row 1 of the forget file has no value in column a",
    ),
    "a gap in an array": (classifier(), {"image": GAP, "label": LABELS}, DataError, "has a gap"),
    "not a number": (
        classifier(["a"], width=1),
        {"a": [1.0, 2.0, float("nan"), 3.0], "label": LABELS},
        DataError,
        "Row 2 of the forget file is not finite in column a",
    ),
    "a class too many": (
        classifier(),
        {**IMAGE, "label": [0, 1, 7731, 2]},
        DataError,
        "Row 2 of the forget file has no class of 0 to 2 in column label",
    ),
    "a class below 0": (classifier(), {**IMAGE, "label": [0, -1, 1, 2]}, DataError, "Row 1 of"),
    "classes in words": (
        classifier(),
        {**IMAGE, "label": [SECRET] * 4},
        DataError,
        "label of the forget file is string, not whole numbers",
    ),
    "ids of fractions": (
        classifier(columns={"id": "who"}),
        {**IMAGE, "label": LABELS, "who": [0.5, 1.5, 2.5, 3.5]},
        DataError,
        "names nothing",
    ),
    "another shape": (
        classifier(shape=[2, 2]),
        {**IMAGE, "label": LABELS},
        DataError,
        "has 6 numbers, which are not 2 x 2",
    ),
    "a module of other inputs": (
        classifier(width=5),
        {**IMAGE, "label": LABELS},
        ConfigurationError,
        r"does not take inputs of shape \[6\]",
    ),
    "a module of other classes": (
        classifier(outputs=4),
        {**IMAGE, "label": LABELS},
        ConfigurationError,
        r"gives \[1, 4\], not logits of 3 classes",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_by_its_column_and_no_value_is_told(
    case: str, tmp_path: Path
) -> None:
    subject, table, kind, words = WRONG[case]
    with pytest.raises(kind, match=words) as caught:
        read_examples(written(tmp_path, table), "forget", subject)
    assert caught.value.remedy and SECRET not in str(caught.value)
    assert "7731" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        inputs.read(tmp_path / "none.parquet", "forget", classifier(), "", None)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    (tmp_path / "empty.csv").touch()
    for name, words in [("torn.parquet", "damaged"), ("empty.csv", "holds no item")]:
        with pytest.raises(DataError, match=words):
            inputs.read(tmp_path / name, "forget", classifier(), "", None)
