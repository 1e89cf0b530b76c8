"""What a certificate says: an in-toto statement about an erasure, and how its bytes are read.

https://github.com/in-toto/attestation/tree/main/spec/v1. Nothing here needs a workspace.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from data_index import envelope
from data_index.envelope import Signer
from data_index.storage import canonical_json, sha256
from sisa.errors import ExactnessError
from sisa.signing_keys import Trusted

PAYLOAD_TYPE = "application/vnd.in-toto+json"
TYPE: Literal["https://in-toto.io/Statement/v1"] = "https://in-toto.io/Statement/v1"
PREDICATE: Literal["https://sisa-unlearning.org/erasure/v1"] = (
    "https://sisa-unlearning.org/erasure/v1"
)

OUTSIDE = (
    "backups and copies outside the store",
    "the source tables",
    "what was derived from predictions",
    "the choice of the recipe",
    "blocks of storage media that were freed and not written over",
)
"""What an erasure does not reach; docs/threat-model.md says more."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Number = Annotated[int, Field(ge=1)]
Time = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00$")]


class Part(BaseModel):
    """Base of all parts of a statement: nothing unknown in it, and no value of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)


class Subject(Part):
    """A file that the certificate vouches for."""

    name: str
    """What it is: the data set, a generation, or the checkpoint of a slice of a shard."""

    digest: dict[Literal["sha256"], Digest]
    """Its sha256, hex."""


class Touched(Part):
    """A shard that held an erased record."""

    shard: Count
    """The shard, from 0."""

    first_slice: Number
    """Its earliest slice that held one: what was trained from there on is destroyed."""


class Rows(Part):
    """The rows of a partition, without saying what is in them."""

    rows: Count
    """Count of rows."""

    digest: Digest
    """Keyed digest of the rows, hex; who has not the workspace's secret cannot guess rows by it."""


class PartitionChange(Part):
    """A partition that held an erased record."""

    shard: Count
    """The shard, from 0."""

    slice: Number
    """The slice, from 1."""

    erased: Number
    """Count of its rows that the request names."""

    before: Rows
    """Its rows when the request was accepted."""

    after: Rows | None
    """Its rows when the certificate was issued; null if none is left."""


class Ensemble(Part):
    """The generation that was published without the erased records."""

    number: Number
    """Its number."""

    digest: Digest
    """Its digest, which `sisa status` shows and another workspace without the records gets too."""

    manifest: Digest
    """sha256 of its manifest."""

    training_digest: Digest
    """Digest of the recipe and of the learner's code."""


class RebuiltStage(Part):
    """A stage of that generation that stands where the erased records had been."""

    shard: Count
    """The shard, from 0."""

    slice: Number
    """The slice, from 1."""

    key: Digest
    """Stage key: digest of its parent's key, of its slice's rows and of the recipe."""

    tensors: Digest
    """Digest of its tensors."""

    checkpoint: Digest | None
    """sha256 of its checkpoint; null if it was not kept."""

    environment: Digest | None
    """Which of `environments` it was trained in; null if that is not known."""


class Times(Part):
    """When what happened, ISO 8601 in UTC."""

    received: Time
    """When the request came in."""

    due: Time
    """When it was due."""

    accepted: Time
    """When it was durable, and serving had lost the influence of its records."""

    published: Time | None
    """When the rebuilt generation was current; null if nothing was ever trained."""

    purged: Time
    """When what descends from the records was destroyed."""

    issued: Time
    """When this certificate was signed."""


class Replayed(Part):
    """A shard that was trained again before the certificate was issued."""

    shard: Count
    """The shard, from 0."""

    digest: Digest | None
    """Tensors digest as published; null if no stage is served."""

    replay_digest: Digest | None
    """Tensors digest as it came out again; null if it came to none."""

    equal: bool | None
    """True if every stage came out bit for bit; null where environments cannot be compared."""

    detail: str
    """The outcome, in a few words."""


class Erasure(Part):
    """The predicate: what was erased, rebuilt and destroyed."""

    request: Annotated[str, Field(pattern=r"^er_[0-9a-f]{32}$")]
    """Random id of the erasure request."""

    sequence: Number
    """Place of the certificate in the workspace's chain, from 1."""

    previous: Digest | None
    """sha256 of the certificate before it in the chain, as a file; null for the first."""

    exactness: Literal["bitwise"]
    """What equality means: every byte of the ensemble, as if the records had never been there."""

    records_erased: Count
    """Count of records that the request named."""

    shards: tuple[Touched, ...]
    """Shards that held such a record."""

    partitions: tuple[PartitionChange, ...]
    """Partitions that held such a record, before and after."""

    dataset: Digest
    """sha256 of the manifest of the data set without the records."""

    generation_before: Number | None
    """Number of the generation that was current at acceptance; null before the first training."""

    generation: Ensemble | None
    """The generation that was published without the records; null if nothing was ever trained."""

    stages: tuple[RebuiltStage, ...]
    """Its stages that stand where the records had been."""

    environments: dict[Digest, dict[str, Any]]
    """Fingerprints of the environments that they were trained in, by digest."""

    files_destroyed: dict[str, Count]
    """Count of files that the purge destroyed, by the folder of the store that they lay in."""

    mirror: dict[str, Any] | None
    """What the purge of the MLflow mirror came to; null if none was asked for."""

    residue: dict[str, Any] | None
    """Digest and outcome of the search for what might be left; null if there was none."""

    times: Times
    """When what happened."""

    replay: Literal["none", "sample", "all"]
    """Which of the shards were trained again to show exactness: none, one, or all."""

    replayed: tuple[Replayed, ...]
    """Those that were."""

    outside: tuple[str, ...]
    """What the guarantee does not cover."""


class InToto(Part):
    """What statements of in-toto have in common: their bytes, and how these are signed and read."""

    @property
    def payload(self) -> bytes:
        """The bytes that are written, or signed."""
        return canonical_json(self.model_dump(mode="json", by_alias=True))

    def signed(self, signer: Signer) -> bytes:
        """An envelope with the statement."""
        return envelope.sign(PAYLOAD_TYPE, self.payload, signer)

    @classmethod
    def of(cls, payload: bytes) -> Self | None:
        """The statement of a payload; None if it is another, or written in another way."""
        try:
            found = cls.model_validate_json(payload)
        except ValueError:
            return None
        return found if found.payload == payload else None


class Statement(InToto):
    """An in-toto statement, version 1."""

    type_: Literal["https://in-toto.io/Statement/v1"] = Field(
        TYPE, alias="_type", description="Type of the statement."
    )
    subject: Annotated[tuple[Subject, ...], Field(min_length=1)]
    """Data set, generation and rebuilt checkpoints, by the sha256 of their files."""

    predicate_type: Literal["https://sisa-unlearning.org/erasure/v1"] = Field(
        PREDICATE, alias="predicateType", description="Type of the predicate."
    )
    predicate: Erasure
    """What was erased, rebuilt and destroyed."""


def parse(payload: bytes) -> Statement:
    """A statement from what was signed.

    Raises:
        ExactnessError: It is no such statement, or is written in another way.
    """
    if (found := Statement.of(payload)) is not None:
        return found
    raise ExactnessError(
        "It states something else than an erasure of this version.",
        "Use the sisa that issued it.",
    )


def read(certificate: bytes, trusted: Trusted) -> Statement:
    """The statement of a certificate.

    Args:
        certificate: Bytes of the file.
        trusted: Public keys whose signature counts.

    Raises:
        SignatureError: It is not signed by one of them, or was changed since.
        ExactnessError: It is another statement.
    """
    return parse(envelope.open_(certificate, PAYLOAD_TYPE, trusted))


def environment_digest(fingerprint: dict[str, Any]) -> str:
    """Name of an environment: sha256 of the canonical JSON of its fingerprint."""
    return sha256(canonical_json(fingerprint))
