"""A generation as the folder of an MLflow model: checkpoints, signature, example, requirements."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
import pyarrow as pa
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Schema

from data_index import casting
from data_index.schema import Columns, Feature
from data_index.storage import Store, canonical_json
from sisa import learners
from sisa.config import Data
from sisa.errors import ConfigurationError
from sisa.served import Served

NAME = "ensemble"
OWN = "sisa-unlearning"
LIBRARIES = ("mlflow", "numpy", "pandas", "pyarrow", "pydantic", "safetensors", "torch")
"""What decides the bits of a prediction, or whether the model can be read at all."""


@contextmanager
def written(
    served: Served, store: Store, import_paths: Sequence[str], scratch: Path
) -> Iterator[Path]:
    """The folder of a model, for as long as the context lasts.

    Args:
        served: What to write.
        store: Holds its checkpoints.
        import_paths: Where user modules are found.
        scratch: A folder of its own, for MLflow's temporary files too; what a killed delivery left
            there is removed first. Not in the store, which a purge may empty at the same time.

    Raises:
        ExactnessError: A checkpoint is missing or damaged.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700, parents=True)
    before, tempfile.tempdir = tempfile.tempdir, str(scratch)
    try:
        _write(scratch, served, store, import_paths)
        yield scratch / "model"
    finally:
        tempfile.tempdir = before
        shutil.rmtree(scratch)


def _write(scratch: Path, served: Served, store: Store, import_paths: Sequence[str]) -> None:
    parts = scratch / NAME
    for vote in served.votes:
        file = parts / vote.file.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(store.read(vote.file))
    parts.mkdir(exist_ok=True)
    (parts / "ensemble.json").write_bytes(canonical_json(served.to_json()))
    code, installed = _user_code(served.recipe.learner.factory, import_paths)
    model, data = Model(), served.recipe.data
    mlflow.pyfunc.save_model(
        path=str(scratch / "model"),
        python_model=str(Path(__file__).with_name("pyfunc.py")),
        artifacts={NAME: str(parts)},
        signature=signature(data),
        input_example=example(data),
        pip_requirements=[*_requirements(), *installed],
        code_paths=code or None,
        metadata={"sisa.features": dict(data.features)},
        mlflow_model=model,
    )
    flavour = model.flavors["python_function"]  # tells paths of this machine: only names may stay
    flavour["artifacts"][NAME]["uri"] = NAME
    flavour["model_code_path"] = "pyfunc.py"
    model.save(str(scratch / "model" / "MLmodel"))


def signature(data: Data) -> Any:
    """Inputs as the recipe declares them, outputs as `sisa predict` gives them.

    Integers and truth values are of any type to MLflow, because its own types for them know no
    null; they are cast and checked as in `sisa predict`, and the metadata says what is declared.
    """
    columns = data.columns()
    inputs = [ColSpec(_type(f), f.name) for f in columns.features]
    return ModelSignature(Schema(inputs), Schema(_outputs(columns)))


def _type(feature: Feature) -> Any:
    if feature.kind == "text":
        return DataType.string
    if feature.element.startswith("float"):
        element = DataType.double
    elif feature.kind == "array" and feature.element != "uint64":
        element = DataType.long
    else:
        return AnyType()
    return Array(element) if feature.kind == "array" else element


def _outputs(columns: Columns) -> list[Any]:
    if columns.classes is None:
        return [ColSpec(DataType.double, "prediction")]
    text = pa.types.is_string(casting.class_type(columns.classes))
    label = ColSpec(DataType.string if text else DataType.long, "prediction")
    return [label, *(ColSpec(DataType.double, f"probability_{c}") for c in columns.classes)]


def example(data: Data) -> pd.DataFrame:
    """One row that the recipe alone gives: zeros, and the first declared value of each text."""
    return pd.DataFrame({f.name: [_zero(f, data)] for f in data.columns().features})


def _zero(feature: Feature, data: Data) -> Any:
    if feature.kind == "text":
        return next(iter(data.categories.get(feature.name, ())), "")
    zero = feature.dtype.type(0).item()
    return [zero] * feature.size if feature.kind == "array" else zero


def _requirements() -> list[str]:
    """Pinned to what runs here; a local build such as +cpu is the reader's own choice."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in (OWN, *LIBRARIES)]


def _user_code(factory: str, import_paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files of a user's learner to take along, or the distribution to require instead.

    Code that is gone or was changed since is noticed when the model is loaded, by its digest.
    """
    before = [*sys.path]
    learners.find_in(import_paths)
    try:
        code = learners.code_digest(factory)
        files = [] if not code or "==" in code else [str(learners.code_place(factory))]
    except ConfigurationError:
        return [], []
    finally:
        sys.path[:] = before  # nothing of MLflow's may be taken from there
    return files, [code] if "==" in code else []
