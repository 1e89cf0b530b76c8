"""The workspace secret: made, found, read."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from sisa.errors import ConfigurationError
from sisa.signing_keys import SigningKeys, write_private

SECRET = "secret.key"  # noqa: S105 - a file name
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
    """Make a secret and a signing key pair, unless the environment has them.

    What is there already, from an attempt that was interrupted, stays as it is.
    """
    if VARIABLE in environment or (folder / SECRET).exists():
        read(folder, environment)
    else:
        write_private(folder / SECRET, os.urandom(32).hex().encode() + b"\n")
    SigningKeys.of(folder, environment).make()
