"""The report: what is served, asked, done, checked and left over, as a document and as a page."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from data_index import changes, lineage
from data_index.dataset import DataSet
from data_index.ledger import GenerationEntry
from data_index.schema import RECORD_KEY, SUBJECT_KEY
from data_index.storage import FileRef, canonical_json
from sisa import (
    __version__,
    certificate_chain,
    doctor,
    mirror_reach,
    report_certificates,
    report_page,
    rotation,
    stage_log,
)
from sisa.checks import check
from sisa.config import Recipe
from sisa.context import Context
from sisa.errors import BusyError, DataError, ExactnessError, NotFoundError
from sisa.generation import Generation
from sisa.report_grid import grid
from sisa.report_requests import costs, requests_report
from sisa.report_results import (
    Environment,
    GenerationRow,
    LineageCounts,
    LogHead,
    Mirror,
    RecipeSummary,
    ReplayOutcome,
    Report,
    Served,
)
from sisa.report_risks import MEANINGS, RISKS
from sisa.report_verdict import verdict
from sisa.results import Check
from sisa.statement import OUTSIDE
from sisa.verify import verify

T = TypeVar("T")

NOT_TRAINED = "nothing is trained yet"
BUSY = "another process was writing; make the report again once it is done"


def report(context: Context, out: Path | None = None) -> Report:
    """Look at everything, and write the page if a file is named for it.

    Nothing but temporary files is changed. The checks need that nobody writes meanwhile: they are
    left out if somebody does.

    Raises:
        NotFoundError: There is no folder for the page.
        DataError: The page cannot be written.
    """
    if out is not None and not out.parent.is_dir():
        raise NotFoundError(f"The folder {out.parent} does not exist.", "Make it first.")
    if out is not None and out.is_dir():
        raise DataError(f"{out} is a folder.", "Name a file for the page.")
    try:
        with context.ledger.writer():
            made = _steady(context, None, out)
    except BusyError:
        made = _steady(context, BUSY, out)
    if out is not None:
        _write(report_page.page(made), out)
    return made


def _steady(context: Context, skip: str | None, out: Path | None) -> Report:
    """A report of one moment: if something failed because the pointers moved, look again."""
    while True:
        before = context.ledger.moment()
        made = _compose(context, skip, out)
        now = context.ledger.moment()
        still = (before.dataset, before.generation) == (now.dataset, now.generation)
        if still or made.exit_code == 0:
            return made


@dataclass
class _Reading:
    """Reads what may be damaged, and keeps what was wrong as failed checks."""

    failed: list[Check] = field(default_factory=list)

    def get(self, name: str, read: Callable[[], T]) -> T | None:
        """What could be read, or None."""
        try:
            return read()
        except (ExactnessError, NotFoundError) as error:
            self.failed.append(Check(name=name, passed=False, detail=error.message))
            return None


def _compose(context: Context, busy: str | None, out: Path | None) -> Report:
    ledger, now = context.ledger, context.ledger.clock()
    reading, moment = _Reading(), ledger.moment()
    requests, generations = ledger.requests(), ledger.generations()
    dataset = reading.get("data set", lambda: context.load_dataset(moment.dataset))
    dataset = dataset or DataSet(context.config.recipe.layout_digest())
    generation = reading.get("generation", lambda: _generation(context, moment.generation))
    served = _served(context, reading, moment.generation, generation)
    recipe = generation.recipe if generation else context.config.recipe
    lineage_counts = _lineage(context, reading, dataset, moment.dataset)
    found = report_certificates.look(context.store, ledger.certificate_head())
    asked = requests_report(requests, ledger.timelines(), now)
    skipped = busy if moment.generation else NOT_TRAINED
    verified = None if skipped else reading.get("manifests", lambda: verify(context, replay=False))
    chain = check("certificates", lambda: certificate_chain.outcome(context))
    checks = _distinct([*reading.failed, *(verified.checks if verified else ()), chain])
    last = ledger.last_replay()
    replay = ReplayOutcome.model_validate(last) if last else None
    findings = sorted(doctor.standing(context), key=lambda f: doctor.ORDER.index(f.severity))
    return Report(
        made=now.isoformat(timespec="seconds"),
        version=__version__,
        out=None if out is None else str(out),
        verdict=verdict(served, recipe, asked, checks, skipped, replay, findings),
        served=served,
        recipe=_recipe(recipe),
        grid=grid(recipe, dataset, generation, requests, found.rebuilt_by),
        requests=asked,
        costs=costs(generations, found.rebuilt_by),
        checks=checks,
        checks_skipped=skipped,
        replay=replay,
        certificates=found.certificates,
        log=_log(context),
        epochs=rotation.epochs(context),
        generations=tuple(_row(g, g is generations[-1]) for g in generations),
        lineage=lineage_counts,
        mirror=_mirror(context),
        outside=OUTSIDE,
        risks=RISKS,
        findings=tuple(findings),
    )


def _generation(context: Context, entry: GenerationEntry | None) -> Generation | None:
    if entry is None or entry.manifest is None:
        return None
    return Generation.load(context.store, entry.manifest)


def _served(
    context: Context,
    reading: _Reading,
    entry: GenerationEntry | None,
    generation: Generation | None,
) -> Served | None:
    if entry is None or generation is None:
        return None
    environments = reading.get("stage log", lambda: _environments(context, generation))
    return Served(
        generation=entry.number,
        digest=entry.digest,
        since=entry.time,
        reason=entry.reason,
        training=generation.training,
        voting=len(generation.voting),
        depth=round(generation.depth, 6),
        quorate=generation.quorate(context.config.runtime.erasure.quorum),
        failed_shards=tuple(generation.failed_shards),
        environments=environments or (),
    )


def _environments(context: Context, generation: Generation) -> tuple[Environment, ...]:
    """Fingerprints of the served stages, the most frequent first."""
    counts: Counter[bytes] = Counter()
    bodies = {}
    for constituent in generation.constituents:
        known = stage_log.read_shard(context.store, constituent.shard)
        for stage in constituent.stages:
            if stage.key in known:
                body = known[stage.key].fingerprint
                name = canonical_json(body)
                counts[name] += 1
                bodies[name] = body
    return tuple(Environment(stages=n, fingerprint=bodies[k]) for k, n in counts.most_common())


def _recipe(recipe: Recipe) -> RecipeSummary:
    return RecipeSummary(
        learner=recipe.learner.factory,
        task=recipe.data.task,
        target=recipe.data.target,
        classes=recipe.data.classes,
        features=recipe.data.features,
        shards=recipe.partition.shards,
        slices=recipe.partition.slices,
        epochs=recipe.training.epochs,
        aggregation=recipe.aggregation,
    )


def _row(entry: GenerationEntry, current: bool) -> GenerationRow:
    return GenerationRow(
        number=entry.number,
        digest=entry.digest,
        time=entry.time,
        reason=entry.reason,
        current=current,
        retired=entry.manifest is None,
        samples_trained=entry.samples_trained,
        samples_full=entry.samples_full,
    )


def _lineage(
    context: Context, reading: _Reading, dataset: DataSet, manifest: FileRef | None
) -> LineageCounts:
    records = reading.get(
        "index by record", lambda: lineage.count(context.store, dataset.by_record, RECORD_KEY)
    )
    subjects = reading.get(
        "index by subject", lambda: lineage.count(context.store, dataset.by_subject, SUBJECT_KEY)
    )
    return LineageCounts(
        dataset=manifest and manifest.sha256,
        records=dataset.records,
        subjects=subjects and subjects[1],
        partitions=len(dataset.partitions),
        by_record=records and records[0],
        by_subject=subjects and subjects[0],
        journals=len(dataset.journals),
        appends=dataset.appends,
        tombstones=len(context.ledger.tombstones()),
    )


def _mirror(context: Context) -> Mirror:
    kind = mirror_reach.kind(context.config.runtime.tracking)
    known = context.ledger.mirror
    return Mirror(
        kind=kind,
        meaning=MEANINGS[kind],
        waiting=len(context.ledger.outbox()),
        unpurged=len({entry.number for entry in known.superseded()}),
        left=known.left(),
    )


def _log(context: Context) -> LogHead:
    with context.ledger.read() as connection:
        last = changes.last_entry(connection)
    if last is None:
        return LogHead(entries=0, time=None, kind=None, digest=None)
    return LogHead(entries=last.number, time=last.time, kind=last.kind, digest=last.digest)


def _distinct(checks: list[Check]) -> tuple[Check, ...]:
    """One cause may fail several of them; once is enough to say so."""
    found: dict[tuple[bool | None, str], Check] = {}
    for one in checks:
        found.setdefault((one.passed, one.detail), one)
    return tuple(found.values())


def _write(text: str, out: Path) -> None:
    """Write the page, whole or not at all."""
    temporary = out.with_name(f".{out.name}.part")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(out)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror}.") from None
    finally:
        temporary.unlink(missing_ok=True)
