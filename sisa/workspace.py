"""The Workspace class: composition root of the Python API and of the command line."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_index import ingest as ingestion
from data_index import keys
from data_index.ledger import Ledger
from data_index.storage import Store
from data_index.tombstones import Epochs
from sisa import config, purge, secrets, tracking
from sisa.config import Config
from sisa.context import Context, Reporter
from sisa.errors import BusyError, ConfigurationError, UsageError
from sisa.executor import Executor, ProcessExecutor
from sisa.results import (
    Diagnosis,
    Evaluation,
    Forgotten,
    History,
    HistoryEntry,
    IngestResult,
    Initialised,
    LineageResult,
    Planned,
    Predicted,
    Status,
    TrainResult,
    Verified,
    Worked,
)

if TYPE_CHECKING:
    import pyarrow as pa

Ids = Iterable[str | int]
PathLike = str | Path


class Workspace:
    """A folder with sisa.yaml, opened.

        ws = Workspace.open(".")
        ws.ingest()
        ws.train()
        ws.forget(subjects=["alice"])
        assert ws.verify().exact

    Every method returns the document that the command of the same name prints.
    """

    def __init__(self, context: Context) -> None:
        self.context = context

    @classmethod
    def init(
        cls,
        folder: PathLike,
        data: PathLike | Sequence[PathLike],
        settings: Sequence[str] = (),
        **choices: Any,
    ) -> Initialised:
        """Make a workspace; the choices are those of `sisa.init.Choices`.

        Raises:
            ConfigurationError: The folder is a workspace already, or a choice does not fit.
            DataError: The source cannot be read or lacks a column.
        """
        from sisa import init

        paths = (data,) if isinstance(data, (str, Path)) else tuple(data)
        root = Path(folder).resolve()
        made = init.create(root, init.Choices(data=tuple(map(Path, paths)), **choices), settings)
        cls.open(root, exact=True).close()
        recipe = made.recipe.data
        return Initialised(
            workspace=str(root),
            task=recipe.task,
            target=recipe.target,
            classes=recipe.classes,
            features=recipe.features,
        )

    @classmethod
    def open(
        cls,
        folder: PathLike = ".",
        settings: Sequence[str] = (),
        report: Reporter | None = None,
        exact: bool = False,
        environment: Mapping[str, str] = os.environ,
    ) -> Workspace:
        """Open the workspace that a folder is or lies in.

        Args:
            folder: The workspace or a folder below it.
            settings: `a.b=value` on top of sisa.yaml.
            report: Where progress and warnings go.
            exact: The folder must be the workspace itself.
            environment: Overlays sisa.yaml and may hold the secret.

        Raises:
            NotFoundError: There is no workspace.
            ConfigurationError: Its configuration or secret is wrong.
        """
        at = Path(folder).absolute()
        root = at if exact else config.find(at)
        settled = config.load(root, settings, environment)
        ring = keys.derive(secrets.read(root, environment))
        store = Store(_resolve(root, settled.runtime.store))
        ledger = Ledger(settled.runtime.ledger, root)
        return cls(
            Context(
                folder=root,
                config=settled,
                ring=ring,
                epochs=_epochs(store, ring, ledger),
                store=store,
                ledger=ledger,
                make_executor=lambda: _executor(root, settled),
                report=report or Reporter(),
            )
        )

    def close(self) -> None:
        """Give back the ledger's connections."""
        self.context.ledger.close()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ingest(self, *paths: PathLike) -> IngestResult:
        """Take source files in; without arguments those of `runtime.sources`.

        Raises:
            NotFoundError: A path does not exist.
            DataError: A source does not fit; the data set stays as it was.
            BusyError: Another process is writing.
        """
        c = self.context
        chosen = [Path(p) for p in paths] or self._sources()
        grid = ingestion.Grid(c.config.recipe.partition.shards, c.config.recipe.partition.slices)
        with c.ledger.writer() as lease:
            purge.purge(c, lease, purge.DATA)  # rows that a killed ingest left behind
            before = c.dataset()
            stones = c.ledger.tombstones()
            done = ingestion.ingest(
                c.store,
                c.ring,
                c.columns,
                grid,
                before,
                chosen,
                lambda found: c.epochs.meets(stones, found),
                c.report.rows,
            )
            if done.dataset is not before:
                manifest = done.dataset.save(c.store)
                c.store.flush()
                c.ledger.commit_dataset(manifest, lease)
        return IngestResult(
            records=done.records,
            subjects=done.subjects,
            skipped=done.skipped,
            tombstoned=done.tombstoned,
            total_records=done.dataset.records,
            partitions=len(done.dataset.partitions),
        )

    def train(self) -> TrainResult:
        """Build and publish; with nothing changed, nothing is trained or published.

        Raises:
            IncompleteError: There is no record.
            BusyError: Another process is writing.
        """
        from sisa.publish import build_and_publish

        c = self.context
        self._prefetch()
        with c.ledger.writer() as lease:
            done = build_and_publish(c, lease, "train")
        self._mirror()
        return TrainResult(
            generation=done.number,
            digest=done.generation.digest,
            samples_trained=done.built.cost.trained,
            samples_reused=done.built.cost.reused,
            seconds=round(done.built.seconds, 3),
            voting=len(done.generation.voting),
            failed_shards=tuple(done.generation.failed_shards),
            quorate=done.generation.quorate(c.config.runtime.erasure.quorum),
        )

    def evaluate(self, path: PathLike) -> Evaluation:
        """Held-out metrics; rows of erased subjects and records are left out.

        Raises:
            IncompleteError: Nothing is trained, or too few constituents vote.
            DataError: The file does not fit.
        """
        from sisa import scoring

        return self.context.steady(lambda: scoring.evaluate(self.context, Path(path)))

    def predict(self, table: pa.Table) -> pa.Table:
        """Predict the rows of a table that has the feature columns.

        Raises:
            IncompleteError: Nothing is trained, or too few constituents vote.
        """
        from sisa import ensemble

        return self.context.steady(lambda: ensemble.predict_table(self.context, table))

    def predict_file(self, path: PathLike, out: PathLike) -> Predicted:
        """Predict a file into a Parquet or CSV file.

        Raises:
            IncompleteError: Nothing is trained, or too few constituents vote.
            DataError: The file does not fit.
        """
        from sisa import scoring

        return self.context.steady(
            lambda: scoring.predict_file(self.context, Path(path), Path(out))
        )

    def forget(
        self, subjects: Ids = (), records: Ids = (), wait: bool = True, dry_run: bool = False
    ) -> Forgotten:
        """Erase data subjects or single records.

        Args:
            subjects: Ids of data subjects; without a subject column, of records.
            records: Ids of records.
            wait: Carry it out now; otherwise accept it and roll serving back only.
            dry_run: Change nothing and say what would be done.

        Raises:
            UsageError: No id is given.
            ConfigurationError: The recipe was changed since the current generation was trained.
        """
        from sisa import forget

        named, single = _ids(subjects), _ids(records)
        if dry_run:
            return self.context.steady(lambda: forget.dry_run(self.context, named, single))
        done = forget.forget(self.context, named, single, wait)
        self._mirror()
        return done

    def work(self) -> Worked:
        """Finish what is accepted, and whatever a crash left undone.

        Raises:
            BusyError: Another process is writing.
        """
        from sisa import forget

        done = forget.work(self.context)
        self._mirror()
        return done

    def verify(
        self, shard: int | None = None, sample: int | None = None, replay: bool = True
    ) -> Verified:
        """Show that the current generation is what training on the stored data gives.

        Raises:
            IncompleteError: Nothing has been trained yet.
            ExactnessError: A manifest is damaged.
            BusyError: Another process is writing; nothing may move while it is looked at.
        """
        from sisa import verify

        with self.context.ledger.writer():
            return verify.verify(self.context, shard, sample, replay)

    def plan(self, subjects: Ids = (), records: Ids = ()) -> Planned:
        """What forgetting ids would cost.

        Raises:
            UsageError: No id is given.
        """
        from sisa import forget, plan

        named, single = _ids(subjects), _ids(records)
        return self.context.steady(
            lambda: plan.plan(self.context, forget.look_up(self.context, named, single))
        )

    def lineage(
        self, subject: str | int | None = None, record: str | int | None = None
    ) -> LineageResult:
        """From a subject or a record down to stages, generations and certificates.

        Raises:
            UsageError: Not exactly one id is given.
        """
        from sisa import trace

        return self.context.steady(lambda: trace.trace(self.context, subject, record))

    def status(self) -> Status:
        """The current generation and all requests."""
        return self.context.steady(self._status)

    def _status(self) -> Status:
        from sisa.forget import request_state

        c = self.context
        dataset, current = c.dataset(), c.current()
        entry, generation = current or (None, None)
        quorum = c.config.runtime.erasure.quorum
        return Status(
            workspace=str(c.folder),
            generation=entry and entry.number,
            digest=entry and entry.digest,
            reason=entry and entry.reason,
            voting=len(generation.voting) if generation else 0,
            shards=c.config.recipe.partition.shards,
            depth=round(generation.depth, 6) if generation else 0.0,
            quorate=generation.quorate(quorum) if generation else False,
            records=dataset.records,
            partitions=len(dataset.partitions),
            requests=tuple(map(request_state, c.ledger.requests())),
            certificate_head=c.ledger.certificate_head(),
            outbox=len(c.ledger.outbox()),
        )

    def history(self) -> History:
        """All generations."""
        entries = self.context.ledger.generations()
        return History(
            generations=tuple(
                HistoryEntry(
                    number=e.number,
                    digest=e.digest,
                    time=e.time,
                    reason=e.reason,
                    current=e is entries[-1],
                    retired=e.manifest is None,
                )
                for e in entries
            )
        )

    def doctor(self) -> Diagnosis:
        """Everything that would break the guarantee, all findings at once."""
        from sisa import doctor

        return doctor.diagnose(self.context)

    def _sources(self) -> list[Path]:
        named = self.context.config.runtime.sources
        if not named:
            raise ConfigurationError("runtime.sources is empty.", "Name the files to ingest.")
        return [Path(_resolve(self.context.folder, source)) for source in named]

    def _prefetch(self) -> None:
        tracking.prefetch(self.context.config.runtime.tracking)

    def _mirror(self) -> None:
        """Tell MLflow; if another process is at it, that one does."""
        c = self.context
        with suppress(BusyError), c.ledger.messenger():
            tracking.drain(c.config.runtime.tracking, c.folder, c.ledger, c.store, c.report.warn)


def _ids(ids: Ids) -> list[str | int]:
    """A list of ids; a single text would be taken for its letters."""
    if isinstance(ids, (str, bytes)):
        raise UsageError("A single id is given where a list is expected.", "Write [id].")
    return list(ids)


def _resolve(root: Path, location: str) -> str:
    """A location as seen from the workspace."""
    return location if "://" in location else str(root / location)


def _epochs(store: Store, ring: keys.Keyring, ledger: Ledger) -> Epochs:
    try:
        return Epochs.open(store, ring, ledger.tombstone_epochs())
    except OSError as error:
        raise ConfigurationError(
            f"The store {store.root} cannot be written: {error.strerror}.",
            "Check runtime.store and its permissions.",
        ) from None


def _executor(root: Path, settled: Config) -> Executor:
    section = settled.runtime.executor
    if section.kind == "process":
        return ProcessExecutor(section.workers)
    made: Executor = importlib.import_module("cluster.executor").RayExecutor(section, root)
    return made
