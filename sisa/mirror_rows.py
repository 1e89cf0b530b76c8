"""Rows of an MLflow database that an erasure drops; most of them no client can delete."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from sisa.errors import SisaError
from sisa.tracked import GENERATION, WORKSPACE

NAMING = (
    "run_uuid",
    "run_id",
    "source_run_id",
    "model_id",
    "request_id",
    "trace_id",
    "source_id",
    "destination_id",
    "item_id",
)
"""Columns by which rows of any table name a run, a logged model or a trace; ids are random."""

AT_ONCE = 500
"""Ids in one statement; every database takes as many."""

BUSY = 20_000  # milliseconds to wait for others who write to SQLite


@dataclass(frozen=True)
class Rows:
    """What is to go from one database.

    Attributes:
        engine: The database.
        ids: Those of runs, logged models and traces.
        mark: The workspace's name in the mirror.
        current: Number of the generation whose versions stay.
    """

    engine: sa.Engine
    ids: Sequence[str]
    mark: str
    current: int

    def drop(self) -> int:
        """Delete them in one transaction. Returns how many there were."""
        with self.engine.begin() as connection:
            if self.engine.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA secure_delete=ON")
                connection.exec_driver_sql(f"PRAGMA busy_timeout={BUSY}")
            datasets = self._datasets(connection)
            wheres = [*self._inputs(connection), *self._named(), *self._versions(connection)]
            wheres += [self._unused(datasets)] if datasets else []
            return sum(connection.execute(t.delete().where(w)).rowcount for t, w in wheres)

    def count(self) -> int:
        """How many are there."""
        with self.engine.connect() as connection:
            return sum(
                connection.scalar(sa.select(sa.func.count()).select_from(table).where(where)) or 0
                for table, where in [*self._named(), *self._versions(connection)]
            )

    def _named(self) -> Iterator[tuple[sa.Table, sa.ColumnElement[bool]]]:
        """Every table whose rows can name one of the ids, dependent ones first."""
        for table in reversed(_tables().sorted_tables):
            if table.name == "model_versions":
                continue  # those of others may name a run of ours
            columns = [c for c in table.columns if c.name in NAMING]
            for chunk in _chunks(self.ids) if columns else ():
                yield table, sa.or_(*(column.in_(chunk) for column in columns))

    def _inputs(
        self, connection: sa.Connection
    ) -> Iterator[tuple[sa.Table, sa.ColumnElement[bool]]]:
        inputs, tags = _tables().tables["inputs"], _tables().tables["input_tags"]
        for chunk in _chunks(self.ids):
            mine = sa.select(inputs.c.input_uuid).where(inputs.c.destination_id.in_(chunk))
            for some in _chunks(list(connection.scalars(mine))):
                yield tags, tags.c.input_uuid.in_(some)

    def _datasets(self, connection: sa.Connection) -> list[str]:
        inputs = _tables().tables["inputs"]
        found: set[str] = set()
        for chunk in _chunks(self.ids):
            mine = sa.select(inputs.c.source_id).where(
                inputs.c.destination_id.in_(chunk), inputs.c.source_type == "DATASET"
            )
            found.update(connection.scalars(mine))
        return sorted(found)

    def _unused(self, datasets: list[str]) -> tuple[sa.Table, sa.ColumnElement[bool]]:
        """Data sets that no input names, once those of the ids are gone."""
        inputs, table = _tables().tables["inputs"], _tables().tables["datasets"]
        used = sa.exists().where(inputs.c.source_id == table.c.dataset_uuid)
        return table, sa.and_(table.c.dataset_uuid.in_(datasets), ~used)

    def _versions(
        self, connection: sa.Connection
    ) -> Iterator[tuple[sa.Table, sa.ColumnElement[bool]]]:
        """Versions with this workspace's tags, also those that a client has deleted."""
        tables = _tables().tables
        versions, tags = tables["model_versions"], tables["model_version_tags"]
        key = [column.name for column in versions.primary_key]
        mine = sa.select(*(tags.c[name] for name in key)).where(
            tags.c.key == WORKSPACE, tags.c.value == self.mark
        )
        stay = sa.select(*(tags.c[name] for name in key)).where(
            tags.c.key == GENERATION, tags.c.value == str(self.current)
        )
        staying = {tuple(row) for row in connection.execute(stay)}
        for row in connection.execute(mine).all():
            if tuple(row) not in staying:
                for name in ("registered_model_aliases", "model_version_tags", "model_versions"):
                    table = tables[name]
                    yield table, sa.and_(*(table.c[n] == v for n, v in zip(key, row, strict=True)))


def scrub(engine: sa.Engine) -> None:
    """Write a SQLite file anew, so that no page or log of it holds what was deleted.

    Raises:
        SisaError: Somebody is reading it.
    """
    if engine.dialect.name != "sqlite":
        return
    engine.dispose()  # a connection of the pool may be reading
    with engine.connect() as bare:
        connection = bare.execution_options(isolation_level="AUTOCOMMIT")
        connection.exec_driver_sql(f"PRAGMA busy_timeout={BUSY}")
        connection.exec_driver_sql("PRAGMA secure_delete=ON")
        connection.exec_driver_sql("VACUUM")
        row = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").first()
        if row is not None and row[0]:
            raise SisaError("somebody is reading its database")


def _tables() -> sa.MetaData:
    """MLflow's tables; its store refuses a database that has others."""
    importlib.import_module("mlflow.store.tracking.dbmodels.models")
    importlib.import_module("mlflow.store.model_registry.dbmodels.models")
    base: Any = importlib.import_module("mlflow.store.db.base_sql_model").Base
    found: sa.MetaData = base.metadata
    return found


def _chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(ids), AT_ONCE):
        yield ids[first : first + AT_ONCE]
