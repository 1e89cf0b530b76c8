"""A scan set kept for the time of its request: AES-GCM under a key that is used once.

The ledger holds both in one row, `sealed` and `key`, and deletes the row at certification: a copy
of the one without the other tells nothing.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sisa.errors import ExactnessError
from sisa.residue.needles import ScanSet

PURPOSE = b"sisa.scan-set/1"
"""Bound into every seal, so that no other ciphertext passes for one."""

NONCE = bytes(12)
"""Constant: no key seals twice."""


def seal(scan_set: ScanSet) -> tuple[bytes, bytes]:
    """Seal a scan set under a new random key.

    Returns:
        The sealed bytes, and the key of 32 bytes.
    """
    key = os.urandom(32)
    return AESGCM(key).encrypt(NONCE, scan_set.to_bytes(), PURPOSE), key


def unseal(sealed: bytes, key: bytes) -> ScanSet:
    """The inverse of `seal`.

    Raises:
        ExactnessError: The bytes are not those that this key sealed.
    """
    try:
        return ScanSet.from_bytes(AESGCM(key).decrypt(NONCE, sealed, PURPOSE))
    except (InvalidTag, ValueError):
        raise ExactnessError(
            "A scan set in the ledger is damaged.", "Restore the ledger from a backup."
        ) from None
