"""Show that the published ensemble is what a first training on the stored data gives.

Tombstones against stored keys, digests of every reachable file, lineage against partitions, the
chain, the certificates, the log, and a replay: every served stage trained again in a clean process
and compared bit by bit.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from data_index import keys, lineage, partition, scan_sets
from data_index.dataset import DataSet
from data_index.keys import Keys
from data_index.ledger import GenerationEntry
from data_index.lineage import Selection
from data_index.schema import LINEAGE, RECORD_KEY, SUBJECT_KEY
from data_index.view import PartitionView, through
from sisa import certificate_chain, closing, learners, residue, stage_log
from sisa.checks import Outcome, check, meets, stored_keys
from sisa.config import Recipe
from sisa.context import Context
from sisa.errors import ExactnessError, UsageError
from sisa.generation import Constituent, Generation
from sisa.replay import replay_shards, replayed
from sisa.results import Residue, ResidueHit, ShardReplay, Verified
from sisa.stage import Link, chain


@dataclass(frozen=True)
class Sought:
    """What a search for residue is to look for.

    Attributes:
        subjects: Ids of erased subjects.
        records: Ids of erased records.
    """

    subjects: Sequence[str | int] = ()
    records: Sequence[str | int] = ()


@dataclass(frozen=True)
class _Subject:
    """What is verified: data set, generation and requests as they were at one moment."""

    context: Context
    dataset: DataSet
    entry: GenerationEntry
    generation: Generation
    pending: Selection
    stones: Keys
    moved: bool

    @classmethod
    def of(cls, context: Context) -> _Subject:
        """Read everything that the ledger points to now."""
        context.served()
        moment = context.ledger.moment()
        entry = moment.generation
        if entry is None or entry.manifest is None:
            raise ExactnessError("The current generation has no manifest.")
        dataset = context.load_dataset(moment.dataset)
        generation = Generation.load(context.store, entry.manifest)
        moved = moment.dataset is not None and entry.dataset != moment.dataset.sha256
        gone, stones = moment.pending.gone, moment.tombstones
        return cls(context, dataset, entry, generation, gone, stones, moved)

    @property
    def recipe(self) -> Recipe:
        """The recipe that the generation was trained with."""
        return self.generation.recipe

    @cached_property
    def views(self) -> tuple[PartitionView, ...]:
        """The data set without what is accepted but not rewritten yet."""
        c = self.context
        return through(c.store, c.ring, c.columns, self.dataset, self.pending)

    @cached_property
    def chains(self) -> dict[int, tuple[Link, ...]]:
        """The chain of each shard over these views."""
        shards = sorted({v.shard for v in self.views})
        training = self.generation.training
        return {s: chain(s, (v for v in self.views if v.shard == s), training) for s in shards}


def verify(
    context: Context,
    shard: int | None = None,
    sample: int | None = None,
    replay: bool = True,
    sought: Sought | None = None,
) -> Verified:
    """Check everything that is stored and, unless told not to, replay.

    Only a replay of all shards proves exactness; one of some says so much of these alone.

    Args:
        context: The workspace.
        shard: Replay this shard only.
        sample: Replay this many shards, drawn at random.
        replay: Whether to replay at all.
        sought: What to search all places for; None for no search. It does not bear on exactness.

    Raises:
        UsageError: There is no such shard, or both a shard and a sample are asked for.
        IncompleteError: Nothing has been trained yet.
        ExactnessError: A manifest is damaged, so that nothing can be checked.
    """
    subject = _Subject.of(context)
    entry, generation = subject.entry, subject.generation
    chosen = _chosen(generation, shard, sample)
    checks = [
        check("files", lambda: _files(subject)),
        check("partitions", lambda: _partitions(subject)),
        check("lineage", lambda: _lineage(subject)),
        check("tombstones", lambda: _tombstones(subject)),
        check("chain", lambda: _chain(subject)),
        check("depth", lambda: _depth(subject)),
        check("certificates", lambda: certificate_chain.outcome(context)),
        check("log", lambda: _log(context)),
    ]
    shards: tuple[ShardReplay, ...] = ()
    if replay and all(c.passed is not False for c in checks):
        checks.append(check("code", lambda: _code(subject)))
        if checks[-1].passed and next(c.passed for c in checks if c.name == "chain"):
            shards = replay_shards(context, generation, subject.chains, subject.views, chosen)
            checks.append(replayed(shards, len(generation.constituents)))
    whole = replay and len(chosen) == len(generation.constituents)
    proved = whole and all(c.passed for c in checks)
    wrong = any(c.passed is False for c in checks)
    scan = None if sought is None else _scan(context, sought)
    if scan is not None:
        checks.append(check("residue", lambda: _residue(context, scan)))
    return Verified(
        exact=False if wrong else (True if proved else None),
        generation=entry.number,
        digest=entry.digest,
        checks=tuple(checks),
        shards=shards,
        replayed=bool(shards),
        residue=scan and _shown(scan),
    )


def verify_and_keep(
    context: Context, shard: int | None, sample: int | None, replay: bool, sought: Sought | None
) -> Verified:
    """As `verify`, while nothing moves; the ledger keeps what a replay showed.

    Raises:
        BusyError: Another process is writing.
    """
    with context.ledger.writer():
        verified = verify(context, shard, sample, replay, sought)
        if verified.replayed:
            context.ledger.record_replay(_outcome(context, verified))
    return verified


def _outcome(context: Context, verified: Verified) -> dict[str, Any]:
    """What a replay showed, for the ledger to keep; the fields are those of `ReplayOutcome`."""
    return {
        "time": context.ledger.clock().isoformat(timespec="milliseconds"),
        "generation": verified.generation,
        "digest": verified.digest,
        "exact": verified.exact,
        "shards": len(verified.shards),
        "constituents": len(context.served()[1].constituents),
        "detail": next(c.detail for c in verified.checks if c.name == "replay"),
    }


def _log(context: Context) -> Outcome:
    """The store's copy of the log is the ledger's, entry by entry, and signed."""
    return True, f"{context.ledger.check_log()} entries are signed, in order, and the ledger's own"


def _files(subject: _Subject) -> Outcome:
    """Every reachable file has the bytes that were written."""
    store = subject.context.store
    stages = (s for c in subject.generation.constituents for s in c.stages)
    files = [*subject.dataset.files(), *{s.file for s in stages if s.file is not None}]
    broken = []
    for file in files:
        try:
            store.read(file)
        except ExactnessError as error:
            broken.append(error.message)
    if broken:
        return False, " ".join(broken[:5])
    return True, f"{len(files)} files have their recorded sha256"


def _partitions(subject: _Subject) -> Outcome:
    """Rows of every partition give the logical digest that stage keys were made of."""
    c = subject.context
    for part in subject.dataset.partitions:
        table = partition.read(c.store.read(part.file))
        place = f"slice {part.slice} of shard {part.shard}"
        if table.num_rows != part.rows:
            return False, f"{place} has {table.num_rows} rows, not {part.rows}"
        if partition.digest_of(table, c.columns, c.ring) != part.logical:
            return False, f"the rows of {place} do not give its logical digest"
    return True, f"{len(subject.dataset.partitions)} partitions give their logical digests"


def _lineage(subject: _Subject) -> Outcome:
    """Both indexes hold exactly the rows of the partitions, where they sit."""
    c = subject.context
    parts = []
    for part in subject.dataset.partitions:
        table = partition.read(c.store.read(part.file))
        digests = keys.to_arrow(partition.row_digests(table, c.columns, c.ring))
        place = [
            pa.array(np.full(table.num_rows, n, dtype=np.int32)) for n in (part.shard, part.slice)
        ]
        columns = [table[RECORD_KEY], table[SUBJECT_KEY], *place, digests]
        parts.append(pa.table(columns, schema=LINEAGE))
    rows = pa.concat_tables([LINEAGE.empty_table(), *parts])
    for name, index, by in (
        ("record", subject.dataset.by_record, (RECORD_KEY,)),
        ("subject", subject.dataset.by_subject, (SUBJECT_KEY, RECORD_KEY)),
    ):
        order = keys.sort_order(*(keys.from_arrow(rows[column]) for column in by))
        expected = rows.take(pa.array(order)).combine_chunks()
        stored = [t.cast(LINEAGE) for t in lineage.scan(c.store, index)]
        found = pa.concat_tables([LINEAGE.empty_table(), *stored]).combine_chunks()
        if not found.equals(expected):
            return False, f"the index by {name} does not hold exactly the rows of the partitions"
    return True, f"both indexes hold the {rows.num_rows} rows of the partitions"


def _tombstones(subject: _Subject) -> Outcome:
    """No stored key is of an erased subject or record; files that nothing points to included."""
    c = subject.context
    stones = subject.stones
    met = waiting = count = torn = 0
    for found in stored_keys(c.store):
        if found is None:
            torn += 1
            continue
        hit = meets(c, stones, found)
        held = subject.pending.mask(found)
        met += int((hit & ~held).sum())
        waiting += int((hit & held).sum())
        count += len(hit)
    if met:
        return False, f"{met} stored rows belong to erased subjects or records"
    if waiting:
        return (
            None,
            f"{waiting} stored rows wait to be rewritten: run `sisa work`, unless they are on hold",
        )
    if torn:
        return None, f"{torn} files that a crash left behind cannot be read; run `sisa work`"
    return True, f"none of {count} stored rows meets one of {len(stones)} tombstones"


def _chain(subject: _Subject) -> Outcome:
    """Stage keys of the generation are those of the stored data, its bits those of the log."""
    behind = {p[:2]: p for p in subject.generation.partitions} != {
        (v.shard, v.slice): (v.shard, v.slice, v.rows, v.logical) for v in subject.views
    }
    if behind and subject.moved:
        return None, "data came in since it was published; run `sisa train`"
    for constituent in subject.generation.constituents:
        known = stage_log.read_shard(subject.context.store, constituent.shard)
        for stage in constituent.stages:
            if stage.key not in known or known[stage.key].tensors != stage.tensors:
                return False, (
                    f"slice {stage.slice} of shard {constituent.shard} has other bits than logged"
                )
        links = subject.chains.get(constituent.shard, ())
        served = [(s.slice, s.key) for s in constituent.stages]
        if served != [(link.slice, link.key) for link in links[: len(served)]]:
            if served == _unfiltered(subject, constituent):
                return None, "an accepted erasure waits to be rolled back; run `sisa work`"
            return False, f"the stages of shard {constituent.shard} are not those of its data"
        failed = constituent.failed
        if failed and failed.key not in [link.key for link in links]:
            return False, f"shard {constituent.shard} failed on other data than it has"
    missing = set(subject.chains) - {c.shard for c in subject.generation.constituents}
    if missing:
        return False, f"shards {sorted(missing)} have data but no constituent"
    return True, f"{sum(map(len, subject.chains.values()))} stage keys follow from the data"


def _unfiltered(subject: _Subject, constituent: Constituent) -> list[tuple[int, str]]:
    """Slices and keys of as many stages over the stored rows, what is accepted included."""
    parts = [p for p in subject.dataset.partitions if p.shard == constituent.shard]
    views = [PartitionView(p.shard, p.slice, p.rows, p.logical, p.file) for p in parts]
    links = chain(constituent.shard, views, subject.generation.training)
    return [(link.slice, link.key) for link in links[: len(constituent.stages)]]


def _depth(subject: _Subject) -> Outcome:
    """Nothing is rolled back."""
    short = [
        c.shard
        for c in subject.generation.constituents
        if c.failed is None and len(c.stages) < len(subject.chains.get(c.shard, ()))
    ]
    if short:
        return None, f"shards {short} are rolled back; run `sisa work`"
    return True, "every constituent is served with all its stages"


def _code(subject: _Subject) -> Outcome:
    """The learner's code is the one that the generation was trained with."""
    subject.context.find_user_modules()
    code = learners.code_digest(subject.recipe.learner.factory)
    if subject.recipe.training_digest(code) != subject.generation.training:
        return None, "the learner's code was changed since; a replay compares nothing"
    return True, "the learner's code is the recorded one"


def _scan(context: Context, sought: Sought) -> residue.Scan:
    asked = residue.named(context, sought.subjects, sought.records)
    asked |= residue.erased(context, asked.gone)
    return residue.of(context, closing.rewritten_sets(context), asked, whole=True)


def _residue(context: Context, scan: residue.Scan) -> Outcome:
    """Nothing that an erasure must not leave is found anywhere."""
    with context.ledger.read() as connection:
        outlived = scan_sets.outlived(connection)
    if outlived:
        return False, f"{len(outlived)} closed requests have pseudonyms or scan sets in the ledger"
    if not scan.valid:
        missed = [name for name, found in scan.controls.items() if not found]
        return None, f"the search is not valid: it missed its own controls {', '.join(missed)}"
    if scan.hits:
        return False, f"residue in {', '.join(sorted({h.where for h in scan.hits})[:5])}"
    searched = f"{scan.files} files, {scan.bytes} bytes: nothing found"
    if scan.elsewhere:
        searched += f", but in {len({h.where for h in scan.elsewhere})} files that are not ours"
    if not scan.complete:
        count = len(scan.undecodable) + len(scan.refused)
        return None, f"{searched}; {count} could not be decoded"
    return True, searched


def _shown(scan: residue.Scan) -> Residue:
    body = scan.to_json() | {"valid": scan.valid, "digest": scan.digest}
    for name in ("hits", "elsewhere"):
        body[name] = [ResidueHit(**hit) for hit in body[name]]
    return Residue(**body)


def _chosen(
    generation: Generation, shard: int | None, sample: int | None
) -> tuple[Constituent, ...]:
    constituents = generation.constituents
    if shard is not None:
        found = tuple(c for c in constituents if c.shard == shard)
        if sample is not None:
            raise UsageError("A shard and a sample exclude each other.", "Choose one of them.")
        if not found:
            raise UsageError(f"Shard {shard} has no constituent.", "See `sisa status`.")
        return found
    if sample is not None and sample < len(constituents):
        picked = random.SystemRandom().sample(range(len(constituents)), sample)
        return tuple(constituents[i] for i in sorted(picked))
    return constituents
