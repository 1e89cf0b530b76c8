"""The SQL database under the ledger: opening it, transactions, and errors in one sentence."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from data_index.errors import BusyError, ConfigurationError, SisaError
from data_index.tables import FORMAT, metadata, settings

Connection = sa.Connection

PATIENCE = 30
"""Seconds to wait for others who write."""


class Database:
    """One SQL database with the ledger's tables.

    Args:
        url: SQLAlchemy URL; a relative SQLite file is below the folder.
        folder: The workspace.

    Raises:
        BusyError: Others held the database too long.
        ConfigurationError: It cannot be opened or is of another format version.
    """

    def __init__(self, url: str, folder: Path) -> None:
        try:
            self._engine = _engine(url, folder)
            with self._engine.begin() as connection:
                metadata.create_all(connection)
                query = sa.select(settings.c.value).where(settings.c.name == "format")
                found = connection.scalar(query)
                if found is None:
                    connection.execute(settings.insert().values(name="format", value=str(FORMAT)))
        except DBAPIError as error:
            raise _told(error, "opened", "Check runtime.ledger.") from None
        except (ArgumentError, NoSuchModuleError) as error:
            raise ConfigurationError(
                f"The ledger cannot be opened: {_reason(error)}.", "Check runtime.ledger."
            ) from None
        if found not in (None, str(FORMAT)):
            raise ConfigurationError(
                "The ledger was written in another format version.", "Use the sisa that wrote it."
            )

    def close(self) -> None:
        """Give back all connections."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees the database at one moment.

        Raises:
            BusyError: Others held the database too long.
            ConfigurationError: It cannot be read.
        """
        try:
            with self._engine.connect() as connection, connection.begin():
                yield connection
        except DBAPIError as error:
            raise _told(error, "read", "Restore it from a backup.") from None

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that excludes all other writers from its beginning.

        Raises:
            BusyError: Others held the database too long.
            ConfigurationError: It cannot be written.
        """
        try:
            with self._engine.connect() as bare:
                connection = bare.execution_options(write=True)
                with connection.begin():
                    yield connection
        except DBAPIError as error:
            raise _told(error, "written", "Check runtime.ledger and its disk.") from None

    def compact(self) -> bool:
        """Empty the database's log and free pages, so that no deleted row stays in the files.

        Returns:
            False if somebody was reading, and it is to be tried again.
        """
        raw = self._engine.raw_connection()
        try:
            cursor = raw.cursor()
            cursor.execute("PRAGMA busy_timeout=2000")
            return _vacuumed(cursor)
        finally:
            raw.cursor().execute(f"PRAGMA busy_timeout={PATIENCE * 1000}")
            raw.close()


def _vacuumed(cursor: Any) -> bool:
    empty_log = "PRAGMA wal_checkpoint(TRUNCATE)"
    if cursor.execute(empty_log).fetchone()[0]:
        return False
    try:
        cursor.execute("VACUUM")
    except sqlite3.OperationalError:
        return False
    return not cursor.execute(empty_log).fetchone()[0]


def _told(error: DBAPIError, what: str, remedy: str) -> SisaError:
    """One sentence: the statement and its values are left out."""
    if "locked" in _reason(error):
        return BusyError("The ledger is locked by others.", "Try again.")
    return ConfigurationError(f"The ledger cannot be {what}: {_reason(error)}.", remedy)


def _reason(error: Exception) -> str:
    return str(getattr(error, "orig", error)).splitlines()[0]


def _engine(url: str, folder: Path) -> sa.Engine:
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        raise ConfigurationError(
            f"The ledger cannot be a {parsed.get_backend_name()} database.",
            "Only SQLite is supported: set runtime.ledger to sqlite:///FILE.",
        )
    if parsed.database and not Path(parsed.database).is_absolute():
        parsed = parsed.set(database=str(folder / parsed.database))
    engine = sa.create_engine(parsed, connect_args={"timeout": PATIENCE})

    @sa.event.listens_for(engine, "connect")
    def _connect(dbapi: Any, _: Any) -> None:
        dbapi.isolation_level = None
        cursor = dbapi.cursor()
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "secure_delete=ON",
            "foreign_keys=ON",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine
