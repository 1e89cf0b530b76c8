"""Source tables: Parquet, CSV and Arrow files and folders, read in batches and cast to the recipe.

What does not fit the declared columns is refused with the file and the column, never with a value
that could be an identifier.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from data_index import casting, keys
from data_index.errors import DataError, NotFoundError, SisaError
from data_index.keys import IdKind
from data_index.schema import TARGET, Columns

BATCH_ROWS = 16_384
"""Rows read at a time, at most."""

BATCH_BYTES = 2 << 20
"""About how many bytes of features are read at a time; decoding takes some twenty times as much."""

SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch of source rows, cast to the recipe.

    Attributes:
        first: Position of the first row in its file.
        record_ids: Canonical record ids, n.
        subject_ids: Canonical subject ids, n; the record ids where there is no subject column.
        raw_ids: The record id column as it came, n values.
        table: The target (where the source has it) and the feature columns of a partition.
    """

    first: int
    record_ids: list[bytes]
    subject_ids: list[bytes]
    raw_ids: pa.Array
    table: pa.Table


@dataclass(frozen=True, slots=True)
class Kinds:
    """Kinds of the record and subject ids that a data set has, None while it has none."""

    record: IdKind | None = None
    subject: IdKind | None = None


def expand(paths: list[Path]) -> list[Path]:
    """The files that paths stand for: a folder stands for all source files below it, sorted.

    Raises:
        NotFoundError: A path does not exist.
        DataError: A file is of an unknown kind, or a folder holds no source file.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = sorted(
                p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()
            )
            if not below:
                raise DataError(f"{path} holds no Parquet, CSV or Arrow file.")
            found += below
        elif not path.exists():
            raise NotFoundError(f"{path} does not exist.")
        elif path.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{path.name} is of an unknown kind.", f"Use one of {', '.join(SUFFIXES)}."
            )
        else:
            found.append(path)
    return found


def schema_of(path: Path) -> pa.Schema:
    """Column names and types of a source file (for CSV, guessed from its first block)."""
    with _readable(path):
        kind = SUFFIXES[path.suffix.lower()]
        if kind == "parquet":
            return pq.read_schema(path)
        if kind == "csv":
            return pacsv.open_csv(path).schema
        return _open_arrow(path).schema


def column(path: Path, name: str) -> Iterator[pa.Array]:
    """The values of one column of a source file as they are, batch by batch.

    Raises:
        DataError: The file cannot be read or lacks the column.
    """
    _present(path, [name])
    with _readable(path):
        kind = SUFFIXES[path.suffix.lower()]
        if kind == "parquet":
            with _open_parquet(path) as file:
                for batch in file.iter_batches(BATCH_ROWS, columns=[name]):
                    yield batch.column(0)
        else:
            for batch in pacsv.open_csv(path) if kind == "csv" else _open_arrow(path):
                yield batch.column(name)


def read(
    path: Path, columns: Columns, kinds: Kinds | None = None, target: bool = True
) -> Iterator[Rows]:
    """Read a source file in batches and cast them.

    Args:
        path: A Parquet, CSV or Arrow file.
        columns: What the recipe declares.
        kinds: Kinds of ids that the data set has already; those of the file must agree.
        target: Whether the target column must be there; if not, it is left out.

    Yields:
        Batches of at most some ten thousand rows.

    Raises:
        DataError: The file cannot be read, lacks a column, or holds what does not fit.
    """
    with _readable(path):
        names = _needed(path, columns, target)
        first = 0
        for batch in _batches(path, columns, names):
            if batch.num_rows:
                yield _cast(batch, first, path, columns, kinds or Kinds(), target)
            first += batch.num_rows


def kinds_of(path: Path, columns: Columns, known: Kinds) -> Kinds:
    """Kinds of the ids in a file.

    Ids in a CSV file are text, unless the data set has integers already.

    Raises:
        DataError: They differ from those that the data set has.
    """
    schema = schema_of(path)
    _needed(path, columns, target=True)

    def kind(column: str, before: IdKind | None) -> IdKind:
        what = f"Column {column!r} of {path.name}"
        if SUFFIXES[path.suffix.lower()] == "csv":
            return before or "string"
        found = keys.id_kind(schema.field(column).type, what)
        if before is not None and found != before:
            raise DataError(
                f"{what} has {found} ids, but the data set has {before} ids.",
                "Use one type of id throughout.",
            )
        return found

    record = kind(columns.record_id, known.record)
    if columns.subject_id is None:
        return Kinds(record, record)
    return Kinds(record, kind(columns.subject_id, known.subject))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what readers raise into one sentence without any value of the file."""
    try:
        yield
    except SisaError:
        raise
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist.") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        # A CSV reader quotes the offending line after its second colon.
        reason = ": ".join(str(error).splitlines()[0].split(": ")[:2]).rstrip(".")
        raise DataError(f"{path.name} cannot be read: {reason}.", "Write the file anew.") from None


def _needed(path: Path, columns: Columns, target: bool) -> list[str]:
    ids = [columns.record_id] + ([columns.subject_id] if columns.subject_id else [])
    names = [*ids, *([columns.target] if target else []), *(f.name for f in columns.features)]
    if not target and columns.subject_id not in schema_of(path).names:
        names = [n for n in names if n != columns.subject_id]
    _present(path, names)
    return names


def _present(path: Path, names: list[str]) -> None:
    """Refuse a file that does not have each of the columns exactly once."""
    there = schema_of(path).names
    missing = [n for n in names if n not in there]
    if missing:
        raise DataError(
            f"{path.name} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}.",
            "Add what is missing, or point to another file.",
        )
    twice = [n for n in names if there.count(n) > 1]
    if twice:
        raise DataError(
            f"{path.name} has more than one column {', '.join(twice)}.", "Rename all but one."
        )


def _batches(path: Path, columns: Columns, names: list[str]) -> Iterator[pa.RecordBatch]:
    kind = SUFFIXES[path.suffix.lower()]
    if kind == "parquet":
        with _open_parquet(path) as file:
            yield from file.iter_batches(_batch_rows(columns), columns=names)
    elif kind == "csv":
        yield from _open_csv(path, columns, names)
    else:
        rows = _batch_rows(columns)
        for batch in _open_arrow(path):
            for start in range(0, batch.num_rows, rows):
                yield batch.slice(start, rows)


def _batch_rows(columns: Columns) -> int:
    """Rows to read at a time: fewer where a row is wide."""
    width = sum(f.size * f.dtype.itemsize for f in columns.features if f.kind != "text")
    return min(BATCH_ROWS, max(1, BATCH_BYTES // max(1, width)))


def _open_parquet(path: Path) -> pq.ParquetFile:
    """Read piece by piece: with Arrow's defaults all that was read stays in memory to the end."""
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)


def _open_csv(path: Path, columns: Columns, names: list[str]) -> pacsv.CSVStreamingReader:
    types: dict[str, pa.DataType] = {columns.record_id: pa.string()}
    if columns.subject_id:
        types[columns.subject_id] = pa.string()
    for feature in columns.features:
        if feature.kind == "array":
            raise DataError(
                f"{path.name} is CSV, which cannot hold the array feature {feature.name!r}.",
                "Use Parquet or Arrow.",
            )
        types[feature.name] = feature.arrow
    if columns.classes is not None:
        guess = schema_of(path).field(columns.target).type
        # true and 1.0 are the classes 1 of `init`, which CSV cannot convert to integers itself.
        whole = pa.types.is_boolean(guess) or pa.types.is_floating(guess)
        text = isinstance(columns.classes[0], str)
        types[columns.target] = guess if whole and not text else casting.class_type(columns.classes)
    options = pacsv.ConvertOptions(
        column_types=types, include_columns=names, strings_can_be_null=True
    )
    return pacsv.open_csv(path, convert_options=options)


def _open_arrow(path: Path) -> Any:
    try:
        reader = pa.ipc.open_file(pa.OSFile(str(path)))
    except pa.ArrowInvalid:
        return pa.ipc.open_stream(pa.OSFile(str(path)))
    return _FileBatches(reader)


class _FileBatches:
    """An Arrow file as an iterable of its record batches."""

    def __init__(self, reader: pa.ipc.RecordBatchFileReader) -> None:
        self._reader = reader
        self.schema = reader.schema

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return map(self._reader.get_batch, range(self._reader.num_record_batches))


def _cast(
    batch: pa.RecordBatch, first: int, path: Path, columns: Columns, kinds: Kinds, target: bool
) -> Rows:
    def where(name: str) -> str:
        return f"Column {name!r} of {path.name}"

    record_ids = _ids(batch.column(columns.record_id), kinds.record, where(columns.record_id))
    subject_ids = record_ids
    if columns.subject_id is not None and columns.subject_id in batch.schema.names:
        subject_ids = _ids(
            batch.column(columns.subject_id), kinds.subject, where(columns.subject_id)
        )
    arrays: dict[str, pa.Array] = {}
    if target:
        arrays[TARGET] = casting.fitting(
            where(columns.target),
            batch.column(columns.target),
            partial(casting.target_index, columns=columns),
        )
    for feature in columns.features:
        arrays[feature.column] = casting.fitting(
            where(feature.name),
            batch.column(feature.name),
            partial(casting.cast_feature, feature=feature),
        )
    schema = pa.schema([columns.schema.field(name) for name in arrays])
    table = pa.table(list(arrays.values()), schema=schema)
    return Rows(first, record_ids, subject_ids, batch.column(columns.record_id), table)


def _ids(column: pa.Array, kind: IdKind | None, what: str) -> list[bytes]:
    ids = keys.canonical_ids(column, what)
    if kind == "integer" and keys.id_kind(column.type, what) == "string":
        digits = pc.match_substring_regex(column, r"^(0|-?[1-9][0-9]*)$")
        if not pc.all(digits).as_py():
            raise DataError(
                f"{what} has ids that are no integers, but the data set has integer ids.",
                "Use one type of id throughout.",
            )
    return ids
