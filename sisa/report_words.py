"""How a report writes numbers, times and places."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import groupby

from sisa.report_results import Touched

UNITS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"))
"""Seconds of each unit of time, and its sign."""


def number(value: int) -> str:
    """With a comma every three digits."""
    return f"{value:,}"


def count(value: int, noun: str) -> str:
    """A number and what it counts: `1 shard`, `2 shards`."""
    return f"{number(value)} {noun}{'' if value == 1 else 's'}"


def share(value: float) -> str:
    """A share of 1 in per cent; 100 % only if nothing is missing."""
    rounded = f"{100 * value:.1f}"
    return "99.9 %" if rounded == "100.0" and value < 1 else f"{rounded} %"


def when(time: str) -> str:
    """A time in UTC, to the minute."""
    return f"{datetime.fromisoformat(time).astimezone(UTC):%Y-%m-%d %H:%M}"


def duration(seconds: float) -> str:
    """A span of time in its largest unit."""
    for size, sign in UNITS:
        if seconds >= size:
            return f"{seconds / size:.1f}".removesuffix(".0") + f" {sign}"
    return f"{seconds:.3g} s"


def plain(value: float) -> str:
    """A number without needless digits."""
    return f"{value:g}"


def fact(value: object) -> str:
    """A value of a fingerprint, lists joined."""
    if isinstance(value, list | tuple):
        return " ".join(map(fact, value))
    return str(value)


def short(value: int) -> str:
    """At most four characters: `999`, `12k`, `1.2M`."""
    for size, sign in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            scaled = value / size
            return f"{scaled:.0f}{sign}" if scaled >= 9.95 else f"{scaled:.1f}{sign}"
    return str(value)


def listed(shards: Iterable[int]) -> str:
    """Rising numbers with runs of them joined: `0–3, 7`."""
    runs: list[list[int]] = []
    for shard in shards:
        if runs and shard == runs[-1][-1] + 1:
            runs[-1].append(shard)
        else:
            runs.append([shard])
    return ", ".join(f"{r[0]}–{r[-1]}" if len(r) > 2 else ", ".join(map(str, r)) for r in runs)


def places(touched: Sequence[Touched]) -> str:
    """What a request touched: shards by the first slice of each."""
    ordered = sorted(touched, key=lambda t: (t.first_slice, t.shard))
    groups = groupby(ordered, lambda t: t.first_slice)
    found = ((first, [t.shard for t in group]) for first, group in groups)
    return "; ".join(
        f"shard{'' if len(shards) == 1 else 's'} {listed(shards)} from slice {first}"
        for first, shards in found
    )
