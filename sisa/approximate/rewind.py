"""Back to the epoch that forgot as much as was never known, and no more.

What a model gets wrong more often than items it never saw gives away that it was made to forget.
SCRUB+R (Kurmanji et al., NeurIPS 2023, arXiv:2302.09880, on rewinding) keeps the parameters of
every epoch, takes the error on held-out items of the same kind at the end of training as the
reference point, and goes back to the epoch whose error on the forget set is closest to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sisa.approximate import progress
from sisa.approximate.batches import Batch
from sisa.approximate.item_values import error
from sisa.approximate.models import Subject
from sisa.errors import DataError, IncompleteError


@dataclass(frozen=True)
class Epochs:
    """The trained parameters after each epoch, durable; give `keep` to the loop.

    It costs a copy of what is trained per epoch on disk, and a pass over the forget set for each
    when one is chosen.

    Attributes:
        subject: The model.
        folder: Of this run alone.
        run: Digest of what the run is: epochs of another one are refused.
    """

    subject: Subject
    folder: Path
    run: str

    def keep(self, epoch: int) -> None:
        """Keep the parameters as they are after an epoch, from 0; again after an interruption."""
        parameters = self.subject.trainable()
        progress.write(self._of(epoch), progress.Progress(self.run, epoch, parameters, {}))

    def count(self) -> int:
        """Epochs that are kept, without a gap from the first."""
        count = 0
        while progress.last(self._of(count)) is not None:
            count += 1
        return count

    @torch.no_grad()
    def go_to(self, epoch: int) -> None:
        """Give the model the parameters after an epoch that is kept.

        Raises:
            ConfigurationError: They are those of another run, or cannot be read.
        """
        kept, parameters = self._read(epoch), self.subject.trainable()
        for name, tensor in kept.items():
            parameters[name].copy_(tensor)

    def are_there(self, epoch: int) -> bool:
        """Whether the model has the parameters of an epoch, bit for bit."""
        kept, parameters = self._read(epoch), self.subject.trainable()
        return all(torch.equal(parameters[name].cpu(), tensor) for name, tensor in kept.items())

    def _read(self, epoch: int) -> Mapping[str, Tensor]:
        found = progress.read(self._of(epoch), self.run)
        if found is None or found.tensors.keys() != self.subject.trainable().keys():
            raise IncompleteError(f"Epoch {epoch + 1} was not kept.", "Start the run again.")
        return found.tensors

    def _of(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:06d}"


@dataclass(frozen=True)
class Rewound:
    """Which epoch a model went back to.

    Attributes:
        epoch: From 0.
        forget_errors: Of each epoch, from 0 to 1.
        holdout_error: Of the last epoch: the reference point.
    """

    epoch: int
    forget_errors: tuple[float, ...]
    holdout_error: float

    @property
    def note(self) -> str:
        """A sentence for the report."""
        return (
            f"Went back to epoch {self.epoch + 1} of {len(self.forget_errors)}: its error on what "
            f"is forgotten, {self.forget_errors[self.epoch]:.4g}, is closest to that on held-out "
            f"items, {self.holdout_error:.4g}."
        )


def rewind(
    epochs: Epochs, forget: Batch, holdout: Batch, items_per_batch: int = 8, chunk: int = 256
) -> Rewound:
    """Give a model that was trained to the end the parameters of the epoch to go back to.

    Args:
        epochs: All that were kept; the model is changed in place.
        forget: What is to be forgotten.
        holdout: Items of the same kind that the model never saw.
        items_per_batch: Items that go through the model at once.
        chunk: Rows whose logits exist at once.

    Raises:
        DataError: The forget set or the holdout has no labelled position, or they share an item.
        IncompleteError: No epoch was kept, or the model is not as it was after the last.
    """
    for name, items in (("forget set", forget), ("holdout", holdout)):
        if not any(items.counts()):
            raise DataError(f"The {name} has no labelled position, and so no error.")
    if set(forget.digests()) & set(holdout.digests()):
        raise DataError("An item to forget is held out too.", "Hold out others of the same kind.")
    last, subject = epochs.count() - 1, epochs.subject
    if last < 0:
        raise IncompleteError(
            "There is no epoch to go back to: none ended above the floor of utility.",
            "Lower the learning rate or the floor.",
        )
    if not epochs.are_there(last):
        raise IncompleteError("The model is not as the last epoch left it.", "Start again.")
    wanted = error(subject, holdout, items_per_batch, chunk)
    found = []
    for epoch in range(last + 1):
        epochs.go_to(epoch)
        found.append(error(subject, forget, items_per_batch, chunk))
    chosen = closest(found, wanted)
    epochs.go_to(chosen)
    return Rewound(chosen, tuple(found), wanted)


def closest(errors: Sequence[float], wanted: float) -> int:
    """The last of the errors closest to one that is wanted: later epochs retain more.

    Distances are compared to 12 digits, as shares such as 0.3 - 0.2 and 0.2 - 0.1 differ in the
    17th.
    """
    distances = [round(abs(found - wanted), 12) for found in errors]
    return max(k for k, distance in enumerate(distances) if distance == min(distances))
