"""Tombstones: keyed hashes of erased record and subject keys, under the keys of epochs.

An epoch's key is random, wrapped under the workspace secret, one file in the store; deleting the
file makes its tombstones meaningless.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from data_index import keys
from data_index.errors import ConfigurationError, ExactnessError
from data_index.keys import Keyring, Keys
from data_index.storage import Store

FOLDER = "epochs"


@dataclass(frozen=True, slots=True, repr=False)
class Epochs:
    """The live epochs of a store.

    Attributes:
        numbers: Their numbers, rising; the last is the one that new tombstones are made under.
        secrets: Their keys, 32 bytes each.
    """

    numbers: tuple[int, ...]
    secrets: tuple[bytes, ...]

    @classmethod
    def open(cls, store: Store, ring: Keyring, numbers: Sequence[int]) -> Epochs:
        """Unwrap the keys of the live epochs; those that came back with a restored copy go again.

        Args:
            store: Holds them.
            ring: Subkeys of the workspace secret.
            numbers: The live epochs, rising.

        Raises:
            ExactnessError: The key of one is missing.
            ConfigurationError: The workspace secret is not the one they were wrapped under.
        """
        there = {_number(name): name for name in store.list(FOLDER)}
        missing = {*numbers} - {*there}
        if missing:
            raise ExactnessError(
                f"The store lacks the key of tombstone epoch {min(missing)}: erased rows could "
                "come back unnoticed.",
                "Check runtime.store, or restore the store from a backup.",
            )
        store.delete(there[n] for n in there if n not in numbers and n < numbers[-1])
        wrapped = (store.read_unchecked(there[n]) for n in numbers)
        return cls(tuple(numbers), tuple(_unwrap(ring, data) for data in wrapped))

    @staticmethod
    def make(store: Store, ring: Keyring, number: int) -> None:
        """Make the key of an epoch, durably; one that a crash left behind is taken as it is."""
        if not store.put_new(_name(number), aes_key_wrap(ring.wrap, os.urandom(32))):
            _unwrap(ring, store.read_unchecked(_name(number)))

    @staticmethod
    def destroy(store: Store, number: int) -> None:
        """Make the tombstones of an epoch meaningless."""
        store.delete([_name(number)])

    def tombstones(self, erased: Keys) -> Keys:
        """Tombstones of record or subject keys under the last epoch; uint8 [n, 16]."""
        return keys.tombstone_hashes(self.secrets[-1], erased)

    def hashes(self, found: Keys) -> Keys:
        """Tombstones that keys could have, under all live epochs; uint8 [epochs * n, 16]."""
        return np.concatenate([keys.tombstone_hashes(secret, found) for secret in self.secrets])

    def seal(self, body: bytes) -> str:
        """A keyed digest that tells nothing any more once the last epoch of now is destroyed."""
        return f"{self.numbers[-1]}:{_seal(self.secrets[-1], body)}"

    def sealed(self, body: bytes, seal: str) -> bool | None:
        """Whether a digest is that of these bytes; None once that cannot be told."""
        number, _, digest = seal.partition(":")
        if int(number) not in self.numbers:
            return None
        return _seal(self.secrets[self.numbers.index(int(number))], body) == digest

    def meets(self, stones: Keys, stored: Keys) -> npt.NDArray[np.bool_]:
        """Which record or subject keys meet a tombstone of any live epoch; bool [n].

        Args:
            stones: All tombstones, uint8 [t, 16].
            stored: Keys to check, uint8 [n, 16].
        """
        met = np.zeros(len(stored), dtype=bool)
        if len(stones):
            for secret in self.secrets:
                met |= keys.contains(stones, keys.tombstone_hashes(secret, stored))
        return met


def _seal(secret: bytes, body: bytes) -> str:
    return blake2b(body, key=secret, person=b"sisa.request", digest_size=32).hexdigest()


def _unwrap(ring: Keyring, wrapped: bytes) -> bytes:
    try:
        return aes_key_unwrap(ring.wrap, wrapped)
    except InvalidUnwrap:
        raise ConfigurationError(
            "The secret is not the one this workspace was made with.",
            "Restore secret.key, or set SISA_SECRET_KEY to the right value.",
        ) from None


def _name(number: int) -> str:
    return f"{FOLDER}/{number:04d}.key"


def _number(name: str) -> int:
    return int(name.removeprefix(f"{FOLDER}/").removesuffix(".key"))
