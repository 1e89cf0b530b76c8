"""Columns of a text, for whoever prints a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence


def columns(
    rows: Sequence[Sequence[str]], pad: Callable[[str, int], str] = str.rjust
) -> Iterator[str]:
    """Lines of a table, its first column to the left.

    Args:
        rows: Cells of each line, its head included; at least one line.
        pad: Fills a cell of the other columns up to a width.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = (pad(cell, width) for cell, width in zip(rest, widths[1:], strict=True))
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()
