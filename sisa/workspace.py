"""The Workspace class: what the Python API offers, and what the command line calls."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sisa import config, opening
from sisa.context import Context, Reporter
from sisa.errors import UsageError
from sisa.outbox import Outbox
from sisa.results import (
    CertificateList,
    CertificateShown,
    CertificateVerified,
    Diagnosis,
    Evaluation,
    Forgotten,
    History,
    IngestResult,
    Initialised,
    KeysRotated,
    KeysShown,
    LineageResult,
    Planned,
    Predicted,
    Readmitted,
    RequestCancelled,
    RequestHeld,
    RequestReleased,
    Requests,
    RequestShown,
    Status,
    Submitted,
    TrainResult,
    Verified,
    WindowState,
    Worked,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from sisa.report_results import Report

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

    def __init__(self, context: Context, outbox: Outbox) -> None:
        self.context = context
        self._outbox = outbox

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
        return init.initialised(root, made)

    @classmethod
    def open(
        cls,
        folder: PathLike = ".",
        settings: Sequence[str] = (),
        report: Reporter | None = None,
        exact: bool = False,
        environment: Mapping[str, str] = os.environ,
        restored: bool = False,
    ) -> Workspace:
        """Open the workspace that a folder is or lies in.

        Args:
            folder: The workspace or a folder below it.
            settings: `a.b=value` on top of sisa.yaml.
            report: Where progress and warnings go.
            exact: The folder must be the workspace itself.
            environment: Overlays sisa.yaml and may hold the secret.
            restored: An older copy of ledger or store was restored: bring both together first.

        Raises:
            NotFoundError: There is no workspace.
            ConfigurationError: Its configuration or secret is wrong.
            RestoredError: An older copy of ledger or store was restored.
            ExactnessError: Ledger and store belong to different histories.
        """
        at = Path(folder).absolute()
        root = at if exact else config.find(at)
        return cls(*opening.opened(root, settings, report or Reporter(), environment, restored))

    def close(self) -> None:
        """Wait until MLflow has what was published, a minute at most; give back workers."""
        self._outbox.close()
        self.context.close()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ingest(self, *paths: PathLike, correct: bool = False, append: bool = False) -> IngestResult:
        """Take source files in; without arguments those of `runtime.sources`.

        Args:
            paths: Parquet, CSV and Arrow files and folders.
            correct: Another row of a stored record replaces it, instead of being refused.
            append: New records go to a further slice of their shard, behind all others.

        Raises:
            NotFoundError: A path does not exist.
            DataError: A source does not fit; the data set stays as it was.
            BusyError: Another process is writing.
        """
        from sisa import ingest

        self._outbox.catch_up()
        chosen = [Path(p) for p in paths] or ingest.sources(self.context)
        return ingest.ingest(self.context, chosen, correct, append)

    def train(self) -> TrainResult:
        """Build and publish; with nothing changed, nothing is trained or published.

        Raises:
            IncompleteError: There is no record.
            BusyError: Another process is writing.
        """
        from sisa import train

        self._outbox.begin()
        return train.train(self.context)

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

        return self.context.steady(lambda: ensemble.load(self.context).predict_table(table))

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
        try:
            return forget.forget(self.context, named, single, wait)
        finally:
            self._outbox.catch_up()

    def submit(
        self, subjects: Ids = (), records: Ids = (), dry_run: bool = False, **fields: Any
    ) -> Submitted:
        """Accept one erasure request and roll serving back; `work` carries it out.

        Args:
            subjects: Ids of data subjects; without a subject column, of records.
            records: Ids of records.
            dry_run: Change nothing and say what would be done.
            **fields: `external_id`, `regulation`, `received` (ISO 8601), `due` (as in 45d), `hold`
                (a reason).

        Raises:
            UsageError: No id is given, a field does not fit, or the external id stands for another
                request.
            ConfigurationError: The recipe was changed since the current generation was trained.
        """
        named = {"subjects": _ids(subjects), "records": _ids(records)}
        return self._submit([fields | named], dry_run)

    def submit_each(
        self, lines: Iterable[str | int | Mapping[str, Any]], dry_run: bool = False, **fields: Any
    ) -> Submitted:
        """Accept an erasure request a line, all in one transaction.

        Args:
            lines: Ids of data subjects, or objects (JSON or mappings) with `subject` or `record`,
                and if need be `external_id`, `regulation`, `received` and `due`.
            dry_run: Change nothing and say what would be done.
            **fields: What lines do not say themselves, as in `submit`.

        Raises:
            UsageError: There is no line, one does not fit, or as in `submit`.
            ConfigurationError: The recipe was changed since the current generation was trained.
        """
        from sisa.submission import of_line

        if isinstance(lines, (str, bytes, Mapping)):
            raise UsageError("A single line is given where a list is expected.", "Write [line].")
        return self._submit([fields | of_line(line) for line in lines], dry_run)

    def _submit(self, bodies: Sequence[Mapping[str, Any]], dry_run: bool) -> Submitted:
        from sisa import request
        from sisa.submission import submission

        now = self.context.ledger.clock()
        submissions = [submission(now, body) for body in bodies]
        try:
            return request.submit(self.context, submissions, dry_run)
        finally:
            self._outbox.catch_up()

    def requests(self, state: str | None = None, overdue: bool = False) -> Requests:
        """Erasure requests, all or those of a state or past due.

        Raises:
            UsageError: There is no such state.
        """
        from sisa import request

        return request.listed(self.context, state, overdue)

    def request(self, name: str) -> RequestShown:
        """All about the request of an id or external id.

        Raises:
            NotFoundError: There is none.
        """
        from sisa import request

        return request.show(self.context, name)

    def hold(self, name: str, reason: str) -> RequestHeld:
        """Let nothing of a request be destroyed until it is released.

        Raises:
            NotFoundError: There is none of that id or external id.
            UsageError: It is not open, or its rows are rewritten already.
        """
        from sisa import request

        return RequestHeld(request=request.hold(self.context, name, reason))

    def release(self, name: str) -> RequestReleased:
        """End a hold.

        Raises:
            NotFoundError: There is none of that id or external id.
            UsageError: It is not open.
        """
        from sisa import request

        return RequestReleased(request=request.release(self.context, name))

    def cancel(self, name: str, reason: str, denied: bool = False) -> RequestCancelled:
        """Take a request back: the generation of before returns.

        Args:
            name: Its id or external id.
            reason: Why.
            denied: It was refused on legal grounds; another state, all else is the same.

        Raises:
            NotFoundError: There is none.
            UsageError: It is finished, or its rows are rewritten already.
            BusyError: Another process is writing.
        """
        from sisa import request

        self._outbox.begin()
        return request.cancel(self.context, name, reason, denied)

    def readmit(self, subjects: Ids = (), records: Ids = ()) -> Readmitted:
        """Let erased ids be ingested again, because consent was given again.

        Raises:
            UsageError: No id is given, or an open request names one.
        """
        from sisa import request

        return request.readmit(self.context, _ids(subjects), _ids(records))

    def work(self, once: bool = False) -> Worked:
        """Finish what is accepted, and whatever a crash left undone.

        Args:
            once: Leave what comes in after the publication to the next window.

        Raises:
            BusyError: Another process is writing.
        """
        from sisa import forget

        self._outbox.begin()
        return forget.work(self.context, once)

    def catch_up(self) -> None:
        """Have MLflow told of what waits for it, without waiting for that."""
        self._outbox.catch_up()

    def verify(
        self,
        shard: int | None = None,
        sample: int | None = None,
        replay: bool = True,
        residue: bool = False,
        subjects: Ids = (),
        records: Ids = (),
    ) -> Verified:
        """Show that the current generation is what training on the stored data gives.

        Args:
            shard: Train only this shard again.
            sample: Train so many shards again, drawn at random.
            replay: Whether to train at all.
            residue: Also search every place for what open requests and the ids below give.
            subjects: Ids of erased subjects; without a subject column, of records.
            records: Ids of erased records.

        Raises:
            UsageError: Ids are given without `residue`.
            IncompleteError: Nothing has been trained yet.
            ExactnessError: A manifest is damaged.
            BusyError: Another process is writing; nothing may move while it is looked at.
        """
        from sisa import verify

        people, single = _ids(subjects), _ids(records)
        if (people or single) and not residue:
            raise UsageError("Ids are given, but no search for residue.", "Add --residue.")
        sought = verify.Sought(people, single) if residue else None
        return verify.verify_and_keep(self.context, shard, sample, replay, sought)

    def plan(self, subjects: Ids = (), records: Ids = (), rate: str | None = None) -> Planned:
        """What forgetting ids would cost, or what requests at a rate will.

        Args:
            subjects: Ids of data subjects; without a subject column, of records.
            records: Ids of records.
            rate: Single-record requests as `N/day` or `N/hour`, in place of ids.

        Raises:
            UsageError: Neither ids nor a rate are given, or both.
        """
        from sisa import lookup, plan
        from sisa import rate as rates

        named, single = _ids(subjects), _ids(records)
        if rate is not None:
            if named or single:
                raise UsageError("Ids and a rate exclude each other.", "Give one of them.")
            return self.context.steady(lambda: rates.plan(self.context, rate))
        return self.context.steady(
            lambda: plan.plan(self.context, lookup.look_up(self.context, named, single))
        )

    def window(self) -> WindowState | None:
        """Until when open requests wait for more, if they are left to a service."""
        from sisa import plan

        return self.context.steady(lambda: plan.open_window(self.context))

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
        from sisa import status

        return self.context.steady(lambda: status.status(self.context))

    def history(self) -> History:
        """All generations."""
        from sisa import status

        return status.history(self.context)

    def certificates(self) -> CertificateList:
        """The chain of certificates, checked.

        Raises:
            ExactnessError: One is missing, damaged or out of place.
        """
        from sisa import certificate_chain

        return certificate_chain.listed(self.context)

    def show_certificate(self, request_id: str) -> CertificateShown:
        """What the certificate of an erasure request states.

        Raises:
            NotFoundError: There is no such request, or it is not certified.
        """
        from sisa import certificate_chain, certificate_check

        return certificate_check.show(certificate_chain.file_of(self.context, request_id))

    def verify_certificate(
        self, file: PathLike, public_keys: Sequence[PathLike] = ()
    ) -> CertificateVerified:
        """Check a certificate, and hold it against this workspace.

        Args:
            file: The certificate.
            public_keys: Files of the public keys that count; default: those of the workspace.

        Raises:
            NotFoundError: There is no such file.
            UsageError: A public key is none.
            BusyError: Another process is writing; nothing may move while it is looked at.
        """
        from sisa import certificate_check, certificate_recheck

        trusted = (
            certificate_check.public_keys([Path(p) for p in public_keys])
            if public_keys
            else self.context.signing.trusted()
        )
        with self.context.ledger.writer():
            return certificate_recheck.verify(self.context, Path(file), trusted)

    def keys(self) -> KeysShown:
        """Signing keys by their id, and live tombstone epochs."""
        from sisa import rotation

        return rotation.shown(self.context)

    def rotate_epochs(self, dry_run: bool = False) -> KeysRotated:
        """Open a tombstone epoch, and destroy those that no backup outlives.

        Args:
            dry_run: Change nothing and say what would be done.

        Raises:
            BusyError: Another process is writing.
        """
        from sisa import rotation

        return rotation.rotate(self.context, dry_run)

    def rotate_signing_key(self) -> KeysRotated:
        """Sign certificates with a new key from now on; the old public half is kept.

        Raises:
            ConfigurationError: There is no signing key, or it comes from the environment.
            BusyError: Another process is writing.
        """
        from sisa import rotation

        return rotation.rotate_signing_key(self.context)

    def doctor(self, held_out: Sequence[PathLike] = ()) -> Diagnosis:
        """Everything that would break the guarantee, all findings at once.

        Args:
            held_out: Files that should share no record and no subject with the store.

        Raises:
            NotFoundError: There is no such file.
        """
        from sisa import doctor

        if isinstance(held_out, (str, Path)):
            raise UsageError("A single file is given where a list is expected.", "Write [file].")
        return doctor.diagnose(self.context, held_out=tuple(map(Path, held_out)))

    def report(self, out: PathLike | None = None) -> Report:
        """What an auditor wants to know; with `out`, also as one HTML page.

        Raises:
            NotFoundError: There is no folder for the page.
            DataError: The page cannot be written.
        """
        from sisa import report

        return report.report(self.context, None if out is None else Path(out))


def _ids(ids: Ids) -> list[str | int]:
    """A list of ids; a single text would be taken for its letters."""
    if isinstance(ids, (str, bytes)):
        raise UsageError("A single id is given where a list is expected.", "Write [id].")
    return list(ids)
