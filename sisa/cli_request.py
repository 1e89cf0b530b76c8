"""The commands `sisa request ...`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sisa.cli import _Call, _confirm, _lines, common, main
from sisa.errors import UsageError

if TYPE_CHECKING:
    from sisa.results import Result


@main.group(epilog="Example: sisa request list --overdue")
def request() -> None:
    """Erasure requests: submit, look at, hold, release, cancel, readmit."""


@request.command(epilog="Example: sisa request submit --subject alice --external-id T-17 --yes")
@click.option("--subject", "subjects", multiple=True, help="Id of a data subject.")
@click.option("--record", "records", multiple=True, help="Id of a record.")
@click.option("--file", "listed", help="Subject ids, one a line; - for stdin.")
@click.option(
    "--each",
    is_flag=True,
    help="A request of its own of every id; a line of the file may be a JSON object with subject "
    "or record, external_id, regulation, received, due.",
)
@click.option("--external-id", help="Its name in the system it comes from; names no person.")
@click.option("--regulation", help="What it is made under, such as GDPR.")
@click.option("--received", metavar="TIME", help="When it was received, ISO 8601; default: now.")
@click.option("--due", metavar="TIME", help="How long after that it is due, such as 45d.")
@click.option("--hold", metavar="REASON", help="Destroy nothing before `release`.")
@click.option("--dry-run", is_flag=True, help="Say what would be done and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common
def submit(
    call: _Call,
    subjects: tuple[str, ...],
    records: tuple[str, ...],
    listed: str | None,
    each: bool,
    dry_run: bool,
    yes: bool,
    **fields: Any,
) -> Result:
    """Accept and roll back; `sisa work` erases for good."""
    lines = _lines(listed)
    if each and fields["external_id"] is not None:
        raise UsageError("One external id is given for many requests.", "Write it in the lines.")
    if not dry_run and not yes:
        count = len(subjects) + len(lines) + len(records)
        _confirm(f"Accept the erasure of {count} subjects and records?")
    with call.open() as workspace:
        if not each:
            return workspace.submit([*subjects, *lines], records, dry_run, **fields)
        del fields["external_id"]
        named = [{"subject": s} for s in subjects] + [{"record": r} for r in records]
        return workspace.submit_each([*named, *lines], dry_run, **fields)


@request.command("list", epilog="Example: sisa request list --state on_hold")
@click.option("--state", help="Only those in this state.")
@click.option("--overdue", is_flag=True, help="Only those that are open past due.")
@common
def listing(call: _Call, state: str | None, overdue: bool) -> Result:
    """Erasure requests, the oldest first."""
    with call.open() as workspace:
        return workspace.requests(state, overdue)


@request.command(epilog="Example: sisa request show T-17")
@click.argument("name", metavar="ID")
@common
def show(call: _Call, name: str) -> Result:
    """All about the request of an id or external id."""
    with call.open() as workspace:
        return workspace.request(name)


@request.command(epilog='Example: sisa request hold T-17 --reason "court order 4/26"')
@click.argument("name", metavar="ID")
@click.option("--reason", required=True, help="Why; names no person.")
@common
def hold(call: _Call, name: str, reason: str) -> Result:
    """Destroy nothing of a request before it is released."""
    with call.open() as workspace:
        return workspace.hold(name, reason)


@request.command(epilog="Example: sisa request release T-17")
@click.argument("name", metavar="ID")
@common
def release(call: _Call, name: str) -> Result:
    """End a hold; `sisa work` goes on."""
    with call.open() as workspace:
        return workspace.release(name)


@request.command(epilog='Example: sisa request cancel T-17 --reason "withdrawn"')
@click.argument("name", metavar="ID")
@click.option("--denied", is_flag=True, help="It was refused on legal grounds.")
@click.option("--reason", required=True, help="Why; names no person.")
@common
def cancel(call: _Call, name: str, denied: bool, reason: str) -> Result:
    """Take a request back before its rows are rewritten."""
    with call.open() as workspace:
        return workspace.cancel(name, reason, denied)


@request.command(epilog="Example: sisa request readmit --subject alice")
@click.option("--subject", "subjects", multiple=True, help="Id of a data subject.")
@click.option("--record", "records", multiple=True, help="Id of a record.")
@common
def readmit(call: _Call, subjects: tuple[str, ...], records: tuple[str, ...]) -> Result:
    """Let erased ids be ingested again: consent was given again."""
    with call.open() as workspace:
        return workspace.readmit(subjects, records)
