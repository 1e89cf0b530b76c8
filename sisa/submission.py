"""What somebody submits: ids, and the fields of a request; nothing of it is looked up yet."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from data_index.keys import Keys
from data_index.requests import iso
from data_index.storage import canonical_json
from sisa import config
from sisa.errors import UsageError
from sisa.lookup import Id

SHORT, LONG = 64, 500
"""Characters that names of regulations, and external ids and reasons, have at most."""


@dataclass(frozen=True, slots=True)
class Submission:
    """One request, as it is submitted.

    Attributes:
        subjects: Ids of data subjects.
        records: Ids of records.
        external_id: Its name in the system that it comes from.
        regulation: What it is made under, such as GDPR.
        received: When it was received; None for now.
        due: How long after that it is due; None for `runtime.erasure.due`.
        hold: Why its rows must not be destroyed yet.
    """

    subjects: tuple[Id, ...] = ()
    records: tuple[Id, ...] = ()
    external_id: str | None = None
    regulation: str | None = None
    received: datetime | None = None
    due: timedelta | None = None
    hold: str | None = None

    def body(self, named: Keys) -> bytes:
        """What must be the same when it comes again: the keys that it names, and its fields."""
        fields = {
            "regulation": self.regulation,
            "received": self.received and iso(self.received),
            "due": self.due and self.due.total_seconds(),
            "hold": self.hold,
        }
        return canonical_json(fields) + b"".join(sorted({k.tobytes() for k in named}))


def submission(now: datetime, fields: Mapping[str, Any]) -> Submission:
    """Check what was given.

    Args:
        now: The time.
        fields: Those of a submission, `received` and `due` as text.

    Raises:
        UsageError: A field does not fit.
    """
    return Submission(
        subjects=tuple(fields.get("subjects", ())),
        records=tuple(fields.get("records", ())),
        external_id=text("external id", fields.get("external_id"), LONG),
        regulation=text("regulation", fields.get("regulation"), SHORT),
        received=_received(fields.get("received"), now),
        due=None if fields.get("due") is None else duration(fields["due"]),
        hold=text("reason", fields.get("hold"), LONG),
    )


def of_line(line: Id | Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a line: a subject's id, or a JSON object.

    Raises:
        UsageError: It is an object of another form.
    """
    if isinstance(line, str) and line.startswith("{"):
        try:
            line = json.loads(line)
        except ValueError:
            raise _no_line() from None
    if not isinstance(line, Mapping):
        return {"subjects": [line]}
    fields = dict(line)
    ids = {f"{kind}s": [fields.pop(kind)] for kind in ("subject", "record") if kind in fields}
    if len(ids) != 1 or not fields.keys() <= {"external_id", "regulation", "received", "due"}:
        raise _no_line()
    return fields | ids


def _no_line() -> UsageError:
    return UsageError(
        "A line is no request.",
        "Write an id, or a JSON object with subject or record, and if need be external_id, "
        "regulation, received and due.",
    )


def text(what: str, value: object, size: int = LONG) -> str | None:
    """A short text that can be shown.

    Raises:
        UsageError: It is not one.
    """
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip() or len(value) > size:
        raise UsageError(f"A {what} is empty or too long.", f"Write 1 to {size} characters.")
    if not value.isprintable() or value != value.strip():
        raise UsageError(f"A {what} is padded or holds control characters.", "Write plain text.")
    return value


def duration(value: object) -> timedelta:
    """A number of days, hours or minutes, as in 30d.

    Raises:
        UsageError: It is none.
    """
    if not isinstance(value, str) or not re.fullmatch(r"\d{1,5}[mhd]", value):
        raise UsageError("A due time is no number of days or hours.", "Write 45d or 12h.")
    return config.period(value)


def _received(value: object, now: datetime) -> datetime | None:
    if value is None:
        return None
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
        # A time without a zone is in UTC.
        found = found and (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        found = None
    if found is None:
        raise UsageError("A time is not ISO 8601.", "Write 2026-11-23 or 2026-11-23T10:00+01:00.")
    if found > now:
        raise UsageError("A request was received in the future.", "Correct the time.")
    return found
