"""Sealed scan sets of open requests: kept from acceptance to certification, and never logged."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from data_index.requests import OPEN
from data_index.tables import request_keys, requests, scan_sets

Sealed = tuple[bytes, bytes]
"""A sealed set and the key that opens it."""


def put(connection: sa.Connection, sealed: Mapping[str, Sealed]) -> None:
    """Keep the sets of requests, by their id, in place of those that were there."""
    rows = [{"request_id": name, "sealed": s, "key": k} for name, (s, k) in sealed.items()]
    if rows:
        connection.execute(scan_sets.insert().prefix_with("OR REPLACE"), rows)


def every(connection: sa.Connection) -> dict[str, Sealed]:
    """The sets of all open requests, by their id."""
    return {
        row.request_id: (row.sealed, row.key) for row in connection.execute(sa.select(scan_sets))
    }


def outlived(connection: sa.Connection) -> list[str]:
    """Ids of closed requests that still have a set, or pseudonyms; there must be none."""
    found: set[str] = set()
    for table, statuses in ((scan_sets, OPEN), (request_keys, (*OPEN, "duplicate"))):
        open_ = sa.select(requests.c.id).where(requests.c.status.in_(statuses))
        left = sa.select(table.c.request_id).where(table.c.request_id.not_in(open_))
        found |= {*connection.scalars(left)}
    return sorted(found)
