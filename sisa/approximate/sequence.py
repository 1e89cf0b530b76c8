"""Requests one after the other on one model, and what is still known of each after each.

Every request starts from the model that the one before it left, and leaves a model folder with a
statement of its own: `01`, `02` and so on. What was done is not done again, so that a sequence that
was interrupted goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from sisa.approximate import inputs, loop, statement, unlearn
from sisa.approximate.batches import Batch
from sisa.approximate.carry_out import Carrier
from sisa.approximate.item_values import mean_probability
from sisa.approximate.plan import Plan, brought, loaded, look, read
from sisa.approximate.request import FILES, OF_EVIDENCE, Request, configured
from sisa.approximate.settings import plain
from sisa.approximate.statement import Approximation
from sisa.errors import DataError, NotFoundError, UsageError
from sisa.results import AfterRequest, Unlearned, UnlearnedInTurn

FILE = "sequence.json"
"""Name of the table in the folder of a sequence."""


def run(
    request: Request,
    forget: Sequence[Path],
    *,
    dry_run: bool = False,
    report: loop.Report = lambda metrics, step: None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    several: Carrier | None = None,
) -> UnlearnedInTurn:
    """Carry out a sequence of requests.

    Args:
        request: What all of them have in common; `out` is the folder of the sequence.
        forget: The items of each request.
        dry_run: Look at everything and change nothing.
        report: Called after every optimizer step.
        clock: Gives the time.
        several: As for `unlearn.run`.

    Raises:
        UsageError: A folder of the sequence holds something else, or there is an update log, or a
            file with one item for each to forget.
        DataError: An item is in two requests.
        SisaError: As for `unlearn.run`.
    """
    if len(forget) > 1 and request.log is not None:
        raise UsageError(
            "A step that held items of two requests would be taken back twice.",
            "Make each request by itself, and take its items out of the log with Log.remove.",
        )
    if len(forget) > 1 and any(name.partition("/")[0] in inputs.ALIGNED for name in request.files):
        raise UsageError(
            "What stands beside each item to forget is of one request alone.",
            "Make each request by itself.",
        )
    first = look(replace(request, forget=forget[0], out=request.out / "plan"))
    items = [first.forget, *(_items(first, file) for file in forget[1:])]
    _apart(items)
    if dry_run:
        return UnlearnedInTurn(
            status="planned", exactness="approximate", out=str(request.out), requests=()
        )
    request.out.mkdir(parents=True, exist_ok=True)
    done: list[AfterRequest] = []
    model, settings = request.model, request.settings
    for number, file in enumerate(forget, 1):
        own = replace(
            request,
            forget=file,
            model=model,
            out=request.out / f"{number:02d}",
            settings=settings,
        )
        made = _kept(own) or unlearn.run(own, report=report, clock=clock, several=several)
        done.append(_after(own, made, items[:number], first.others.get("retain")))
        _write(request.out / FILE, done)
        model = own.out
        if first.chosen.own.lora_rank:  # the adapter that the first request made is trained on
            settings = (*request.settings, "lora_rank=0")
    return UnlearnedInTurn(
        status="written", exactness="approximate", out=str(request.out), requests=tuple(done)
    )


def _items(first: Plan, file: Path) -> Batch:
    """The items of a further request, checked against what is given besides."""
    if not file.is_file():
        raise NotFoundError(f"There is no file {file}.")
    found, _ = read(file, "forget", first.request, first.subject, first.chosen.own)
    inputs.check(found, {n: i for n, i in first.others.items() if n in ("retain", "holdout")})
    return found


def _apart(forget: Sequence[Batch]) -> None:
    """Refuse an item that is in two requests: after the first it is not known as it was."""
    seen: set[bytes] = set()
    for number, items in enumerate(forget, 1):
        digests = set(items.digests())
        if both := len(seen & digests):
            raise DataError(
                f"{both} of the items of request {number} are in an earlier one.",
                "Name each item once.",
            )
        seen |= digests


def _kept(request: Request) -> Unlearned | None:
    """What an earlier call of the same sequence did of this request, if it did.

    Raises:
        UsageError: It did something else.
    """
    file = request.out / statement.FILE
    if not file.is_file():
        return None
    stated = statement.read(file.read_bytes())
    if not _the_same(stated.predicate, request) or statement.differences(stated, request.out):
        raise UsageError(f"{request.out} is of another sequence.", "Name another folder.")
    return unlearn.document(request, stated)


def _the_same(said: Approximation, request: Request) -> bool:
    """Whether a statement is of this request, with all that it names."""
    files = {"forget": request.forget, **request.files}
    digests = {name: statement.file_digest(f, request.digest_key) for name, f in files.items()}
    told = {name: getattr(said, name) for name in ("forget", *FILES)}
    told |= {f"wrong/{number}": data for number, data in enumerate(said.wrong, 1)}
    retrained = None if request.retrained is None else statement.base(request.retrained)
    chosen = {text.partition("=")[0] for text in request.settings}
    return (
        all(
            said.settings[name] == value
            for name, value in plain(configured(request).settings).items()
            if name not in OF_EVIDENCE and (name in chosen or not request.tries)
        )
        and said.method == request.method
        and said.base == statement.base(request.model)
        and digests == {name: data.digest for name, data in told.items() if data != "none"}
        and (said.retrained if said.retrained != "none" else None) == retrained
        and said.brought == brought(request)
    )


def _after(
    request: Request, made: Unlearned, items: Sequence[Batch], retain: Batch | None
) -> AfterRequest:
    """Ask the model that a request left about all requests so far, and about what is kept."""
    subject = loaded(request.out, configured(request).own)
    known = [mean_probability(subject, each) for each in items]
    kept = None if retain is None else mean_probability(subject, retain)
    return AfterRequest(unlearned=made, forgotten=tuple(known), kept=kept)


def _write(file: Path, done: Sequence[AfterRequest]) -> None:
    """The table so far; whole or not at all."""
    temporary = file.with_suffix(".tmp")
    rows = [{"forgotten": each.forgotten, "kept": each.kept} for each in done]
    temporary.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    temporary.replace(file)
