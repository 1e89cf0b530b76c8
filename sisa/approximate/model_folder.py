"""A model folder that appears whole or not at all, and never in the place of another one."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sisa.errors import BusyError, UsageError


def refuse_existing(out: Path) -> None:
    """Raise if there is anything in the place of a new folder.

    Raises:
        UsageError: There is.
    """
    if os.path.lexists(out):
        raise UsageError(f"{out} is there already.", "Name a folder that is not there yet.")


@contextmanager
def written(out: Path, scratch: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` durably when the block ends without an error.

    Args:
        out: The folder to be.
        scratch: On the same file system; what a former attempt left there is replaced.

    Raises:
        UsageError: `out` is there already.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        for path in sorted(scratch.rglob("*")):
            _sync(path)
        _sync(scratch)
        refuse_existing(out)
        scratch.rename(out)
        _sync(out.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def own(folder: Path) -> Iterator[Path]:
    """A working folder of one process at a time; it stays when the block ends with an error, if
    there is anything in it.

    Raises:
        BusyError: Another process works in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BusyError("Another process does the same at this moment.", "Wait.") from None
        try:
            yield folder
        except BaseException:
            if [*folder.iterdir()] == [folder / "lock"]:  # nothing that could be gone on from
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
