"""The JSON documents of all commands; each is what the Python call returns."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1

Severity = Literal["error", "warning", "info"]


class Result(BaseModel):
    """Base of all documents."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def document(self) -> dict[str, Any]:
        """As it is printed."""
        return {"schema_version": SCHEMA_VERSION, **self.model_dump(mode="json")}

    @property
    def exit_code(self) -> int:
        """What the command ends with."""
        return 0


class Initialised(Result):
    """`sisa init`."""

    workspace: str
    task: str
    target: str
    classes: tuple[int | str, ...]
    features: dict[str, str]


class Finding(Result):
    """One thing that `sisa doctor` found."""

    severity: Severity
    check: str
    message: str
    remedy: str


class Diagnosis(Result):
    """`sisa doctor`."""

    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """3 if anything would break the guarantee."""
        return 3 if any(f.severity == "error" for f in self.findings) else 0


class IngestResult(Result):
    """`sisa ingest`; all but the totals are of this call."""

    records: int
    subjects: int
    skipped: int
    tombstoned: int
    total_records: int
    partitions: int


class TrainResult(Result):
    """`sisa train`."""

    generation: int
    digest: str
    samples_trained: int
    samples_reused: int
    seconds: float
    voting: int
    failed_shards: tuple[int, ...]
    quorate: bool

    @property
    def exit_code(self) -> int:
        """6 if too few constituents vote."""
        return 0 if self.quorate else 6


class Evaluation(Result):
    """`sisa evaluate`: accuracy and log loss of a classification, rmse and mae of a regression."""

    generation: int
    records: int
    skipped_erased: int
    accuracy: float | None = None
    log_loss: float | None = None
    rmse: float | None = None
    mae: float | None = None

    def document(self) -> dict[str, Any]:
        """Without the metrics of the other task."""
        return {k: v for k, v in super().document().items() if v is not None}


class Predicted(Result):
    """`sisa predict`."""

    records: int
    generation: int
    digest: str
    out: str


class Forgotten(Result):
    """`sisa forget`."""

    request_id: str | None
    status: Literal["planned", "accepted", "blocked", "certified", "not_found"]
    records_erased: int
    shards_affected: tuple[int, ...]
    accepted_seconds: float | None
    rolled_back_seconds: float | None
    samples_trained: int
    samples_full: int
    generation: int | None
    digest: str | None
    certificate: str | None
    not_found: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """75 if another process is writing: the request is accepted, and waits."""
        return 75 if self.status == "blocked" else 0


class RequestState(Result):
    """An erasure request."""

    id: str
    status: str
    received: str
    due: str
    records: int
    shards_affected: tuple[int, ...]
    certificate: str | None


class Worked(Result):
    """`sisa work`: the requests that it finished."""

    requests: tuple[RequestState, ...]
    samples_trained: int
    generation: int | None
    digest: str | None


class Check(Result):
    """One check of `sisa verify`; `passed` is null where nothing can be said."""

    name: str
    passed: bool | None
    detail: str


class ShardReplay(Result):
    """A shard trained again: its digest as served, and as it came out."""

    shard: int
    digest: str | None
    replay_digest: str | None
    comparable: bool
    detail: str


class Verified(Result):
    """`sisa verify`."""

    exact: bool | None
    generation: int
    digest: str
    checks: tuple[Check, ...]
    shards: tuple[ShardReplay, ...]
    replayed: bool

    @property
    def exit_code(self) -> int:
        """4 if exactness is disproved, 6 if something could not be compared."""
        if any(c.passed is False for c in self.checks):
            return 4
        return 6 if any(c.passed is None for c in self.checks) else 0


class LineageRecord(Result):
    """Where one record sits and came from; keys are keyed hashes in hex."""

    record_key: str
    subject_key: str
    shard: int
    slice: int
    source: str | None
    row: int | None


class LineageStage(Result):
    """A stage of the current chain that has seen a record of the subject."""

    shard: int
    slice: int
    key: str


class LineageResult(Result):
    """`sisa lineage`."""

    records: tuple[LineageRecord, ...]
    stages: tuple[LineageStage, ...]
    generations: tuple[int, ...]
    erased: bool
    status: str | None
    certificate: str | None


class Planned(Result):
    """`sisa plan`: what an erasure will cost."""

    records: int
    shards_affected: tuple[int, ...]
    stages: int
    samples: int
    samples_full: int
    seconds: float
    not_found: tuple[str, ...]


class Status(Result):
    """`sisa status`."""

    workspace: str
    generation: int | None
    digest: str | None
    reason: str | None
    voting: int
    shards: int
    depth: float
    quorate: bool
    records: int
    partitions: int
    requests: tuple[RequestState, ...]
    certificate_head: str | None
    outbox: int


class HistoryEntry(Result):
    """A generation; once retired, number, digest, time and reason are all that is kept."""

    number: int
    digest: str
    time: str
    reason: str
    current: bool
    retired: bool


class History(Result):
    """`sisa history`."""

    generations: tuple[HistoryEntry, ...]
