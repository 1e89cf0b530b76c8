"""What MLflow has of generations that are no longer current is destroyed, and looked for again.

Versions go first, so that none is offered whose files are gone; then artefacts; runs last, since
they lead to the rest. Everything is found by this workspace's own tags, or lies in the folder of a
run that has them; nothing else is touched. Each step finds what the one before it left, so that a
purge that was cut off is repeated. `mlflow gc` stops where something is gone already, and is of no
use here.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from data_index.mirrored import Mirrored, MirrorPlace
from sisa import mirror_reach, tracking
from sisa.config import Tracking
from sisa.errors import BusyError, SisaError
from sisa.mirror_artefacts import Artefacts, Beside, pages
from sisa.mirror_rows import Rows, scrub
from sisa.tracked import GENERATION, KEPT, WORKSPACE
from sisa.tracking import Source


@dataclass(frozen=True)
class MirrorPurge:
    """What became of retired generations in the mirror.

    Attributes:
        mode: In which kind of place it is.
        generations: Those that were purged now.
        destroyed: How many of what was destroyed now.
        left: Rows that servers keep of all retired generations, by kind; they hold digests, counts,
            aggregate metrics and hyperparameters.
    """

    mode: mirror_reach.Mirror = "none"
    generations: tuple[int, ...] = ()
    destroyed: Mapping[str, int] = field(default_factory=dict)
    left: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As answers and certificates hold it."""
        return {
            "mode": self.mode,
            "generations": list(self.generations),
            "destroyed": dict(self.destroyed),
            "left": dict(self.left),
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> MirrorPurge:
        """The inverse of `to_json`."""
        return cls(**{**body, "generations": tuple(body["generations"])})


def purge(section: Tracking, source: Source, loaded: Callable[[], Any]) -> MirrorPurge:
    """Destroy what mirrors have of all generations but the current one.

    Args:
        section: Where the mirror is now; what lies elsewhere is purged there.
        source: What is mirrored.
        loaded: Gives MLflow.

    Raises:
        SisaError: A mirror cannot be reached, or something is still there.
        BusyError: Others held the ledger too long.
    """
    known = source.ledger.mirror
    entries = sorted(known.superseded(), key=lambda e: (_key(e.place), e.number))
    destroyed: Counter[str] = Counter()
    for _, group in groupby(entries, lambda e: _key(e.place)):
        there = list(group)
        try:
            gone, left = _Place(loaded(), section, source, there).purge()
        except BusyError:
            raise
        except Exception as error:
            raise SisaError(tracking.why(there[0].place.uri, error, "purged")) from error
        _empty(source.folder / tracking.OUTGOING)
        known.purged(there, left)
        destroyed += gone
    return MirrorPurge(
        mode=mirror_reach.kind(section),
        generations=tuple(sorted({e.number for e in entries})),
        destroyed=dict(destroyed),
        left=known.left(),
    )


def _key(place: MirrorPlace) -> tuple[str, str, str]:
    return place.uri, place.experiment, place.model


def _empty(folder: Path) -> None:
    """Remove the copy of a model that a killed delivery left."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        raise SisaError(f"{folder.name}/ of the workspace cannot be emptied.")


@dataclass(frozen=True)
class _Place:
    """Where entries were mirrored.

    Attributes:
        mlflow: MLflow.
        section: Where the mirror is now.
        source: What is mirrored.
        entries: What the ledger knows, all of one place.
    """

    mlflow: Any
    section: Tracking
    source: Source
    entries: Sequence[Mirrored]

    @cached_property
    def place(self) -> MirrorPlace:
        return self.entries[0].place

    @cached_property
    def mark(self) -> str:
        return self.source.ledger.mirror.mark()

    @cached_property
    def current(self) -> int:
        entry = self.source.ledger.generation()
        return entry.number if entry else 0

    @cached_property
    def client(self) -> Any:
        """A client of the place, whose password only the settings may tell."""
        now = str(self.section.uri)
        uri = now if tracking.shown(now) == self.place.uri else self.place.uri
        tracking.probe(uri)
        return tracking.connect(self.mlflow, uri, self.source.folder)

    @cached_property
    def experiment(self) -> Any:
        return self.client.get_experiment_by_name(self.place.experiment)

    def purge(self) -> tuple[Counter[str], Counter[str]]:
        """Returns how many of what was destroyed, and the rows that are left.

        Raises:
            SisaError: Something is still there.
        """
        if self._lost:
            return self._purge_artefacts(), Counter()
        versions, runs = list(self._versions()), list(self._runs())
        beside = Beside.of(self.client, self.experiment, runs)
        ids = [*(r.info.run_id for r in runs), *(e.run for e in self.entries if e.run)]
        self._delete_versions(versions)
        stores = self._artefacts(runs, beside)
        folders = sum(store.delete() for store in stores)
        beside.delete_traces(self.client)
        databases = self._databases([*ids, *beside.models, *beside.traces])
        for database in databases:
            database.drop()
        if self._engines[0] is None:
            self._delete_rows(runs, beside)
        for database in databases:
            scrub(database.engine)
        self._require_gone(stores, databases)
        gone = Counter(versions=len(versions), runs=len(runs), artefacts=folders)
        gone += Counter(logged_models=len(beside.models), traces=len(beside.traces))
        return gone, self._left(beside)

    @cached_property
    def _lost(self) -> bool:
        """Whether the place was a SQLite file that is there no more, and its rows with it."""
        name = self.place.uri.partition("?")[0].removeprefix("sqlite:///")
        return name != self.place.uri and not (self.source.folder / name).exists()

    def _purge_artefacts(self) -> Counter[str]:
        """What can be purged without the place that knew of it."""
        stores = self._artefacts((), Beside((), (), None))
        gone = Counter(artefacts=sum(store.delete() for store in stores))
        self._require(artefacts=sum(len(list(store.there())) for store in stores))
        return gone

    def _versions(self) -> Iterator[Any]:
        found = self.client.search_model_versions
        for version in pages(found, f"tags.`{WORKSPACE}` = '{self.mark}'"):
            if self._doomed(version.tags):
                yield version

    def _runs(self) -> Iterator[Any]:
        """Runs of the place, nested ones too: all that are active, and what is left of those known.

        A server keeps deleted runs for ever, so that only those of the entries are looked for.
        """
        mine = f"tags.`{WORKSPACE}` = '{self.mark}'"
        found = [*self._search(mine, "ACTIVE_ONLY")]
        for number in {e.number for e in self.entries}:
            found += self._search(f"{mine} and tags.`{GENERATION}` = '{number}'", "DELETED_ONLY")
        return (run for run in found if self._doomed(run.data.tags))

    def _doomed(self, tags: Mapping[str, str]) -> bool:
        return tags.get(GENERATION, "").isdigit() and tags[GENERATION] != str(self.current)

    def _search(self, where: str, view: Literal["ACTIVE_ONLY", "DELETED_ONLY"]) -> Iterator[Any]:
        if self.experiment is None:
            return
        kind = getattr(self.mlflow.entities.ViewType, view)
        ids = [self.experiment.experiment_id]
        search = partial(self.client.search_runs, ids, run_view_type=kind)
        yield from pages(search, where)

    def _delete_versions(self, versions: Iterable[Any]) -> None:
        """With their aliases. Each is noted first, so that it is counted if its row stays."""
        known = {str(e.number) for e in self.entries}
        for version in versions:
            if version.tags[GENERATION] in known and version.name == self.place.model:
                number = int(version.tags[GENERATION])
                self.source.ledger.mirror.note(number, self.place, version=str(version.version))
            self.client.delete_model_version(version.name, version.version)

    def _artefacts(self, runs: Iterable[Any], beside: Beside) -> list[Artefacts]:
        """Folders that are to go, by the place that they are in."""
        homes = {e.number: self._home(e.location) for e in self.entries}
        names: defaultdict[str, set[str]] = defaultdict(set)
        for entry in self.entries:
            names[homes[entry.number]] |= {entry.run} if entry.run else set()
        for run in runs:
            own, number = run.info.run_id, int(run.data.tags[GENERATION])
            told = run.info.artifact_uri.removesuffix(f"/{own}/artifacts")
            names[homes.get(number) or self._home(told)].add(own)
        if beside.models or beside.traces:
            home = names[self._home(self.experiment.artifact_location)]
            home |= {f"models/{model}" for model in beside.models}
            home |= {f"traces/{trace}" for trace in beside.traces}
        uri = None if self._lost else self.client.tracking_uri
        return [Artefacts(r, frozenset(ids), uri) for r, ids in sorted(names.items()) if ids]

    def _home(self, location: str) -> str:
        """Where artefacts are now that MLflow was told to keep in a workspace.

        A workspace that was moved has taken them along, and those of the one that it was copied
        from are not its own.
        """
        travels = re.match("sqlite:///[^/]", self.place.uri) is not None
        if location == tracking.ARTIFACTS or (
            travels and location.endswith(f"/{tracking.ARTIFACTS}")
        ):
            return tracking.own_artefacts(self.source.folder)
        return location

    @cached_property
    def _engines(self) -> tuple[Any, Any]:
        """Of runs and of versions; None where a server is between."""
        registry = self.client._get_registry_client().store
        runs = getattr(self.client._tracking_client.store, "engine", None)
        return runs, getattr(registry, "engine", None)

    def _databases(self, ids: Sequence[str]) -> list[Rows]:
        engines = {str(engine.url): engine for engine in self._engines if engine is not None}
        return [Rows(engine, ids, self.mark, self.current) for engine in engines.values()]

    def _delete_rows(self, runs: Iterable[Any], beside: Beside) -> None:
        """As far as a server does it: free text is emptied first, since a deleted run keeps it."""
        for model in beside.models:
            self.client.delete_logged_model(model)
        for run in runs:
            active = run.info.lifecycle_stage == "active"
            words = [name for name, text in run.data.tags.items() if text and name not in KEPT]
            if words and not active:
                self.client.restore_run(run.info.run_id)
            if words:
                tags = [self.mlflow.entities.RunTag(name, "") for name in words]
                self.client.log_batch(run.info.run_id, tags=tags)
            if words or active:
                self.client.delete_run(run.info.run_id)

    def _require_gone(self, stores: Iterable[Artefacts], databases: Iterable[Rows]) -> None:
        """List everything again."""
        self._require(
            versions=len(list(self._versions())),
            runs=sum(r.info.lifecycle_stage == "active" for r in self._runs()),
            artefacts=sum(len(list(store.there())) for store in stores),
            rows=sum(database.count() for database in databases),
        )

    def _require(self, **found: int) -> None:
        """That nothing was found."""
        if any(found.values()):
            kinds = ", ".join(f"{count} {kind}" for kind, count in found.items() if count)
            raise SisaError(f"{kinds} of retired generations are still there.")

    def _left(self, beside: Beside) -> Counter[str]:
        """Rows that a server keeps."""
        left: Counter[str] = Counter()
        by_client, registered_by_client = (engine is None for engine in self._engines)
        for run in self._runs() if by_client else ():
            data, inputs = run.data, run.inputs.dataset_inputs if run.inputs else ()
            left += Counter(runs=1, params=len(data.params), tags=len(data.tags))
            left += Counter(metrics=len(data.metrics), inputs=len(inputs))
        if by_client:
            left += Counter(logged_models=len(beside.models))
        if registered_by_client:
            known = self.source.ledger.mirror.superseded()
            registered = sum(e.place == self.place and e.version is not None for e in known)
            left += Counter(model_versions=registered)
        return left
