"""Subkeys, canonical ids, record and subject keys, placement.

A raw id goes no further than this module: everything else sees its keyed hash. Placement, sort
order and batch order are functions of these keys, never of positions, so that taking a record out
moves no other.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from data_index.errors import DataError

KEY_BYTES = 16
Keys = npt.NDArray[np.uint8]
"""Keys of n records or subjects: uint8 [n, 16]."""

IdKind = Literal["integer", "string"]


@dataclass(frozen=True, slots=True, repr=False)
class Keyring:
    """The subkeys of one workspace secret (32 bytes each).

    Attributes:
        order: Makes record and subject keys, and with them placement and every order.
        digest: Keys row digests and logical digests.
        wrap: Wraps the random keys of tombstone epochs.
    """

    order: bytes
    digest: bytes
    wrap: bytes


def derive(secret: bytes) -> Keyring:
    """Derive the subkeys from a secret of 32 random bytes (HKDF-Expand, RFC 5869)."""

    def subkey(name: str) -> bytes:
        info = b"sisa/1/" + name.encode()
        return HKDFExpand(algorithm=hashes.SHA256(), length=32, info=info).derive(secret)

    return Keyring(order=subkey("order"), digest=subkey("digest"), wrap=subkey("wrap"))


def id_kind(kind: pa.DataType, what: str) -> IdKind:
    """Say whether a column type can hold ids, and of which kind.

    Raises:
        DataError: The type is neither an integer nor text.
    """
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_integer(kind):
        return "integer"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "string"
    raise DataError(
        f"{what} holds {kind} values, but ids must be integers or text.",
        "Write the ids as integers or strings.",
    )


def canonical_ids(column: pa.ChunkedArray | pa.Array, what: str) -> list[bytes]:
    """Turn a column of ids into bytes by the one declared rule.

    Integers become their decimal digits, text its NFC form in UTF-8; so 7 and "7" are the same id,
    and a column has one kind throughout a data set.

    Args:
        column: Integers or text, n values.
        what: How to name the column in an error.

    Returns:
        n byte strings.

    Raises:
        DataError: An id is null, empty, padded with white space, or of another type.
    """
    kind = id_kind(column.type, what)
    text = column.cast(pa.string())
    if text.null_count:
        raise DataError(f"{what} has {text.null_count} null ids.", "Give every row an id.")
    if kind == "string":
        return canonical_texts(text.to_pylist(), what)
    ids: list[bytes] = text.cast(pa.binary()).to_pylist()
    return ids


def canonical_texts(texts: Sequence[str], what: str) -> list[bytes]:
    """Turn ids that are text into bytes, as `canonical_ids` does.

    Raises:
        DataError: An id is empty or padded with white space.
    """
    if any(t != t.strip() for t in texts):
        raise DataError(f"{what} has ids padded with white space.", "Strip the ids in the source.")
    if not all(texts):
        raise DataError(f"{what} has empty ids.", "Give every row an id.")
    # Not Arrow's utf8_normalize: until version 26 it gives NFD (apache/arrow issue 51225).
    return [unicodedata.normalize("NFC", t).encode() for t in texts]


def record_keys(ring: Keyring, ids: list[bytes]) -> Keys:
    """Keys of records: BLAKE2b-128 of the canonical id under the order key; uint8 [n, 16]."""
    return _digests(ring.order, b"sisa.record", ids)


def subject_keys(ring: Keyring, ids: list[bytes]) -> Keys:
    """Keys of data subjects: as of records, in a domain of their own; uint8 [n, 16]."""
    return _digests(ring.order, b"sisa.subject", ids)


def tombstone_hashes(epoch_key: bytes, keys: Keys) -> Keys:
    """Tombstones of record or subject keys under one epoch's key; uint8 [n, 16]."""
    flat = np.ascontiguousarray(keys).tobytes()
    parts = [flat[i : i + KEY_BYTES] for i in range(0, len(flat), KEY_BYTES)]
    return _digests(epoch_key, b"sisa.tombstone", parts)


def _digests(key: bytes, domain: bytes, messages: list[bytes]) -> Keys:
    digest = hashlib.blake2b
    joined = b"".join(
        [digest(m, key=key, person=domain, digest_size=KEY_BYTES).digest() for m in messages]
    )
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, KEY_BYTES)


def words(keys: Keys) -> npt.NDArray[np.uint64]:
    """Keys as two big-endian words, uint64 [n, 2]: their numeric order is the byte order."""
    big = np.ascontiguousarray(keys).view(">u8").reshape(-1, 2)
    return big.astype(np.uint64)


def sort_order(*columns: Keys) -> npt.NDArray[np.intp]:
    """The permutation that sorts by the first key column, ties by the next, as bytes."""
    parts: list[Any] = []
    for column in reversed(columns):
        pair = words(column)
        parts += [pair[:, 1], pair[:, 0]]
    return np.lexsort(parts)


def place(
    subjects: Keys, shards: int, slices: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Shard (from 0) and slice (from 1) of each subject, a function of its key alone."""
    pair = words(subjects)
    shard = (pair[:, 0] % np.uint64(shards)).astype(np.int32)
    slice_ = (pair[:, 1] % np.uint64(slices)).astype(np.int32) + np.int32(1)
    return shard, slice_


def contains(sorted_keys: Keys, keys: Keys) -> npt.NDArray[np.bool_]:
    """For each of `keys`, whether it is among `sorted_keys`; bool [n]."""
    if len(sorted_keys) == 0 or len(keys) == 0:
        return np.zeros(len(keys), dtype=bool)
    return np.isin(_opaque(keys), _opaque(sorted_keys))


def positions(there: Keys, keys: Keys) -> npt.NDArray[np.intp]:
    """For each of `keys`, where it is among the distinct keys `there`, -1 if nowhere; int [n]."""
    if len(there) == 0:
        return np.full(len(keys), -1, dtype=np.intp)
    order = sort_order(there)
    ranked, wanted = _opaque(there[order]), _opaque(keys)
    at = np.searchsorted(ranked, wanted).clip(max=len(there) - 1)
    return np.where(ranked[at] == wanted, order[at], -1)


def _opaque(keys: Keys) -> npt.NDArray[np.void]:
    return np.ascontiguousarray(keys).view(np.dtype((np.void, KEY_BYTES))).ravel()


def to_arrow(keys: Keys) -> pa.Array:
    """Keys as an Arrow fixed_size_binary(16) array."""
    flat = np.ascontiguousarray(keys)
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(KEY_BYTES), len(flat), [None, pa.py_buffer(flat)]
    )


def from_arrow(column: pa.ChunkedArray | pa.Array) -> Keys:
    """The inverse of `to_arrow`; a view where that is possible."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # combine_chunks of no chunks
        return np.zeros((0, KEY_BYTES), dtype=np.uint8)
    if len(array) == 0:
        return np.zeros((0, KEY_BYTES), dtype=np.uint8)
    data = np.frombuffer(array.buffers()[1], dtype=np.uint8)
    start = array.offset * KEY_BYTES
    return data[start : start + len(array) * KEY_BYTES].reshape(-1, KEY_BYTES)


def empty() -> Keys:
    """No keys; uint8 [0, 16]."""
    return np.zeros((0, KEY_BYTES), dtype=np.uint8)
