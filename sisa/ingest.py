"""Ingest into a workspace: take rows in, make the data set current, destroy what it replaced."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from data_index import ingest as ingestion
from data_index.dataset import DataSet
from data_index.ingest import Ingested
from data_index.intake import Grid
from data_index.leases import Lease
from sisa import config, purge
from sisa.context import Context
from sisa.errors import BusyError, ConfigurationError, MovedOnError
from sisa.results import IngestResult

ATTEMPTS = 10
"""How often rows are taken in again because requests came in meanwhile."""


def sources(context: Context) -> list[Path]:
    """The source files of `runtime.sources`.

    Raises:
        ConfigurationError: There is none.
    """
    named = context.config.runtime.sources
    if not named:
        raise ConfigurationError("runtime.sources is empty.", "Name the files to ingest.")
    return [Path(config.located(context.folder, source)) for source in named]


def ingest(context: Context, paths: list[Path], correct: bool, append: bool) -> IngestResult:
    """Take source files in.

    Raises:
        NotFoundError: A path does not exist.
        DataError: A source does not fit; the data set stays as it was.
        BusyError: Another process is writing, or requests came in faster than it could ingest.
    """
    with context.ledger.writer() as lease:
        purge.purge(context, lease, purge.DATA)  # rows that a killed ingest left behind
        done = _committed(context, lease, paths, correct, append)
        if done.corrected:
            purge.purge(context, lease, purge.DATA)  # superseded rows
    return IngestResult(
        records=done.records,
        corrected=done.corrected,
        subjects=done.subjects,
        skipped=done.skipped,
        tombstoned=done.tombstoned,
        append=done.dataset.appends if append else None,
        total_records=done.dataset.records,
        partitions=len(done.dataset.partitions),
    )


def _committed(
    context: Context, lease: Lease, paths: list[Path], correct: bool, append: bool
) -> Ingested:
    partition = context.config.recipe.partition
    grid = Grid(partition.shards, partition.slices)
    for _ in range(ATTEMPTS):
        moment = context.ledger.moment()
        before = context.load_dataset(moment.dataset)
        done = ingestion.ingest(
            context.store,
            context.ring,
            context.columns,
            grid,
            before,
            paths,
            partial(context.epochs.meets, moment.tombstones),
            context.report.rows,
            correct,
            append,
        )
        if done.dataset is before:
            return done
        manifest = replace(done.dataset, moved=_moved(context, before, done)).save(context.store)
        context.store.flush()
        # A record that moves from a subject who asked for erasure meanwhile would escape it.
        version = moment.pending.version if done.moved else None
        try:
            context.ledger.commit_dataset(manifest, lease, version)
        except MovedOnError:
            continue
        return done
    raise BusyError("Erasure requests came in faster than the ingest.", "Try again.")


def _moved(context: Context, before: DataSet, done: Ingested) -> tuple[tuple[int, int, str], ...]:
    """What the current generation was trained on and now holds another subject's record."""
    current = context.current()
    trained = current[1].partitions if current else ()
    return tuple(
        (shard, slice_, logical)
        for shard, slice_, _, logical in trained
        if (shard, slice_) in done.moved or (shard, slice_, logical) in before.moved
    )
