"""Who does a run: one process alone, or several that each hold a part of every parameter.

All of a team make the same run: the same order, controller and optimizer, each from the same
numbers. What they share out is forwards and backwards, a micro-batch for each at a time, and what
they put together is the values of its rows; gradients are summed where parameters are held in
parts. So a step of a team is the step of one process, up to the order in which sums are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor

Piece = TypeVar("Piece")


class Team(Protocol):
    """Those who make a run together."""

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        ...

    def share(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, bool]]:
        """Pieces of work for this process: as many as for every other, as they must keep in step.

        Returns:
            Piece, and whether it counts; one that does not is done by another process, too.
        """
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over all processes of tensors of one shape."""
        ...

    def agreed(self, value: Piece) -> Piece:
        """The value of the first, for what each finds for itself and all must go by."""
        ...

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors as wholes, on the processor where they were in parts; empty but for the first."""
        ...


class Alone:
    """One process."""

    first = True

    def share(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, bool]]:
        """All pieces."""
        return ((piece, True) for piece in pieces)

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    def agreed(self, value: Piece) -> Piece:
        """The value itself."""
        return value

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors themselves."""
        return dict(tensors)


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be held in parts, as a whole; all processes must ask for it."""
    found: Tensor = tensor.full_tensor() if _parted(tensor) else tensor  # type: ignore[attr-defined]
    return found


def own(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    found: Tensor = tensor.to_local() if _parted(tensor) else tensor  # type: ignore[attr-defined]
    return found


def like(tensor: Tensor, other: Any) -> Tensor:
    """A whole tensor, which every process has, held as another of its shape is."""
    placed = tensor.to(own(other).device)
    if not _parted(other):
        return placed
    from torch.distributed.tensor import distribute_tensor

    found: Tensor = distribute_tensor(
        placed, other.device_mesh, other.placements, src_data_rank=None
    )
    return found


def _parted(tensor: Tensor) -> bool:
    """Whether it is a DTensor; to import its class takes as long as torch itself."""
    return hasattr(tensor, "full_tensor")
