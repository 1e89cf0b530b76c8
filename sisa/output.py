"""What commands print: the document on stdout, progress and warnings on stderr."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from sisa.context import Reporter
from sisa.errors import SisaError
from sisa.results import Failed, Fault, Result, Round
from sisa.results.columns import columns
from sisa.stage_log import StageRecord

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00")
"""A time in UTC, as documents hold it; texts show it to the second."""


def show(result: Result, style: str) -> None:
    """Print a document as text or as JSON."""
    if style == "json":
        sys.stdout.write(json.dumps(result.document(), ensure_ascii=False) + "\n")
        return
    if (text := result.text()) is not None:
        sys.stdout.write(text)
        return
    for name, value in result.brief().items():
        if name != "schema_version":
            sys.stdout.writelines(f"{line}\n" for line in _lines(name.replace("_", " "), value))


class Rounds:
    """Prints rounds: each as a line of JSON on stdout, or a sentence on stderr where one is new."""

    def __init__(self, style: str) -> None:
        self._style, self._said = style, ""

    def show(self, made: Round) -> None:
        """Print a round."""
        if self._style == "json":
            show(made, self._style)
            sys.stdout.flush()
            return
        window, text = made.window, ""
        if made.requests:
            text = f"{len(made.requests)} requests finished, {made.samples_trained} samples"
        elif window is not None:
            text = f"{len(window.requests)} requests wait until {window.closes} ({window.reason})"
        if text and text != self._said:
            sys.stderr.write(f"round {made.round}: {text}\n")
        self._said = text


def show_error(error: SisaError, style: str) -> None:
    """Print an error: an object on stdout with JSON, one sentence on stderr otherwise."""
    if style == "json":
        fault = Fault(code=error.code, message=error.message, remedy=error.remedy)
        show(Failed(error=fault), style)
    else:
        sys.stderr.write(f"Error: {error}\n")


def _lines(label: str, value: Any) -> Iterator[str]:
    """A field as lines: objects and lists of them are indented below its name."""
    if isinstance(value, dict) and value:
        yield label
        for name, inner in value.items():
            if inner not in (None, []):
                yield f"  {name.replace('_', ' '):>18}  {_text(inner)}"
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield label
        yield from _table(value)
    else:
        yield f"{label:>20}  {_text(value)}"


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line a row, never broken, so that it can be searched; empty columns are left out."""
    told = [name for name in rows[0] if any(row[name] not in (None, []) for row in rows)]
    cells = [[name.replace("_", " ") for name in told]]
    cells += [[_text(row[name]) for name in told] for row in rows]
    yield from (f"  {line}".rstrip() for line in columns(cells, str.ljust))


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
    if isinstance(value, str) and TIME.fullmatch(value):
        return f"{value[:10]} {value[11:19]}Z"
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
