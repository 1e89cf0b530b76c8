"""What the model said before: kept from one pass over the items, or by switching an adapter off.

A second model is the last resort. NPO needs one number per item, which a pass before training
gives; what needs distributions takes the k largest log-probabilities of each row and the mass of
the rest. Kept values are found by what they are a function of: tokens, labels, and the digest of
the reference's parameters.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sisa.approximate.batches import Batch
from sisa.approximate.chunks import row_values
from sisa.approximate.models import HiddenRows, Subject
from sisa.approximate.objectives.rows import nll
from sisa.approximate.rows import RowReference, item_sums
from sisa.errors import IncompleteError

ITEMS = 8
"""Items of a batch whose values are computed before training."""

Chunk = Callable[[slice], RowReference]

SUFFIX = ".safetensors"
FIELDS = ("log_probs", "tokens", "log_tail")
"""Of a `RowReference`; the last two only where not the whole vocabulary is kept."""


class Reference(Protocol):
    """What a method asks of the reference."""

    def scores(self, batch: Batch) -> Tensor:
        """Summed nll of each item, float64 [B]; 0 for one without rows."""
        ...

    def rows(self, batch: Batch) -> Chunk:
        """Gives the reference's log-probabilities at a slice of the batch's rows."""
        ...

    def hidden(self, batch: Batch, layer: Any) -> Tensor:
        """Hidden states [M, d] of all positions after a layer."""
        ...


class Live:
    """A model that is asked each time, without a graph: a second one.

    Args:
        subject: The reference itself, which nobody trains.
        chunk: Rows whose logits exist at once.
    """

    def __init__(self, subject: Subject, chunk: int = 256) -> None:
        self._subject, self._chunk = subject, chunk

    def _as_reference(self) -> AbstractContextManager[None]:
        return nullcontext()

    @torch.no_grad()
    def _rows(self, batch: Batch) -> HiddenRows:
        with self._as_reference():
            found: HiddenRows = self._subject.rows(batch)
        return found

    @torch.no_grad()
    def scores(self, batch: Batch) -> Tensor:
        """Summed nll of each item, float64 [B]."""
        rows = self._rows(batch)
        values = row_values(rows, [nll], None, self._chunk)[:, 0].double()
        return item_sums(values, rows.item, rows.items)

    def rows(self, batch: Batch) -> Chunk:
        """Gives log-probabilities [n, V] of a slice; only hidden states are kept between."""
        rows = self._rows(batch)

        @torch.no_grad()
        def part(at: slice) -> RowReference:
            return RowReference.of_logits(rows.head(rows.hidden[at]))

        return part

    @torch.no_grad()
    def hidden(self, batch: Batch, layer: Any) -> Tensor:
        """Hidden states [M, d] of all positions after a layer."""
        with self._as_reference():
            return self._subject.hidden(batch, layer).hidden


class AdapterOff(Live):
    """The model that is trained, with its adapter off: the base, bit for bit.

    Args:
        subject: A model with an adapter, which is never on the head.
        chunk: Rows whose logits exist at once.
    """

    def _as_reference(self) -> AbstractContextManager[None]:
        return self._subject.adapter_off()


class Kept:
    """Values of one pass before training; nothing of the reference itself is needed afterwards.

    Args:
        device: Where values are given.
        values: By item digest: `score` [], or `log_probs` [n, k], `tokens` [n, k], `log_tail` [n].
    """

    def __init__(self, device: torch.device, values: Mapping[bytes, Mapping[str, Tensor]]) -> None:
        self._device, self._values = device, values

    def scores(self, batch: Batch) -> Tensor:
        """Summed nll of each item, float64 [B].

        Raises:
            IncompleteError: An item was not there when scores were kept.
        """
        scores = [values["score"] for values in self._of(batch, "score")]
        return torch.stack(scores).to(self._device)

    def rows(self, batch: Batch) -> Chunk:
        """Gives the k largest log-probabilities of a slice, and the mass of the rest.

        Raises:
            IncompleteError: An item was not there when distributions were kept.
        """
        kept = self._of(batch, "log_probs")
        names = [name for name in FIELDS if name in kept[0]]
        joined = {n: torch.cat([values[n] for values in kept]).to(self._device) for n in names}
        return RowReference(**joined).part

    def hidden(self, batch: Batch, layer: Any) -> Tensor:
        """Refuses: hidden states of all positions are too many to keep.

        Raises:
            IncompleteError: Always.
        """
        raise _not_kept("hidden states")

    def _of(self, batch: Batch, name: str) -> list[Mapping[str, Tensor]]:
        kept = [self._values.get(key, {}) for key in batch.digests()]
        if not all(name in values for values in kept):
            raise _not_kept("scores" if name == "score" else "distributions")
        return kept


def keep(
    subject: Subject,
    batches: list[Batch],
    *,
    top: int | None = None,
    folder: Path | None = None,
    chunk: int = 256,
) -> Kept:
    """Ask a model, before it is trained, for all that a method will need of it as its reference.

    Args:
        subject: The model as it is now.
        batches: All items that may be asked for.
        top: Keep the largest so many log-probabilities per row; None keeps scores alone.
        folder: Where values are looked for and kept, so that a run that is taken up again need not
            compute them.
        chunk: Rows whose logits exist at once.
    """
    kind = "scores" if top is None else f"top{top}"
    file = None if folder is None else folder / f"reference-{kind}-{digest(subject)[:32]}{SUFFIX}"
    found = _read(file) if file is not None and file.exists() else {}
    missing = False
    for batch in batches:
        # in the order of the digests: what is kept depends on no order of files, to the last bit
        new = sorted((key, i) for i, key in enumerate(batch.digests()) if key not in found)
        for start in range(0, len(new), ITEMS):
            part = new[start : start + ITEMS]
            values = _values(subject, batch.select([i for _, i in part]), top, chunk)
            found |= zip((key for key, _ in part), values, strict=True)
            missing = True
    if file is not None and missing:
        _write(file, found)
    return Kept(subject.device, found)


def digest(subject: Subject) -> str:
    """sha256 in hex over name, type, shape and bytes of all parameters and buffers.

    Args:
        subject: Hashed as it is now, its adapter included.
    """
    found = hashlib.sha256()
    for name, tensor in sorted(subject.module.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


@torch.no_grad()
def _values(subject: Subject, batch: Batch, top: int | None, chunk: int) -> list[dict[str, Tensor]]:
    """The values of each item of a batch, on the processor."""
    live = Live(subject, chunk)
    if top is None:
        return [{"score": score} for score in live.scores(batch).cpu()]
    rows, found = subject.rows(batch), []
    for index in range(rows.items):
        own = rows.hidden[rows.item == index]
        parts = [RowReference.of_logits(rows.head(h), top) for h in torch.split(own, chunk)]
        fields = {name: [getattr(part, name) for part in parts] for name in FIELDS}
        found.append({n: torch.cat(t).cpu() for n, t in fields.items() if t[0] is not None})
    return found


def _read(file: Path) -> dict[bytes, dict[str, Tensor]]:
    """Values as they were written: `digest/name`."""
    found: dict[bytes, dict[str, Tensor]] = {}
    for name, tensor in load_file(file).items():
        key, _, kind = name.partition("/")
        found.setdefault(bytes.fromhex(key), {})[kind] = tensor
    return found


def _write(file: Path, found: Mapping[bytes, Mapping[str, Tensor]]) -> None:
    """Whole or not at all; without it, it is computed again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    named = {f"{key.hex()}/{n}": t for key, values in found.items() for n, t in values.items()}
    save_file(named, temporary)
    os.replace(temporary, file)


def _not_kept(what: str) -> IncompleteError:
    return IncompleteError(
        f"The reference's {what} of an item were not kept before training.",
        "Keep them for all items, or train with LoRA, or give a second model.",
    )
