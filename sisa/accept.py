"""Acceptance: requests, their tombstones and the rolled-back generation become true together.

One transaction takes any number of requests. Nothing is retrained here, and no row is touched.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_index import changes, ledger, requests, scan_sets
from data_index.database import Connection
from data_index.dataset import DataSet
from data_index.keys import Keys
from data_index.lineage import Selection
from data_index.requests import OPEN, Draft, Held, Places, Request, first_of
from data_index.scan_sets import Sealed
from data_index.tombstones import Epochs
from sisa import lookup, residue, rollback
from sisa.context import Context
from sisa.errors import UsageError
from sisa.free_text import require_nameless
from sisa.generation import Generation
from sisa.lookup import Found, Ids, Share
from sisa.submission import Submission, duration


@dataclass(frozen=True)
class Accepted:
    """What acceptance did.

    Attributes:
        found: What the ids of the call stood for just before.
        requests: The request of each submission, None where nothing was entered.
        fresh: Ids of those that this call has entered.
        seconds: From `started` to the commit.
        rolled_back: Whether serving has lost the influence by then.
    """

    found: Found
    requests: tuple[Request | None, ...]
    fresh: frozenset[str]
    seconds: float
    rolled_back: bool

    @property
    def request(self) -> Request | None:
        """The request of a call that submits one."""
        return self.requests[0]


def accept(
    context: Context,
    submissions: Sequence[Submission],
    started: float,
    note: bool = True,
    dry_run: bool = False,
) -> Accepted:
    """Accept durably, and roll serving back in the same transaction.

    Args:
        context: The workspace.
        submissions: What is submitted.
        started: When the command was entered, by the monotonic clock.
        note: Enter those too that change nothing: duplicates, and those that name nobody known.
        dry_run: Take everything back at the end.

    Raises:
        UsageError: A submission names no id, an external id stands for something else already, or
            a text that is kept contains an id.
        ConfigurationError: The recipe was changed since the current generation was trained.
    """
    ids = lookup.identify(context, [(s.subjects, s.records) for s in submissions])
    _require_nameless(submissions, ids)
    found = context.steady(lambda: _ready(context, ids))
    with context.ledger.write() as connection:
        if not _steady(connection, found):
            found = lookup.find(context, ids)  # now nobody can move what it sees
        made, fresh = _enter(context, connection, submissions, found, note)
        opened = {i: r for i, r in made.items() if r.id in fresh and r.status in OPEN}
        scan_sets.put(connection, _sealed(context, found, opened))
        rolled = False
        if dry_run:
            connection.rollback()
        else:
            places = first_of(p for r in opened.values() for p in r.places)
            rolled = _roll_back(context, connection, places)
    seconds = time.monotonic() - started
    if opened and not dry_run:
        context.published()
    entered = tuple(made.get(i) for i in range(len(submissions)))
    return Accepted(found, entered, fresh, seconds, rolled)


def _require_nameless(submissions: Sequence[Submission], ids: Ids) -> None:
    for what, texts in (
        ("external id", [s.external_id for s in submissions]),
        ("regulation", [s.regulation for s in submissions]),
        ("reason", [s.hold for s in submissions]),
    ):
        require_nameless(what, texts, ids.text)


def _sealed(context: Context, found: Found, opened: Mapping[int, Request]) -> dict[str, Sealed]:
    """What a search will look for of the ids that have rows; later nobody can tell them."""
    ids: dict[int, tuple[list[str], list[str]]] = {i: ([], []) for i in opened}
    for at in np.flatnonzero(found.there).tolist():
        if (owner := int(found.ids.owner[at])) in ids:
            subjects, records = ids[owner]
            (subjects if found.ids.subjects[at] else records).append(str(found.ids.text[at]))
    sets = {opened[i].id: residue.named(context, *named) for i, named in ids.items()}
    return {name: residue.seal(scan_set) for name, scan_set in sets.items()}


def _ready(context: Context, ids: Ids) -> Found:
    """The ids, looked up, once it is clear that the erasure could be done and certified."""
    context.signing.signer()
    current = context.current()
    if current is not None:
        context.require_trained_recipe(current[1])
    return lookup.find(context, ids)


def _steady(connection: Connection, found: Found) -> bool:
    """Whether neither data nor requests moved since the look-up."""
    now = ledger.current_dataset(connection), changes.version(connection)
    return now == (found.moment.dataset, found.moment.pending.version)


def _enter(
    context: Context,
    connection: Connection,
    submissions: Sequence[Submission],
    found: Found,
    note: bool,
) -> tuple[dict[int, Request], frozenset[str]]:
    """The acceptance, inside its transaction. Returns requests by submission, and the new ones."""
    bodies = _bodies(submissions, found.ids)
    known, again = _known(context.epochs, connection, submissions, bodies)
    live = [i for i in range(len(submissions)) if i not in known and i not in again]
    drafts = _Drafts(context, connection, submissions, found.of(live), bodies).make(live)
    if not note:
        drafts = {i: d for i, d in drafts.items() if d.request.status in OPEN}
    made: dict[int, Request] = {}
    if drafts:
        now, epoch = context.ledger.clock(), context.epochs.numbers[-1]
        entered = requests.add(connection, list(drafts.values()), epoch, now)
        made = dict(zip(drafts, entered, strict=True))
    fresh = frozenset(r.id for r in made.values())
    return known | made | {i: made[other] for i, other in again.items()}, fresh


def _known(
    epochs: Epochs,
    connection: Connection,
    submissions: Sequence[Submission],
    bodies: dict[int, bytes],
) -> tuple[dict[int, Request], dict[int, int]]:
    """Submissions whose external id has a request, and those whose twin comes earlier in the call.

    Raises:
        UsageError: What came under an external id before is something else.
    """
    named = {s.external_id for s in submissions if s.external_id is not None}
    stored = requests.of_external(connection, named)
    known: dict[int, Request] = {}
    again: dict[int, int] = {}
    first: dict[str, int] = {}
    for i, body in bodies.items():
        name = submissions[i].external_id or ""
        if name in stored:
            _require_same(epochs.sealed(body, stored[name].body or "0:"))
            known[i] = stored[name]
        elif first.setdefault(name, i) != i:
            _require_same(body == bodies[first[name]])
            again[i] = first[name]
    return known, again


def _require_same(same: bool | None) -> None:
    if not same:
        raise UsageError(
            "An external id stands for another request already."
            if same is False
            else "An external id stands for a request that is too old to be compared.",
            "Submit it under an external id of its own.",
        )


def _bodies(submissions: Sequence[Submission], ids: Ids) -> dict[int, bytes]:
    """What is compared of each submission that has an external id."""
    order = np.argsort(ids.owner, kind="stable")
    bounds = np.searchsorted(ids.owner[order], np.arange(len(submissions) + 1)).tolist()
    return {
        i: s.body(ids.keys[order[bounds[i] : bounds[i + 1]]])
        for i, s in enumerate(submissions)
        if s.external_id is not None
    }


class _Drafts:
    """Makes the requests of a call, given what the ledger holds in its transaction."""

    def __init__(
        self,
        context: Context,
        connection: Connection,
        submissions: Sequence[Submission],
        found: Found,
        bodies: dict[int, bytes],
    ) -> None:
        self._context, self._submissions, self._found = context, submissions, found
        self._bodies, self._epochs = bodies, context.epochs
        self._now = context.ledger.clock()
        entry = ledger.current_generation(connection)
        self._before = entry.number if entry else None
        dataset = context.load_dataset(ledger.current_dataset(connection))
        self._partitions = {(p.shard, p.slice): p for p in dataset.partitions}
        self._stale = tuple(_stale(dataset, _current(context, connection)))
        hashes = self._epochs.hashes(found.ids.keys[found.met])
        self._earlier = requests.of_tombstones(connection, hashes)
        self._shares = found.shares()

    def make(self, live: Sequence[int]) -> dict[int, Draft]:
        """The request of each submission that is one."""
        drafts: dict[int, Draft] = {}
        at = self._ids_of(live)
        stones = self._epochs.tombstones(self._found.ids.keys)
        for i in live:
            drafts[i] = self._draft(i, at[i], stones, drafts)
        return drafts

    def _ids_of(self, live: Sequence[int]) -> dict[int, lookup.Numbers]:
        """Where the ids of each request are, those with a row or a tombstone."""
        known = np.flatnonzero(self._found.known)
        owner = self._found.ids.owner[known]
        order = np.argsort(owner, kind="stable")
        left = np.searchsorted(owner[order], np.array(live))
        right = np.searchsorted(owner[order], np.array(live), side="right")
        return {
            i: known[order[a:b]]
            for i, a, b in zip(live, left.tolist(), right.tolist(), strict=True)
        }

    def _draft(self, i: int, at: lookup.Numbers, stones: Keys, drafts: dict[int, Draft]) -> Draft:
        found, new = self._found, self._found.new[at]
        submitted = self._submissions[i]
        due = submitted.due or duration(self._context.config.runtime.erasure.due)
        request = replace(
            requests.draft(submitted.received or self._now, due),
            external_id=submitted.external_id,
            regulation=submitted.regulation,
            generation_before=self._before,
        )
        if i in self._bodies:
            request = replace(request, body=self._epochs.seal(self._bodies[i]))
        if len(at) == 0:
            return Draft(replace(request, status="not_found"), Selection.nothing(), stones[:0])
        there = at[found.there[at]]
        there = there[np.unique(found.ids.keys[there], axis=0, return_index=True)[1]]
        share = self._shares.get(i, ())
        request = replace(
            request,
            records=sum(count for _, _, count in share),
            subjects=len(there),
            places=_places(share, self._stale) if share else (),
            before=tuple(self._held(*place) for place in share),
        )
        if new.any() or (submitted.hold and len(there)):
            request = replace(request, hold=submitted.hold)
        else:
            request = replace(request, status="duplicate", duplicate_of=self._other(at, drafts).id)
        return Draft(request, found.ids.where(there).selection(), stones[there])

    def _held(self, shard: int, slice_: int, count: int) -> Held:
        """A partition that holds rows, for the certificate: afterwards they are gone."""
        found = self._partitions[shard, slice_]
        return shard, slice_, count, found.rows, found.logical

    def _other(self, at: lookup.Numbers, drafts: dict[int, Draft]) -> Request:
        """The request that erases what a duplicate names; of several an open one, and the last."""
        found = self._found
        within = [drafts[int(found.first[k])].request for k in at if not found.met[k]]
        if within:
            return within[-1]
        hashes = self._epochs.hashes(found.ids.keys[at])
        earlier = [self._earlier[h] for s in hashes if (h := s.tobytes()) in self._earlier]
        return max(earlier, key=lambda r: (r.status in OPEN, r.sequence))


def _current(context: Context, connection: Connection) -> Generation | None:
    entry = ledger.current_generation(connection)
    return Generation.load(context.store, entry.manifest) if entry and entry.manifest else None


def _stale(dataset: DataSet, current: Generation | None) -> Iterator[tuple[int, int]]:
    """Where what is served saw records as those of other subjects."""
    served = {(p[0], p[1], p[3]) for p in current.partitions} if current else set()
    for shard, slice_, _ in served & set(dataset.moved):
        yield shard, slice_


def _places(share: Share, stale: Places) -> Places:
    return first_of((*((shard, slice_) for shard, slice_, _ in share), *stale))


def _roll_back(context: Context, connection: Connection, places: Places) -> bool:
    """Publish each affected constituent at its last checkpoint that never saw the rows."""
    current = _current(context, connection)
    if current is None or context.config.runtime.erasure.rollback != "immediate":
        return False
    rolled = current.before(places, ledger.certificate_head(connection))
    if rolled.same_as(current):
        return False
    rollback.publish(context, connection, rolled)
    return True
