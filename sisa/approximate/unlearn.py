"""One call of `sisa unlearn`: data, model, method, loop, statement, folder.

Everything that can be wrong is looked at before the first step. What is interrupted goes on where
it was when it is called again in the same way; the model folder appears whole, with its statement.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import torch
from pydantic import Field

from data_index.envelope import Signer
from data_index.requests import iso
from data_index.storage import canonical_json, sha256
from sisa import __version__, determinism, tracking
from sisa.approximate import inputs, loop, mirror, model_folder, models, reference, statement
from sisa.approximate.batches import PROMPT, Batch, Items
from sisa.approximate.evidence import Evidence
from sisa.approximate.methods import METHODS, NEEDS, Method
from sisa.approximate.models import LanguageModel
from sisa.approximate.reference import Reference
from sisa.approximate.settings import parse, plain
from sisa.approximate.statement import Approximation, Base, Data, Moments, Statement, Work
from sisa.errors import ConfigurationError, IncompleteError, NotFoundError, UsageError
from sisa.results import Unlearned

FINISHED = "finished"
FILES = ("retain", "alternatives")
"""Data files that a method may need besides that of the items to forget."""


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        method: Name of the method.
        forget: File of the items to forget.
        model: Folder of the model.
        out: Folder of the model to be; it must not be there.
        retain: File of the items to keep, or None.
        alternatives: File of other answers, one for each item to forget and in their order, or
            None.
        settings: `name=value`, those of the method, of the loop and of `Choices`.
        signer: Signs the statement, or None.
        digest_key: Keys the digests of the data files, or None.
        tracking_uri: Where MLflow is, or None.
        experiment: Its experiment.
    """

    method: str
    forget: Path
    model: Path
    out: Path
    retain: Path | None = None
    alternatives: Path | None = None
    settings: tuple[str, ...] = ()
    signer: Signer | None = None
    digest_key: bytes | None = field(default=None, repr=False)
    tracking_uri: str | None = None
    experiment: str = mirror.EXPERIMENT


@dataclass(frozen=True)
class Choices:
    """Settings that are neither of a method nor of the loop.

    Attributes:
        max_tokens: Longest item; null for as long as it is.
        prompt: What stands before an answer; `{}` is the question.
        lora_rank: Of an adapter, which alone is trained; 0 trains all parameters.
        lora_alpha: What the adapter adds is scaled by it, over the rank.
        reference: How a method that compares with the model as it was comes by it, without an
            adapter: from values `kept` of one pass, or from a `second` model in memory.
        reference_top: Log-probabilities kept of each position, the largest.
        dtype: Of the parameters.
        device: Where it runs.
    """

    max_tokens: Annotated[int, Field(ge=2)] | None = None
    prompt: str = PROMPT
    lora_rank: Annotated[int, Field(ge=0)] = 0
    lora_alpha: float = 16.0
    reference: Literal["kept", "second"] = "kept"
    reference_top: Annotated[int, Field(ge=1)] = 256
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "cpu"


@dataclass(frozen=True)
class _Plan:
    """A request after all of it has been looked at.

    Attributes:
        method: With its settings.
        settings: All of them.
        loop: Those of the loop.
        subject: The model.
        own: Those of `Choices`.
        forget: What to forget.
        others: What was given besides, of `retain` and `alternatives`.
        data: What the statement says of all files, by the same names.
        base: Of the statement.
        warnings: What to know.
    """

    method: Method
    settings: Mapping[str, Any]
    loop: loop.Settings
    subject: LanguageModel
    own: Choices
    forget: Items
    others: Mapping[str, Items]
    data: Mapping[str, Data]
    base: Base
    warnings: tuple[str, ...]

    @property
    def identity(self) -> str:
        """Digest of all that decides what comes out."""
        data = {name: said.digest for name, said in self.data.items()}
        named = {"method": self.method.name, "base": self.base.digest, "data": data}
        return sha256(canonical_json({**named, "settings": plain(self.settings)}))

    @property
    def steps(self) -> int:
        """Optimizer steps, if nothing stops it."""
        controller, size = self.method.controller, self.loop.items_per_batch * self.loop.accumulate
        kept = len(self.others.get("retain", ()))
        state = controller.start()
        return sum(
            ceil((len(self.forget) if "forget" in sides else kept) / size)
            for epoch in range(self.loop.epochs)
            for sides in controller.sides(state, epoch)
        )


def run(
    request: Request,
    *,
    dry_run: bool = False,
    report: loop.Report = lambda metrics, step: None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Unlearned:
    """Make a model forget approximately, and write it with its statement.

    Args:
        request: What is asked for.
        dry_run: Look at everything and change nothing.
        report: Called after every optimizer step.
        clock: Gives the time.

    Raises:
        UsageError: The folder to be is there already, or a method or setting is not.
        ConfigurationError: A setting is wrong, the method needs what is not there, or the folder
            holds no model that is known.
        DataError: A data file does not do.
        NotFoundError: A file or folder is missing.
        BusyError: Another process does the same at this moment.
        DivergedError: The method left all numbers behind; the last checkpoint is kept.
        IncompleteError: The method took no step.
    """
    plan = _look(request)
    if dry_run:
        return _result(request, plan)
    if request.tracking_uri is not None:
        mirror.probe(request.tracking_uri)
    working = request.out.parent / f".unlearn-{plan.identity[:16]}"
    with model_folder.own(working):
        started = clock()
        outcome = loop.run(
            plan.subject,
            plan.method,
            plan.forget,
            plan.others.get("retain"),
            plan.loop,
            working,
            _reference(plan, request.model, working),
            report,
            alternatives=plan.others.get("alternatives"),
        )
        if not outcome.steps:
            raise IncompleteError(f"{request.method} took no step: {outcome.stopped}.")
        finished = clock()
        with model_folder.written(request.out, working / "model") as folder:
            models.save(plan.subject, folder)
            moments = Moments(started=iso(started), finished=iso(finished), issued=iso(clock()))
            stated = _statement(plan, outcome, moments, folder)
            signed = None if request.signer is None else stated.signed(request.signer)
            (folder / statement.FILE).write_bytes(signed or stated.payload)
    return _result(request, plan, outcome, stated)


def _look(request: Request) -> _Plan:
    """Read and check everything, the cheapest first."""
    model_folder.refuse_existing(request.out)
    method, settings, own = _configured(request)
    of_loop = {f.name: settings[f.name] for f in dataclasses.fields(loop.Settings)}
    how = loop.Settings(**of_loop)
    _meet(method, request, own)
    files = {"retain": request.retain, "alternatives": request.alternatives}
    for path in (request.forget, *files.values()):
        if path is not None and not path.is_file():
            raise NotFoundError(f"There is no file {path}.")
    if not request.model.is_dir():
        raise NotFoundError(f"There is no model folder {request.model}.")
    subject = models.load(request.model.resolve(), own.dtype, _device(own.device))
    if own.lora_rank:
        if subject.adapted:
            raise ConfigurationError("The model has an adapter already.", "Set lora_rank to 0.")
        subject = models.with_lora(subject, own.lora_rank, own.lora_alpha, settings["seed"])
    forget, said = _read(request.forget, "forget", request, subject, own)
    read = {n: _read(p, n, request, subject, own) for n, p in files.items() if p is not None}
    others = {name: items for name, (items, _) in read.items()}
    return _Plan(
        method,
        settings,
        how,
        subject,
        own,
        forget,
        others,
        {"forget": said, **{name: data for name, (_, data) in read.items()}},
        statement.base(request.model),
        inputs.check(forget, **others),
    )


def _configured(request: Request) -> tuple[Method, dict[str, Any], Choices]:
    """The method with its settings, all settings, and those of `Choices`."""
    method = METHODS.get(request.method)
    if method is None:
        raise UsageError(f"There is no method {request.method}.", "`sisa unlearn list` has all.")
    fields = {**_fields(loop.Settings), **_fields(Choices)}
    hints = {} if method.build is None else get_type_hints(method.build)
    for name, value in method.defaults.items():  # the authors' values outrank the loop's
        fields[name] = (fields[name][0] if name in fields else hints.get(name, float), value)
    settings = parse(request.settings, fields)
    own = Choices(**{name: settings[name] for name in _fields(Choices)})
    configured = method.configured(**{name: settings[name] for name in method.defaults})
    return configured, settings, own


def _fields(kind: type[Any]) -> dict[str, tuple[Any, Any]]:
    """Type and default of each field of a dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    return {f.name: (hints[f.name], f.default) for f in dataclasses.fields(kind)}


def _meet(method: Method, request: Request, own: Choices) -> None:
    """Check that there is what a method needs."""
    there = {
        "retain": request.retain is not None,
        "alternatives": request.alternatives is not None,
        "adapter": own.lora_rank > 0,
    }
    how = {"adapter": "Set lora_rank."} | {n: f"Name a file with --{n}." for n in FILES}
    for need in method.needs:
        if not there.get(need):
            raise ConfigurationError(
                f"{method.name} needs {NEEDS[need]}, and there is nothing of the kind.",
                how.get(need, "Use another method."),
            )


def _device(name: str) -> str:
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = ""
    if kind != "cpu" and not (kind == "cuda" and torch.cuda.is_available()):
        raise ConfigurationError(f"There is no device {name} here.", "Set device to cpu.")
    return name


def _read(
    path: Path, what: str, request: Request, subject: LanguageModel, own: Choices
) -> tuple[Items, Data]:
    """The items of a file, and what the statement says of it."""
    items = inputs.read(path, what, subject.tokenizer, own.prompt, own.max_tokens)
    key = request.digest_key
    return items, Data(
        items=len(items),
        positions=sum(items.counts()),
        digest=statement.file_digest(path, key),
        keyed=key is not None,
    )


def _reference(plan: _Plan, model: Path, working: Path) -> Reference | None:
    """What the method compares with: the model as it was, without a second one if that can be.

    Raises:
        ConfigurationError: It compares more than can be kept.
    """
    needed, chunk = plan.method.references, plan.loop.chunk_rows
    if not needed:
        return None
    if plan.own.lora_rank:
        return reference.AdapterOff(plan.subject, chunk)
    if plan.own.reference == "second":
        return reference.Live(models.load(model.resolve(), plan.own.dtype, plan.own.device), chunk)
    if "hidden" in needed or len(needed) > 1:
        raise ConfigurationError(
            f"{plan.method.name} compares more with the model as it was than can be kept of it.",
            "Set lora_rank, or reference=second for a second model in memory.",
        )
    top = None if needed == {"scores"} else plan.own.reference_top
    batches: list[Batch] = [plan.forget, *plan.others.values()]
    return reference.keep(plan.subject, batches, top=top, folder=working, chunk=chunk)


def _statement(plan: _Plan, outcome: loop.Outcome, moments: Moments, folder: Path) -> Statement:
    evidence = Evidence()
    return Statement(
        subject=statement.subjects(folder),
        predicate=Approximation(
            exactness="approximate",
            method=plan.method.name,
            source=plan.method.source,
            settings=plain(plan.settings),
            base=plan.base,
            forget=plan.data["forget"],
            retain=plan.data.get("retain", "none"),
            alternatives=plan.data.get("alternatives", "none"),
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


def _result(
    request: Request,
    plan: _Plan,
    outcome: loop.Outcome | None = None,
    stated: Statement | None = None,
) -> Unlearned:
    """The document; with an outcome, the run is logged where that is asked for."""
    warnings, run_id, digest = list(plan.warnings), None, None
    file = request.out / statement.FILE
    if outcome is not None and stated is not None:
        warnings += outcome.notes
        digest = statement.file_digest(file)
        uri = request.tracking_uri
        try:
            if uri is not None:
                losses = {"loss": outcome.losses}
                run_id = mirror.log(uri, request.experiment, stated, file, digest, losses)
        except Exception as error:  # the model is there, whatever becomes of its mirror
            warnings.append(f"{tracking.why(str(uri), error, 'written to')}.")
    kept = plan.data.get("retain")
    return Unlearned(
        status="planned" if outcome is None else "written",
        exactness="approximate",
        method=plan.method.name,
        settings=plain(plan.settings),
        forget_items=plan.data["forget"].items,
        forget_positions=plan.data["forget"].positions,
        retain_items=kept.items if kept else 0,
        retain_positions=kept.positions if kept else 0,
        steps=outcome.steps if outcome else plan.steps,
        stopped=outcome.stopped if outcome else None,
        seconds=outcome.seconds if outcome else None,
        peak_bytes=outcome.peak_bytes if outcome else None,
        out=str(request.out),
        statement=str(file) if outcome else None,
        sha256=digest,
        key=request.signer.key_id if outcome and request.signer else None,
        verdict=stated.predicate.verdict if stated else Evidence().verdict,
        run=run_id,
        warnings=tuple(warnings),
    )
