"""What rows give to a scan set, and what the rows that stay take from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_index import keys, lineage, partition
from data_index.keys import Keyring
from data_index.lineage import Selection
from data_index.schema import RECORD_KEY, SUBJECT_KEY, Columns
from data_index.storage import canonical_json
from sisa.context import Context
from sisa.residue.decoders.columns import leaves
from sisa.residue.needles import VARIETY, WINDOW, Needle, ScanSet, split, too_short
from sisa.residue.search import VARIED, Finder

SAMPLED = 32
"""At most so many windows of one value."""

MOST = 1 << 20
"""About so many windows of one column of a partition, however many rows are erased."""

TEXT = (12, 64)
"""Bytes of texts that are looked for whole; of longer ones windows are."""


def erased(context: Context, gone: Selection) -> ScanSet:
    """What the stored rows of subjects and records give; empty once they are rewritten.

    Raises:
        ExactnessError: A partition or an index cannot be read.
    """
    store, dataset = context.store, context.dataset()
    rows = lineage.find(store, dataset.by_record, dataset.by_subject, gone)
    places = set(zip(rows["shard"].to_pylist(), rows["slice"].to_pylist(), strict=True))
    found = ScanSet()
    for file in dataset.partitions:
        if (file.shard, file.slice) in places:
            table = partition.read(store.read(file.file))
            table = table.filter(pa.array(gone.mask(table)))
            found |= of_table(table, context.columns, context.ring)
    return found


def of_table(table: pa.Table, columns: Columns, ring: Keyring) -> ScanSet:
    """What rows of a partition give: keys, digests, windows of wide values, texts."""
    windows: set[bytes] = set()
    texts: set[bytes] = set()
    for feature in columns.features:
        column = table[feature.column]
        if feature.kind == "array" and feature.arrow.byte_width >= WINDOW:
            values = partition.array_values(column, np.dtype(np.uint8), feature.arrow.byte_width)
            windows |= _windows(values)
        elif feature.kind == "text":
            for text in column.unique().cast(pa.binary()).drop_null().to_pylist():
                if TEXT[0] <= len(text) <= TEXT[1]:
                    texts.add(text)
                if len(text) >= WINDOW:
                    windows |= _windows(np.frombuffer(text, dtype=np.uint8)[None])
    return ScanSet(
        row_subjects=split(keys.from_arrow(table[SUBJECT_KEY])),
        row_records=split(keys.from_arrow(table[RECORD_KEY])),
        digests=split(partition.row_digests(table, columns, ring)),
        windows=tuple(sorted(windows)),
        texts=tuple(sorted(texts)),
    )


def _windows(values: npt.NDArray[np.uint8]) -> set[bytes]:
    """Windows of values, uint8 [n, width]: of enough variety, spread evenly, few of each value.

    Windows that are varied throughout come first: eight zeros in a row, say, are in most files, and
    each of them would have to be looked at.
    """
    rows, width = values.shape
    count = width // WINDOW
    most = min(SAMPLED, max(2, MOST // max(1, rows)))
    found: set[bytes] = set()
    for first in range(0, rows, 1024):
        cut = values[first : first + 1024, : count * WINDOW].reshape(-1, count, WINDOW)
        varied = _distinct(cut) >= VARIETY
        words = np.stack([_distinct(cut[..., i : i + 8]) for i in (0, 4, 8)])
        best = varied & (words.min(axis=0) >= VARIED)
        varied = np.where(best.any(axis=1, keepdims=True), best, varied)
        rank = np.cumsum(varied, axis=1) - 1
        share = np.maximum(varied.sum(axis=1, keepdims=True), most)
        chosen = varied & (rank * most // share > (rank - 1) * most // share)
        found |= {row.tobytes() for row in cut[chosen]}
    return found


def _distinct(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """How many distinct bytes stand along the last axis."""
    ranked = np.sort(values, axis=-1)
    counts: npt.NDArray[np.int64] = 1 + (ranked[..., 1:] != ranked[..., :-1]).sum(axis=-1)
    return counts


def legitimate(context: Context, scan_set: ScanSet) -> set[bytes]:
    """Items of a set that occur in what stays: retained rows, and the recipe's own words.

    Rows are told by the keys in the partitions themselves, so that a lineage that has lost a row
    hides nothing.

    Raises:
        ExactnessError: A partition cannot be read.
    """
    items = {item for field in scan_set for item in field if not too_short(item)}
    finder = Finder([Needle(item, "value", item.isdigit()) for item in items])
    recipe = canonical_json(context.config.recipe.model_dump(mode="json"))
    found = finder.find(recipe)
    for part in _retained(context, scan_set.gone):
        found |= finder.find(part, skip=found)
    return {finder.needles[number].pattern for number in found}


def _retained(context: Context, gone: Selection) -> Iterator[Any]:
    for file in context.dataset().partitions:
        table = partition.read(context.store.read(file.file))
        kept = table.filter(pa.array(~gone.mask(table)))
        for column in kept.columns:
            yield from leaves(column)
