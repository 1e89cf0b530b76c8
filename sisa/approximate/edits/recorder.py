"""Recording the updates of a training, round the steps of any torch optimizer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import torch
from safetensors.torch import save
from torch import Tensor

from data_index.storage import Store
from sisa.approximate.edits.mappings import Parameters, wide
from sisa.approximate.edits.partial import largest
from sisa.approximate.edits.updates import INDEX, OTHERWISE, PLACES, STEPS, Log, Step
from sisa.errors import ConfigurationError, IncompleteError


class Recorder:
    """Logs the steps of a training; a context manager.

        with Recorder.start(folder, dict(module.named_parameters())) as recorder:
            for batch in batches:
                ...
                with recorder.step(batch.ids):
                    optimizer.step()

    What is logged is the change of the parameters, whatever the optimizer: with momentum, later
    steps still carry what an item did to its state. Buffers are not logged. A step costs a copy of
    the parameters in memory, and a file.
    """

    def __init__(self, log: Log, parameters: Parameters) -> None:
        shapes = {name: tuple(p.shape) for name, p in parameters.items()}
        if shapes != log.shapes:
            raise ConfigurationError(
                "The update log is of a model with other parameters.", "Log into a new folder."
            )
        self._store, self._share, self._parameters = log.store, log.share, parameters
        self._next = len(log.steps)
        self._index = log.store.path(INDEX).open("ab")

    @classmethod
    def start(cls, folder: str | Path, parameters: Parameters, share: float = 1.0) -> Recorder:
        """Begin a log.

        Args:
            folder: A new one.
            parameters: What the optimizer changes in place, by name.
            share: Of each parameter's changes to keep, the largest; 1 keeps all.

        Raises:
            ConfigurationError: There is a log already, or the share is not in (0, 1].
        """
        if not 0 < share <= 1:
            raise ConfigurationError(f"The share {share} is not in (0, 1].", "Correct the setting.")
        store = Store(folder)
        if store.path(INDEX).exists():
            raise ConfigurationError(
                f"There is an update log in {folder} already.", "Resume it, or log elsewhere."
            )
        log = Log(store, share, {name: tuple(p.shape) for name, p in parameters.items()}, ())
        log.write()
        return cls(log, parameters)

    @classmethod
    def resume(cls, folder: str | Path, parameters: Parameters, step: int) -> Recorder:
        """Go on with a log where a training goes on from a checkpoint.

        Args:
            folder: Of the log.
            parameters: What the optimizer changes in place, by name.
            step: How many steps the checkpoint has behind it; what was logged later is dropped.

        Raises:
            NotFoundError: No log was kept.
            IncompleteError: Fewer steps were logged.
            ConfigurationError: The log is of another model.
        """
        log = Log.open(folder)
        if len(log.steps) < step:
            raise IncompleteError(
                f"The update log holds {len(log.steps)} steps, the checkpoint {step}.", OTHERWISE
            )
        log = replace(log, steps=log.steps[:step])
        log.write()
        log.sweep()
        return cls(log, parameters)

    @contextmanager
    def step(self, items: Iterable[str]) -> Iterator[None]:
        """Log what the parameters go through inside; nothing if that raises an error.

        Args:
            items: Opaque ids of all that the gradients come from, accumulated batches included.
        """
        before = {name: p.detach().clone() for name, p in self._parameters.items()}
        yield
        tensors: dict[str, Tensor] = {}
        for name, p in self._parameters.items():
            change = wide(p.detach()) - wide(before.pop(name))
            tensors |= _stored(name, change, self._share)
        # the number makes the bytes of every step its own, so that none shares a file
        data = save(tensors, {"step": str(self._next)})
        file = self._store.put(STEPS, ".safetensors", data)
        self._index.write(Step(self._next, tuple(sorted({*items})), file).line())
        self._index.flush()
        self._next += 1

    def flush(self) -> None:
        """Make durable all that was logged; a training calls it before it writes a checkpoint."""
        self._store.flush()
        os.fsync(self._index.fileno())

    def close(self) -> None:
        """Make durable all that was logged, and end."""
        self.flush()
        self._index.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _stored(name: str, change: Tensor, share: float) -> dict[str, Tensor]:
    """A change as tensors of a file: whole, or its largest values with their places."""
    if share == 1:
        return {name: change.cpu().contiguous()}
    places = largest(change, share)
    narrow = torch.int32 if change.numel() <= torch.iinfo(torch.int32).max else torch.int64
    kept = change.flatten()[places]
    return {name: kept.cpu(), name + PLACES: places.to(narrow).cpu()}
