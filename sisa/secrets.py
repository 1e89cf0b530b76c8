"""The workspace secret and the signing key: made, found, read."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from sisa.errors import ConfigurationError

SECRET = "secret.key"  # noqa: S105 - a file name
SIGNING = "signing.key"
PUBLIC = "signing.pub"
VARIABLE = "SISA_SECRET_KEY"

_HEX = re.compile(r"[0-9a-fA-F]{64}")


def read(folder: Path, environment: Mapping[str, str] = os.environ) -> bytes:
    """The secret, 32 bytes: from the environment, else from the workspace.

    Raises:
        ConfigurationError: There is none, or it is not 64 hex digits.
    """
    text = environment.get(VARIABLE)
    where = VARIABLE
    if text is None:
        where = SECRET
        try:
            text = (folder / SECRET).read_text("ascii")
        except (OSError, UnicodeDecodeError):
            raise ConfigurationError(
                f"The workspace has no readable {SECRET}.", f"Restore it, or set {VARIABLE}."
            ) from None
    if not _HEX.fullmatch(text.strip()):
        raise ConfigurationError(f"{where} is not 64 hex digits.", "Restore the right value.")
    return bytes.fromhex(text.strip())


def make(folder: Path, environment: Mapping[str, str] = os.environ) -> None:
    """Make a secret, unless the environment has one, and a signing key pair.

    What is there already, from an attempt that was interrupted, stays as it is.
    """
    if VARIABLE in environment or (folder / SECRET).exists():
        read(folder, environment)
    else:
        _private(folder / SECRET, os.urandom(32).hex().encode() + b"\n")
    if not (folder / SIGNING).exists():
        new = Ed25519PrivateKey.generate()
        pem = new.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _private(folder / SIGNING, pem)
    key = load_pem_private_key((folder / SIGNING).read_bytes(), password=None)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / PUBLIC).write_bytes(public)


def _private(path: Path, data: bytes) -> None:
    """Write a file that nobody else can read, and that was never there before."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
