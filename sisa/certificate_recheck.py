"""Hold a certificate against its workspace: chain, stored files, and rows against tombstones."""

from __future__ import annotations

from pathlib import Path

from data_index.storage import FileRef, sha256
from sisa import certificate_chain, stage_log
from sisa.certificate_check import read_certificate, signed, verdict
from sisa.checks import Outcome, check, meets, stored_keys
from sisa.context import Context
from sisa.results import CertificateVerified
from sisa.signing_keys import Trusted
from sisa.statement import Erasure, Statement


def verify(context: Context, path: Path, trusted: Trusted) -> CertificateVerified:
    """Check a certificate's signature and statement, and what its workspace can still show.

    Raises:
        NotFoundError: There is no such file.
        ExactnessError: It is a statement of approximate unlearning.
    """
    data = read_certificate(path)
    checks, stated = signed(data, trusted)
    if stated is not None:
        said = stated.predicate
        checks = (
            *checks,
            check("chain", lambda: _chain(context, data, stated)),
            check("generation", lambda: _generation(context, said)),
            check("checkpoints", lambda: _checkpoints(context, said)),
            check("tombstones", lambda: _tombstones(context, said)),
        )
    return verdict(path, data, checks)


def _chain(context: Context, data: bytes, stated: Statement) -> Outcome:
    """It stands at its place in the chain, and the chain is whole."""
    place = stated.predicate.sequence
    kept = certificate_chain.walk(context)
    if place > len(kept):
        return False, f"the chain of this workspace has {len(kept)} certificates, this is {place}"
    if kept[place - 1].data != data:
        return False, f"certificate {place} of this workspace is another one"
    passed, detail = certificate_chain.outcome(context)
    return (False, detail) if passed is False else (True, f"{place} of {len(kept)}")


def _generation(context: Context, said: Erasure) -> Outcome:
    """The data set and the generation that it names are those of the ledger, or superseded."""
    dataset = context.ledger.dataset()
    superseded = ["data set"] if dataset is None or dataset.sha256 != said.dataset else []
    if dataset is not None and not superseded:
        context.store.read(dataset)
    if said.generation is not None:
        entries = {e.number: e for e in context.ledger.generations()}
        entry = entries.get(said.generation.number)
        if entry is None or entry.digest != said.generation.digest:
            return False, f"generation {said.generation.number} of the ledger is another one"
        if entry.manifest is None:
            superseded.append("generation")
        elif sha256(context.store.read(entry.manifest)) != said.generation.manifest:
            return False, f"generation {entry.number} has another manifest"
    if superseded:
        return True, f"superseded since: {' and '.join(superseded)}"
    return True, "data set and generation are current and as stated"


def _checkpoints(context: Context, said: Erasure) -> Outcome:
    """Rebuilt checkpoints that are still reachable have the stated digests."""
    same = 0
    for stage in said.stages:
        record = stage_log.read_shard(context.store, stage.shard).get(stage.key)
        if record is None:
            continue
        place = f"slice {stage.slice} of shard {stage.shard}"
        if record.tensors != stage.tensors:
            return False, f"{place} has other tensors than stated"
        if stage.checkpoint is None or record.file is None:
            continue
        if record.file.sha256 != stage.checkpoint:
            return False, f"the checkpoint of {place} is another one than stated"
        context.store.read(FileRef(record.file.path, stage.checkpoint, record.file.size))
        same += 1
    kept = sum(1 for stage in said.stages if stage.checkpoint is not None)
    superseded = f"; superseded since: {kept - same}" if kept > same else ""
    return True, f"{same} rebuilt checkpoints are as stated{superseded}"


def _tombstones(context: Context, said: Erasure) -> Outcome:
    """No stored row is of a subject or record that the request names."""
    stones = context.ledger.tombstones_of(said.request)
    if not len(stones):
        return None, "its tombstones are gone: lifted, or their epoch has ended"
    count = met = torn = 0
    for table in stored_keys(context.store):
        if table is None:
            torn += 1
            continue
        count += table.num_rows
        met += int(meets(context, stones, table).sum())
    if met:
        return False, f"{met} stored rows are of what it erased"
    if torn:
        return None, f"{torn} files that a crash left behind cannot be read; run `sisa work`"
    return True, f"none of {count} stored rows meets one of its {len(stones)} tombstones"
