"""A run that is killed: `python -m tests.approximate.killed METHOD FOLDER MOMENT`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sisa.approximate import loop, reference
from sisa.approximate.declaration import Method
from sisa.approximate.loop import Settings
from sisa.approximate.methods import METHODS
from sisa.approximate.models import LanguageModel
from sisa.approximate.reference import Reference

from .language import VOCABULARY, llama, made

FORGET = made([9, 6, 12, 7, 8], seed=1, name="forget")
RETAIN = made([8, 11, 6, 9, 7, 5, 6], seed=2, name="retain")
SETTINGS = Settings(
    epochs=3, items_per_batch=1, accumulate=2, lr=1e-2, warmup=4, checkpoint_every=2
)
DIES_AT = 6


def method(name: str) -> Method:
    """A method whose controller learns from the first step on, and whose layer is there."""
    changed: dict[str, dict[str, float]] = {
        "pdu": {"first": 1.0, "warmup_epochs": 0},
        "rmu": {"layer": 1},
    }
    return METHODS[name].configured(**changed.get(name, {}))


def compared(needed: frozenset[str], subject: LanguageModel, folder: Path | None) -> Reference:
    """A second model for hidden states, and what is kept for all else."""
    if "hidden" in needed:
        return reference.Live(LanguageModel(llama()))
    if "distribution" in needed:
        return reference.keep(subject, [FORGET, RETAIN], top=VOCABULARY, folder=folder)
    return reference.keep(subject, [FORGET], folder=folder)


def go(name: str, folder: Path | None, report: Any = lambda metrics, step: None) -> Any:
    """The run, in a fresh model; gives the parameters and the outcome."""
    torch.set_num_threads(1)
    subject, chosen = LanguageModel(llama()), method(name)
    was = compared(chosen.references, subject, folder)
    outcome = loop.run(subject, chosen, FORGET, RETAIN, SETTINGS, folder, was, report=report)
    return subject.trainable(), outcome


def main(name: str, folder: str, moment: str) -> None:
    """Die in the middle of a step, or while a checkpoint is written."""

    def die(metrics: Mapping[str, float], step: int) -> None:
        if step == DIES_AT and moment == "step":
            os.kill(os.getpid(), signal.SIGKILL)

    if moment == "checkpoint":
        replace = os.replace

        def dying(source: Any, target: Any) -> None:
            if Path(target).name.startswith(f"{DIES_AT:09d}"):
                Path(source).write_bytes(Path(source).read_bytes()[:100])
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        os.replace = dying  # type: ignore[assignment]
    go(name, Path(folder), die)


if __name__ == "__main__":
    main(*sys.argv[1:])
