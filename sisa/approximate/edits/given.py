"""What an edit is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from sisa.approximate.batches import Batch
from sisa.approximate.bottlenecked import About
from sisa.approximate.edits.mappings import of_module
from sisa.approximate.models import Subject
from sisa.errors import ConfigurationError

Files = Mapping[str, Path | tuple[Path, ...]]
"""By need: `log`, `original` and `importance` are one path each, `adapters` several folders."""


@dataclass(frozen=True)
class Given:
    """What every edit is given besides its own settings.

    Attributes:
        subject: The model. An edit may write to it while it works, and leaves it as it was.
        forget: What is to be forgotten.
        retain: What is retained, if anything.
        files: What else there is, by need.
        items_per_batch: Items that go through the model at once.
        chunk_rows: Labelled positions whose logits exist at once.
        seed: Of all that is random.
        report: Takes how far it is: numbers by name, and a count.
    """

    subject: Subject
    forget: Batch
    retain: Batch | None = None
    files: Files = field(default_factory=dict)
    items_per_batch: int = 4
    chunk_rows: int = 128
    seed: int = 0
    report: Callable[[Mapping[str, float], int], None] = lambda metrics, step: None

    def parameters(self) -> dict[str, Tensor]:
        """Copies of the model's parameters by name."""
        return of_module(self.subject.module)

    def path(self, need: str) -> Path:
        """The one file or folder of a need.

        Raises:
            ConfigurationError: There is none, or there are several.
        """
        found = self.files.get(need)
        if not isinstance(found, Path):
            raise ConfigurationError(
                f"The method needs one {need}, and there is none.", f"Name it with --{need}."
            )
        return found


@dataclass(frozen=True)
class Edited:
    """What an edit comes to.

    Attributes:
        params: New values, by the names of the module's parameters and buffers.
        notes: What a reader of a report should know, one sentence each.
        without_adapter: The adapter is taken out of the model.
        bottleneck: Is put into the model, which has none; `params` has its values.
    """

    params: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()
    without_adapter: bool = False
    bottleneck: About | None = None
