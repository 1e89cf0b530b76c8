"""One run of an edit: all or nothing, so that what was interrupted begins again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from sisa.approximate import bottlenecked, subjects
from sisa.approximate.batches import Batch
from sisa.approximate.declaration import Method
from sisa.approximate.edits.given import Edited, Files, Given
from sisa.approximate.edits.mappings import Parameters, into_module
from sisa.approximate.edits.updates import Log
from sisa.approximate.loop import Outcome, Report, Settings
from sisa.approximate.memory import Peak
from sisa.approximate.methods import NEEDS
from sisa.approximate.models import LanguageModel, Subject
from sisa.errors import ConfigurationError, DivergedError, NotFoundError, UsageError

KINDS = ("classifier", "language")
"""Words of `NEEDS` that say what a model must be."""

OPTIONS = {
    "retain": "Name a file with --retain.",
    "log": "Name its folder with --log, or choose a method that needs no log.",
    "original": "Name its folder with --original.",
    "adapters": "Name each folder with --adapter.",
    "adapter": "Give a folder of peft that has one.",
    "statistics": "Name a file with --retain, or a kept importance with --importance.",
}
"""What to do about a need that is not met."""


def run(
    subject: Subject,
    method: Method,
    forget: Batch,
    retain: Batch | None,
    files: Files,
    how: Settings,
    report: Report = lambda metrics, step: None,
) -> Outcome:
    """Edit a model.

    Args:
        subject: The model, changed in place.
        method: An edit.
        forget: What is to be forgotten.
        retain: What is retained, where the method needs it.
        files: What else there is, by need.
        how: Its `items_per_batch`, `chunk_rows` and `seed` count.
        report: Called as the edit goes on.

    Raises:
        UsageError: Nothing is to be forgotten, or the method is no edit.
        ConfigurationError: Something that the method needs is not there, or is of another model.
        DivergedError: A new value is not finite. The model is as it was.
        SisaError: Whatever the edit refuses; the model is as it was.
    """
    if not len(forget):
        raise UsageError("Nothing is to be forgotten: the forget set is empty.")
    require(method, subject, retain is not None, files)
    peak, started = Peak(subject.device), time.monotonic()
    given = Given(
        subject, forget, retain, files, how.items_per_batch, how.chunk_rows, how.seed, report
    )
    with torch.random.fork_rng(), torch.enable_grad():
        edited = method.edited(given)
    _check_finite(method.name, edited.params)
    same = _unchanged(subject, edited)
    if edited.bottleneck is not None:
        bottlenecked.put(subject.module, edited.bottleneck)
    into_module(subject.module, edited.params)
    if edited.without_adapter:
        assert isinstance(subject, LanguageModel)
        subject.drop_adapter()
    notes = (*edited.notes, *(("No parameter was changed.",) if same else ()))
    return Outcome(0, (), time.monotonic() - started, peak.bytes(), None, notes)


def require(method: Method, subject: Subject, retain: bool, files: Files) -> None:
    """Check that there is what an edit needs, before anything is measured.

    Args:
        method: The edit.
        subject: The model.
        retain: Whether there is a retain set.
        files: What else there is, by need.

    Raises:
        ConfigurationError: Something is not given, or the model is of the other kind.
        NotFoundError: What is given is not there.
        IncompleteError: The update log is damaged.
    """
    kind = subjects.kind(subject)
    met: Mapping[str, Callable[[], bool]] = {
        "retain": lambda: retain,
        "statistics": lambda: retain or "importance" in files,
        "adapter": lambda: isinstance(subject, LanguageModel) and subject.adapted,
    }
    for need in method.needs:
        if need in KINDS:
            if need != kind:
                raise ConfigurationError(
                    f"{method.name} is for {NEEDS[need]}, and this is {NEEDS[kind]}.",
                    "Choose another method.",
                )
        elif not met.get(need, lambda need=need: bool(files.get(need)))():
            raise ConfigurationError(
                f"{method.name} needs {NEEDS[need]}, and there is nothing of the kind.",
                OPTIONS[need],
            )
    log = files.get("log")
    if "log" in method.needs and isinstance(log, Path):
        Log.open(log)
    _check_there(files)


def _check_there(files: Files) -> None:
    for found in files.values():
        for path in (found,) if isinstance(found, Path) else found:
            if not path.exists():
                raise NotFoundError(f"There is no {path}.", "Correct its path.")


def _check_finite(name: str, params: Parameters) -> None:
    for value in params.values():
        if not bool(value.isfinite().all()):
            raise DivergedError(
                f"{name} gives a parameter that is no longer a number; the model is as it was.",
                "Choose milder settings.",
            )


def _unchanged(subject: Subject, edited: Edited) -> bool:
    own: dict[str, Tensor] = subject.module.state_dict(keep_vars=True)
    added = edited.bottleneck is not None
    return not (edited.without_adapter or added) and all(
        torch.equal(own[name], value) for name, value in edited.params.items() if name in own
    )
