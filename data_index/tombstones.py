"""Tombstones: keyed hashes of erased record and subject keys, under the keys of epochs.

An epoch's key is random, wrapped under the workspace secret, one file in the store; deleting the
file makes its tombstones meaningless.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass

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
    def open(cls, store: Store, ring: Keyring, needed: Collection[int] = ()) -> Epochs:
        """Unwrap the keys of all live epochs; the first is made if none is needed.

        Args:
            store: Holds them.
            ring: Subkeys of the workspace secret.
            needed: Epochs that there are tombstones of.

        Raises:
            ExactnessError: The key of a needed epoch is missing.
            ConfigurationError: The workspace secret is not the one they were wrapped under.
        """
        names = list(store.list(FOLDER))
        missing = set(needed) - set(map(_number, names))
        if missing:
            raise ExactnessError(
                f"The store lacks the key of tombstone epoch {min(missing)}: erased rows could "
                "come back unnoticed.",
                "Check runtime.store, or restore the store from a backup.",
            )
        if not names:
            wrapped = aes_key_wrap(ring.wrap, os.urandom(32))
            store.put_new(f"{FOLDER}/0001.key", wrapped)
            names = list(store.list(FOLDER))
        try:
            secrets = tuple(aes_key_unwrap(ring.wrap, store.read_unchecked(n)) for n in names)
        except InvalidUnwrap:
            raise ConfigurationError(
                "The secret is not the one this workspace was made with.",
                "Restore secret.key, or set SISA_SECRET_KEY to the right value.",
            ) from None
        return cls(tuple(map(_number, names)), secrets)

    def tombstones(self, erased: Keys) -> Keys:
        """Tombstones of record or subject keys under the last epoch; uint8 [n, 16]."""
        return keys.tombstone_hashes(self.secrets[-1], erased)

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


def _number(name: str) -> int:
    return int(name.removeprefix(f"{FOLDER}/").removesuffix(".key"))
