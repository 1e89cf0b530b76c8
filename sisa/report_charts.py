"""Where things go in the drawings of a report: the grid, the requests' bars, the savings.

Lengths are in CSS pixels, and percentages of the drawing's width where it grows with the page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import TypeVar

from sisa.report_results import BatchCost, Cell, Grid, RequestRow, ShardRow
from sisa.report_words import count, short

T = TypeVar("T")

MOST_CELLS = 3_000
"""How many cells are drawn at most; the document has them all."""

MOST_SHARDS = 300
"""How many shards are drawn and listed at most."""

PANEL_ROWS = 20
LABEL, HEADER = 34, 18
"""Pixels left of and above the cells of a panel."""

LEVELS = 4
"""Shades for how often a partition was trained again, without the one for never."""

TICKS = (
    (1.0, "≤ 1 s"),
    (60.0, "1 min"),
    (3_600.0, "1 h"),
    (86_400.0, "1 d"),
    (7 * 86_400.0, "7 d"),
    (30 * 86_400.0, "30 d"),
    (365 * 86_400.0, "1 y"),
)
POINTS = 100
"""Through how many points a line is drawn at most."""


@dataclass(frozen=True)
class Tile:
    """One cell as it is drawn."""

    x: int
    y: int
    state: str
    level: int
    text: str
    again: str
    title: str


@dataclass(frozen=True)
class Panel:
    """A part of the grid that fits a telephone's width."""

    width: int
    height: int
    cell_width: int
    cell_height: int
    columns: tuple[tuple[int, int], ...]
    rows: tuple[tuple[int, int], ...]
    tiles: tuple[Tile, ...]
    title: str


@dataclass(frozen=True)
class GridDrawing:
    """The grid in panels."""

    roomy: bool
    panels: tuple[Panel, ...]
    shards: tuple[ShardRow, ...]
    hidden: int
    most: int
    shades: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Bar:
    """A request as it is drawn: seconds on a logarithmic axis, as percentages."""

    request: RequestRow
    y: int
    due: float
    end: float
    marks: tuple[tuple[str, float], ...]
    taken: float
    left: float


@dataclass(frozen=True)
class BarDrawing:
    """Requests from received on."""

    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]
    height: int


@dataclass(frozen=True)
class SavingsDrawing:
    """Cumulative samples: segments x1, y1, x2, y2 with x in percentages and y in pixels."""

    trained: tuple[tuple[float, float, float, float], ...]
    full: tuple[tuple[float, float, float, float], ...]


def draw_grid(grid: Grid) -> GridDrawing:
    """Cut the grid into panels; of a very large one, the shards that something happened to."""
    roomy = grid.slices <= 8 and len(grid.rows) <= 16
    shards = _chosen(grid)
    most = max((c.retrained for c in grid.cells), default=0)
    wide = 8 if roomy else 12
    cells = {(c.shard, c.slice): c for c in grid.cells}
    panels = tuple(
        _panel([r.shard for r in rows], columns, cells, most, roomy)
        for rows in _parts(shards, PANEL_ROWS)
        for columns in _parts(range(1, grid.slices + 1), wide)
    )
    return GridDrawing(roomy, panels, shards, len(grid.rows) - len(shards), most, _shades(most))


def _chosen(grid: Grid) -> tuple[ShardRow, ...]:
    room = max(1, min(MOST_SHARDS, MOST_CELLS // grid.slices))
    if len(grid.rows) <= room:
        return grid.rows
    rows = sorted(grid.rows, key=lambda r: (r.votes and r.served == r.stages, -r.requests, r.shard))
    return tuple(sorted(rows[:room], key=lambda r: r.shard))


def _parts(items: Sequence[T], most: int) -> list[Sequence[T]]:
    """Consecutive parts of about equal length."""
    parts = max(1, -(-len(items) // most))
    size = max(1, -(-len(items) // parts))
    return [items[i : i + size] for i in range(0, len(items), size)]


def _level(retrained: int, most: int) -> int:
    return -(-retrained * LEVELS // most) if most else 0


def _shades(most: int) -> tuple[tuple[int, int, int], ...]:
    """Each shade, with how many times it stands for, from and to."""
    found: dict[int, list[int]] = {}
    for times in range(most + 1):
        found.setdefault(_level(times, most), []).append(times)
    return tuple((level, times[0], times[-1]) for level, times in found.items())


def _panel(
    shards: Sequence[int],
    columns: Sequence[int],
    cells: dict[tuple[int, int], Cell],
    most: int,
    roomy: bool,
) -> Panel:
    width, height = (40, 32) if roomy else (26, 17)
    xs = [(slice_, LABEL + i * width) for i, slice_ in enumerate(columns)]
    ys = [(shard, HEADER + i * height) for i, shard in enumerate(shards)]
    tiles = tuple(
        _tile(cells[shard, slice_], x, y, most)
        for shard, y in ys
        for slice_, x in xs
        if (shard, slice_) in cells
    )
    return Panel(
        LABEL + len(xs) * width + 1,
        HEADER + len(ys) * height + 1,
        width,
        height,
        tuple(xs),
        tuple(ys),
        tiles,
        f"Shards {shards[0]} to {shards[-1]}, slices {columns[0]} to {columns[-1]}",
    )


def _tile(cell: Cell, x: int, y: int, most: int) -> Tile:
    title = (
        f"Shard {cell.shard}, slice {cell.slice}: {count(cell.records, 'record')}, "
        f"{cell.state.replace('_', ' ')}; touched by {count(cell.requests, 'request')}, "
        f"trained again {count(cell.retrained, 'time')}"
    )
    again = f"×{short(cell.retrained)}" if cell.retrained else ""
    level = _level(cell.retrained, most)
    return Tile(x, y, cell.state, level, short(cell.records), again, title)


def draw_requests(rows: Sequence[RequestRow], now: datetime) -> BarDrawing:
    """Bars from received to certified, or to now, against the due date."""
    spans = [(_since(r, r.due), _end(r, now)) for r in rows]
    longest = max([2.0, *(max(span) for span in spans)])

    def at(seconds: float) -> float:
        return round(2 + 94 * math.log10(max(1.0, seconds)) / math.log10(longest), 2)

    bars = tuple(
        Bar(
            request=row,
            y=i * 34,
            due=at(due),
            end=at(end),
            marks=tuple(_marks(row, at)),
            taken=max(0.0, end),
            left=due - end,
        )
        for i, (row, (due, end)) in enumerate(zip(rows, spans, strict=True))
    )
    ticks = tuple((at(s), name) for s, name in TICKS if s <= longest)
    return BarDrawing(bars, ticks, len(rows) * 34 + 22)


def _marks(row: RequestRow, at: Callable[[float], float]) -> Iterator[tuple[str, float]]:
    for name in ("accepted", "published", "certified"):
        time = getattr(row, name)
        if time is not None:
            yield name, at(_since(row, time))


def _end(row: RequestRow, now: datetime) -> float:
    """Seconds until it was done, or until now; of one that was closed otherwise, its last event."""
    if row.certified is not None:
        return _since(row, row.certified)
    if row.state in ("duplicate", "not_found", "cancelled", "denied"):
        return max(_since(row, t) for t in (row.received, row.accepted, row.published) if t)
    return (now - datetime.fromisoformat(row.received)).total_seconds()


def _since(row: RequestRow, time: str) -> float:
    received = datetime.fromisoformat(row.received)
    return (datetime.fromisoformat(time) - received).total_seconds()


def draw_savings(batches: Sequence[BatchCost], height: int = 120) -> SavingsDrawing:
    """Samples trained, and those of full retraining, added up from rebuild to rebuild."""
    trained, full = [0], [0]
    for batch in batches:
        trained.append(trained[-1] + batch.samples_trained)
        full.append(full[-1] + batch.samples_full)
    top = max(trained[-1], full[-1], 1)
    step = max(1, -(-len(batches) // POINTS))
    points = [*range(0, len(batches), step), len(batches)]

    def line(values: list[int]) -> tuple[tuple[float, float, float, float], ...]:
        xs = [round(2 + 96 * i / max(1, len(batches)), 2) for i in points]
        ys = [round(height * (1 - values[i] / top), 1) for i in points]
        return tuple((*a, *b) for a, b in pairwise(zip(xs, ys, strict=True)))

    return SavingsDrawing(line(trained), line(full))
