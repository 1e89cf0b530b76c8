"""Examples of a classifier from a table: arrays of one size or columns of numbers, and classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from sisa.approximate.batches import Examples, digest, opaque, read_table
from sisa.approximate.classifier_folder import FILE, FolderClassifier
from sisa.approximate.rows import IGNORED
from sisa.errors import ConfigurationError, DataError


def read_examples(path: Path, what: str, subject: FolderClassifier) -> Examples:
    """Read the examples of a file as the classifier's folder says.

    Inputs are divided by `scale` and take `shape`. The opaque id of an example is a digest of its
    cell in the id column; without one, of its input as the file has it and of its label.

    Args:
        path: Parquet, CSV or JSON lines. An input is one column of lists of a fixed size or of
            fixed-size binary (one byte a number), or several columns of numbers. A label is a
            whole number; where there is none, or -100, the example has no label.
        what: Names the file in an error: `forget`, `retain`.
        subject: Says which columns, and takes the inputs.

    Raises:
        DataError: A column is missing, has a gap, or is not of its type; or a label is no class.
        ConfigurationError: The module does not take such inputs, or gives other classes.
        NotFoundError: There is no such file.
    """
    about, table = subject.about, read_table(path)
    wanted = about.columns.input
    names = (wanted,) if isinstance(wanted, str) else wanted
    ids = () if about.columns.id is None else (about.columns.id,)
    for name in (*names, about.columns.label, *ids):
        if name not in table.column_names:
            raise DataError(
                f"The {what} file has no column {name}.",
                f"It has {', '.join(table.column_names)}; {FILE} says which are read.",
            )
    raw = _arrays(table, wanted, what) if isinstance(wanted, str) else _numbers(table, wanted, what)
    labels = _labels(table, about.columns.label, about.classes, what)
    dtype = next(subject.module.parameters()).dtype
    inputs = (torch.from_numpy(raw) / about.scale).to(dtype)
    if about.shape is not None:
        inputs = _shaped(inputs, about.shape, what)
    found = Examples(
        _named(table, ids[0], what) if ids else _by_content(raw, labels), inputs, labels
    )
    _try(subject, found)
    return found


def _arrays(table: pa.Table, name: str, what: str) -> np.ndarray:
    """float32 [n, d] of a column of arrays."""
    column = _whole(table, name, what)
    kind = column.type
    if pa.types.is_fixed_size_binary(kind):
        size = kind.byte_width
        flat = np.frombuffer(column.buffers()[1] or b"", np.uint8)
        start = column.offset * size
        found = flat[start : start + len(column) * size]
    elif pa.types.is_fixed_size_list(kind) and _is_number(kind.value_type):
        size, values = kind.list_size, column.flatten()
        if values.null_count:
            raise DataError(f"An array in column {name} of the {what} file has a gap.", "Fill it.")
        found = values.to_numpy(zero_copy_only=False)
    else:
        raise DataError(
            f"Column {name} of the {what} file is {kind}, not arrays of one size.",
            f"Store lists of a fixed size or fixed-size binary, or name several columns of numbers "
            f"in {FILE}.",
        )
    return _finite(found.reshape(len(column), size), name, what)


def _numbers(table: pa.Table, names: tuple[str, ...], what: str) -> np.ndarray:
    """float32 [n, d] of d columns of numbers."""
    found = []
    for name in names:
        column = _whole(table, name, what)
        if not (_is_number(column.type) or pa.types.is_boolean(column.type)):
            raise DataError(
                f"Column {name} of the {what} file is {column.type}, not numbers.",
                f"Encode it, or leave it out in {FILE}.",
            )
        values = column.to_numpy(zero_copy_only=False).astype(np.float32)
        found.append(_finite(values, name, what))
    return np.stack(found, axis=1)


def _labels(table: pa.Table, name: str, classes: int, what: str) -> torch.Tensor:
    """int64 [n], -100 where there is none."""
    column = table[name].combine_chunks()
    if pa.types.is_null(column.type):
        column = column.cast(pa.int64())
    if not pa.types.is_integer(column.type):
        raise DataError(
            f"Column {name} of the {what} file is {column.type}, not whole numbers.",
            "Number the classes from 0.",
        )
    labels = column.fill_null(IGNORED).to_numpy(zero_copy_only=False).astype(np.int64)
    wrong = ((labels < 0) | (labels >= classes)) & (labels != IGNORED)
    if wrong.any():
        raise DataError(
            f"Row {int(wrong.argmax())} of the {what} file has no class of 0 to {classes - 1} in "
            f"column {name}.",
            f"Correct it, or classes in {FILE}.",
        )
    return torch.from_numpy(labels.copy())


def _whole(table: pa.Table, name: str, what: str) -> pa.Array:
    """A column in one piece, without gaps."""
    column = table[name].combine_chunks()
    if column.null_count:
        row = column.is_null().to_numpy(zero_copy_only=False).argmax()
        raise DataError(
            f"Row {int(row)} of the {what} file has no value in column {name}.",
            "Fill it or leave the row out.",
        )
    return column


def _finite(values: np.ndarray, name: str, what: str) -> np.ndarray:
    """As float32."""
    found = values.astype(np.float32)
    wrong = ~np.isfinite(found).all(axis=tuple(range(1, found.ndim)))
    if wrong.any():
        raise DataError(
            f"Row {int(wrong.argmax())} of the {what} file is not finite in column {name}.",
            "Correct it or leave the row out.",
        )
    return found


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _shaped(inputs: torch.Tensor, shape: tuple[int, ...], what: str) -> torch.Tensor:
    if inputs[0:1].numel() not in (0, int(np.prod(shape))):
        raise DataError(
            f"An input of the {what} file has {inputs.shape[1]} numbers, which are not "
            f"{' x '.join(map(str, shape))}.",
            f"Correct shape in {FILE}.",
        )
    return inputs.reshape(len(inputs), *shape)


def _named(table: pa.Table, name: str, what: str) -> tuple[str, ...]:
    column = _whole(table, name, what)
    if not (
        pa.types.is_integer(column.type)
        or pa.types.is_string(column.type)
        or pa.types.is_large_string(column.type)
    ):
        raise DataError(
            f"Column {name} of the {what} file is {column.type}, which names nothing.",
            "Name examples by texts or whole numbers.",
        )
    return tuple(opaque([cell]) for cell in column.to_pylist())


def _by_content(raw: np.ndarray, labels: torch.Tensor) -> tuple[str, ...]:
    pairs = zip(raw.astype("<f4"), labels.tolist(), strict=True)
    return tuple(digest(row.tobytes(), str(label).encode()).hex() for row, label in pairs)


@torch.no_grad()
def _try(subject: FolderClassifier, found: Examples) -> None:
    """One example through the module, so that what does not fit is said before any work."""
    if not len(found):
        return
    one = found.inputs[:1].to(subject.device)
    shape, classes = list(one.shape[1:]), subject.about.classes
    try:
        given = list(subject.module(one).shape)
    except (RuntimeError, ValueError, IndexError):
        raise ConfigurationError(
            f"The classifier does not take inputs of shape {shape}.",
            f"Correct shape or columns in {FILE}.",
        ) from None
    if given != [1, classes]:
        raise ConfigurationError(
            f"Of one input the classifier gives {given}, not logits of {classes} classes.",
            f"Correct classes in {FILE}.",
        )
