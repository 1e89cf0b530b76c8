"""Many patterns in many bytes at once, in NumPy.

The 8 bytes at every position are hashed into a table of bits. What the table lets through is
compared with the patterns' *anchors*, 8 or 16 bytes of each, and what is left with the patterns.
The automaton of Aho and Corasick, the usual way, is up to twenty times slower here: on bytes
without order, which checkpoints are, each of its steps misses the cache.

Patterns of 11 bytes or more are looked for only where a *gate* opens: it looks at every fourth or
eighth word of a chunk, one of which lies within the pattern wherever that stands.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sisa.residue.needles import Needle

CHUNK = 1 << 18
"""Bytes searched at a time: what is computed from them stays in the cache."""

MIX = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio: multiplying by it spreads low bits over high ones (Knuth, 6.4)."""

TWIN = np.uint64(0xC2B2AE3D27D4EB4F)
"""Another odd number, for the second half of an anchor of 16 bytes."""

ALL = (1 << 64) - 1
"""A word of ones."""

VARIED = 4
"""Distinct bytes that an anchor should have."""

Words = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
Group = dict[tuple[int, int], dict[bytes, int]]
"""Numbers of the patterns that share an anchor: by where it begins and length, and by bytes."""


class Finder:
    """Finds needles.

    Args:
        needles: What to find; a needle's number is its place here.
    """

    def __init__(self, needles: Sequence[Needle]) -> None:
        self.needles = tuple(needles)
        patterns = [n.pattern for n in self.needles]
        sieves = (
            _Sieve(patterns, 8, range(15, 1 << 62), stride=8),
            _Sieve(patterns, 8, range(11, 15), stride=4),
            _Sieve(patterns, 8, range(8, 11)),
            _Sieve(patterns, 6, range(6, 8)),
        )
        self._sieves = [sieve for sieve in sieves if sieve.size]
        self._overlap = max(map(len, patterns), default=0) + 1

    def find(self, data: Any, skip: Collection[int] = ()) -> set[int]:
        """Numbers of the needles that occur in a buffer, but for those to skip."""
        view = memoryview(data).cast("B")
        found: set[int] = set()
        skipped = set(skip)
        for start in range(0, len(view), CHUNK):
            # a byte more on either side tells whether a number stands alone
            begin = max(0, start - self._overlap)
            part = bytes(view[begin : start + CHUNK + 1])
            ends = begin == 0, start + CHUNK >= len(view)
            for sieve in self._sieves:
                for group, places in sieve.groups(part):
                    left = {n for shape in group.values() for n in shape.values()}
                    left -= found
                    left -= skipped
                    for place in places if left else ():
                        hit = left.intersection(self._at(group, part, place, ends))
                        found |= hit
                        left -= hit
                        if not left:
                            break
        return found

    def _at(self, group: Group, part: bytes, place: int, ends: tuple[bool, bool]) -> Iterator[int]:
        """Needles of a group that stand round an anchor; what a chunk cuts off is in another."""
        for (offset, size), shape in group.items():
            start = place - offset
            number = shape.get(part[start : start + size]) if start >= 0 else None
            if number is not None and self._alone(number, part, start, start + size, ends):
                yield number

    def _alone(
        self, number: int, part: bytes, start: int, end: int, ends: tuple[bool, bool]
    ) -> bool:
        """Whether nothing stands beside a needle that makes it another one."""
        if not self.needles[number].bounded:
            return True
        before, after = part[max(0, start - 1) : start], part[end : end + 1]
        if (not before and not ends[0]) or (not after and not ends[1]):
            return False
        return not before.isalnum() and not after.isalnum()


class _Gate:
    """Tells whether some patterns may be in bytes, by every `stride`-th word of these.

    Args:
        patterns: At least `stride` + 7 bytes each.
        stride: Bytes from one word to the next.
    """

    def __init__(self, patterns: Sequence[bytes], stride: int) -> None:
        self._stride = stride
        tails = np.frombuffer(b"".join(p[-stride - 7 :] for p in patterns), dtype=np.uint8)
        rows = tails.reshape(len(patterns), stride + 7)
        cuts = [np.ascontiguousarray(rows[:, r : r + 8]).view("<u8") for r in range(stride)]
        self._words = np.unique(np.concatenate(cuts))
        bits = _bits(len(self._words))
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, dtype=bool)
        self._table[self._hash(self._words)] = True

    def _hash(self, words: Words) -> Places:
        return ((words * MIX) >> self._shift).view(np.int64)

    def open_at(self, part: bytes) -> Places:
        """Where the words are that are a pattern's."""
        count = (len(part) - 8) // self._stride + 1
        if count <= 0:
            return np.empty(0, dtype=np.int64)
        there: Words = np.ndarray((count,), dtype="<u8", buffer=part, strides=(self._stride,))
        places = np.flatnonzero(self._table[self._hash(there)])
        words = there[places]
        at = np.searchsorted(self._words, words).clip(max=len(self._words) - 1)
        found: Places = places[self._words[at] == words] * self._stride
        return found


class _Sieve:
    """The patterns of some lengths, by their anchors.

    Args:
        patterns: All patterns.
        width: Bytes that are hashed, at most 8.
        lengths: Lengths of the patterns that belong here.
        stride: That of their gate; without one they are looked for everywhere.
    """

    def __init__(
        self, patterns: Sequence[bytes], width: int, lengths: range, stride: int = 0
    ) -> None:
        self._width = width
        self._mask = np.uint64((1 << 8 * width) - 1)
        self._short: dict[int, Group] = {}
        self._long: tuple[dict[int, Group], ...] = ({}, {})
        first: set[int] = set()
        for number, pattern in enumerate(patterns):
            if len(pattern) not in lengths:
                continue
            if len(pattern) < 16:
                offset = _varied(pattern, width)
                word = int.from_bytes(pattern[offset : offset + width], "little")
                group = self._short.setdefault(word, {})
            else:
                offset = _varied(pattern, 16)
                anchor = pattern[offset : offset + 16]
                halves = [int.from_bytes(anchor[i : i + 8], "little") for i in (0, 8)]
                half = _varied(anchor, 8) // 8
                word = halves[half]
                mixed = (halves[0] * int(MIX) ^ halves[1] * int(TWIN)) & ALL
                group = self._long[half].setdefault(mixed, {})
            group.setdefault((offset, len(pattern)), {})[pattern] = number
            first.add(word)
        self.size = len(first)
        self._longest = max((len(p) for p in patterns if len(p) in lengths), default=0)
        mine = [p for p in patterns if stride and len(p) in lengths]
        self._gate = _Gate(mine, stride) if mine else None
        bits = _bits(self.size)
        self._shift = np.uint64(64 - bits)
        self._bits = np.zeros(1 << bits, dtype=bool)
        self._bits[self._hash(_array(first))] = True
        self._short_keys = _array(self._short)
        self._long_keys = tuple(map(_array, self._long))

    def _hash(self, words: Words) -> Places:
        return ((words * MIX) >> self._shift).view(np.int64)

    def groups(self, part: bytes) -> Iterator[tuple[Group, list[int]]]:
        """Patterns that share an anchor, and all places where it stands."""
        count = len(part) - self._width + 1
        near = self._gate.open_at(part) if self._gate is not None and count > 0 else None
        if count <= 0 or (near is not None and not len(near)):
            return
        padded = bytes(8) + part + bytes(16)
        # the word at every byte: overlapping views of the same memory
        at = np.ndarray((len(part) + 16,), dtype="<u8", buffer=padded, strides=(1,))
        there = at[8 : 8 + count]
        if self._width < 8:
            there = there & self._mask
        if near is not None and len(near) * 2 * self._longest < count:
            places = _round(near, self._longest, count)
            places = places[self._bits[self._hash(there[places])]]
        else:
            places = np.flatnonzero(self._bits[self._hash(there)])
        if not len(places):
            return
        words = there[places]
        yield from _groups(self._short, self._short_keys, words, places)
        before, after = at[places], at[places + 16]
        yield from _groups(self._long[0], self._long_keys[0], _mixed(words, after), places)
        yield from _groups(self._long[1], self._long_keys[1], _mixed(before, words), places - 8)


def _groups(
    members: dict[int, Group], anchors: Words, there: Words, places: Places
) -> Iterator[tuple[Group, list[int]]]:
    if len(anchors) == 0 or len(there) == 0:
        return
    at = np.searchsorted(anchors, there).clip(max=len(anchors) - 1)
    hit = anchors[at] == there
    at, places = at[hit], places[hit]
    order = np.argsort(at, kind="stable")
    at, places = at[order], places[order]
    cuts = np.flatnonzero(np.diff(at)) + 1
    if len(at):
        for group in np.split(np.arange(len(at)), cuts):
            yield members[int(anchors[at[group[0]]])], places[group].tolist()


def _round(places: Places, reach: int, count: int) -> Places:
    """All places that are at most so far from one of some."""
    near = np.zeros(count, dtype=bool)
    reached = places[:, None] + np.arange(-reach, reach + 1)
    near[reached.clip(0, count - 1)] = True
    return np.flatnonzero(near)


def _bits(words: int) -> int:
    """Bits of a hash of so many words that few others fall on theirs."""
    return min(24, max(16, words.bit_length() + 7))


def _mixed(first: Words, second: Words) -> Words:
    return (first * MIX) ^ (second * TWIN)


def _array(words: Collection[int]) -> Words:
    return np.array(sorted(words), dtype=np.uint64)


def _varied(pattern: bytes, width: int) -> int:
    """Where the anchor begins: the last varied bytes, as ids differ in their ends."""
    last = len(pattern) - width
    if len(set(pattern[last:])) >= VARIED:
        return last
    return max((last, last // 2 & ~7, 0), key=lambda s: len(set(pattern[s : s + width])))
