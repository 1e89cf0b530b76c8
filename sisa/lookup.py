"""What ids stand for, in the data and among the tombstones: of one request or of many at once."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_index import keys, lineage
from data_index.keys import Keys
from data_index.ledger import Moment
from data_index.lineage import Selection
from data_index.requests import Places, Request, first_of
from data_index.schema import RECORD_KEY, SUBJECT_KEY
from sisa.context import Context
from sisa.errors import UsageError

# pyarrow looks for pandas when it first takes a NumPy array; better now than inside acceptance.
with suppress(ImportError):
    importlib.import_module("pandas")

Id = str | int
Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]

Share = tuple[tuple[int, int, int], ...]
"""Shards and slices with the number of rows that are meant there."""


@dataclass(frozen=True)
class Ids:
    """The ids of some requests as keys, n in all.

    Attributes:
        keys: uint8 [n, 16]; no subject's key is a record's.
        subjects: Which are subjects; bool [n].
        owner: The request that names each, from 0; int [n].
        text: As they were given; echoed to the caller and kept nowhere.
    """

    keys: Keys
    subjects: Mask
    owner: Numbers
    text: npt.NDArray[np.object_]

    def where(self, wanted: Mask | Numbers) -> Ids:
        """Some of them, by a mask or by their numbers."""
        return Ids(self.keys[wanted], self.subjects[wanted], self.owner[wanted], self.text[wanted])

    def selection(self) -> Selection:
        """Each of them once."""
        return Selection(_unique(self.keys[self.subjects]), _unique(self.keys[~self.subjects]))


def identify(context: Context, asked: Sequence[tuple[Sequence[Id], Sequence[Id]]]) -> Ids:
    """Keys of the subjects and records that requests name.

    Without a subject column a subject is its record.

    Raises:
        UsageError: A request names no id, or one that is neither text nor an integer.
        DataError: An id is empty or padded.
    """
    if not asked or not all(subjects or records for subjects, records in asked):
        raise UsageError("No id is given.", "Name a subject or a record.")
    named: list[tuple[Id, int, bool]] = [
        (i, owner, kind == 0 and context.columns.subject_id is not None)
        for kind in (0, 1)
        for owner, both in enumerate(asked)
        for i in both[kind]
    ]
    if any(isinstance(i, bool) or not isinstance(i, (str, int)) for i, _, _ in named):
        raise UsageError("An id is neither text nor an integer.", "Name ids as the sources do.")
    text = np.array([str(i) for i, _, _ in named], dtype=object)
    canonical = keys.canonical_texts(text.tolist(), "The call")
    of_subjects = np.array([subject for _, _, subject in named], dtype=bool)
    split = int(of_subjects.sum())  # subjects come first
    found = np.concatenate(
        [
            keys.subject_keys(context.ring, canonical[:split]),
            keys.record_keys(context.ring, canonical[split:]),
        ]
    )
    owner = np.array([owner for _, owner, _ in named], dtype=np.int64)
    return Ids(found, of_subjects, owner, text)


@dataclass(frozen=True)
class Found:
    """Ids, looked up at one moment.

    Attributes:
        context: The workspace.
        moment: The ledger then.
        ids: The n ids.
        rows: Lineage rows that they stand for, whatever was accepted.
        there: Which have a row; bool [n].
        met: Which meet a tombstone; bool [n].
    """

    context: Context
    moment: Moment
    ids: Ids
    rows: pa.Table
    there: Mask
    met: Mask

    def of(self, owners: Sequence[int]) -> Found:
        """The same of some of the requests."""
        some = np.isin(self.ids.owner, np.array(owners, dtype=np.int64))
        return replace(self, ids=self.ids.where(some), there=self.there[some], met=self.met[some])

    @cached_property
    def first(self) -> Numbers:
        """For each id, the request of the call that names it first; int [n]."""
        if len(self.ids.keys) == 0:
            return self.ids.owner
        _, at, which = np.unique(_opaque(self.ids.keys), return_index=True, return_inverse=True)
        # Owners rise among the subjects and among the records, and no key is in both.
        first: Numbers = self.ids.owner[at][which.reshape(-1)]
        return first

    @cached_property
    def new(self) -> Mask:
        """Which are named for the first time; bool [n]."""
        mask: Mask = self.there & ~self.met & (self.first == self.ids.owner)
        return mask

    @property
    def known(self) -> Mask:
        """Which have a row or a tombstone; bool [n]."""
        return self.there | self.met

    def shares(self) -> dict[int, Share]:
        """The rows that each request stands for; one that stands for none is left out."""
        owner, row = self._pairs()
        shard, slice_ = (self.rows[c].to_numpy().astype(np.int64) for c in ("shard", "slice"))
        where = np.stack([owner, shard[row], slice_[row]], axis=1)
        places, counts = np.unique(where, axis=0, return_counts=True)
        found: dict[int, list[tuple[int, int, int]]] = {}
        for (of, s, r), count in zip(places.tolist(), counts.tolist(), strict=True):
            found.setdefault(of, []).append((s, r, count))
        return {of: tuple(share) for of, share in found.items()}

    def _pairs(self) -> tuple[Numbers, Numbers]:
        """Requests and numbers of the rows that they stand for, each pair once."""
        owner = self.ids.owner[self.there]
        wanted, which = np.unique(_opaque(self.ids.keys[self.there]), return_inverse=True)
        distinct = wanted.view(np.uint8).reshape(-1, keys.KEY_BYTES)
        columns = [keys.from_arrow(self.rows[name]) for name in (SUBJECT_KEY, RECORD_KEY)]
        key = np.concatenate([keys.positions(distinct, column) for column in columns])
        row = np.tile(np.arange(self.rows.num_rows), 2)[key >= 0]
        key = key[key >= 0]
        order = np.argsort(key, kind="stable")
        bounds = np.searchsorted(key[order], np.arange(len(distinct) + 1))
        start, count = bounds[:-1][which.reshape(-1)], np.diff(bounds)[which.reshape(-1)]
        nth = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        rows = row[order][np.repeat(start, count) + nth]
        both = np.unique(np.repeat(owner, count) * max(1, self.rows.num_rows) + rows)
        return both // max(1, self.rows.num_rows), both % max(1, self.rows.num_rows)


def find(context: Context, ids: Ids) -> Found:
    """Look ids up as things are now."""
    moment = context.ledger.moment()
    dataset = context.load_dataset(moment.dataset)
    rows = lineage.find(context.store, dataset.by_record, dataset.by_subject, ids.selection())
    subjects, records = (keys.from_arrow(rows[name]) for name in (SUBJECT_KEY, RECORD_KEY))
    there = np.where(
        ids.subjects, keys.contains(subjects, ids.keys), keys.contains(records, ids.keys)
    )
    met = context.epochs.meets(moment.tombstones, ids.keys)
    return Found(context, moment, ids, rows, there, met)


@dataclass(frozen=True)
class Named:
    """The ids of a single call.

    Attributes:
        new: Those that have rows and are named for the first time.
        rows: Lineage rows that go with them.
        earlier: Requests that named some of the others before.
        unknown: Ids that are in neither; echoed to the caller and kept nowhere.
    """

    new: Selection
    rows: pa.Table
    earlier: tuple[Request, ...]
    unknown: tuple[str, ...]

    @property
    def places(self) -> Places:
        """The shards that the rows sit in, each with their first slice there."""
        return first_of(zip(*(self.rows[c].to_pylist() for c in ("shard", "slice")), strict=True))

    @property
    def shards(self) -> tuple[int, ...]:
        """The shards that the rows sit in."""
        return tuple(shard for shard, _ in self.places)


def look_up(context: Context, subjects: Sequence[Id], records: Sequence[Id]) -> Named:
    """Find what the ids of one call stand for. Raises as `identify` does."""
    return named(find(context, identify(context, [(subjects, records)])))


def named(found: Found) -> Named:
    """What the ids of one call stand for."""
    new = found.ids.where(found.new).selection()
    mask = new.mask(found.rows) & ~found.moment.pending.gone.mask(found.rows)
    hashes = found.context.epochs.hashes(found.ids.keys[found.met])
    made = found.context.ledger.requests_of(hashes).values()
    earlier = sorted({r.id: r for r in made}.values(), key=lambda r: r.sequence)
    return Named(
        new, found.rows.filter(pa.array(mask)), tuple(earlier), tuple(found.ids.text[~found.known])
    )


def _unique(found: Keys) -> Keys:
    return np.unique(found, axis=0) if len(found) else found


def _opaque(found: Keys) -> npt.NDArray[Any]:
    return np.ascontiguousarray(found).view(np.dtype((np.void, keys.KEY_BYTES))).ravel()
