"""Checks: each has an outcome, and what it raises is one as well."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from data_index import keys, partition
from data_index.keys import Keys
from data_index.schema import RECORD_KEY, SUBJECT_KEY
from data_index.storage import Store, sha256
from sisa.context import Context
from sisa.errors import ExactnessError
from sisa.results import Check

Outcome = tuple[bool | None, str]
"""Whether it passed, None where nothing can be said, and what was found."""


def check(name: str, run: Callable[[], Outcome]) -> Check:
    """Run a check."""
    try:
        passed, detail = run()
    except ExactnessError as error:
        passed, detail = False, str(error)
    return Check(name=name, passed=passed, detail=detail)


def stored_keys(store: Store) -> Iterator[pa.Table | None]:
    """Keys of every file with rows, whether anything points to it or not; None for a torn one."""
    for folder in ("partitions", "lineage", "journal"):
        for path in store.list(folder):
            data = store.read_unchecked(path)
            whole = sha256(data) in path
            yield partition.read(data, [RECORD_KEY, SUBJECT_KEY]) if whole else None


def meets(
    context: Context, stones: Keys, table: pa.Table
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which rows are of an erased subject or record; bool [rows].

    Args:
        context: The workspace.
        stones: Tombstones, uint8 [n, 16].
        table: Has record and subject keys.
    """
    hit = context.epochs.meets(stones, keys.from_arrow(table[RECORD_KEY]))
    hit |= context.epochs.meets(stones, keys.from_arrow(table[SUBJECT_KEY]))
    return hit
