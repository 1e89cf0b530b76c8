"""The page of a report: one HTML file that needs neither network nor scripts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import islice
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from sisa import report_charts, report_words
from sisa.report_results import Report, RequestRow

T = TypeVar("T")

NEWEST = 12
"""How many rows of a table are shown at once, and how many requests are drawn."""

OLDER = 1_000
"""How many more requests and certificates can be unfolded; the document has them all."""

OLDER_GENERATIONS = 300
"""The same for generations and rebuilds."""


def page(report: Report) -> str:
    """The text of the page. Every value is escaped; nothing in it is taken for markup."""
    environment = Environment(
        loader=PackageLoader("sisa"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        name: getattr(report_words, name)
        for name in ("number", "share", "when", "duration", "places", "listed", "plain", "fact")
    }
    environment.filters["code"] = _code
    requests = sorted(report.requests.items, key=_urgency)
    batches = report.costs.batches
    return environment.get_template("report.html").render(
        report=report,
        grid=report_charts.draw_grid(report.grid),
        bars=report_charts.draw_requests(requests[:NEWEST], datetime.fromisoformat(report.made)),
        savings=report_charts.draw_savings(batches) if batches else None,
        requests=_cut(requests),
        batches=_cut(batches[::-1], OLDER_GENERATIONS),
        certificates=_cut(report.certificates.items[::-1]),
        generations=_cut(report.generations[::-1], OLDER_GENERATIONS),
        features=list(islice(report.recipe.features.items(), 40)),
        classes=report.recipe.classes[:40],
    )


def _code(text: str) -> Markup:
    """A text, what stands between backticks as code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part)
        for i, part in enumerate(parts)
    )


def _urgency(row: RequestRow) -> tuple[bool, float]:
    """Open requests first, by due date; then the others, the newest first."""
    closed = row.state in ("certified", "duplicate", "not_found", "cancelled", "denied")
    due, received = (datetime.fromisoformat(t).timestamp() for t in (row.due, row.received))
    return closed, -received if closed else due


def _cut(rows: Sequence[T], older: int = OLDER) -> dict[str, Any]:
    """Rows to show, rows to unfold, and how many more there are."""
    shown = NEWEST + older
    left = max(0, len(rows) - shown)
    return {"newest": rows[:NEWEST], "older": rows[NEWEST:shown], "left": left}
