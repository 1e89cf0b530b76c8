"""Which checkpoints of a chain are kept.

A stage whose checkpoint is left out has the same bits; going on from it, rolling back to it and
replaying it reach back to the last one that is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from sisa.config import Checkpoints


@dataclass(frozen=True, slots=True)
class Retention:
    """How many checkpoints one chain may keep; the last one is kept always.

    Attributes:
        share: Of its stages, over 0 and up to 1.
        size: Bytes in all, None for no limit.
    """

    share: float = 1.0
    size: int | None = None

    @classmethod
    def of(cls, section: Checkpoints, shards: int) -> Retention:
        """What each of some shards may keep."""
        size = None if section.max_bytes is None else section.max_bytes // shards
        return cls(1.0 if section.max_share is None else section.max_share, size)

    def kept(self, length: int, size: int) -> frozenset[int]:
        """Numbers, from 1, of the stages whose checkpoints are kept.

        A record is as likely in one slice as in another, and its erasure trains again what lies
        between the last kept stage and its own. Stage j visits j slices, so n stages left out
        around it cost j n^2 / 2. The sum is least where the density of kept stages grows with
        sqrt(j): the i-th of m is stage length * (i / m)^(2/3).

        Args:
            length: Number of stages of the chain.
            size: Bytes of one checkpoint.
        """
        count = max(1, int(self.share * length))
        if self.size is not None:
            count = max(1, min(count, self.size // size))
        found = [length]
        for i in range(count - 1, 0, -1):
            found.append(max(i, min(found[-1] - 1, round(length * (i / count) ** (2 / 3)))))
        return frozenset(found)


ALL = Retention()
"""Keeps every checkpoint."""

LAST = Retention(0.0)
"""Keeps the last checkpoint of a chain only."""
