"""Temporary folders of a workspace's own Ray: sockets, logs and spilled objects.

A folder is in use as long as somebody holds its lock; killed processes leave theirs behind.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

LOCK = "lock"


def prefix(folder: Path) -> str:
    """How the names of a workspace's folders begin."""
    return f"sisa-{hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:6]}-"


def there(folder: Path) -> list[Path]:
    """Those of a workspace that exist."""
    bases = {Path(tempfile.gettempdir()), Path("/tmp")}  # noqa: S108 - where a Ray may have them
    return sorted(path for base in bases for path in base.glob(f"{prefix(folder)}*"))


def sweep(folder: Path) -> int:
    """Remove those of a workspace that nobody uses. Returns how many files went."""
    return sum(map(_remove_if_abandoned, there(folder)))


def _remove_if_abandoned(folder: Path) -> int:
    try:
        handle = os.open(folder / LOCK, os.O_RDWR)
    except OSError:  # somebody else's, or just being made
        return 0
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        count = sum(1 for path in folder.rglob("*") if not path.is_dir())
        shutil.rmtree(folder, ignore_errors=True)
        return count
    except BlockingIOError:
        return 0
    finally:
        os.close(handle)
