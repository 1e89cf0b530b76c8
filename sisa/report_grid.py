"""Shards by slices: what each partition holds, what is served of it, what erasures touched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from data_index.dataset import DataSet
from data_index.requests import Places, Request, first_of
from sisa.config import Recipe
from sisa.generation import Constituent, Generation
from sisa.report_results import Cell, Grid, ShardRow

State = Literal["served", "rolled_back", "failed", "untrained", "empty"]
Counts = dict[int, npt.NDArray[np.int64]]
"""A count for every slice of a shard, by shard."""


def grid(
    recipe: Recipe,
    dataset: DataSet,
    generation: Generation | None,
    requests: Sequence[Request],
    rebuilt_by: Mapping[str, int | None],
) -> Grid:
    """Hold data set, generation and requests against each other.

    Args:
        recipe: Says how many shards and slices there are.
        dataset: The current data set.
        generation: What is served, or None.
        requests: All requests.
        rebuilt_by: Generation after each certified request, None if there was none; by its id.
    """
    rows = {(p.shard, p.slice): p.rows for p in dataset.partitions}
    columns = max([recipe.partition.slices + dataset.appends, *(s for _, s in rows)])
    served = {c.shard: c for c in generation.constituents} if generation else {}
    touched = _counts((r.places for r in requests), columns)
    retrained = _counts(_rebuilds(requests, rebuilt_by), columns)
    there = sorted({shard for shard, _ in rows} | touched.keys())
    cells = tuple(
        cell
        for shard in there
        for cell in _cells(shard, columns, rows, served.get(shard), touched, retrained)
    )
    shards = range(max([recipe.partition.shards, *(s + 1 for s in there)]))
    held = dict.fromkeys(shards, 0)
    for (shard, _), count in rows.items():
        held[shard] += count
    return Grid(
        shards=recipe.partition.shards,
        slices=columns,
        rows=tuple(_row(s, held[s], served.get(s), touched, retrained) for s in shards),
        cells=cells,
    )


def _rebuilds(requests: Iterable[Request], rebuilt_by: Mapping[str, int | None]) -> list[Places]:
    """What each rebuild trained again; requests that were carried out together are one."""
    groups: dict[object, list[tuple[int, int]]] = {}
    for request in requests:
        if request.status == "published":  # built, and its certificate still to come
            groups.setdefault("published", []).extend(request.places)
        elif request.status == "certified" and request.generation_before is not None:
            group = rebuilt_by.get(request.id, request.id)
            if group is not None:
                groups.setdefault(group, []).extend(request.places)
    return [first_of(places) for places in groups.values()]


def _counts(touched: Iterable[Places], columns: int) -> Counts:
    """How many of them reach each slice, int64 [columns] a shard."""
    found: Counts = {}
    for places in touched:
        for shard, first in places:
            if shard not in found:
                found[shard] = np.zeros(columns, dtype=np.int64)
            found[shard][first - 1] += 1
    return {shard: counts.cumsum() for shard, counts in found.items()}


def _cells(
    shard: int,
    columns: int,
    rows: Mapping[tuple[int, int], int],
    constituent: Constituent | None,
    touched: Counts,
    retrained: Counts,
) -> Iterator[Cell]:
    none = np.zeros(columns, dtype=np.int64)
    requests, rebuilds = touched.get(shard, none), retrained.get(shard, none)
    filled = [s for s in range(1, columns + 1) if (shard, s) in rows]
    states = _states(filled, constituent)
    for slice_ in range(1, columns + 1):
        if slice_ in states or requests[slice_ - 1]:
            yield Cell(
                shard=shard,
                slice=slice_,
                records=rows.get((shard, slice_), 0),
                state=states.get(slice_, "empty"),
                requests=int(requests[slice_ - 1]),
                retrained=int(rebuilds[slice_ - 1]),
            )


def _states(filled: Sequence[int], constituent: Constituent | None) -> dict[int, State]:
    """How what is served stands to each slice that has records."""
    if constituent is None:
        return dict.fromkeys(filled, "untrained")
    seen = {s.slice for s in constituent.stages}
    failed = constituent.failed.slice if constituent.failed else None
    back = constituent.length - len(constituent.stages)
    states: dict[int, State] = {}
    for slice_ in filled:
        if slice_ in seen:
            states[slice_] = "served"
        elif failed is not None and slice_ >= failed:
            states[slice_] = "failed"
        else:
            # Slices that came in later follow those that it had.
            states[slice_] = "rolled_back" if back > 0 else "untrained"
            back -= 1
    return states


def _row(
    shard: int,
    records: int,
    constituent: Constituent | None,
    touched: Counts,
    retrained: Counts,
) -> ShardRow:
    return ShardRow(
        shard=shard,
        records=records,
        served=len(constituent.stages) if constituent else 0,
        stages=constituent.length if constituent else 0,
        votes=constituent.votes if constituent else False,
        failed_slice=constituent.failed.slice if constituent and constituent.failed else None,
        requests=int(touched[shard][-1]) if shard in touched else 0,
        retrained=int(retrained[shard][-1]) if shard in retrained else 0,
    )
