"""One call of `sisa unlearn`: data, model, method, loop, evidence, statement, folder.

What is interrupted goes on where it was when it is called again in the same way; the model folder
appears whole, with its statement.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from data_index.requests import iso
from sisa import __version__, determinism, tracking
from sisa.approximate import (
    bottlenecked,
    loop,
    mirror,
    model_folder,
    statement,
    subjects,
    sweep,
)
from sisa.approximate.asked import Known, known
from sisa.approximate.batches import Items
from sisa.approximate.carry_out import Carried, Carrier, asked, attacks, carried_out
from sisa.approximate.edits import statistics
from sisa.approximate.evidence import Evidence
from sisa.approximate.examine import Examination
from sisa.approximate.models import LanguageModel
from sisa.approximate.plan import Plan, look
from sisa.approximate.request import Request
from sisa.approximate.settings import plain
from sisa.approximate.statement import Approximation, Moments, Statement, Work
from sisa.errors import ConfigurationError
from sisa.results import Unlearned

__all__ = ["Request", "run"]

FINISHED = "finished"


def run(
    request: Request,
    *,
    dry_run: bool = False,
    report: loop.Report = lambda metrics, step: None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    several: Carrier | None = None,
) -> Unlearned:
    """Make a model forget approximately, and write it with its statement.

    Args:
        request: What is asked for.
        dry_run: Look at everything and change nothing.
        report: Called after every optimizer step.
        clock: Gives the time.
        several: Carries a plan out on several workers, where the request asks for them.

    Raises:
        UsageError: The folder to be is there already, or a method or setting is not.
        ConfigurationError: A setting is wrong, the method needs what is not there, or a folder
            holds no model that is known.
        DataError: A data file does not do.
        NotFoundError: A file or folder is missing.
        BusyError: Another process does the same at this moment.
        DivergedError: The method left all numbers behind; the last checkpoint is kept.
        IncompleteError: The method took no step.
    """
    plan = look(request)
    if dry_run:
        return _planned(plan)
    if request.tracking_uri is not None:
        mirror.probe(request.tracking_uri)
    working = request.out.parent / f".unlearn-{plan.identity[:16]}"
    carrier = _carrier(plan, several)
    with model_folder.own(working):
        plan, tries = _searched(plan, working, carrier, report)
        started = clock()
        never = _never(plan)
        carried = carrier(plan, working, report)
        finished, outcome = clock(), _noted(plan, carried.outcome)
        evidence, lacking = _evidence(plan, carried, never)
        with model_folder.written(request.out, working / "model") as folder:
            subjects.save(plan.subject, folder)
            _keep_statistics(plan, folder)
            if tries:
                sweep.write(folder, tries)
                noted = sweep.note(tries, plan)
                outcome = replace(outcome, notes=(*outcome.notes, noted))
            moments = Moments(started=iso(started), finished=iso(finished), issued=iso(clock()))
            stated = _statement(plan, outcome, evidence, moments, folder)
            signed = None if request.signer is None else stated.signed(request.signer)
            (folder / statement.FILE).write_bytes(signed or stated.payload)
    return _logged(plan, stated, outcome.losses, lacking)


def alone(plan: Plan, working: Path, report: loop.Report) -> Carried:
    """Carry a plan out in this process, and ask its model before."""
    how, before = plan.chosen.loop, None
    if plan.request.evidence:
        before = known(plan.subject, asked(plan), how.items_per_batch, how.chunk_rows)
    return Carried(carried_out(plan, working, report), before)


def _carrier(plan: Plan, several: Carrier | None) -> Carrier:
    """Who carries the plan out.

    Raises:
        ConfigurationError: Several workers are asked for, and nobody knows how.
    """
    if plan.chosen.own.workers == 1:
        return alone
    if several is None:
        raise ConfigurationError(
            "Several workers need Ray.", "Call the command, or give `several` what carries it out."
        )
    return several


def _searched(
    plan: Plan, working: Path, carrier: Carrier, report: loop.Report
) -> tuple[Plan, tuple[sweep.Try, ...]]:
    """The plan with the settings that a search finds, if one is asked for, and its tries."""
    request = plan.request
    if not request.tries:
        return plan, ()

    def run_one(tried: Plan) -> None:
        folder = working / "try"
        shutil.rmtree(folder, ignore_errors=True)
        own = replace(tried, request=replace(tried.request, evidence=False))
        carrier(own, folder, lambda metrics, step: None)

    def told(number: int, made: sweep.Try) -> None:
        report({name: value for name, value in made.figures.items() if value is not None}, number)

    return sweep.search(plan, request.tries, working, run_one, told)


def _keep_statistics(plan: Plan, folder: Path) -> None:
    """Beside an adapter that is made to be fused with others: what the fusion weighs it by."""
    if "adapter" not in plan.method.needs or plan.method.kind == "edit":
        return
    if isinstance(plan.subject, LanguageModel) and isinstance(plan.forget, Items):
        size = plan.chosen.loop.items_per_batch
        statistics.keep(folder, statistics.measure(plan.subject, plan.forget, size))


def _never(plan: Plan) -> Known | None:
    """What the retrained model says: asked before anything is spent.

    Raises:
        SisaError: It has collapsed.
    """
    if plan.retrained is None or not plan.request.evidence:
        return None
    how = plan.chosen.loop
    rows = replace(asked(plan), continued=None)
    return known(plan.retrained, rows, how.items_per_batch, how.chunk_rows)


def _noted(plan: Plan, outcome: loop.Outcome) -> loop.Outcome:
    """With what is to be known of every model that has a bottleneck."""
    subject = plan.subject
    if not isinstance(subject, LanguageModel) or bottlenecked.of(subject.module) is None:
        return outcome
    return replace(outcome, notes=(*outcome.notes, bottlenecked.AROUND))


def _evidence(
    plan: Plan, carried: Carried, never: Known | None
) -> tuple[Evidence, tuple[str, ...]]:
    """What is measured of the plan's model now, and sentences on what is missing."""
    if carried.before is None:
        return Evidence(), ()
    begun = Examination(asked(plan), carried.before, attacks(plan), never)
    return begun.end(plan.subject, carried.after, carried.attacked)


def _statement(
    plan: Plan, outcome: loop.Outcome, evidence: Evidence, moments: Moments, folder: Path
) -> Statement:
    return Statement(
        subject=statement.subjects(folder),
        predicate=Approximation(
            exactness="approximate",
            method=plan.method.name,
            source=plan.method.source,
            settings=plain(plan.chosen.settings),
            base=plan.bases["base"],
            forget=plan.data["forget"],
            retain=plan.data.get("retain", "none"),
            alternatives=plan.data.get("alternatives", "none"),
            holdout=plan.data.get("holdout", "none"),
            paraphrased=plan.data.get("paraphrased", "none"),
            wrong=tuple(said for name, said in plan.data.items() if name.startswith("wrong/")),
            retrained=plan.bases.get("retrained", "none"),
            brought=dict(plan.brought),
            work=Work(
                steps=outcome.steps,
                stopped=outcome.stopped or FINISHED,
                seconds=outcome.seconds,
                peak_bytes=outcome.peak_bytes,
                notes=outcome.notes,
            ),
            environment=_environment(plan.subject.device),
            version=__version__,
            times=moments,
            evidence=evidence,
            verdict=evidence.verdict,
            outside=statement.OUTSIDE,
        ),
    )


def _environment(device: torch.device) -> dict[str, Any]:
    """Fingerprint of what it ran with."""
    cuda = device.type == "cuda"
    return {
        **determinism.fingerprint(uses_torch=True),
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        **{name: importlib.metadata.version(name) for name in ("transformers", "peft")},
    }


def _logged(
    plan: Plan, stated: Statement, losses: tuple[float, ...], lacking: tuple[str, ...]
) -> Unlearned:
    """The document, once the run is logged where that is asked for."""
    request, warnings, run_id = plan.request, [*plan.warnings, *lacking], None
    file = request.out / statement.FILE
    if (uri := request.tracking_uri) is not None:
        try:
            digest = statement.file_digest(file)
            run_id = mirror.log(uri, request.experiment, stated, file, digest, {"loss": losses})
        except Exception as error:  # the model is there, whatever becomes of its mirror
            warnings.append(f"{tracking.why(str(uri), error, 'written to')}.")
    return document(request, stated, tuple(warnings), run_id)


def document(
    request: Request, stated: Statement, warnings: tuple[str, ...] = (), run_id: str | None = None
) -> Unlearned:
    """What a call says of a model that was written.

    Args:
        request: With the folder where it is.
        stated: Its statement.
        warnings: What to know besides what the statement notes.
        run_id: Id of the run in MLflow.
    """
    said, file = stated.predicate, request.out / statement.FILE
    retain = None if said.retain == "none" else said.retain
    return Unlearned(
        status="written",
        exactness="approximate",
        method=said.method,
        settings=said.settings,
        forget_items=said.forget.items,
        forget_positions=said.forget.positions,
        retain_items=retain.items if retain else 0,
        retain_positions=retain.positions if retain else 0,
        steps=said.work.steps,
        stopped=None if said.work.stopped == FINISHED else said.work.stopped,
        seconds=said.work.seconds,
        peak_bytes=said.work.peak_bytes,
        out=str(request.out),
        statement=str(file),
        sha256=statement.file_digest(file),
        key=request.signer.key_id if request.signer else None,
        verdict=said.verdict,
        evidence=said.evidence.model_dump(mode="json"),
        run=run_id,
        warnings=(*warnings, *said.work.notes),
    )


def _planned(plan: Plan) -> Unlearned:
    """What a dry run says."""
    retain = plan.data.get("retain")
    return Unlearned(
        status="planned",
        exactness="approximate",
        method=plan.method.name,
        settings=plain(plan.chosen.settings),
        forget_items=plan.data["forget"].items,
        forget_positions=plan.data["forget"].positions,
        retain_items=retain.items if retain else 0,
        retain_positions=retain.positions if retain else 0,
        steps=plan.steps,
        stopped=None,
        seconds=None,
        peak_bytes=None,
        out=str(plan.request.out),
        statement=None,
        sha256=None,
        key=None,
        verdict=Evidence().verdict,
        evidence=Evidence().model_dump(mode="json"),
        run=None,
        warnings=plan.warnings,
    )
