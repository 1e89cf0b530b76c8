"""What a workspace stands on: its keys, its store, where shards are trained, its learner."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from data_index.storage import Store
from sisa import learners, secrets
from sisa.config import ExecutorSection, Recipe
from sisa.context import Context
from sisa.results import Finding

NEAR = ("local", "auto")
"""Addresses of a Ray on this machine."""


def keys(folder: Path, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Keys that others can read, a missing signing key, two secrets."""
    for name in (secrets.SECRET, secrets.SIGNING):
        path = folder / name
        # Elsewhere the mode bits say nothing about who may read.
        if os.name == "posix" and path.is_file() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            yield Finding(
                severity="error",
                check="keys",
                message=f"{name} can be read or changed by others than its owner.",
                remedy=f"Run `chmod 600 {path}`; if others had access, make a new workspace.",
            )
    if not (folder / secrets.SIGNING).is_file():
        yield Finding(
            severity="error",
            check="keys",
            message=f"The workspace has no {secrets.SIGNING}, which is to sign certificates.",
            remedy="Restore it from a backup.",
        )
    if secrets.VARIABLE in environment and (folder / secrets.SECRET).exists():
        yield Finding(
            severity="warning",
            check="keys",
            message=f"{secrets.VARIABLE} is set and outranks {secrets.SECRET}, which is there too.",
            remedy="Keep one of them: another secret places every record elsewhere.",
        )


def store(found: Store) -> Iterator[Finding]:
    """A store that cannot be written; only writing shows it."""
    try:
        found.scratch().rmdir()
    except OSError as error:
        yield Finding(
            severity="error",
            check="store",
            message=f"The store {found.root} cannot be written: {error.strerror}.",
            remedy="Give the user who runs this write access, or change runtime.store.",
        )


def executor(section: ExecutorSection, found: Store) -> Iterator[Finding]:
    """Ray that is not there, or whose workers may not see the store."""
    if section.kind != "ray":
        return
    if find_spec("ray") is None:
        yield Finding(
            severity="error",
            check="executor",
            message="runtime.executor.kind is ray, and Ray is not installed.",
            remedy="Install ray, or set runtime.executor.kind to process.",
        )
    if section.address is not None and section.address not in NEAR:
        yield Finding(
            severity="info",
            check="executor",
            message=f"Whether the workers of the Ray at {section.address} see the store "
            f"{found.root} cannot be judged from here.",
            remedy="Put the store on a file system that every node mounts at the same path.",
        )


def learner(context: Context) -> Iterator[Finding]:
    """A learner that cannot be made, or cannot train with the smallest batch.

    Raises:
        ConfigurationError: The learner says itself what does not fit.
    """
    recipe = context.config.recipe
    if _lone_batch(recipe):
        yield Finding(
            severity="error",
            check="learner",
            message="batch_norm cannot train on a batch of one record, which "
            "recipe.training.min_batch allows.",
            remedy="Set recipe.training.min_batch to 2 or more.",
        )
        return
    context.find_user_modules()
    learners.load(recipe).init(0)


def _lone_batch(recipe: Recipe) -> bool:
    return bool(recipe.learner.params.get("batch_norm")) and recipe.training.min_batch < 2
