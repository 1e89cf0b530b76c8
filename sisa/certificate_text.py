"""A certificate as people read it: what was erased, when, what was rebuilt, what is outside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sisa.results import CertificateShown
from sisa.statement import Erasure


def text(shown: CertificateShown) -> str:
    """A page of plain text, each line ended."""
    said = shown.statement.predicate
    lines = [
        f"Certificate {said.sequence} of this workspace: erasure {said.request}",
        "The signature is not checked here: `sisa certificate verify` does that.",
        *_section("What was erased", _erased(said)),
        *_section("When (UTC)", _when(said)),
        *_section("What was rebuilt", _rebuilt(said)),
        *_section("How it was checked", _checked(said)),
        *_section("What lies outside the guarantee", (f"- {what}" for what in said.outside)),
        *_section("This file", _file(shown)),
    ]
    return "\n".join(lines) + "\n"


def _section(title: str, lines: Iterator[str]) -> Iterator[str]:
    yield ""
    yield title
    yield from (f"  {line}" for line in lines)


def _erased(said: Erasure) -> Iterator[str]:
    shards = ", ".join(f"{s.shard} from slice {s.first_slice} on" for s in said.shards)
    yield f"{said.records_erased} records; shards: {shards or 'none'}"
    for p in said.partitions:
        left = f"{p.after.rows} rows now" if p.after else "no row is left"
        yield (
            f"slice {p.slice} of shard {p.shard}: {p.erased} of {p.before.rows} rows erased, {left}"
        )
    counts = ", ".join(f"{n} {folder}" for folder, n in said.files_destroyed.items() if n)
    yield f"files destroyed: {counts or 'none'}"
    yield f"MLflow mirror: {_open(said.mirror, 'no purge was part of this')}"


def _when(said: Erasure) -> Iterator[str]:
    for name, time in said.times:
        yield f"{name:<10}{time or '-'}"


def _rebuilt(said: Erasure) -> Iterator[str]:
    if said.generation is None:
        yield "nothing was ever trained"
        return
    yield f"generation {said.generation.number}, digest {said.generation.digest}"
    for s in said.stages:
        kept = f"checkpoint {s.checkpoint}" if s.checkpoint else "no checkpoint kept"
        yield f"slice {s.slice} of shard {s.shard}: {kept}"
    if not said.stages:
        yield "no stage stands where the records had been"


def _checked(said: Erasure) -> Iterator[str]:
    yield f"residue scan: {_open(said.residue, 'none was part of this')}"
    yield f"trained again before issuing: {said.replay}"
    for r in said.replayed:
        yield f"  shard {r.shard}: {r.detail}"


def _file(shown: CertificateShown) -> Iterator[str]:
    said = shown.statement.predicate
    yield f"sha256    {shown.sha256}"
    yield f"before    {said.previous or 'none, it is the first'}"
    yield f"key       {shown.key}"


def _open(found: dict[str, Any] | None, absent: str) -> str:
    return ", ".join(f"{name}: {value}" for name, value in found.items()) if found else absent
