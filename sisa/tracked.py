"""What a mirror is told of a generation: recipe, digests, cost, fingerprint; no id, no source."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from data_index.ledger import GenerationEntry
from data_index.storage import Store, canonical_json
from sisa import stage_log
from sisa.generation import Constituent, Generation
from sisa.stage_log import StageRecord

LONGEST = 500
"""Characters of a text; every MLflow server takes as many, some no more."""

Metric = tuple[str, float, int]
"""Name, value, step."""


@dataclass(frozen=True)
class Sheet:
    """One run.

    Attributes:
        name: Its name, unique among the runs of one generation.
        time: Milliseconds since 1970 at which the generation was published.
        identity: Tags by which it is found again; no other generation has them all.
        tags: Its other tags.
        metrics: Names, values and steps.
        params: What the recipe says.
        status: `FINISHED`, or `FAILED` if the shard's training failed.
    """

    name: str
    time: int
    identity: dict[str, str]
    tags: dict[str, str]
    metrics: list[Metric]
    params: dict[str, str] = field(default_factory=dict)
    status: str = "FINISHED"


WORKSPACE = "sisa.workspace"
"""Tag of all that one workspace has in a mirror: the random name that the ledger gave it."""

GENERATION, SHARD = "sisa.generation", "sisa.shard"
"""Tags that say which generation, and which shard of it, something belongs to."""

KEPT = (
    WORKSPACE,
    GENERATION,
    SHARD,
    "sisa.manifest_sha256",
    "sisa.digest",
    "sisa.training_digest",
    "mlflow.runName",
    "mlflow.parentRunId",
)
"""Tags that a run of a retired generation keeps where its row cannot be dropped."""

FREE = ("data.", "learner.")
"""Parts of the recipe with names and texts of the user's: tags, since no param can be emptied."""


def sheets(
    entry: GenerationEntry, generation: Generation, store: Store, mark: str
) -> tuple[Sheet, list[Sheet]]:
    """The run of a generation, and one a shard.

    Args:
        entry: The generation, as the ledger has it.
        generation: The generation.
        store: Holds its stage log.
        mark: The workspace's name in a mirror.

    Raises:
        ExactnessError: The stage log is damaged.
        ValueError: The generation is retired.
    """
    if entry.manifest is None:
        raise ValueError("a retired generation has no manifest")
    stages = {c.shard: _stages(c, store) for c in generation.constituents}
    number, time = str(entry.number), _milliseconds(entry.time)
    every = [record for records in stages.values() for record in records]
    recipe = dict(_flat("", generation.recipe.model_dump(mode="json")))
    free = {name for name in recipe if name.startswith(FREE)}
    parent = Sheet(
        name=f"generation-{number}",
        time=time,
        identity={
            WORKSPACE: mark,
            GENERATION: number,
            "sisa.manifest_sha256": entry.manifest.sha256,
        },
        tags={
            "sisa.digest": generation.digest,
            "sisa.training_digest": generation.training,
            "sisa.reason": generation.reason,
            "sisa.exactness": "bitwise",
            **{f"sisa.{name}": recipe[name] for name in free},
            **_fingerprint(every),
        },
        metrics=_totals(generation, every),
        params={name: text for name, text in recipe.items() if name not in free},
    )
    children = [
        _shard(parent, constituent, stages[constituent.shard])
        for constituent in generation.constituents
    ]
    return parent, children


def _shard(parent: Sheet, constituent: Constituent, stages: list[StageRecord]) -> Sheet:
    shard = str(constituent.shard)
    metrics = [
        (name, float(value), record.slice)
        for record in stages
        for name in ("loss", "samples", "seconds", "steps")
        if (value := getattr(record, name)) is not None
    ]
    return Sheet(
        name=f"shard-{shard}",
        time=parent.time,
        identity={
            WORKSPACE: parent.identity[WORKSPACE],
            GENERATION: parent.identity[GENERATION],
            SHARD: shard,
        },
        tags={"sisa.votes": _text(constituent.votes), **_fingerprint(stages)},
        metrics=metrics,
        status="FAILED" if constituent.failed else "FINISHED",
    )


def _stages(constituent: Constituent, store: Store) -> list[StageRecord]:
    """What the log holds of a constituent's stages, a failed last one included."""
    log = stage_log.read_shard(store, constituent.shard)
    keys = [stage.key for stage in constituent.stages]
    keys += [constituent.failed.key] if constituent.failed else []
    return [log[key] for key in keys if key in log]


def _totals(generation: Generation, records: list[StageRecord]) -> list[Metric]:
    """Cost of all its stages, whichever build trained them, and how much of it is served."""
    return [
        ("samples", float(sum(r.samples for r in records)), 0),
        ("steps", float(sum(r.steps for r in records)), 0),
        ("seconds", sum(r.seconds for r in records), 0),
        ("voting", float(len(generation.voting)), 0),
        ("failed", float(len(generation.failed_shards)), 0),
        ("depth", generation.depth, 0),
    ]


def _fingerprint(records: list[StageRecord]) -> dict[str, str]:
    """Tags, as a param could not change when a stage is trained again elsewhere."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for name, value in record.fingerprint.items():
            found.setdefault(name, {})[_text(value)] = None
    return {f"sisa.fingerprint.{n}": " | ".join(v)[:LONGEST] for n, v in found.items()}


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """`training.lr` and the like; what the user names (columns, categories) stays one value."""
    if isinstance(value, dict) and not name.startswith("data."):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), inner)
    else:
        yield re.sub(r"[^\w.-]", "_", name)[:250], _text(value)


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value).decode()
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _milliseconds(time: str) -> int:
    return round(datetime.fromisoformat(time).timestamp() * 1000)
