"""What a workspace stands on: its keys, and who else may read it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from sqlalchemy import make_url

from data_index.storage import Store
from sisa import secrets, signing_keys
from sisa.context import Context
from sisa.errors import ConfigurationError
from sisa.results import Finding
from sisa.signing_keys import SigningKeys


def keys(folder: Path, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Keys that others can read, a signing key that is missing or wrong, two secrets."""
    for name in (secrets.SECRET, signing_keys.PRIVATE):
        path = folder / name
        # Elsewhere the mode bits say nothing about who may read.
        if os.name == "posix" and path.is_file() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            yield Finding(
                severity="error",
                check="keys",
                message=f"{name} can be read or changed by others than its owner.",
                remedy=f"Run `chmod 600 {path}`; if others had access, make a new workspace.",
            )
        yield from _in_git(folder, name)
    try:
        SigningKeys.of(folder, environment).trusted()
        SigningKeys.of(folder, environment).signer()
    except ConfigurationError as error:
        yield Finding(severity="error", check="keys", message=error.message, remedy=error.remedy)
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
        folder = found.scratch()
        with suppress(FileNotFoundError):  # another one's purge has swept it
            folder.rmdir()
    except OSError as error:
        yield Finding(
            severity="error",
            check="store",
            message=f"The store {found.root} cannot be written: {error.strerror}.",
            remedy="Give the user who runs this write access, or change runtime.store.",
        )


def privacy(context: Context) -> Iterator[Finding]:
    """Rows and requests that everybody on the machine can reach and read."""
    database = make_url(context.config.runtime.ledger).database or ""
    places = {
        "runtime.store": Path(context.store.root),
        "runtime.ledger": context.folder / database,
    }
    for setting, path in places.items():
        if os.name == "posix" and path.exists() and _open_to_all(path.resolve()):
            yield Finding(
                severity="warning",
                check="privacy",
                message=f"Everybody on this machine can read {path}, of {setting}.",
                remedy=f"Run `chmod -R o-rwx {path}`, or close a folder above it.",
            )


def _open_to_all(path: Path) -> bool:
    """Whether others may read it, and pass through all folders on the way to it."""
    wanted = stat.S_IROTH | (stat.S_IXOTH if path.is_dir() else 0)
    on_the_way = all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)
    return on_the_way and path.stat().st_mode & wanted == wanted


def _in_git(folder: Path, name: str) -> Iterator[Finding]:
    """A key that git has, or would take with `git add .`."""
    git = shutil.which("git")
    inside = any((parent / ".git").exists() for parent in (folder, *folder.parents))
    if git is None or not inside or not (folder / name).is_file():
        return

    def asked(*words: str) -> bool:
        call = [git, "-C", str(folder), *words, name]
        return subprocess.run(call, capture_output=True, check=False).returncode == 0

    if asked("ls-files", "--error-unmatch"):
        yield Finding(
            severity="error",
            check="keys",
            message=f"{name} is under version control, and in every copy of the repository.",
            remedy="Take it out of the history, or make a new workspace: who has it can tell whose "
            "records are whose.",
        )
    elif not asked("check-ignore", "--quiet"):
        yield Finding(
            severity="warning",
            check="keys",
            message=f"{name} lies in a git work tree that does not ignore it.",
            remedy=f"Add {name} to .gitignore.",
        )
