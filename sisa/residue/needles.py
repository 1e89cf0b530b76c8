"""What a residue scan looks for: the scan set of an erasure, and its forms as bytes.

A form that is short, or a window of few distinct bytes, occurs by chance. It is not looked for, and
counted.
"""

from __future__ import annotations

import base64
import json
import struct
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal
from urllib.parse import quote

import numpy as np

from data_index import keys
from data_index.keys import KEY_BYTES, Keys
from data_index.lineage import Selection

Kind = Literal["id", "key", "open key", "row key", "row digest", "value", "text", "control"]
"""What a needle is a form of; an *open key* is one that the ledger holds until certification."""

SHORTEST = 6
"""Bytes of the shortest form that is looked for."""

DIGITS = 8
"""Digits of the shortest number that is looked for: shorter ones are sizes, counts and times."""

WINDOW = 16
"""Bytes of a window of a wide value."""

VARIETY = 6
"""Distinct bytes that a window must have."""


@dataclass(frozen=True, slots=True)
class Needle:
    """One sequence of bytes that is looked for.

    Attributes:
        pattern: The bytes, at least `SHORTEST`.
        kind: What it is a form of.
        bounded: Whether neither a letter nor a digit may stand beside it: a number within a longer
            one is another number.
    """

    pattern: bytes
    kind: Kind
    bounded: bool = False


@dataclass(frozen=True, slots=True, repr=False)
class ScanSet:
    """What an erasure leaves no trace of; all of it is personal, so it is kept sealed.

    Attributes:
        ids: Canonical ids that the request names.
        subjects: Keys of the subjects that it names, 16 bytes each.
        records: Keys of the records that it names.
        row_subjects: Subject keys of the erased rows.
        row_records: Record keys of the erased rows.
        digests: Row digests of the erased rows.
        windows: Windows of their arrays and long texts, `WINDOW` bytes each.
        texts: Their texts of middling length, UTF-8.
    """

    ids: tuple[bytes, ...] = ()
    subjects: tuple[bytes, ...] = ()
    records: tuple[bytes, ...] = ()
    row_subjects: tuple[bytes, ...] = ()
    row_records: tuple[bytes, ...] = ()
    digests: tuple[bytes, ...] = ()
    windows: tuple[bytes, ...] = ()
    texts: tuple[bytes, ...] = ()

    def __or__(self, other: ScanSet) -> ScanSet:
        return ScanSet(*(_unique((*mine, *its)) for mine, its in zip(self, other, strict=True)))

    def __iter__(self) -> Iterator[tuple[bytes, ...]]:
        return (getattr(self, field.name) for field in fields(self))

    @property
    def gone(self) -> Selection:
        """Whose rows are erased."""
        records = _unique((*self.records, *self.row_records))
        return Selection(_keys(self.subjects), _keys(records))

    def to_bytes(self) -> bytes:
        """Serialised: per field a count, then each item with its length, little-endian uint32."""
        parts: list[bytes] = []
        for items in self:
            parts.append(struct.pack("<I", len(items)))
            parts += [struct.pack("<I", len(item)) + item for item in items]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> ScanSet:
        """The inverse of `to_bytes`."""
        at, found = 0, []
        for _ in fields(cls):
            (count,) = struct.unpack_from("<I", data, at)
            at += 4
            items = []
            for _ in range(count):
                (size,) = struct.unpack_from("<I", data, at)
                items.append(data[at + 4 : at + 4 + size])
                at += 4 + size
            found.append(tuple(items))
        return cls(*found)

    def without(self, items: Collection[bytes]) -> ScanSet:
        """The set without some items, in all their forms."""
        return ScanSet(*(tuple(i for i in field if i not in items) for field in self))

    def needles(self, is_open: bool = False) -> tuple[list[Needle], int]:
        """All forms of all that is in the set.

        Args:
            is_open: Whether the request is open, and its keys are in the ledger.

        Returns:
            The needles, and how many ids and texts were left out as too short.
        """
        found: list[Needle] = []
        short = 0
        for kind, texts in (("id", self.ids), ("text", self.texts)):
            for text in texts:
                if too_short(text):
                    short += 1
                else:
                    found += _of_text(text, kind)
        named: Kind = "open key" if is_open else "key"
        found += [n for key in (*self.subjects, *self.records) for n in _of_key(key, named)]
        rows = {*self.row_subjects, *self.row_records} - {*self.subjects, *self.records}
        found += [n for key in rows for n in _of_key(key, "row key")]
        found += [n for digest in self.digests for n in _of_key(digest, "row digest")]
        found += [Needle(window, "value") for window in self.windows]
        return found, short


def too_short(text: bytes) -> bool:
    """Whether a text would be found by chance."""
    return len(text) < (DIGITS if text.isdigit() else SHORTEST)


def _of_text(canonical: bytes, kind: Any) -> Iterator[Needle]:
    """UTF-8 and UTF-16, composed and decomposed, escaped as in JSON and in addresses, hex, base64.

    Args:
        canonical: The text in UTF-8.
        kind: What it is.
    """
    forms: dict[bytes, None] = {}
    for normal in ("NFC", "NFD"):
        text = unicodedata.normalize(normal, canonical.decode())
        plain = text.encode()
        escaped = json.dumps(text)[1:-1].encode()
        forms |= dict.fromkeys((plain, text.encode("utf-16-le"), text.encode("utf-16-be"), escaped))
        forms |= dict.fromkeys((quote(text, safe="").encode(), plain.hex().encode()))
        forms[plain.hex().upper().encode()] = None
        whole = base64.b64encode(plain)[: len(plain) * 8 // 6]  # what follows changes the rest
        if len(whole) > SHORTEST:
            forms |= dict.fromkeys((whole, whole.translate(bytes.maketrans(b"+/", b"-_"))))
    return (Needle(form, kind, form.isdigit()) for form in forms)


def _of_key(key: bytes, kind: Kind) -> Iterator[Needle]:
    """As it is, in hex and in base64."""
    plain = base64.b64encode(key).rstrip(b"=")
    forms = (key, key.hex().encode(), key.hex().upper().encode(), plain)
    dashed = plain.translate(bytes.maketrans(b"+/", b"-_"))
    return (Needle(form, kind) for form in dict.fromkeys((*forms, dashed)))


def split(found: Keys) -> tuple[bytes, ...]:
    """Keys, uint8 [n, 16], as bytes; each once."""
    flat = np.ascontiguousarray(found).tobytes()
    return _unique(flat[i : i + KEY_BYTES] for i in range(0, len(flat), KEY_BYTES))


def _unique(items: Iterable[bytes]) -> tuple[bytes, ...]:
    return tuple(sorted(set(items)))


def _keys(items: tuple[bytes, ...]) -> Keys:
    if not items:
        return keys.empty()
    return np.frombuffer(b"".join(items), dtype=np.uint8).reshape(-1, KEY_BYTES)
