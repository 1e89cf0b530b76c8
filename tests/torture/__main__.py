"""`python -m tests.torture`: run campaigns, in full or a small share of them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import crowd, faults, histories, kills, mutations, page, rules
from .controls import CONTROLS
from .log import Line, Log
from .scenario import Scene, scene

RESULTS = Path("build/torture")

SMALL = ("ingest", "forget", "hold")
"""Stories of the share that `make test` has: to rehearse them all takes too long there."""


@dataclass(frozen=True)
class Campaign:
    """One campaign: how it is run with the numbers given, and its figures.

    Attributes:
        title: As the page has it.
        full: Its numbers in full.
        small: Its numbers in `make test`.
        run: Runs it.
        summary: Its figures from the lines of its log.
    """

    title: str
    full: tuple[int, ...]
    small: tuple[int, ...]
    run: Callable[..., None]
    summary: Callable[[list[Line]], dict[str, Any]]


CAMPAIGNS = {
    "kills": Campaign(
        "Kills",
        (1000,),
        (10,),
        lambda s, log, a, n: kills.campaign(s, log, a.seed, a.kills or n, a.only, a.stories),
        kills.summary,
    ),
    "rules": Campaign(
        "Rules removed, under lost writes",
        (120, 120),
        (4, 0),
        lambda s, log, a, kept, n: rules.campaign(s, log, a.seed, kept, n, a.only or "", a.stories),
        rules.summary,
    ),
    "faults": Campaign(
        "The nth call fails",
        (1500,),
        (15,),
        lambda s, log, a, n: faults.campaign(s, log, n, a.only, a.stories),
        faults.summary,
    ),
    "mutations": Campaign(
        "Bad bytes",
        (22_000,),  # one in twelve leaves the bytes as they are
        (200,),
        lambda s, log, a, n: mutations.campaign(s, log, a.seed, n),
        mutations.summary,
    ),
    "crowd": Campaign(
        "Concurrency",
        (32, 1000),
        (4, 20),
        lambda s, log, a, clients, n: crowd.campaign(s, log, a.seed, clients, n),
        crowd.summary,
    ),
    "histories": Campaign(
        "Random histories",
        (200, 10),
        (20, 3),
        lambda s, log, a, n, steps: histories.campaign(s, log, a.seed, n, steps),
        histories.summary,
    ),
}
"""One entry each."""


def main() -> int:
    """Run what is asked for. Returns 1 if something is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("campaign", nargs="*", help=f"{', '.join(CAMPAIGNS)}; default: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, help="so many instead of all")
    parser.add_argument("--only", help="one point, rule or fault, by its name")
    parser.add_argument("--small", action="store_true", help="the share that `make test` has")
    parser.add_argument("--page", action="store_true", help="write docs/reliability.md")
    parser.add_argument("--controls", action="store_true", help="also break the code once for each")
    parser.add_argument(
        "--as-is", action="store_true", help="run nothing: show the results that there are"
    )
    asked = parser.parse_args()
    asked.stories = SMALL if asked.small else None
    print(f"seed {asked.seed}", file=sys.stderr)
    figures: dict[str, Any] = {}
    with nullcontext() if asked.as_is else scene() as made:
        for name in asked.campaign or CAMPAIGNS:
            if made is None and not _path(name, asked).exists():
                continue
            figures[name] = _run(made, name, asked)
            print(json.dumps({name: figures[name]}), flush=True)
        if asked.controls and made is not None:
            for name, control in CONTROLS.items():
                print(json.dumps({f"control of {name}": control(made)[:3]}), flush=True)
    if asked.page:
        titles = {name: CAMPAIGNS[name].title for name in figures}
        page.publish(titles, figures, asked.seed)
    return int(any(f["broken"] or f.get("unnoticed") for f in figures.values()))


def _path(name: str, asked: argparse.Namespace) -> Path:
    return RESULTS / f"{name}-{asked.seed}.jsonl"


def _run(made: Scene | None, name: str, asked: argparse.Namespace) -> dict[str, Any]:
    campaign = CAMPAIGNS[name]
    started = time.monotonic()
    log = Log(None if asked.small else _path(name, asked), read_only=made is None)
    if made is not None:
        campaign.run(made, log, asked, *(campaign.small if asked.small else campaign.full))
    figures = campaign.summary(log.lines)
    spent = sum(x.get("seconds", 0) for x in log.lines) or time.monotonic() - started
    return figures | {"minutes": round(spent / 60, 1)}


if __name__ == "__main__":
    sys.exit(main())
