"""How records fall on shards, slices and classes: nothing here is wrong, it costs accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sisa.config import Recipe, Training
from sisa.determinism import StagePlan, cuts
from sisa.results import Finding
from sisa.sample import Sample

STEPS = 20
"""Optimizer steps under which a stage learns little for what it costs; measured."""

UNEQUAL = 3
OWNED = 1 / 3
FEWEST = 50
"""Sampled rows of a shard under which a share of it says nothing."""


def stages(sample: Sample, recipe: Recipe) -> Iterator[Finding]:
    """Stages of too few optimizer steps."""
    training = recipe.training
    nobody = np.zeros(0, np.uint64)
    steps, rows = [], dict.fromkeys(range(recipe.partition.shards), 0)
    for (shard, slice_), count in sorted(sample.sizes.items()):
        rows[shard] += count
        plan = StagePlan(training, recipe.partition.slices, 0, slice_, nobody)
        steps.append(sum(_steps(rows[shard] * share >> 64, training) for share in plan.shares))
    few = [s for s in steps if s < STEPS]
    if few:
        yield Finding(
            severity="warning",
            check="stages",
            message=f"{len(few)} of {len(steps)} stages take fewer than {STEPS} optimizer steps, "
            f"the shortest {min(few)}; too few for the accuracy and the time they cost.",
            remedy=f"Use fewer shards or slices, more epochs, or a smaller batch_size than "
            f"{training.batch_size}.",
        )


def _steps(rows: int, training: Training) -> int:
    return len(cuts(rows, training))


def shards(sample: Sample, recipe: Recipe) -> Iterator[Finding]:
    """Shards without a record, and shards of very unequal sizes."""
    rows = dict.fromkeys(range(recipe.partition.shards), 0)
    for (shard, _), count in sample.sizes.items():
        rows[shard] += count
    empty = [shard for shard, count in rows.items() if count == 0]
    filled = [count for count in rows.values() if count]
    if empty:
        yield Finding(
            severity="warning",
            check="shards",
            message=f"There is no record, and so no vote, in {_listed(empty)} of {len(rows)}.",
            remedy="Use fewer shards.",
        )
    if max(filled) > UNEQUAL * min(filled):
        yield Finding(
            severity="warning",
            check="shards",
            message=f"Shards are unequal: the largest has {max(filled)} records, the smallest "
            f"{min(filled)}, and each has one vote.",
            remedy="Use fewer shards, so that data subjects spread more evenly.",
        )


def subjects(sample: Sample) -> Iterator[Finding]:
    """Data subjects that own a large part of a shard."""
    owners, largest = 0, 0.0
    for shard in np.unique(sample.shards):
        found = np.unique(sample.subjects[sample.shards == shard], return_counts=True)[1]
        if found.sum() < FEWEST:
            continue
        shares = found / found.sum()
        owners += int((shares > OWNED).sum())
        largest = max(largest, float(shares.max()))
    if owners:
        yield Finding(
            severity="info",
            check="subjects",
            message=f"Data subjects that own more than a third of their shard: {owners}, at most "
            f"{largest:.0%} of it; erasing one changes that constituent much.",
            remedy="Use fewer shards.",
        )


def classes(sample: Sample, recipe: Recipe) -> Iterator[Finding]:
    """Declared classes that no row has, or that no row of a shard has."""
    count = len(recipe.data.classes)
    if not count:
        return
    shards = int(sample.shards.max()) + 1
    pairs = np.bincount(sample.shards * count + sample.target, minlength=shards * count)
    seen = pairs.reshape(shards, count) > 0
    among = "all" if sample.complete else f"the {len(sample)} sampled"
    never = np.flatnonzero(~seen.any(axis=0)).tolist()
    if never:
        yield Finding(
            severity="info",
            check="classes",
            message=f"{len(never)} of {count} declared classes, at first "
            f"{recipe.data.classes[never[0]]!r}, are not among {among} records.",
            remedy="Nothing needs to be done if they will come; "
            "otherwise take them out of recipe.data.classes before the first ingest.",
        )
    lacking = np.flatnonzero(seen.any(axis=1) & ~seen[:, seen.any(axis=0)].all(axis=1)).tolist()
    if lacking:
        yield Finding(
            severity="warning" if sample.complete else "info",
            check="classes",
            message=f"Among {among} records a class is absent from {_listed(lacking)}, whose vote "
            "hardly knows it.",
            remedy="Use fewer shards.",
        )


def _listed(shards: Sequence[int]) -> str:
    some = ", ".join(map(str, shards[:8]))
    return f"shard{'s' * (len(shards) > 1)} {some}{' and others' * (len(shards) > 8)}"
