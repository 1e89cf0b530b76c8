"""MLflow, a mirror of what is published, behind the ledger's outbox.

A generation is one run with a nested run a shard. Runs are found again by their tags, so that a
delivery that was cut off is continued and one that is repeated changes nothing. MLflow takes
seconds to import, so it is imported in functions only.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data_index.ledger import Ledger
from data_index.storage import Store
from sisa.config import Tracking
from sisa.errors import SisaError
from sisa.tracked import Sheet, sheets

ARTIFACTS = "mlartifacts"
PROBE = 2.0  # seconds in which a server must take a connection
BUDGET = 60.0  # seconds after which a call leaves what is not delivered to the next one
_IMPORTER = "mlflow-import"
_LOGGERS = ("mlflow", "alembic", "sqlalchemy.engine", "urllib3")
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nothing about a workspace goes to third parties
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}


def prefetch(section: Tracking) -> None:
    """Start importing MLflow in the background, unless there is no mirror."""
    if section.uri is not None:
        _set_environment()
        threading.Thread(target=_import, name=_IMPORTER, daemon=True).start()


def drain(
    section: Tracking, folder: Path, ledger: Ledger, store: Store, warn: Callable[[str], None]
) -> int:
    """Deliver the generations of the outbox, the oldest first; what fails waits there.

    Generations that are retired already, and all if there is no mirror, leave it undelivered.

    Args:
        section: Where the mirror is.
        folder: The workspace; relative SQLite files and artefacts are below it.
        ledger: Its outbox.
        store: Manifests and the stage log.
        warn: Called with one sentence if something could not be delivered.

    Returns:
        How many were delivered.

    Raises:
        BusyError: Others held the ledger too long.
    """
    waiting = set(ledger.outbox())
    entries = [e for e in ledger.generations() if e.number in waiting and e.manifest]
    live = entries if section.uri else []
    if dropped := waiting - {e.number for e in live}:
        ledger.delivered(sorted(dropped))
    if not live:
        return 0
    done = 0
    try:
        _probe(str(section.uri))
        with _mlflow() as mlflow:
            mirror = _mirror(mlflow, section, folder)
            for entry in live:
                mirror.deliver(sheets(entry, store))
                ledger.delivered([entry.number])
                done += 1
    except Exception as error:  # a mirror that is down stops nothing, whatever it raises
        warn(_complaint(str(section.uri), error, len(live) - done))
    return done


def _complaint(uri: str, error: Exception, left: int) -> str:
    what = "cannot be reached" if isinstance(error, OSError) else "cannot be brought up to date"
    message = error.message if isinstance(error, SisaError) else str(error)
    reason = (message.strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]
    wait = f"{left} generation{' waits' if left == 1 else 's wait'} in the outbox"
    text = f"MLflow at {uri} {what} ({reason}); {wait}."
    return re.sub(r"//[^/@\s]*@", "//", text)  # user and password


def _probe(uri: str) -> None:
    """Raise OSError at once where nothing listens; MLflow would wait and try again."""
    at = urlsplit(uri)
    if at.scheme not in ("http", "https") or at.hostname is None:
        return
    if at.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(at.hostname):
        return  # only the proxy can tell
    port = at.port or (443 if at.scheme == "https" else 80)
    socket.create_connection((at.hostname, port), timeout=PROBE).close()


def _set_environment() -> None:
    """Choose what the user has not; for good, as other threads may be reading the environment."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _import() -> None:
    with suppress(Exception):  # it fails again where it is needed
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


@contextmanager
def _mlflow() -> Iterator[Any]:
    """MLflow, which neither logs nor warns meanwhile."""
    _set_environment()
    for thread in threading.enumerate():
        if thread.name == _IMPORTER:  # two threads in a cycle of imports may see half a module
            thread.join()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow

        levels = {name: logging.getLogger(name).level for name in _LOGGERS}
        try:
            for name in levels:
                logging.getLogger(name).setLevel(logging.CRITICAL + 1)
            yield mlflow
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def _mirror(mlflow: Any, section: Tracking, folder: Path) -> _Mirror:
    """Open the experiment, whose relative SQLite file and own artefacts are in the folder."""
    uri = str(section.uri)
    if uri.startswith("sqlite:///"):
        uri = f"sqlite:///{(folder / uri.removeprefix('sqlite:///')).absolute()}"
    client = mlflow.MlflowClient(uri)
    found = client.get_experiment_by_name(section.experiment)
    remote = uri.startswith(("http", "databricks"))  # a server decides where artefacts go
    own = None if remote else (folder / ARTIFACTS).absolute().as_uri()
    experiment = found.experiment_id if found else client.create_experiment(section.experiment, own)
    return _Mirror(mlflow.entities, client, experiment, time.monotonic() + BUDGET)


@dataclass(frozen=True, slots=True)
class _Mirror:
    """One experiment. A run that is no longer RUNNING is complete."""

    entities: Any
    client: Any
    experiment: str
    deadline: float

    def deliver(self, told: tuple[Sheet, list[Sheet]]) -> None:
        """Log a generation, or what is missing of it; its own run is complete at last."""
        parent, children = told
        where = " and ".join(f"tags.`{name}` = '{text}'" for name, text in parent.identity.items())
        run = next(self._search(where), None) or self._create(parent, {})
        if run.info.status != "RUNNING":
            return
        link = {"mlflow.parentRunId": run.info.run_id}
        nested = self._search(f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
        known = {found.info.run_name: found for found in nested}
        for child in children:
            if time.monotonic() > self.deadline:
                raise TimeoutError(f"it takes more than {BUDGET:.0f} s")
            own = known.get(child.name) or self._create(child, link)
            if own.info.status == "RUNNING":
                self._fill(own, child)
        self._fill(run, parent)

    def _search(self, where: str) -> Iterator[Any]:
        token: str | None = ""
        while token is not None:
            page = self.client.search_runs([self.experiment], where, page_token=token or None)
            yield from page
            token = page.token or None

    def _create(self, sheet: Sheet, link: dict[str, str]) -> Any:
        tags = sheet.identity | link
        return self.client.create_run(self.experiment, sheet.time, tags, sheet.name)

    def _fill(self, run: Any, sheet: Sheet) -> None:
        """All at the time of publication: a metric logged again is the same one."""
        points = [self.entities.Metric(n, value, sheet.time, at) for n, value, at in sheet.metrics]
        params = [self.entities.Param(name, text) for name, text in sheet.params.items()]
        tags = [self.entities.RunTag(name, text) for name, text in sheet.tags.items()]
        self.client.log_batch(run.info.run_id, points, params, tags)  # it cuts batches itself
        self.client.set_terminated(run.info.run_id, sheet.status, sheet.time)
