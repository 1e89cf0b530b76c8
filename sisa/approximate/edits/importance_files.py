"""Importance as a safetensors file, so that it is measured once and serves without the data."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import get_args

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sisa.approximate.edits.importance import Importance, Kind
from sisa.errors import ExactnessError, NotFoundError

ABOUT = "importance"
"""The one metadata key: several would be written in an order that varies."""


def save(importance: Importance, path: Path) -> None:
    """Write a file, whole or not at all."""
    about = json.dumps({"count": importance.count, "kind": importance.kind}, sort_keys=True)
    values = {name: value.contiguous() for name, value in importance.values.items()}
    partial = path.with_name(f"{path.name}.partial")
    save_file(values, partial, metadata={ABOUT: about})
    os.replace(partial, path)


def load(path: Path, device: str = "cpu") -> Importance:
    """The inverse of `save`.

    Raises:
        NotFoundError: There is no such file.
        ExactnessError: It is no file of importance.
        DataError: A value is negative or not finite.
    """
    try:
        with safe_open(path, framework="pt", device=device) as file:
            about = json.loads((file.metadata() or {})[ABOUT])
            kind, count = about["kind"], int(about["count"])
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise NotFoundError(f"There is no file {path.name}.", "Measure importance first.") from None
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ExactnessError(f"{path.name} holds no importance: {error}.") from None
    if kind not in get_args(Kind):
        raise ExactnessError(f"{path.name} holds importance of an unknown kind.")
    return Importance(values, kind, count)
