"""How a classifier is trained here: from a random start, with or without a log of its updates."""

from __future__ import annotations

import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sisa.approximate import classifier_folder
from sisa.approximate.batches import Examples
from sisa.approximate.classifier_folder import About, Columns, FolderClassifier
from sisa.approximate.edits.recorder import Recorder
from sisa.approximate.order import RETAIN, Order
from sisa.learners.mlp import factory
from unlearning_classifier.images import CLASSES, INPUTS

WIDTH, EPOCHS, BATCH, LR = 64, 40, 100, 2e-3
"""Hidden units; passes, records a step and rate of Adam: enough to learn its records by heart."""

ABOUT = About(
    factory="sisa.learners.mlp:factory",
    params={"inputs": INPUTS, "outputs": CLASSES, "hidden": [WIDTH]},
    columns=Columns(input="image"),
    classes=CLASSES,
)


@dataclass(frozen=True)
class Model:
    """A trained classifier.

    Attributes:
        subject: It.
        seed: Of its start and of the order of its training.
        seconds: Processor time of its training; 0 where it was loaded.
    """

    subject: FolderClassifier
    seed: int
    seconds: float = 0.0


def start(seed: int) -> FolderClassifier:
    """A classifier before any training."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FolderClassifier(factory(INPUTS, CLASSES, [WIDTH]), ABOUT)


def trained(examples: Examples, seed: int, log: Path | None = None) -> Model:
    """Train a classifier.

    The order of an epoch is a hash of ids: leaving some records out moves no other.

    Args:
        examples: What it learns.
        seed: Of its start and of the order.
        log: A new folder for the log of its updates, which amnesiac unlearning takes back.
    """
    subject, order = start(seed), Order(examples.ids, seed, RETAIN)
    parameters = dict(subject.module.named_parameters())
    optimizer = torch.optim.Adam(parameters.values(), LR)
    began = time.process_time()
    with nullcontext() if log is None else Recorder.start(log, parameters) as recorder:
        for epoch in range(EPOCHS):
            places = order.epoch(epoch)
            for at in range(0, len(places), BATCH):
                batch = examples.select(places[at : at + BATCH])
                optimizer.zero_grad()
                loss = cross_entropy(subject.module(batch.inputs), batch.labels)
                loss.backward()  # type: ignore[no-untyped-call]
                with nullcontext() if recorder is None else recorder.step(batch.ids):
                    optimizer.step()
    return Model(subject, seed, time.process_time() - began)


def kept(folder: Path, examples: Examples, seed: int, *, logged: bool = False) -> Model:
    """A trained classifier, from its folder where an earlier call left it.

    Args:
        folder: Of the model; the log lies beside it.
        examples: As for `trained`.
        seed: As for `trained`.
        logged: Whether its updates are kept.
    """
    if folder.exists():
        return Model(classifier_folder.load(folder), seed)
    log = log_of(folder) if logged else None
    if log is not None:
        shutil.rmtree(log, ignore_errors=True)
    model, unfinished = trained(examples, seed, log), folder.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    classifier_folder.save(model.subject, unfinished)
    unfinished.rename(folder)
    return model


def log_of(folder: Path) -> Path:
    """Where the log of a model's updates is."""
    return folder.with_name(f"{folder.name}-log")


def copied(model: Model) -> Model:
    """The same classifier again, for a method to change."""
    fresh = start(model.seed)
    own: nn.Module = fresh.module
    own.load_state_dict(model.subject.module.state_dict())
    return Model(fresh, model.seed)
