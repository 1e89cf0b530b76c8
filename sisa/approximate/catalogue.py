"""The methods in words, for those who choose one: what each needs and costs.

The registry itself takes torch to load, so what it says lies beside it in `methods.json`:
`python -m sisa.approximate.catalogue docs/approximate.md` writes that file and the page's table.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

FILE = Path(__file__).with_name("methods.json")
BEGIN, END = "<!-- methods -->\n", "<!-- end of methods -->\n"

Value = bool | int | float | str | None


@dataclass(frozen=True)
class Card:
    """One method.

    Attributes:
        name: As the command line names it.
        kind: Steps of an optimizer on an objective, or one edit of the parameters.
        needs: What it needs besides the model and the items to forget, in words, by its name.
        cost: What it costs beside a forward and backward of the items to forget.
        defaults: Its settings; docs/approximate.md says whose they are.
        source: Where it is from.
    """

    name: str
    kind: Literal["objective", "edit"]
    needs: Mapping[str, str]
    cost: str
    defaults: Mapping[str, Value]
    source: str


@cache
def cards() -> tuple[Card, ...]:
    """All methods, in the order of their registry."""
    return tuple(Card(**found) for found in json.loads(FILE.read_text("utf-8")))


def registered() -> tuple[Card, ...]:
    """The same, from the registry itself."""
    from sisa.approximate.methods import METHODS, NEEDS

    return tuple(
        Card(m.name, m.kind, {n: NEEDS[n] for n in m.needs}, m.cost, dict(m.defaults), m.source)
        for m in METHODS.values()
    )


def text(found: tuple[Card, ...]) -> str:
    """What `methods.json` holds."""
    return json.dumps([asdict(card) for card in found], indent=1, ensure_ascii=False) + "\n"


def table(found: tuple[Card, ...]) -> str:
    """Methods as a table in Markdown."""
    lines = ["| method | needs | costs | settings | from |", "|---|---|---|---|---|"]
    for c in found:
        needs = "; ".join(c.needs.values()) or "nothing more"
        settings = ", ".join(f"`{name}={value}`" for name, value in c.defaults.items()) or "none"
        lines.append(f"| `{c.name}` | {needs} | {c.cost} | {settings} | {c.source} |")
    return "\n".join(lines) + "\n"


def with_table(page: str, found: tuple[Card, ...]) -> str:
    """A page whose table of methods, between its two marks, is of these methods."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}{table(found)}{END}{rest.partition(END)[2]}"


def main(page: Path) -> None:
    """Write `methods.json`, and the table of a page."""
    found = registered()
    FILE.write_text(text(found), "utf-8")
    page.write_text(with_table(page.read_text("utf-8"), found), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
