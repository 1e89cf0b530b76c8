"""Certificates in the store, and the chain that leads from its head to each of them."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError

from data_index.storage import Store, sha256
from sisa.certificate import FOLDER
from sisa.report_results import CertificateRow, Certificates, ResidueOutcome


@dataclass(frozen=True)
class Found:
    """Certificates as they lie in the store."""

    certificates: Certificates

    @property
    def rebuilt_by(self) -> dict[str, int | None]:
        """Generation after each request whose certificate can be read, by its id."""
        readable = (c for c in self.certificates.items if c.issued is not None)
        return {c.request: c.generation for c in readable}


def look(store: Store, head: str | None) -> Found:
    """Read all certificates and walk their chain from its head.

    What cannot be read is listed too; checking them is `certificate_chain`'s.
    """
    files = {path: store.read_unchecked(path) for path in store.list(FOLDER)}
    statements = {path: statement(data) for path, data in files.items()}
    digests = {sha256(data): path for path, data in files.items()}
    chain = dict.fromkeys(_chain(head, digests, statements))
    rows = [_row(path, data, statements[path], path in chain) for path, data in files.items()]
    ordered = tuple(sorted(rows, key=lambda c: (c.issued or "", c.request)))
    certificates = Certificates(head=head, chained=len(chain), items=ordered)
    return Found(certificates)


def _chain(
    head: str | None, digests: Mapping[str, str], statements: Mapping[str, dict[str, Any]]
) -> Iterator[str]:
    """Paths from the head back to the first certificate, or to where one is missing."""
    # No circle: each names the sha256 of the one before.
    while head is not None and head in digests:
        yield digests[head]
        head = statements[digests[head]].get("previous")


def statement(data: bytes) -> dict[str, Any]:
    """What a certificate says, unchecked; empty if it cannot be read."""
    try:
        body = json.loads(data)
        says = json.loads(base64.b64decode(body["payload"]))["predicate"]
        return {
            "request": says["request"],
            "issued": says["times"]["issued"],
            "generation": says["generation"] and says["generation"]["number"],
            "previous": says["previous"],
            "residue": says["residue"],
            "key_id": body["signatures"][0]["keyid"],
        }
    except (ValueError, binascii.Error, TypeError, LookupError):
        return {}


def _row(path: str, data: bytes, says: Mapping[str, Any], chained: bool) -> CertificateRow:
    number = says.get("generation")
    return CertificateRow(
        request=_text(says.get("request")) or PurePosixPath(path).stem,
        issued=_text(says.get("issued")),
        generation=number if isinstance(number, int) else None,
        sha256=sha256(data),
        previous=_text(says.get("previous")),
        key_id=_text(says.get("key_id")),
        chained=chained,
        residue=_residue(says.get("residue")),
    )


def _residue(value: object) -> ResidueOutcome | None:
    try:
        return ResidueOutcome.model_validate(value)
    except ValidationError:
        return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
