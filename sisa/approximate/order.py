"""Which items a step looks at: a keyed hash of their ids, never their place in a file.

The order of an epoch is that of hash(seed, side, epoch, id), so that it is the same on every
machine, can be taken up at any step, and leaving one item out moves no other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from sisa.determinism import mix, scatter

FORGET, RETAIN = 0, 1
"""The two sides, which have orders of their own."""


class Order:
    """The order of a side's items, epoch after epoch.

    Args:
        ids: Of its n items; equal ids keep the order they stand in.
        seed: Of the run.
        side: FORGET or RETAIN.
    """

    def __init__(self, ids: Sequence[str], seed: int, side: int) -> None:
        words = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids)
        self._words = np.frombuffer(b"".join(words), dtype="<u8").astype(np.uint64)
        self._place = (seed, side)
        self._kept: tuple[int, list[int]] = (-1, [])

    def epoch(self, number: int) -> list[int]:
        """Indices of all items in the order of an epoch, from 0."""
        if self._kept[0] != number:
            hashes = scatter(self._words, mix(*self._place, number))
            self._kept = (number, np.argsort(hashes, kind="stable").tolist())
        return self._kept[1]

    def stream(self, start: int, count: int) -> list[int]:
        """Indices at places start to start + count of all epochs one after the other."""
        n, found = len(self._words), list[int]()
        while n and len(found) < count:
            at = start + len(found)
            found += self.epoch(at // n)[at % n :][: count - len(found)]
        return found
