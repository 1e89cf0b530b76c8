"""SQLite: values of all tables, from a copy. Pages, free ones too, and logs lie open."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from sisa.residue.decoders.protocol import Content, Decoder, Piece, starts

DATABASE = b"SQLite format 3\0"
LOGS = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83", b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7")
"""A write-ahead log in either byte order, a rollback journal."""

BESIDE = ("-wal", "-journal")
NESTED = 64
"""Bytes from which on a binary value may be a file; shorter ones are keys and digests."""


def _pieces(content: Content) -> Iterator[Piece]:
    if content.data[:16] != DATABASE:
        return
    with tempfile.TemporaryDirectory(dir=content.work) as folder:
        copy = Path(folder, "copy.db")
        copy.write_bytes(content.data)
        if content.path is not None:
            for suffix in BESIDE:
                beside = Path(f"{content.path}{suffix}")
                if beside.exists():
                    shutil.copyfile(beside, f"{copy}{suffix}")
        with closing(sqlite3.connect(copy)) as connection:
            connection.text_factory = bytes
            yield from _tables(content, connection)


def _tables(content: Content, connection: sqlite3.Connection) -> Iterator[Piece]:
    listed = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    yield Piece("schema", b"\n".join(sql for _, _, sql in listed if sql))
    for kind, raw, _ in listed:
        if kind != b"table":
            continue
        name = raw.decode()
        quoted = name.replace('"', '""')
        rows = connection.execute(f'SELECT * FROM "{quoted}"')  # noqa: S608 - its own name, quoted
        while batch := rows.fetchmany(1000):
            values = [v for row in batch for v in row if v is not None]
            joined = b"\n".join(v if isinstance(v, bytes) else str(v).encode() for v in values)
            content.budget.take(len(joined))
            yield Piece(f"table {name}", joined)
            blobs = (v for v in values if isinstance(v, bytes) and len(v) >= NESTED)
            yield from (Piece(f"table {name}", blob, nested=True) for blob in blobs)


def _conceal(canary: bytes) -> bytes:
    """Stored in UTF-16, which only a decoder turns into UTF-8."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("PRAGMA encoding = 'UTF-16le'")
        connection.execute("CREATE TABLE notes (note TEXT)")
        connection.execute("INSERT INTO notes VALUES (?)", (canary.decode(),))
        connection.commit()
        return connection.serialize()


DECODER = Decoder("sqlite", starts(DATABASE, *LOGS), _pieces, _conceal)
