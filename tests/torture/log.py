"""Results of a campaign as JSON lines: written one by one, so that it can be resumed."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Line = dict[str, Any]


@dataclass
class Log:
    """One campaign's file.

    Attributes:
        path: Where it is; None keeps nothing.
        read_only: Another process may be writing it.
        lines: What it holds.
    """

    path: Path | None
    read_only: bool = False
    lines: list[Line] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.exists():
            found = self.path.read_text("utf-8").split("\n")
            self.lines = [json.loads(line) for line in found[:-1]]  # the last one may be torn
            if not self.read_only:
                self.path.write_text("".join(f"{json.dumps(x)}\n" for x in self.lines), "utf-8")
        elif self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._names = {line["trial"] for line in self.lines}

    def holds(self, name: str) -> bool:
        """Whether a trial was made already."""
        return name in self._names

    def add(self, line: Line) -> None:
        """Add a trial's result, and show one that broke something."""
        self.lines.append(line)
        self._names.add(line["trial"])
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(line, default=str)}\n")
        if line["broken"]:
            print(_short(line), file=sys.stderr, flush=True)
        elif len(self.lines) % 100 == 0:
            print(f"{len(self.lines)} trials", file=sys.stderr, flush=True)


def _short(line: Line) -> str:
    """What broke, in a few lines; the file has all of it."""
    detail = line.get("detail", {})
    facts = {k: v for k, v in line.items() if k not in ("detail", "seconds", "noticed")}
    said = [str(x).strip().rpartition("\n")[2][:300] for x in detail.get("faults", ())]
    said += [str(x)[:300] for x in detail.get("refused", ())]
    failed = [
        *detail.get("after", {}).get("failed", ()),
        *detail.get("final", {}).get("failed", ()),
    ]
    return "\n  ".join([json.dumps(facts, default=str), *said, *(str(f)[:200] for f in failed)])
