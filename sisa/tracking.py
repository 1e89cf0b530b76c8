"""MLflow, a mirror of what is published, behind the ledger's outbox.

A generation is one run with a nested run a shard, and one version of the registered model. All are
found again by their tags, so that a delivery that was cut off is continued and one that is repeated
changes nothing. The ledger knows of each delivery before it begins, so that a purge misses none.
MLflow takes seconds to import, so it is imported in functions only.
"""

from __future__ import annotations

import importlib
import re
import socket
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data_index.ledger import GenerationEntry, Ledger
from data_index.mirrored import MirrorPlace
from data_index.storage import Store
from sisa.config import Tracking
from sisa.errors import SisaError
from sisa.generation import Generation
from sisa.served import Served
from sisa.tracked import Sheet, sheets

ARTIFACTS = "mlartifacts"
OUTGOING = "outgoing"
"""Folder of the workspace where a model lies while it is uploaded."""
PROBE = 2.0  # seconds in which a server must take a connection
CHAMPION = "champion"
MODEL = "model"
"""Folder of a version's files among the artefacts of its run."""


def load() -> Any:
    """Import MLflow, with what a delivery needs of it."""
    importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
    importlib.import_module("sisa.mlflow_model")
    return importlib.import_module("mlflow")


@dataclass(frozen=True)
class Source:
    """What is mirrored: one workspace, without its secret.

    Attributes:
        folder: The workspace; relative SQLite files and artefacts are below it.
        ledger: Its outbox.
        store: Manifests, checkpoints and the stage log.
        quorum: Share of shards that must vote before a model predicts.
        import_paths: Where user modules are found.
    """

    folder: Path
    ledger: Ledger
    store: Store
    quorum: float
    import_paths: Sequence[str] = ()

    def next(self) -> GenerationEntry | None:
        """The oldest generation in the outbox; those that are retired already leave it."""
        waiting = set(self.ledger.outbox())
        entries = [e for e in self.ledger.generations() if e.number in waiting]
        live = [e for e in entries if e.manifest]
        if dropped := waiting - {e.number for e in live}:
            self.ledger.delivered(sorted(dropped))
        return live[0] if live else None


def drain(
    section: Tracking,
    source: Source,
    warn: Callable[[str], None],
    loaded: Callable[[], Any] = load,
) -> int:
    """Deliver the generations of the outbox, the oldest first; what fails waits there.

    Args:
        section: Where the mirror is; without one, nothing waits for it.
        source: What is mirrored.
        warn: Called with one sentence if something could not be delivered.
        loaded: Gives MLflow.

    Returns:
        How many were delivered.

    Raises:
        BusyError: Others held the ledger too long.
    """
    if section.uri is None:
        source.ledger.delivered(source.ledger.outbox())
        return 0
    done, mirror = 0, None
    while entry := source.next():
        try:
            if mirror is None:
                probe(section.uri)
                mirror = _mirror(loaded(), section, source)
            mirror.deliver(entry)
        except Exception as error:  # a mirror that is down stops nothing, whatever it raises
            if _retired(source, entry):
                continue
            warn(complaint(section.uri, error, len(source.ledger.outbox())))
            return done
        source.ledger.delivered([entry.number])
        done += 1
    return done


def _retired(source: Source, entry: GenerationEntry) -> bool:
    """Whether a generation was retired, and its files with it, while it was delivered."""
    with source.ledger.write():  # a purge deletes before it commits: it must be through
        pass
    return all(e.manifest is None for e in source.ledger.generations() if e.number == entry.number)


def complaint(uri: str, error: Exception, left: int) -> str:
    """What to tell of a delivery that failed, in one sentence and without a password."""
    wait = f"{left} generation{' waits' if left == 1 else 's wait'} in the outbox"
    return f"{why(uri, error)}; {wait}."


def why(uri: str, error: Exception, attempt: str = "brought up to date") -> str:
    """What went wrong with a mirror, without a password and a full stop."""
    what = "cannot be reached" if isinstance(error, OSError) else f"cannot be {attempt}"
    message = error.message if isinstance(error, SisaError) else str(error)
    reason = (message.strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]
    text = f"MLflow at {uri} {what} ({reason})"
    return re.sub(r"//[^/@\s]*@", "//", text)  # user and password


def probe(uri: str) -> None:
    """Raise OSError at once where nothing listens; MLflow would wait and try again."""
    at = urlsplit(uri)
    if at.scheme not in ("http", "https") or at.hostname is None:
        return
    if at.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(at.hostname):
        return  # only the proxy can tell
    port = at.port or (443 if at.scheme == "https" else 80)
    socket.create_connection((at.hostname, port), timeout=PROBE).close()


def connect(mlflow: Any, uri: str, folder: Path) -> Any:
    """A client; a relative SQLite file is in the folder."""
    if uri.startswith("sqlite:///"):
        uri = f"sqlite:///{(folder / uri.removeprefix('sqlite:///')).absolute()}"
    return mlflow.MlflowClient(uri)


def own_artefacts(folder: Path) -> str:
    """Where artefacts of an own experiment go."""
    return (folder / ARTIFACTS).absolute().as_uri()


def shown(uri: str) -> str:
    """A URI without its password; what follows may be kept and told."""
    return re.sub(r"//([^:/@\s]*):[^/@\s]*@", r"//\1@", uri)


def _mirror(mlflow: Any, section: Tracking, source: Source) -> _Mirror:
    """Open the experiment, whose own artefacts are in the folder unless a server decides."""
    client = connect(mlflow, str(section.uri), source.folder)
    found = client.get_experiment_by_name(section.experiment)
    if found is None:
        remote = client.tracking_uri.startswith(("http", "databricks"))
        own = None if remote else own_artefacts(source.folder)
        found = client.get_experiment(client.create_experiment(section.experiment, own))
    place = MirrorPlace(shown(str(section.uri)), section.experiment, section.model)
    return _Mirror(mlflow.entities, client, found, place, source, source.ledger.mirror.mark())


@dataclass(frozen=True, slots=True)
class _Mirror:
    """One experiment and one registered model. A run that is no longer RUNNING is complete."""

    entities: Any
    client: Any
    experiment: Any
    place: MirrorPlace
    source: Source
    mark: str

    def deliver(self, entry: GenerationEntry) -> None:
        """Log a generation, or what is missing of it; its own run is complete at last.

        The model comes first, so that a roll-back is served as soon as may be.
        """
        if entry.manifest is None:
            raise ValueError("a retired generation cannot be delivered")
        generation = Generation.load(self.source.store, entry.manifest)
        parent, children = sheets(entry, generation, self.source.store, self.mark)
        known = self.source.ledger.mirror
        known.intend(entry.number, self.place, self._location())
        where = " and ".join(f"tags.`{name}` = '{text}'" for name, text in parent.identity.items())
        run = next(self._search(where), None) or self._create(parent, {})
        known.note(entry.number, self.place, run=run.info.run_id)
        if run.info.status != "RUNNING":
            return
        self._serve(run, parent, Served.of(entry.number, generation, self.source.quorum))
        self._name_data(run, entry.dataset)
        link = {"mlflow.parentRunId": run.info.run_id}
        nested = self._search(f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
        shards = {found.info.run_name: found for found in nested}
        for child in children:
            own = shards.get(child.name) or self._create(child, link)
            if own.info.status == "RUNNING":
                self._fill(own, child)
        self._fill(run, parent)

    def _location(self) -> str:
        """Where artefacts go; relative if that is the workspace, which may be moved or copied."""
        location = str(self.experiment.artifact_location)
        return ARTIFACTS if location == own_artefacts(self.source.folder) else location

    def _serve(self, run: Any, sheet: Sheet, served: Served) -> None:
        """Make a generation the champion, unless a later one is."""
        champion = self._champion()
        version = self._version(run) or self._register(run, sheet, served)
        self.source.ledger.mirror.note(served.number, self.place, version=version)
        if champion is None or champion < served.number:
            self.client.set_registered_model_alias(self.place.model, CHAMPION, version)

    def _champion(self) -> int | None:
        """The number of the generation that is champion; the registered model is made if needed.

        Raises:
            SisaError: It is of another workspace.
        """
        found = self.client.search_registered_models(f"name = '{self.place.model}'")
        if not found:
            self.client.create_registered_model(self.place.model)
            return None
        version = self.client.get_registered_model(self.place.model).aliases.get(CHAMPION)
        if version is None:
            return None
        tags = self.client.get_model_version(self.place.model, version).tags
        number, digest = tags.get("sisa.generation"), tags.get("sisa.digest")
        for entry in self.source.ledger.generations():
            if (str(entry.number), entry.digest) == (number, digest):
                return entry.number
        raise SisaError(
            f"{CHAMPION} of the registered model {self.place.model} is not of this workspace: "
            "set runtime.tracking.model to another name"
        )

    def _version(self, run: Any) -> str | None:
        """The version that a run's model is registered as."""
        where = f"name = '{self.place.model}' and run_id = '{run.info.run_id}'"
        found = self.client.search_model_versions(where)
        return str(found[0].version) if found else None

    def _register(self, run: Any, sheet: Sheet, served: Served) -> str:
        """Upload the model and register it. A repeated upload replaces what was cut off."""
        from sisa import mlflow_model

        source = self.source
        scratch = source.folder / OUTGOING
        with mlflow_model.written(served, source.store, source.import_paths, scratch) as folder:
            self.client.log_artifacts(run.info.run_id, str(folder), MODEL)
        tags = {name: sheet.tags[name] for name in ("sisa.digest", "sisa.exactness")}
        at = f"runs:/{run.info.run_id}/{MODEL}"
        made = self.client.create_model_version(
            self.place.model, at, run.info.run_id, tags=sheet.identity | tags
        )
        return str(made.version)

    def _name_data(self, run: Any, dataset: str | None) -> None:
        """The data set as an input of the run: a digest, of which MLflow takes 36 characters."""
        if dataset is None:
            return
        data = self.entities.Dataset("data-set", dataset[:32], "code", '{"tags": {}}')
        tag = self.entities.InputTag("sisa.dataset_sha256", dataset)
        self.client.log_inputs(run.info.run_id, [self.entities.DatasetInput(data, [tag])])

    def _search(self, where: str) -> Iterator[Any]:
        token: str | None = ""
        while token is not None:
            page = self.client.search_runs(
                [self.experiment.experiment_id], where, page_token=token or None
            )
            yield from page
            token = page.token or None

    def _create(self, sheet: Sheet, link: dict[str, str]) -> Any:
        tags = sheet.identity | link
        return self.client.create_run(self.experiment.experiment_id, sheet.time, tags, sheet.name)

    def _fill(self, run: Any, sheet: Sheet) -> None:
        """All at the time of publication: a metric logged again is the same one."""
        points = [self.entities.Metric(n, value, sheet.time, at) for n, value, at in sheet.metrics]
        params = [self.entities.Param(name, text) for name, text in sheet.params.items()]
        tags = [self.entities.RunTag(name, text) for name, text in sheet.tags.items()]
        self.client.log_batch(run.info.run_id, points, params, tags)  # it cuts batches itself
        self.client.set_terminated(run.info.run_id, sheet.status, sheet.time)
