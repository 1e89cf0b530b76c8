"""What an approximate statement says: an in-toto statement about a model that was made to forget.

https://github.com/in-toto/attestation/tree/main/spec/v1. It is no certificate: it says what was
done and measured, and promises nothing of the bytes. Nothing here needs torch or a workspace.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from data_index import envelope
from data_index.storage import canonical_json, sha256
from sisa.approximate.evidence import Evidence, Real, Verdict
from sisa.errors import ExactnessError
from sisa.signing_keys import Trusted
from sisa.statement import PAYLOAD_TYPE, TYPE, Count, Digest, InToto, Number, Part, Subject, Time

PREDICATE: Literal["https://sisa-unlearning.org/approximate/v1"] = (
    "https://sisa-unlearning.org/approximate/v1"
)

FILE = "statement.json"
"""Name of the statement in the folder of its model."""

OUTSIDE = (
    "that the influence of the items is gone: only a retrain without them shows that",
    "copies of the base model, and what else was made from it or from the items",
    "attacks other than those in the evidence",
    "items that say the same in other words",
)
"""What no approximate statement says; docs/approximate.md says more."""

Setting = bool | int | Real | str | None


class Data(Part):
    """A data file, without saying what is in it."""

    items: Number
    """Count of items."""

    positions: Number
    """Count of labelled positions."""

    digest: Digest
    """Digest of the file, hex."""

    keyed: bool
    """Whether it is an HMAC-SHA256 under the issuer's key; else it is the file's sha256, which
    whoever guesses the file can compare."""


class Base(Part):
    """A folder that was read, such as that of the model that was to forget, or a single file."""

    files: Number
    """Count of files in the folder."""

    digest: Digest
    """Of a folder see `folder_digest`; of a file its sha256."""


class Work(Part):
    """What the method did."""

    steps: Count
    """Optimizer steps."""

    stopped: str
    """Why it ended before its last epoch, or `finished`."""

    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Wall-clock seconds."""

    peak_bytes: Count
    """Most memory that was in use: of the accelerator, or of the process."""

    notes: tuple[str, ...]
    """What the method left to say of its course, a sentence each."""


class Moments(Part):
    """When what happened, ISO 8601 in UTC."""

    started: Time
    """When the data had been read and the method began."""

    finished: Time
    """When its last step was done."""

    issued: Time
    """When the statement was made."""


class Approximation(Part):
    """The predicate: what was done, to which model, with which data, and what is known of it."""

    exactness: Literal["approximate"]
    """Never anything else: bytes are not those of a model without the items."""

    method: str
    """Name of the method."""

    source: str
    """Where the method is from."""

    settings: dict[str, Setting]
    """All settings, defaults included."""

    base: Base
    """The model that was to forget."""

    forget: Data
    """What it was to forget."""

    retain: Data | Literal["none"]
    """What it was to keep."""

    alternatives: Data | Literal["none"]
    """What it was to say instead."""

    holdout: Data | Literal["none"]
    """What no model ever saw, beside which membership is asked."""

    paraphrased: Data | Literal["none"]
    """What was to be forgotten, with the right answer in other words."""

    wrong: tuple[Data, ...]
    """What was to be forgotten, with a wrong answer, once for each of several."""

    retrained: Base | Literal["none"]
    """A model that never saw what is to be forgotten, which it is compared with."""

    brought: dict[str, Base]
    """What else the method read: logs, models, adapters and measurements, by name."""

    work: Work
    """What the method did."""

    environment: dict[str, Any]
    """Fingerprint of the environment."""

    version: str
    """Version of sisa."""

    times: Moments
    """When what happened."""

    evidence: Evidence
    """What was measured."""

    verdict: Verdict
    """`not evaluated` unless membership, relearning and quantisation were all evaluated."""

    outside: tuple[str, ...]
    """What this does not say."""

    @model_validator(mode="after")
    def _follows(self) -> Approximation:
        if self.verdict != self.evidence.verdict:
            raise ValueError("the verdict does not follow from the evidence")
        return self


class Statement(InToto):
    """An in-toto statement, version 1."""

    type_: Literal["https://in-toto.io/Statement/v1"] = Field(
        TYPE, alias="_type", description="Type of the statement."
    )
    subject: Annotated[tuple[Subject, ...], Field(min_length=1)]
    """The files of the model folder, by their sha256."""

    predicate_type: Literal["https://sisa-unlearning.org/approximate/v1"] = Field(
        PREDICATE, alias="predicateType", description="Type of the predicate."
    )
    predicate: Approximation
    """What was done and measured."""


def read(data: bytes, trusted: Trusted | None = None) -> Statement:
    """An approximate statement from its file.

    Args:
        data: Bytes of the file.
        trusted: Public keys, one of which must have signed it; None takes it unsigned, or signed by
            anybody.

    Raises:
        SignatureError: It is not signed by one of them, or was changed since.
        ExactnessError: It is no approximate statement, or is written in another way.
    """
    payload = _inner(data) if trusted is None else envelope.open_(data, PAYLOAD_TYPE, trusted)
    if (found := Statement.of(payload)) is not None:
        return found
    raise ExactnessError(
        "It is no approximate statement of this version.", "Use the sisa that wrote it."
    )


def is_one(data: bytes) -> bool:
    """Whether bytes claim to be an approximate statement of any version, signed or not."""
    try:
        found = json.loads(_inner(data))
        return str(found["predicateType"]).startswith(PREDICATE.rpartition("/")[0])
    except (ValueError, TypeError, LookupError, RecursionError):
        return False


def _inner(data: bytes) -> bytes:
    """What an envelope holds, its signature unchecked; other bytes as they are."""
    try:
        return base64.b64decode(json.loads(data)["payload"], validate=True)
    except (ValueError, TypeError, LookupError, RecursionError):
        return data


def subjects(folder: Path) -> tuple[Subject, ...]:
    """All files below a folder but the statement, by their sha256, in the order of their names."""
    return tuple(
        Subject(name=name, digest={"sha256": digest}) for name, digest in _files(folder).items()
    )


def differences(stated: Statement, folder: Path) -> list[str]:
    """Names of files that are not as stated: changed, missing, or added since."""
    there = _files(folder)
    said = {s.name: s.digest["sha256"] for s in stated.subject}
    return sorted(n for n in there.keys() | said.keys() if there.get(n) != said.get(n))


def base(folder: Path) -> Base:
    """What names a model folder, or a file."""
    if folder.is_file():
        return Base(files=1, digest=file_digest(folder))
    return Base(files=len(_files(folder)), digest=folder_digest(folder))


def folder_digest(folder: Path) -> str:
    """sha256 of the canonical JSON of {name: sha256} of all its files but a statement."""
    return sha256(canonical_json(_files(folder)))


def file_digest(path: Path, key: bytes | None = None) -> str:
    """sha256 of a file in hex, or its HMAC-SHA256 under a key."""
    with path.open("rb") as file:
        if key is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        made = hmac.new(key, digestmod="sha256")
        while chunk := file.read(1 << 20):
            made.update(chunk)
        return made.hexdigest()


def _files(folder: Path) -> Mapping[str, str]:
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    named = ((p.relative_to(folder).as_posix(), p) for p in paths)
    return {name: file_digest(path) for name, path in named if name != FILE}
