"""What the benchmarks share: data, workspaces, the machine, and the page that results go to."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sisa import Workspace

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
ACCURACY = ROOT / "docs" / "accuracy.md"
SECRET = "5a" * 32
"""Placement and batch order depend on the secret; a public one makes the samples repeatable."""

SEED = 0
"""Of all draws that a benchmark makes itself."""

QUIET = (
    "runtime.executor.kind=process",
    "runtime.executor.workers=1",
    "runtime.tracking.uri=null",
)

HEADS = {
    PAGE: """\
# Benchmarks

What the guarantee costs in time and memory. Every section is written by the command under it, on
the machine and the day named there; do not edit this page. Ratios are measured side by side in one
run and are what to compare: seconds depend on the machine. `make bench` runs all; `SISA_TEST_DATA`
names a folder that holds `data/fashion_mnist_train.parquet`. For what sharding costs in accuracy
see [accuracy.md](accuracy.md).
""",
    ACCURACY: """\
# Accuracy

Sharding and slicing make an erasure cheap and cost accuracy. These tables say how much, for two
public data sets, [Fashion-MNIST](https://github.com/zalandoresearch/fashion-mnist) and
[Adult](https://archive.ics.uci.edu/dataset/2/adult), in their original splits, the latter without
the column `income`, which is the label in words. Every section is written by the command under it;
do not edit this page. `make bench-accuracy` runs all; `SISA_TEST_DATA` names a folder that holds
`data/{fashion_mnist,adult}_{train,test}.parquet`.
""",
}


def data(name: str) -> Path:
    """A data set's training file."""
    named = os.environ.get("SISA_TEST_DATA")
    if not named:
        sys.exit("SISA_TEST_DATA is not set: name the folder that holds data/.")
    found = Path(named) / "data" / f"{name}_train.parquet"
    if not found.exists():
        sys.exit(f"{found} does not exist: set SISA_TEST_DATA to the folder that holds data/.")
    return found


def workspace(
    root: Path, source: Path, *settings: str, recipe: Sequence[str] = (), **choices: Any
) -> Workspace:
    """A new workspace with everything ingested; the recipe's settings are kept in its file."""
    os.environ["SISA_SECRET_KEY"] = SECRET
    Workspace.init(root, source, tuple(recipe), record_id="record_id", target="label", **choices)
    found = Workspace.open(root, (*QUIET, *settings), exact=True)
    found.ingest()
    return found


def command(root: Path, *words: str, settings: Sequence[str] = ()) -> list[str]:
    """A call of `sisa` on a workspace, one worker and no mirror unless settings say otherwise."""
    call = [str(Path(sys.executable).with_name("sisa")), "-C", str(root), *words]
    for setting in (*QUIET, *settings):
        call += ["--set", setting]
    return call


def median(values: Iterable[float]) -> float:
    """The median."""
    return statistics.median(values)


def text(*sentences: str) -> list[str]:
    """Lines of a paragraph."""
    return [*textwrap.wrap(" ".join(sentences), 100, break_on_hyphens=False), ""]


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines of a Markdown table, its first column to the left and the others to the right."""
    lines = [f"| {' | '.join(head)} |", f"|:--|{'--:|' * (len(head) - 1)}"]
    return lines + [f"| {' | '.join(map(str, row))} |" for row in rows]


def publish(
    title: str, script: str, lines: Sequence[str], seconds: float, page: Path = PAGE
) -> None:
    """Put one section into a page, in the place of its predecessor."""
    footer = (
        f"`.venv/bin/python tests/benchmarks/{script}`, {seconds:.0f} s, "
        f"{datetime.now(UTC):%Y-%m-%d}, seed {SEED}; {machine()}; load average over the last "
        f"15 minutes {os.getloadavg()[2]:.1f}."
    )
    body = "\n".join(["", *lines, "", footer])
    print(f"## {title}\n{body}")
    text = page.read_text("utf-8") if page.exists() else ""
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    sections[title] = body
    whole = [f"## {name}\n{sections[name].rstrip()}\n" for name in sorted(sections)]
    page.write_text("\n".join([HEADS[page], *whole]), "utf-8")


def kept(
    file: Path,
    find: Callable[[], Mapping[str, Any]],
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """What a file holds, or what is found and put into it, with the time that took.

    Args:
        file: Whole or not there, so that an interrupted benchmark goes on.
        find: Finds it.
        clock: Tells seconds: those on the wall, unless it is another one.
    """
    if not file.exists():
        started = clock()
        found = {**find(), "took": clock() - started}
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".part")
        unfinished.write_text(json.dumps(found))
        unfinished.rename(file)
    loaded: dict[str, Any] = json.loads(file.read_text())
    return loaded


def machine() -> str:
    """Processor, number of cores, and versions of what computes."""
    model = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (
        f"{named[0] if named else model}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, torch {version('torch')}, pyarrow {version('pyarrow')}"
    )
