"""Documents of certificates: shown, listed, checked."""

from __future__ import annotations

from sisa.results.base import Result
from sisa.results.checks import Check
from sisa.statement import Statement


class CertificateShown(Result):
    """`sisa certificate show`: what a certificate states; `sisa certificate verify` checks it."""

    file: str
    """The certificate's file."""

    sha256: str
    """sha256 of the file, hex: what the next certificate names."""

    key: str
    """Id of the key that it says it is signed by: sha256 of the raw public key, hex."""

    statement: Statement
    """What it states, whole."""

    def text(self) -> str:
        """Readable by people who do not know the system."""
        from sisa.certificate_text import text

        return text(self)


class CertificateEntry(Result):
    """A certificate of the chain."""

    sequence: int
    """Its place in the chain, from 1."""

    request: str
    """Id of the erasure request."""

    issued: str
    """When it was signed, ISO 8601 in UTC."""

    records: int
    """Count of records that the request named."""

    file: str
    """The certificate's file."""

    sha256: str
    """sha256 of the file, hex."""


class CertificateList(Result):
    """`sisa certificate list`: the chain, whose links and signatures were checked."""

    certificates: tuple[CertificateEntry, ...]
    """All certificates, the first one first."""

    head: str | None
    """sha256 of the last one, hex; null before the first."""


class CertificateVerified(Result):
    """`sisa certificate verify`."""

    valid: bool
    """Whether nothing is wrong with it, as far as could be checked."""

    file: str
    """The certificate's file."""

    sha256: str
    """sha256 of the file, hex."""

    checks: tuple[Check, ...]
    """All checks, in the order in which they ran; the later ones need the workspace."""

    @property
    def exit_code(self) -> int:
        """4 if it is not valid."""
        return 0 if self.valid else 4
