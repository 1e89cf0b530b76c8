"""How much of what MLflow holds an erasure can reach: by the kind of place that it is in."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal
from urllib.parse import urlencode, urlsplit

from sisa.config import Tracking
from sisa.results import Finding, Severity

Mirror = Literal["none", "local", "database", "folder", "server"]

PATIENCE = 2.0
"""Seconds in which a server must have answered, names looked up and all."""

NEARBY = ("", "file")
"""Schemes of places on this machine's file systems."""


def kind(section: Tracking) -> Mirror:
    """What kind of place the mirror is in.

    Returns:
        `none` without a mirror, `local` for a SQLite file and `database` for another one, whose
        rows a purge drops, `folder` for MLflow's own files, `server` for what a client speaks to.
    """
    if section.uri is None:
        return "none"
    scheme = urlsplit(section.uri).scheme
    if scheme in NEARBY:
        return "folder"
    if scheme.startswith("sqlite"):
        return "local"
    return "server" if scheme in ("http", "https") or "databricks" in section.uri else "database"


def findings(section: Tracking, folder: Path) -> Iterator[Finding]:
    """What of the mirror a purge does not reach; waits for no server longer than `PATIENCE`.

    Args:
        section: Where the mirror is.
        folder: The workspace; relative SQLite files and artefacts are below it.
    """
    place, uri = kind(section), section.uri or ""
    if place == "database":
        yield _finding(
            "info",
            f"MLflow's rows are in the database {_shown(uri)}: a purge drops them, and they stay "
            "in its logs and backups until these expire.",
            "Keep backups for less time than a request is due.",
        )
    elif place in ("server", "folder"):
        what = "a server: no client can drop its rows" if place == "server" else "a folder"
        yield _finding(
            "warning",
            f"MLflow at {_shown(uri)} is {what}, so that digests, counts, aggregate metrics and "
            "hyperparameters of retired generations stay there. Their artefacts are destroyed.",
            "Name a database in runtime.tracking.uri, set that to null, or accept it.",
        )
    location = _location(section, folder)
    if location is not None:
        yield from _artefacts(location, folder)
    elif place == "server":
        yield _finding(
            "info",
            f"MLflow at {_shown(uri)} did not say within {PATIENCE:.0f} s where it keeps artefacts "
            f"of the experiment {section.experiment!r}.",
            "Look at it: what keeps older versions of files keeps them after a purge.",
        )


def _artefacts(location: str, folder: Path) -> Iterator[Finding]:
    """Artefacts that do not lie in the workspace."""
    at = urlsplit(location)
    if at.scheme in NEARBY and Path(at.path).is_relative_to(folder.absolute()):
        return
    risk = (
        "a folder of that name may be another one on another machine"
        if at.scheme in NEARBY
        else "what keeps older versions of files keeps them, a bucket behind delete markers"
    )
    yield _finding(
        "warning",
        f"MLflow keeps artefacts at {_shown(location)}, outside of the workspace. A purge deletes "
        f"and lists them through MLflow; {risk}.",
        "Keep no versions there, or name another experiment in runtime.tracking.experiment.",
    )


def _location(section: Tracking, folder: Path) -> str | None:
    """Where the experiment's artefacts go; None if that is not known, or there is none yet."""
    uri = section.uri or ""
    scheme = urlsplit(uri).scheme
    if scheme == "sqlite":
        return _local_location(folder / uri.removeprefix("sqlite:///"), section.experiment)
    if scheme in ("http", "https"):
        return _asked_location(uri, section.experiment)
    return None


def _local_location(database: Path, experiment: str) -> str | None:
    if not database.is_file():
        return None
    wanted = "SELECT artifact_location FROM experiments WHERE name = ?"
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as found:
            row = found.execute(wanted, (experiment,)).fetchone()
    except sqlite3.Error:
        return None
    return str(row[0]) if row else None


def _asked_location(uri: str, experiment: str) -> str | None:
    """What a server answers in time."""
    query = urlencode({"experiment_name": experiment})
    url = f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/get-by-name?{query}"
    heard: list[str] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:  # noqa: S310 - http(s)
                heard.append(json.load(answer)["experiment"]["artifact_location"])
        except (OSError, ValueError, KeyError, TypeError):
            return

    # In a thread: looking a name up knows no timeout.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return str(heard[0]) if heard else None


def _shown(uri: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", uri)  # user and password


def _finding(severity: Severity, message: str, remedy: str) -> Finding:
    return Finding(severity=severity, check="mirror", message=message, remedy=remedy)
