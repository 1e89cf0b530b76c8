"""What commands print: the document on stdout, progress and warnings on stderr."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from sisa.context import Reporter
from sisa.errors import SisaError
from sisa.results import SCHEMA_VERSION, Result
from sisa.stage_log import StageRecord


def show(result: Result, style: str) -> None:
    """Print a document as text or as JSON."""
    document = result.document()
    if style == "json":
        sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
        return
    console = Console(soft_wrap=True, highlight=False)
    for name, value in document.items():
        if name == "schema_version":
            continue
        label = name.replace("_", " ")
        if isinstance(value, list) and value and isinstance(value[0], dict):
            console.print(_table(label, value))
        else:
            console.print(f"{label:>20}  {_text(value)}", markup=False)


def show_error(error: SisaError, style: str) -> None:
    """Print an error: an object on stdout with JSON, one sentence on stderr otherwise."""
    if style == "json":
        body = {"code": error.code, "message": error.message, "remedy": error.remedy}
        sys.stdout.write(json.dumps({"schema_version": SCHEMA_VERSION, "error": body}) + "\n")
    else:
        sys.stderr.write(f"Error: {error}\n")


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    return table


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_text(v)}" for k, v in value.items()) or "-"
    if isinstance(value, str) and len(value) == 64:
        return f"{value[:12]}…"  # a digest; JSON has it whole
    return str(value)


class Progress:
    """Progress on stderr: a status line on a terminal, a line per slice elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._rows_shown = time.monotonic()

    def reporter(self) -> Reporter:
        """What the parts of the system call."""
        return Reporter(stage=self._stage, rows=self._rows, warn=self._warn)

    def _stage(self, record: StageRecord, stages: int) -> None:
        outcome = f"failed: {record.failure}" if record.failure else _loss(record)
        self._console.print(
            f"shard {record.shard} slice {record.slice} ({stages} to train): {record.samples} "
            f"samples in {record.seconds:.2f} s, {outcome}",
            markup=False,
        )

    def _rows(self, rows: int) -> None:
        if time.monotonic() - self._rows_shown > 1:
            self._rows_shown = time.monotonic()
            self._console.print(f"{rows} rows read", markup=False)

    def _warn(self, text: str) -> None:
        self._console.print(f"Warning: {text}", markup=False)


def _loss(record: StageRecord) -> str:
    return "no step" if record.loss is None else f"loss {record.loss:.4f}"
