"""What some methods need that an earlier training leaves: an update log, or adapters.

None of it is part of what a method is measured by, but the adapters that are fused: each of them
has unlearned its share of the items, which is the work.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sisa.approximate import loop, models, unlearn
from sisa.approximate.batches import Items, read_texts
from sisa.approximate.edits.recorder import Recorder
from sisa.approximate.edits.updates import Log
from sisa.approximate.model_folder import written
from sisa.approximate.models import LanguageModel
from sisa.approximate.order import FORGET, Order
from unlearning.training import COST, HOW, LEARNING, Trained

REQUESTS = 2
"""Into which the items to forget are split, where adapters are fused."""

RANK, ADAPTER_LR, TIMES = 32, 3e-3, 2
"""Of the adapter that alone learns what is to be forgotten: its rank, the learning rate, and how
many times the epochs of the base it takes."""


@dataclass(frozen=True)
class Adapters:
    """Adapters of several requests.

    Attributes:
        folders: Of each in turn.
        seconds: In all of them.
        steps: Of all of them.
    """

    folders: tuple[Path, ...] = ()
    seconds: float = 0.0
    steps: int = 0


def log(made: Trained) -> Path:
    """The update log of the base: its training is repeated, to the same bits, with a recorder."""
    folder, unfinished = made.folder / "log", made.folder / ".log"
    if folder.exists():
        return folder
    shutil.rmtree(unfinished, ignore_errors=True)
    subject, base = models.load(made.start), models.load(made.base)
    items = _learned(made, subject)
    how = replace(HOW, epochs=made.epochs, checkpoint_every=0)
    parameters = dict(subject.module.named_parameters())
    with Recorder.start(unfinished, parameters) as recorder:
        logging = _logging(recorder, [*_batches(items.ids, how)])
        next(logging)
        loop.run(subject, LEARNING, items, None, how, None, report=lambda *_: next(logging))
    for name, parameter in dict(base.module.named_parameters()).items():
        assert torch.equal(parameter, parameters[name]), name
    unfinished.rename(folder)
    return folder


def size(made: Trained) -> tuple[int, int]:
    """Bytes and steps of the update log."""
    found = Log.open(made.folder / "log")
    return found.size, len(found.steps)


def adapters(made: Trained, settings: tuple[str, ...]) -> Adapters:
    """An adapter for each of several requests, which have the items to forget among them.

    Args:
        made: With the base and its data.
        settings: Of `eul`.
    """
    folders, seconds, steps = [], 0.0, 0
    for number, part in enumerate(parts(made, REQUESTS)):
        name = f"{'-'.join(settings).replace('/', '-')}-{number}"
        folder = made.folder / "adapters" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        done = unlearn.run(
            unlearn.Request(
                "eul",
                part,
                made.base,
                folder,
                retain=made.files["retain"],
                evidence=False,
                settings=settings,
            )
        )
        folders.append(folder)
        seconds, steps = seconds + (done.seconds or 0.0), steps + done.steps
    return Adapters(tuple(folders), seconds, steps)


def parts(made: Trained, count: int) -> list[Path]:
    """Files of several requests, which have the items to forget among them in their order."""
    lines, files = made.files["forget"].read_text().splitlines(keepends=True), []
    each = math.ceil(len(lines) / count)
    for number in range(count):
        files.append(made.files["forget"].with_name(f"forget-{number}.jsonl"))
        files[-1].write_text("".join(lines[number * each : (number + 1) * each]))
    return files


def apart(made: Trained) -> Path:
    """The exact retrain with an adapter that alone has learned what is to be forgotten."""
    folder = made.folder / "apart"
    if not folder.exists():
        subject = models.with_lora(models.load(made.retrain), RANK, 2.0 * RANK, HOW.seed)
        items = read_texts(made.files["forget"], subject.tokenizer)
        how = replace(HOW, epochs=TIMES * made.epochs, lr=ADAPTER_LR, checkpoint_every=0)
        done = loop.run(subject, LEARNING, items, None, how, None)
        with written(folder, folder.with_name(".apart")) as new:
            models.save(subject, new)
            (new / COST).write_text(json.dumps({"seconds": done.seconds}))
    return folder


def _learned(made: Trained, subject: LanguageModel) -> Items:
    forget, retain = (
        read_texts(made.files[side], subject.tokenizer) for side in ("forget", "retain")
    )
    return forget + retain


def _batches(ids: tuple[str, ...], how: loop.Settings) -> Iterator[list[str]]:
    """Ids of the items of each step, as the loop takes them."""
    order = Order(ids, how.seed, FORGET)
    for epoch in range(how.epochs):
        places = order.epoch(epoch)
        for at in range(0, len(places), how.items_per_batch):
            yield [ids[i] for i in places[at : at + how.items_per_batch]]


def _logging(recorder: Recorder, batches: list[list[str]]) -> Iterator[None]:
    """Logs a step between two turns; the loop tells only when one is done."""
    for ids in batches:
        with recorder.step(ids):
            yield
    yield
