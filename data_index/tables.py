"""Tables of the ledger."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

FORMAT = 2
"""Version of these tables."""

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
    sa.Column("samples_trained", sa.BigInteger),
    sa.Column("samples_full", sa.BigInteger),
)
"""The highest number is current; the manifest of a retired one is null.

`dataset` is the sha256 of the data set that was current when it was published. `samples_trained` is
what its build visited, `samples_full` what training everything would; null for a roll-back.
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
    sa.Column("before", sa.String, nullable=False),
    sa.Column("generation_before", sa.Integer),
    sa.Column("certificate", sa.String),
    sa.Column("external_id", sa.String, unique=True),
    sa.Column("body", sa.String),
    sa.Column("regulation", sa.String),
    sa.Column("duplicate_of", sa.String),
    sa.Column("reason", sa.String),
    sa.Column("hold", sa.String),
    sa.Column("blocked", sa.String),
    sa.Column("retry", sa.String),
)
"""`hold` and `blocked` are reasons; `body` is a keyed digest of what came under an external id,
behind the number of the epoch whose key it was made under."""

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
    sa.Column("request_id", sa.ForeignKey("requests.id"), primary_key=True),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Index("tombstones_of_request", "request_id"),
)
"""One stands as long as any request that made it does: several may name the same."""

scan_sets = sa.Table(
    "scan_sets",
    metadata,
    sa.Column("request_id", sa.ForeignKey("requests.id"), primary_key=True),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    sa.Column("key", sa.LargeBinary, nullable=False),
)
"""What a residue scan looks for, sealed under a key of its own; destroyed at certification."""

epochs = sa.Table(
    "epochs",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("opened", sa.String, nullable=False),
    sa.Column("closed", sa.String),
    sa.Column("destroyed", sa.String),
)
"""Tombstone epochs; the open one is the last."""

log = sa.Table(
    "log",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("time", sa.String, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("body", sa.String, nullable=False),
    sa.Column("previous", sa.String, nullable=False),
)
"""The ledger's copy of the log whose other copy is in the store."""

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

mirrored = sa.Table(
    "mirrored",
    metadata,
    sa.Column("number", sa.ForeignKey("generations.number"), primary_key=True),
    sa.Column("uri", sa.String, primary_key=True),
    sa.Column("experiment", sa.String, primary_key=True),
    sa.Column("model", sa.String, primary_key=True),
    sa.Column("location", sa.String, nullable=False),
    sa.Column("run", sa.String),
    sa.Column("version", sa.String),
)
"""What MLflow has or may have of a generation: written before a delivery, deleted after a purge."""

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("holder", sa.String, nullable=False),
    sa.Column("token", sa.Integer, nullable=False),
    sa.Column("expires", sa.String, nullable=False),
)
