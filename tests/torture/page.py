"""Figures of the campaigns that were run, as a section of docs/reliability.md."""

from __future__ import annotations

import os
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- torture: begin -->", "<!-- torture: end -->"


def publish(titles: dict[str, str], figures: dict[str, Any], seed: int) -> None:
    """Put the section into the page, in the place of its predecessor."""
    lines = [BEGIN, "", "Written by `make torture`; edit nothing between the markers.", ""]
    for name, title in titles.items():
        lines += [f"### {title}", "", "| | |", "|:--|--:|"]
        lines += [f"| {key} | {_text(value)} |" for key, value in figures[name].items()]
        lines.append("")
    packages = ", ".join(f"{p} {version(p)}" for p in ("numpy", "pyarrow", "sqlalchemy"))
    lines += [
        f"Seed {seed}, {datetime.now(UTC):%Y-%m-%d}; {_machine()}, Python "
        f"{platform.python_version()}, {packages}.",
        END,
    ]
    text = PAGE.read_text("utf-8")
    section = "\n".join(lines)
    pattern = f"{re.escape(BEGIN)}.*{re.escape(END)}"
    PAGE.write_text(re.sub(pattern, lambda _: section, text, flags=re.DOTALL), "utf-8")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {v:,}" for k, v in value.items())
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return f"{value:,}"


def _machine() -> str:
    found = Path("/proc/cpuinfo")
    lines = found.read_text("utf-8").splitlines() if found.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else platform.machine()}, {os.cpu_count()} cores"
