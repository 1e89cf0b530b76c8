"""Check a certificate by its bytes and public keys alone: no workspace, no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_index import envelope
from data_index.storage import sha256
from sisa import statement
from sisa.approximate import statement as approximate
from sisa.errors import ConfigurationError, ExactnessError, NotFoundError, UsageError
from sisa.results import CertificateShown, CertificateVerified, Check
from sisa.signing_keys import Trusted
from sisa.statement import Statement


def read_file(path: Path) -> bytes:
    """Bytes of a file.

    Raises:
        NotFoundError: There is none.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise NotFoundError(f"{path} is no file.", "`sisa certificate list` names them.") from None


def read_certificate(path: Path) -> bytes:
    """Bytes of a file that may be a certificate.

    Raises:
        NotFoundError: There is none.
        ExactnessError: It is a statement of approximate unlearning.
    """
    data = read_file(path)
    if approximate.is_one(data):
        raise ExactnessError(
            f"{path} is a statement of approximate unlearning, which certifies no erasure.",
            "docs/approximate.md says how to read it.",
        )
    return data


def public_keys(paths: Sequence[Path]) -> Trusted:
    """Keys from files, by their id.

    Raises:
        NotFoundError: A file is missing.
        UsageError: One is no public key.
    """
    try:
        found = [envelope.read_public(read_file(path), path.name) for path in paths]
    except ConfigurationError as error:
        raise UsageError(error.message, error.remedy) from None
    return {envelope.key_id(public): public for public in found}


def verify(path: Path, trusted: Trusted) -> CertificateVerified:
    """Check a certificate's form, signature and statement.

    Raises:
        NotFoundError: There is no such file.
        ExactnessError: It is a statement of approximate unlearning.
    """
    data = read_certificate(path)
    return verdict(path, data, signed(data, trusted)[0])


def signed(data: bytes, trusted: Trusted) -> tuple[tuple[Check, ...], Statement | None]:
    """The checks that need no workspace, and the statement if they pass."""
    try:
        payload = envelope.open_(data, statement.PAYLOAD_TYPE, trusted)
    except ExactnessError as error:
        return (Check(name="signature", passed=False, detail=str(error)),), None
    key = envelope.signed_by(data)
    good = Check(name="signature", passed=True, detail=f"signed by {key}, unchanged since")
    try:
        stated = statement.parse(payload)
    except ExactnessError as error:
        return (good, Check(name="statement", passed=False, detail=str(error))), None
    detail = f"erasure of {stated.predicate.records_erased} records, and every field is as it must"
    return (good, Check(name="statement", passed=True, detail=f"{detail} be")), stated


def verdict(path: Path, data: bytes, checks: Sequence[Check]) -> CertificateVerified:
    """The document of all checks."""
    return CertificateVerified(
        valid=all(c.passed is not False for c in checks),
        file=str(path),
        sha256=sha256(data),
        checks=tuple(checks),
    )


def show(path: Path) -> CertificateShown:
    """What a certificate states, its signature unchecked.

    Raises:
        NotFoundError: There is no such file.
        ExactnessError: It is no certificate.
    """
    data = read_certificate(path)
    payload = envelope.unchecked(data, statement.PAYLOAD_TYPE)
    return CertificateShown(
        file=str(path),
        sha256=sha256(data),
        key=envelope.signed_by(data),
        statement=statement.parse(payload),
    )
