"""Make a workspace: look at the source and write a recipe that the user can read and change."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_index import sources
from data_index.schema import NUMBERS
from sisa import config, secrets
from sisa.config import Config
from sisa.errors import ConfigurationError, DataError, SisaError
from sisa.results import Initialised

MANY_CLASSES = 1000
"""A target with more distinct values is no classification."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user says about the data; None leaves it to the source or to the defaults."""

    data: tuple[Path, ...]
    record_id: str
    target: str
    subject_id: str | None = None
    task: str | None = None
    features: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    shards: int | None = None
    slices: int | None = None
    learner: str | None = None
    epochs: float | None = None


def create(
    folder: Path,
    choices: Choices,
    settings: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
) -> Config:
    """Write sisa.yaml and the keys into a folder; settings are put on top of the choices.

    Raises:
        ConfigurationError: The folder is a workspace already, cannot be written, or a choice does
            not fit.
        DataError: The source cannot be read or lacks a column.
    """
    if (folder / config.FILE).exists():
        raise ConfigurationError(f"{folder} is a workspace already.", "Choose another folder.")
    body = _body(folder, choices)
    config.overlay(body, settings)
    made = config.validate(body)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        secrets.make(folder, environment)
        # Last and whole, so that an interrupted attempt can be repeated.
        part = folder / f".{config.FILE}.part"
        part.write_text(config.dump(made), "utf-8")
        part.replace(folder / config.FILE)
    except OSError as error:
        raise ConfigurationError(
            f"{folder} cannot be written: {error.strerror}.", "Choose another folder."
        ) from None
    return made


def initialised(folder: Path, made: Config) -> Initialised:
    """What was written into a folder, as the command prints it."""
    recipe = made.recipe.data
    return Initialised(
        workspace=str(folder),
        task=recipe.task,
        target=recipe.target,
        classes=recipe.classes,
        features=recipe.features,
    )


def _body(folder: Path, choices: Choices) -> dict[str, Any]:
    files = sources.expand(list(choices.data))
    schema = sources.schema_of(files[0])
    named = [n for n in (choices.record_id, choices.subject_id, choices.target) if n is not None]
    wanted = [*named, *choices.features, *choices.drop]
    missing = [n for n in wanted if n not in schema.names]
    if missing:
        raise DataError(f"{files[0].name} lacks the column {missing[0]}.", "Check the names.")
    left_out = {*named, *choices.drop}
    features = choices.features or [n for n in schema.names if n not in left_out]
    task, classes = _target(files, schema, choices)
    data = {
        "record_id": choices.record_id,
        "subject_id": choices.subject_id,
        "target": choices.target,
        "task": task,
        "classes": classes,
        "features": {n: _declared(n, schema.field(n).type, files) for n in features},
    }
    recipe: dict[str, Any] = {
        "data": data,
        "partition": _given(shards=choices.shards, slices=choices.slices),
        "learner": _given(factory=choices.learner),
        "training": _given(epochs=choices.epochs),
    }
    return {"recipe": recipe, "runtime": {"sources": [_source(folder, p) for p in choices.data]}}


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _source(folder: Path, path: Path) -> str:
    """A path as sisa.yaml holds it: relative if it is below the workspace."""
    path, folder = path.absolute(), folder.absolute()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def _target(
    files: Sequence[Path], schema: pa.Schema, choices: Choices
) -> tuple[str, list[str | int]]:
    """The task, and the classes in their order."""
    kind = schema.field(choices.target).type
    task = choices.task or ("regression" if pa.types.is_floating(kind) else "classification")
    if task == "regression":
        return task, []
    parts = [_distinct(path, choices.target) for path in files]
    if len({p.type for p in parts}) > 1:
        raise DataError(
            f"Column {choices.target!r} is not of one type in all files.", "Write the files anew."
        )
    values = pc.unique(pa.chunked_array(parts)).drop_null()
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    if pa.types.is_floating(values.type):
        values = _whole(values, choices.target)
    if len(values) > MANY_CLASSES:
        raise DataError(
            f"Column {choices.target!r} has {len(values)} distinct values, too many for classes.",
            "Use --task regression, or another target.",
        )
    return task, sorted(values.to_pylist())


def _whole(values: pa.Array, target: str) -> pa.Array:
    try:
        return values.cast(pa.int64())
    except pa.ArrowInvalid:
        raise DataError(
            f"Column {target!r} has fractions, which are no classes.", "Use --task regression."
        ) from None


def _distinct(path: Path, column: str) -> pa.Array:
    found = list(sources.column(path, column))
    chunk = pa.chunked_array(found, sources.schema_of(path).field(column).type)
    if pa.types.is_dictionary(chunk.type):
        chunk = chunk.cast(chunk.type.value_type)
    if pa.types.is_large_string(chunk.type):
        chunk = chunk.cast(pa.string())
    return pc.unique(chunk)


def _declared(name: str, kind: pa.DataType, files: Sequence[Path]) -> str:
    """The feature type that a column is declared with.

    Raises:
        ConfigurationError: It cannot be a feature.
    """
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    if pa.types.is_fixed_size_list(kind):
        return f"{_number(name, kind.value_type)}[{kind.list_size}]"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        first = next(sources.column(files[0], name), None)
        lengths = pc.unique(pc.list_value_length(first)).to_pylist() if first is not None else []
        if len(lengths) != 1 or not lengths[0]:
            raise _unusable(name, "lists of different lengths")
        return f"{_number(name, kind.value_type)}[{lengths[0]}]"
    return _number(name, kind)


def _number(name: str, kind: pa.DataType) -> str:
    text = {"float": "float32", "double": "float64", "halffloat": "float32"}.get(
        str(kind), str(kind)
    )
    if text not in NUMBERS:
        raise _unusable(name, f"{kind} values")
    return text


def _unusable(name: str, what: str) -> SisaError:
    return ConfigurationError(
        f"Column {name!r} holds {what}, which cannot be a feature.", f"Leave it out: --drop {name}."
    )
