"""Checkpoints of a run: one file each, whole or absent, with all that the next step depends on.

No state of a generator is among it: every step seeds anew from (seed, step), as does the order of
the items, so that its number says all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data_index.storage import canonical_json
from sisa.errors import ConfigurationError

SUFFIX = ".progress.safetensors"


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        run: Digest of what the run is: its settings, method and items.
        step: Steps that are done, those without a labelled position included.
        tensors: Parameters, optimizer and controller, by name.
        values: Everything else that JSON can hold.
    """

    run: str
    step: int
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


def write(folder: Path, progress: Progress) -> None:
    """Write a checkpoint and, once it is durable, remove those before it.

    Args:
        folder: Is made.
        progress: The tensors may be on any device.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{progress.step:09d}{SUFFIX}"
    temporary = final.with_suffix(".tmp")
    tensors = {name: t.detach().cpu().contiguous() for name, t in progress.tensors.items()}
    head = {"run": progress.run, "step": progress.step, "values": dict(progress.values)}
    save_file(tensors, temporary, metadata={"progress": canonical_json(head).decode()})
    _sync(temporary)
    os.replace(temporary, final)
    _sync(folder)
    for other in _files(folder):
        if other != final:
            other.unlink()


def read(folder: Path, run: str) -> Progress | None:
    """Read the last checkpoint.

    Args:
        folder: Need not exist.
        run: Digest of what the run is.

    Returns:
        None if there is none.

    Raises:
        ConfigurationError: It is of another run, or cannot be read.
    """
    if not (files := _files(folder)):
        return None
    try:
        with safe_open(files[-1], "pt") as file:
            head = json.loads(file.metadata()["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise ConfigurationError(
            f"The checkpoint {files[-1]} cannot be read.", "Remove it to start again."
        ) from None
    if head["run"] != run:
        raise ConfigurationError(
            f"{folder} holds the checkpoint of another run: its settings, method, model or items"
            " differ.",
            "Choose another folder, or remove the checkpoint to start again.",
        )
    return Progress(run, head["step"], tensors, head["values"])


def last(folder: Path) -> Path | None:
    """The file of the last checkpoint, or None."""
    files = _files(folder)
    return files[-1] if files else None


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
