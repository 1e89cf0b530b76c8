"""The signing keys of a workspace: found, made, rotated. Public halves of former keys are kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from data_index import envelope
from data_index.envelope import Signer
from sisa.errors import ConfigurationError

PRIVATE = "signing.key"
PUBLIC = "signing.pub"
VARIABLE = "SISA_SIGNING_KEY"

Trusted = Mapping[str, Ed25519PublicKey]
"""Public keys by their id."""


@dataclass(frozen=True)
class SigningKeys:
    """Where a workspace's signing keys are.

    Attributes:
        folder: The workspace, with `signing.key`, `signing.pub` and `signing-*.pub` of former keys.
        given: A private key in PEM that outranks `signing.key`, or None.
    """

    folder: Path
    given: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, folder: Path, environment: Mapping[str, str] = os.environ) -> SigningKeys:
        """The keys of a workspace; the environment may hold the private one."""
        return cls(folder, environment.get(VARIABLE))

    def signer(self) -> Signer:
        """The private key; `signing.pub` is its public half afterwards.

        Raises:
            ConfigurationError: There is none, or it is no Ed25519 key.
        """
        found = self._private()
        self._publish(found.public)
        return found

    def trusted(self) -> dict[str, Ed25519PublicKey]:
        """The public keys, former ones included: that of the private key and every `*.pub`.

        Raises:
            ConfigurationError: There is none, or one is no Ed25519 key.
        """
        paths = sorted(self.folder.glob(f"{Path(PUBLIC).stem}*.pub"))
        found = [envelope.read_public(path.read_bytes(), path.name) for path in paths]
        if self.given is not None or (self.folder / PRIVATE).exists() or not found:
            found.append(self._private().public)
        return {envelope.key_id(public): public for public in found}

    def public_file(self, former: str | None = None) -> Path:
        """File of the public half: of the current key, or of a former one by its id."""
        stem = Path(PUBLIC).stem
        return self.folder / (PUBLIC if former is None else f"{stem}-{former[:16]}.pub")

    def make(self) -> None:
        """Make a key pair, unless there is a private key already."""
        if self.given is None and not (self.folder / PRIVATE).exists():
            write_private(self.folder / PRIVATE, _new())
        self.signer()

    def rotate(self, announce: Callable[[Signer, Ed25519PublicKey], None]) -> tuple[Signer, Signer]:
        """Sign with a new key from now on; a crash leaves the old one or the new one.

        Args:
            announce: Called with the old key and the new public one before the old one goes, so
                that the old one can vouch for the new one.

        Returns:
            The old key and the new one.

        Raises:
            ConfigurationError: The key comes from the environment, or there is none.
        """
        if self.given is not None:
            raise ConfigurationError(
                f"The signing key comes from {VARIABLE}, which cannot be changed from here.",
                f"Set {VARIABLE} to a new key; the public half of this one is kept.",
            )
        old, pem = self.signer(), _new()
        new = envelope.read_private(pem, PRIVATE)
        announce(old, new.public)
        part = self.folder / f".{PRIVATE}.part"
        part.unlink(missing_ok=True)
        write_private(part, pem)
        part.replace(self.folder / PRIVATE)
        return old, self.signer()

    def _private(self) -> Signer:
        if self.given is not None:
            return envelope.read_private(self.given.encode(), VARIABLE)
        try:
            pem = (self.folder / PRIVATE).read_bytes()
        except OSError:
            raise ConfigurationError(
                f"The workspace has no readable {PRIVATE}, which is to sign certificates.",
                f"Restore it, or set {VARIABLE} to a private key in PEM.",
            ) from None
        return envelope.read_private(pem, PRIVATE)

    def _publish(self, public: Ed25519PublicKey) -> None:
        """Make `signing.pub` the public half of the private key; another one there is kept."""
        path, pem = self.public_file(), envelope.public_pem(public)
        there = path.read_bytes() if path.exists() else b""
        if there == pem:
            return
        if there:
            former = envelope.key_id(envelope.read_public(there, PUBLIC))
            _replace(self.public_file(former), there)
        _replace(path, pem)


def write_private(path: Path, data: bytes) -> None:
    """Write a file that nobody else can read, and that was never there before."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)


def _new() -> bytes:
    return envelope.private_pem(Ed25519PrivateKey.generate())
