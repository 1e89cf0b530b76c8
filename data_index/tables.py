"""Tables of the ledger."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

settings = sa.Table(
    "settings",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("value", sa.String, nullable=False),
)

pointer = sa.Table(
    "dataset",
    metadata,
    sa.Column("path", sa.String, primary_key=True),
    sa.Column("sha256", sa.String, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
)
"""At most one row: the current data set."""

generations = sa.Table(
    "generations",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("time", sa.String, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("dataset", sa.String),
    sa.Column("path", sa.String),
    sa.Column("sha256", sa.String),
    sa.Column("size", sa.BigInteger),
)
"""The highest number is current; the manifest of a retired one is null.

`dataset` is the sha256 of the data set that was current when it was published.
"""

requests = sa.Table(
    "requests",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("sequence", sa.Integer, nullable=False, unique=True),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("received", sa.String, nullable=False),
    sa.Column("due", sa.String, nullable=False),
    sa.Column("records", sa.Integer, nullable=False),
    sa.Column("subjects", sa.Integer, nullable=False),
    sa.Column("places", sa.String, nullable=False),
    sa.Column("generation_before", sa.Integer),
    sa.Column("certificate", sa.String),
)

request_keys = sa.Table(
    "request_keys",
    metadata,
    sa.Column("request_id", sa.ForeignKey("requests.id"), primary_key=True),
    sa.Column("kind", sa.String, primary_key=True),
    sa.Column("key", sa.LargeBinary(16), primary_key=True),
)
"""What accepted requests name, as keyed pseudonyms; destroyed at certification."""

tombstones = sa.Table(
    "tombstones",
    metadata,
    sa.Column("hash", sa.LargeBinary(16), primary_key=True),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("request_id", sa.ForeignKey("requests.id"), nullable=False),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("request_id", sa.ForeignKey("requests.id"), nullable=False),
    sa.Column("time", sa.String, nullable=False),
    sa.Column("what", sa.String, nullable=False),
)

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("number", sa.ForeignKey("generations.number"), primary_key=True),
)
"""Generations that the MLflow mirror has not taken yet: references, no copies."""

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("holder", sa.String, nullable=False),
    sa.Column("token", sa.Integer, nullable=False),
    sa.Column("expires", sa.String, nullable=False),
)
