"""Classifiers as model folders: how the module is made, what its inputs are, and its weights.

`classifier.json` names a factory, as a recipe does for a learner of its own, and the columns that
examples are read from; `model.safetensors` lies beside it. To load a folder is to run its factory.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from sisa.approximate.models import Classifier
from sisa.errors import ConfigurationError, NotFoundError
from sisa.learners.user_code import NEUTRAL, code_place, find_in, reason, resolve

FILE, WEIGHTS = "classifier.json", "model.safetensors"

REMEDY = f"Correct {FILE}, or put the module into the model folder or the current one."


class Columns(BaseModel):
    """Where an example is read from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: str | Annotated[tuple[str, ...], Field(min_length=1)]
    """A column of arrays of one size, or several columns of numbers."""

    label: str = "label"
    """A column of classes, from 0."""

    id: str | None = None
    """A column of what names an example; without one its content does."""


class About(BaseModel):
    """What `classifier.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    factory: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]
    """`package.module:function`, which makes the module."""

    params: dict[str, Any] = {}
    """What it is called with."""

    columns: Columns
    """Where an example is read from."""

    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Inputs are divided by it."""

    shape: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Of one input; none: [d], as many numbers as there are."""

    classes: Annotated[int, Field(ge=2)]
    """How many there are."""


class FolderClassifier(Classifier):
    """A classifier that can be put into a folder, and read again from there.

    Args:
        module: What the factory makes; it is put into evaluation mode, in place.
        about: How it is made, and what its inputs are.
        code: File or folder of the factory's module, if that lies in the model folder.
    """

    def __init__(self, module: nn.Module, about: About, code: Path | None = None) -> None:
        super().__init__(module)
        self.about, self.code = about, code


def is_one(folder: Path) -> bool:
    """Whether a folder is that of a classifier."""
    return (folder / FILE).is_file()


def load(folder: Path, dtype: str = "float32", device: str = "cpu") -> FolderClassifier:
    """Make the module by its factory, and give it its weights.

    The factory is looked for in the model folder first, then in the current one, then where Python
    looks.

    Args:
        folder: With `classifier.json` and `model.safetensors`.
        dtype: Of the parameters in memory.
        device: Where they shall be.

    Raises:
        NotFoundError: One of the two is not there.
        ConfigurationError: One of them cannot be read, or the factory cannot be found or called,
            or makes another module than the weights are of.
    """
    about = _about(folder / FILE)
    module, place = _made(about, folder)
    if not (folder / WEIGHTS).is_file():
        raise NotFoundError(f"There is no file {folder / WEIGHTS}.", "Save the model beside it.")
    try:
        load_model(module, str(folder / WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        raise ConfigurationError(
            f"{WEIGHTS} does not hold the weights of what {about.factory} makes: {reason(error)}.",
            f"Correct params in {FILE}, or save the model again.",
        ) from None
    inside = place is not None and place.resolve().is_relative_to(folder.resolve())
    ready = module.to(device=device, dtype=getattr(torch, dtype))
    return FolderClassifier(ready, about, place if inside else None)


def save(subject: FolderClassifier, folder: Path) -> None:
    """Write a model folder, with the factory's module where that lay in a model folder too.

    Args:
        subject: The classifier.
        folder: Is made; files of the same names are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_model(subject.module, str(folder / WEIGHTS))
    told = subject.about.model_dump_json(indent=1)
    (folder / FILE).write_text(told + "\n", "utf-8")
    if subject.code is None:
        return
    target = folder / subject.code.name
    if subject.code.is_dir():
        leave = shutil.ignore_patterns("__pycache__")
        shutil.copytree(subject.code, target, dirs_exist_ok=True, ignore=leave)
    elif subject.code.resolve() != target.resolve():
        shutil.copyfile(subject.code, target)


def _about(file: Path) -> About:
    if not file.is_file():
        raise NotFoundError(f"There is no file {file}.")
    try:
        return About.model_validate_json(file.read_bytes())
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or FILE}: {e['msg']}" for e in error.errors()
        )
        raise ConfigurationError(f"{FILE} is wrong: {wrong}.", "Correct it.") from None


def _made(about: About, folder: Path) -> tuple[nn.Module, Path | None]:
    """The module, and the place of the code that makes it."""
    with _importable(folder):
        try:
            factory = resolve(about.factory)
            own = about.factory.partition(":")[0].partition(".")[0] not in NEUTRAL
            place = code_place(about.factory) if own else None
        except ConfigurationError as error:
            raise ConfigurationError(error.message, REMEDY) from None
        try:
            module = factory(**about.params)
        except Exception as error:  # it is the user's code
            raise ConfigurationError(
                f"The factory {about.factory} fails: {reason(error)}.", f"Correct params in {FILE}."
            ) from error
    if not isinstance(module, nn.Module) or next(module.parameters(), None) is None:
        raise ConfigurationError(
            f"The factory {about.factory} makes no module with parameters.", REMEDY
        )
    return module, place


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """While it is open, modules of the folder and of the current one are found first.

    No bytecode is written: it would lie in the model folder, whose digest names the model.
    """
    path, writes = list(sys.path), sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    find_in([str(folder.resolve()), os.getcwd()])
    try:
        yield
    finally:
        sys.path[:], sys.dont_write_bytecode = path, writes
