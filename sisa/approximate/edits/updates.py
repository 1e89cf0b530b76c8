"""The update log of a training: the items of each step, and how it changed the parameters.

A folder: `index.jsonl` has a line about the model and one a step; `steps/` a safetensors file a
step, named by its content. A line is written after its file, so that a killed training leaves a log
that ends with a whole step. Items are named by opaque ids, never by what identifies somebody.

The log descends from the data as the model does: who forgets an item takes its steps out (`remove`)
once the new model is safe.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import Tensor

from data_index.storage import FileRef, Store, canonical_json
from sisa.approximate.edits.partial import largest
from sisa.errors import ExactnessError, IncompleteError, NotFoundError

INDEX, STEPS, FORMAT = "index.jsonl", "steps", 1
PLACES = "#places"
"""Behind a parameter's name: where the values that were kept are; a whole update has none."""

OTHERWISE = "Train again with a recorder, or choose a method that needs no log."


@dataclass(frozen=True)
class Change:
    """What one step did to one parameter.

    Attributes:
        values: [k], float32 or float64.
        places: [k], int64 flat positions, ascending; none: all.
    """

    values: Tensor
    places: Tensor | None = None

    def pruned(self, share: float, elements: int) -> Change:
        """With the largest magnitudes alone: round(share * elements) of them, at least one.

        Never more than were kept.
        """
        count = max(1, round(share * elements))
        if count >= len(self.values):
            return self
        kept = largest(self.values, count / len(self.values))
        return Change(self.values[kept], kept if self.places is None else self.places[kept])

    def add_to(self, total: Tensor) -> None:
        """Add it to a flat tensor in place."""
        if self.places is None:
            total += self.values
        else:
            total.index_add_(0, self.places, self.values.to(total.dtype))


@dataclass(frozen=True)
class Step:
    """One line of the index.

    Attributes:
        number: From 0, one after the other.
        items: Opaque ids of what its batch held, sorted.
        file: The update; none once it was taken out.
    """

    number: int
    items: tuple[str, ...]
    file: FileRef | None

    def line(self) -> bytes:
        """As the index has it."""
        return canonical_json(asdict(self)) + b"\n"


@dataclass(frozen=True)
class Log:
    """A log to read; what a recorder adds after it was opened is not in it.

    Attributes:
        store: The folder.
        share: Of each parameter's change that was kept, in (0, 1].
        shapes: Of the parameters, by name.
        steps: All that were logged.
    """

    store: Store
    share: float
    shapes: dict[str, tuple[int, ...]]
    steps: tuple[Step, ...]

    @classmethod
    def open(cls, folder: str | Path, steps: int | None = None) -> Log:
        """Read the index.

        Args:
            folder: Of the log.
            steps: How many the training took, if known: a killed recorder may have logged fewer.

        Raises:
            NotFoundError: No log was kept.
            IncompleteError: The index is damaged, or steps are missing.
        """
        store = Store(folder)
        try:
            text = store.read_unchecked(INDEX)
        except NotFoundError:
            raise NotFoundError(
                f"There is no update log in {folder}: the logs of this training were not kept.",
                OTHERWISE,
            ) from None
        about, *found = _lines(text)
        log = cls(
            store,
            about["share"],
            {name: tuple(shape) for name, shape in about["parameters"].items()},
            tuple(_step(line) for line in found),
        )
        wanted = len(log.steps) if steps is None else steps
        if [step.number for step in log.steps] != list(range(wanted)):
            raise IncompleteError(
                f"The update log holds {len(log.steps)} steps, the training took {wanted}.",
                OTHERWISE,
            )
        return log

    @property
    def size(self) -> int:
        """Bytes of all updates."""
        return sum(step.file.size for step in self.steps if step.file)

    def holding(self, items: Iterable[str]) -> list[Step]:
        """The steps whose batch held one of these items, those that were taken out included.

        Raises:
            IncompleteError: There is no item, or one that no step held.
        """
        sought = frozenset(items)
        if not sought:
            raise IncompleteError("The forget set is empty.", "Give at least one item.")
        found = [step for step in self.steps if not sought.isdisjoint(step.items)]
        unknown = len(sought.difference(*(step.items for step in found)))
        if unknown:
            raise IncompleteError(
                f"{unknown} of {len(sought)} items are in no step of the update log.",
                "Leave out what was not learned or is forgotten already.",
            )
        return found

    def read(self, step: Step) -> dict[str, Change]:
        """The change of each parameter in one step; nothing if it was taken out.

        Raises:
            IncompleteError: The file is missing or damaged.
        """
        if step.file is None:
            return {}
        try:
            tensors = load(self.store.read(step.file))
        except ExactnessError:
            raise IncompleteError(
                f"The update of step {step.number} is missing or damaged.", OTHERWISE
            ) from None
        places = {name: value.long() for name, value in tensors.items() if name.endswith(PLACES)}
        return {
            name: Change(value.flatten(), places.get(name + PLACES))
            for name, value in tensors.items()
            if name not in places
        }

    def remove(self, items: Iterable[str]) -> Log:
        """Destroy the updates of all steps that held these items, and name the items no more.

        Their other items stay in the index: a later request that names one of them finds that the
        step was taken out already.

        Raises:
            IncompleteError: There is no item, or one that no step held.
        """
        gone = frozenset(items)
        touched = {step.number for step in self.holding(gone)}
        steps = tuple(
            replace(step, items=tuple(i for i in step.items if i not in gone), file=None)
            if step.number in touched
            else step
            for step in self.steps
        )
        log = replace(self, steps=steps)
        log.sweep()  # first, so that a removal that breaks off can be done again
        log.write()
        return log

    def write(self) -> None:
        """Write the index anew, durably."""
        about = {"format": FORMAT, "parameters": self.shapes, "share": self.share}
        lines = [canonical_json(about) + b"\n", *(step.line() for step in self.steps)]
        self.store.put_named(INDEX, b"".join(lines))
        self.store.flush()

    def sweep(self) -> None:
        """Delete the files that no step names: taken out, or left by a killed recorder."""
        named = {step.file.path for step in self.steps if step.file}
        self.store.delete([path for path in self.store.list(STEPS) if path not in named])
        self.store.remove_scratch()


def _lines(text: bytes) -> Sequence[dict[str, Any]]:
    """The index; a last line that was torn when the recorder was killed is none.

    Raises:
        IncompleteError: Another line is damaged, or there is none.
    """
    try:
        lines = [json.loads(line) for line in text.split(b"\n")[:-1]]
        if lines and lines[0]["format"] == FORMAT:
            return lines
    except (ValueError, KeyError, TypeError):
        pass
    raise IncompleteError("The index of the update log cannot be read.", OTHERWISE)


def _step(found: dict[str, Any]) -> Step:
    file = found["file"]
    return Step(found["number"], tuple(found["items"]), file and FileRef.from_json(file))
