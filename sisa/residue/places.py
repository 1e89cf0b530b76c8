"""Where a scan looks: every place that the system writes to, and on request the user's files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import sqlalchemy as sa

from sisa import ray_folders
from sisa.context import Context

WORKSPACE = ("mlartifacts", "mlruns", "outgoing", "tmp")
"""What the system makes in a workspace, besides store and databases."""

BESIDE = ("", "-wal", "-shm", "-journal")
"""What SQLite keeps beside a database."""


@dataclass(frozen=True, slots=True)
class Place:
    """A file or a folder that is searched with all below it.

    Attributes:
        name: How it is called in the report.
        path: Where it is; it need not exist.
        ledger: Whether it is the ledger, which holds the keys of open requests.
        database: Whether SQLite may have it open in this process.
        own: Whether the system made it; the user's files are told apart.
    """

    name: str
    path: Path
    ledger: bool = False
    own: bool = True
    database: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """A file to search: its name in the report, where it is, and the place that it is in."""

    name: str
    path: str
    place: Place


def places(context: Context, whole: bool) -> tuple[Place, ...]:
    """Where to look.

    Args:
        context: The workspace.
        whole: Also look at files in the workspace that the system did not make.
    """
    folder = context.folder.absolute()
    databases = [(_database(context.config.runtime.ledger, folder), True)]
    tracking = context.config.runtime.tracking.uri
    kept: list[Path] = []
    if tracking and tracking.startswith("sqlite"):
        databases.append((_database(tracking, folder), False))
    elif tracking and urlsplit(tracking).scheme in ("", "file"):
        kept.append(folder / url2pathname(urlsplit(tracking).path))
    files = [
        Place(_label(folder, path), Path(f"{path}{suffix}"), ledger, database=True)
        for path, ledger in databases
        if path is not None
        for suffix in BESIDE
    ]
    kept += [folder / name for name in WORKSPACE]
    own = [Place(_label(folder, path), path) for path in kept]
    ray = [Place("ray", path) for path in ray_folders.there(folder)]
    rest = [Place("workspace", folder, own=False)] if whole else []
    return (*files, Place("store", context.store.root), *own, *ray, *rest)


def walk(searched: tuple[Place, ...], skip: Path) -> Iterator[Found]:
    """All regular files of some places, each once; links are not followed.

    Args:
        searched: The places; a file in several of them belongs to the first.
        skip: A folder to leave out.
    """
    seen = {str(skip)}
    for place in searched:
        top = str(place.path)
        for path in _files(top, seen):
            seen.add(path)
            suffix = path.removeprefix(top).strip(os.sep)
            if path == top and place.path.name not in place.name:
                suffix = place.path.name
            yield Found(f"{place.name}/{suffix}".rstrip("/"), path, place)
        seen.add(top)


def _files(top: str, seen: set[str]) -> Iterator[str]:
    """Paths of regular files; plain texts, for there are many."""
    if os.path.isfile(top) and not os.path.islink(top):
        yield from () if top in seen else (top,)
    for folder, folders, names in os.walk(top):
        folders[:] = sorted(f for f in folders if os.path.join(folder, f) not in seen)
        for name in sorted(names):
            path = os.path.join(folder, name)
            if path not in seen and stat.S_ISREG(_mode(path)):
                yield path


def _mode(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:  # gone since it was listed
        return 0


def _database(url: str, folder: Path) -> Path | None:
    """The file of a SQLite database, None for one elsewhere or in memory."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return None
    return None if parsed.database == ":memory:" else folder / parsed.database


def _label(folder: Path, path: Path) -> str:
    inside = path.is_relative_to(folder)
    return f"workspace/{path.relative_to(folder).as_posix()}" if inside else path.name
