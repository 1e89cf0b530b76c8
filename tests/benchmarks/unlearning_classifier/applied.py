"""One method on one classifier: through the loop, or as an edit."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from sisa.approximate import classifier_folder, editing, inputs, loop
from sisa.approximate.bottlenecked import NAME
from sisa.approximate.declaration import Method, Setting
from sisa.approximate.edits.bottlenecks import narrow_by_child
from sisa.approximate.edits.fitted import Fit, fit
from sisa.approximate.methods import METHODS
from sisa.approximate.models import Classifier
from sisa.approximate.reference import Live
from sisa.approximate.rewind import Epochs, rewind
from unlearning_classifier.grid import BOTTLENECK, HOW, MIXED, REWOUND
from unlearning_classifier.images import CLASSES, Sides
from unlearning_classifier.training import Model, start

FIELDS = {field.name for field in fields(loop.Settings)}
"""Settings that the loop takes; all others are the method's."""


def change(
    model: Model,
    name: str,
    settings: Mapping[str, Setting],
    sides: Sides,
    log: Path | None = None,
) -> tuple[str, ...]:
    """Let a method change a classifier in place.

    Args:
        model: The classifier.
        name: Of the method, or `REWOUND`.
        settings: Of the method and of the loop.
        sides: What is forgotten, kept and held out.
        log: Of the updates of the classifier's training.

    Returns:
        What the method notes.

    Raises:
        SisaError: The method refuses, or leaves all numbers behind.
    """
    method, how = _configured(name, settings)
    with tempfile.TemporaryDirectory(prefix="sisa-bench-") as scratch:
        if method.kind == "objective":
            return _looped(model, method, how, sides, Path(scratch), name == REWOUND)
        return _edited(model, method, how, sides, Path(scratch), log)


def _configured(name: str, settings: Mapping[str, Setting]) -> tuple[Method, loop.Settings]:
    """The method and the loop with their settings: the defaults, ours, those of the try."""
    method = METHODS["scrub" if name == REWOUND else name]
    method = method.configured(**{n: v for n, v in settings.items() if n in method.defaults})
    given: dict[str, Any] = {**method.defaults, **settings, "epochs": HOW.epochs}
    return method, replace(HOW, **{n: v for n, v in given.items() if n in FIELDS})


def _looped(
    model: Model, method: Method, how: loop.Settings, sides: Sides, scratch: Path, rewinds: bool
) -> tuple[str, ...]:
    subject, epochs = model.subject, Epochs(model.subject, scratch, method.name)
    before = Classifier(copy.deepcopy(subject.module)) if method.references else None
    wrong = inputs.other_labels(sides.forget, CLASSES, how.seed)
    done = loop.run(
        subject,
        method,
        sides.forget,
        sides.retain,
        how,
        None,
        None if before is None else Live(before, how.chunk_rows),
        alternatives=wrong if "alternatives" in method.needs else None,
        after_epoch=epochs.keep if rewinds else lambda epoch: None,
    )
    if not rewinds:
        return done.notes
    sizes = (how.items_per_batch, how.chunk_rows)
    return (*done.notes, rewind(epochs, sides.forget, sides.holdout, *sizes).note)


def _edited(
    model: Model, method: Method, how: loop.Settings, sides: Sides, scratch: Path, log: Path | None
) -> tuple[str, ...]:
    files = {} if log is None else {"log": log}
    notes: tuple[str, ...] = ()
    if "original" in method.needs:
        mixes = method.name == "mix"
        classifier_folder.save(model.subject if mixes else start(model.seed), scratch)
        files["original"] = scratch
        if mixes:  # what it is mixed with is another method's model
            notes = change(model, *MIXED, sides)
    if method.name == "code-ablation":
        _narrow(model, sides, how.seed)
    done = editing.run(model.subject, method, sides.forget, sides.retain, files, how)
    return (*notes, *done.notes)


def _narrow(model: Model, sides: Sides, seed: int) -> None:
    """Put a bottleneck behind the hidden layer, fitted to it; the model says what it said."""
    module = model.subject.module
    known = (sides.forget + sides.retain).inputs
    with torch.no_grad():
        hidden = module[:2](known)
    narrow_by_child(module[1], NAME, fit(hidden, Fit(**BOTTLENECK, seed=seed)))
