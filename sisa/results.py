"""The JSON documents of all commands; each is what the Python call returns.

The first words of a document's docstring name its command, and the text below a field describes it:
`sisa.schemas` publishes both.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from sisa.statement import Statement

SCHEMA_VERSION = 1

Severity = Literal["error", "warning", "info"]


class Result(BaseModel):
    """Base of all documents."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    either: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Groups of fields of which one is printed; those of the others are null, and left out."""

    def document(self) -> dict[str, Any]:
        """As it is printed."""
        found = {"schema_version": SCHEMA_VERSION, **self.model_dump(mode="json", by_alias=True)}
        absent = {name for group in self.either for name in group if found[name] is None}
        return {name: value for name, value in found.items() if name not in absent}

    def brief(self) -> dict[str, Any]:
        """What is printed of it as text."""
        return self.document()

    @property
    def exit_code(self) -> int:
        """What the command ends with."""
        return 0

    def text(self) -> str | None:
        """As it is printed without `--output json`; None for its fields in their order."""
        return None


class Fault(Result):
    """An error."""

    code: str
    """Kind of the error, such as `configuration` or `busy`; each kind has one exit code."""

    message: str
    """What is wrong, in one sentence."""

    remedy: str
    """What to do, or empty."""


class Failed(Result):
    """What every command prints with `--output json` in place of its document if it fails."""

    error: Fault
    """The error."""


class Initialised(Result):
    """`sisa init`."""

    workspace: str
    """Folder of the workspace, absolute."""

    task: str
    """`classification` or `regression`."""

    target: str
    """Column to predict."""

    classes: tuple[int | str, ...]
    """Target values in the order of the model's outputs; empty for a regression."""

    features: dict[str, str]
    """Declared type of each feature column, by name."""


class Finding(Result):
    """One thing that `sisa doctor` found."""

    severity: Severity
    """`error` breaks the guarantee, `warning` weakens it or costs accuracy, `info` is good to
    know."""

    check: str
    """Name of the check that found it."""

    message: str
    """What is wrong, without any id."""

    remedy: str
    """What to do."""


class Diagnosis(Result):
    """`sisa doctor`."""

    findings: tuple[Finding, ...]
    """All findings, the worst first; empty if nothing is wrong."""

    mirror: Literal["none", "local", "database", "folder", "server"]
    """Where MLflow's rows are: nowhere, in a local file, in a database where they can be dropped,
    or behind a server that drops none."""

    @property
    def exit_code(self) -> int:
        """3 if anything would break the guarantee."""
        return 3 if any(f.severity == "error" for f in self.findings) else 0


class IngestResult(Result):
    """`sisa ingest`; all but the totals are of this call, `append` is the append's number."""

    records: int
    """Count of records that this call took in."""

    corrected: int
    """Count of stored records that took another row."""

    subjects: int
    """Count of data subjects among the records that this call took in."""

    skipped: int
    """Count of rows that were stored already, as they are."""

    tombstoned: int
    """Count of rows left out because their record or subject is erased."""

    append: int | None
    """Number of this append, from 1; null without `--append`."""

    total_records: int
    """Count of records in the store after this call."""

    partitions: int
    """Count of partitions in the store after this call."""


class TrainResult(Result):
    """`sisa train`."""

    generation: int
    """Number of the current generation."""

    digest: str
    """Its digest, sha256 in hex."""

    samples_trained: int
    """Samples that this call visited: a record counts once per epoch in which it takes part."""

    samples_reused: int
    """Samples of stages that were stored already."""

    seconds: float
    """Wall-clock seconds of the build."""

    voting: int
    """Count of constituents that vote."""

    failed_shards: tuple[int, ...]
    """Shards whose training failed deterministically."""

    quorate: bool
    """Whether enough constituents vote for predictions."""

    @property
    def exit_code(self) -> int:
        """6 if too few constituents vote."""
        return 0 if self.quorate else 6


class Evaluation(Result):
    """`sisa evaluate`: accuracy and log loss of a classification, rmse and mae of a regression."""

    either: ClassVar[tuple[tuple[str, ...], ...]] = (("accuracy", "log_loss"), ("rmse", "mae"))

    generation: int
    """Number of the generation that was evaluated."""

    records: int
    """Count of records that the metrics are over."""

    skipped_erased: int
    """Count of rows left out because their record or subject is erased."""

    accuracy: float | None = None
    """Share of right predictions, 0 to 1; of a classification only."""

    log_loss: float | None = None
    """Mean negative log likelihood of the true class, in nats; of a classification only."""

    rmse: float | None = None
    """Root mean squared error, in the target's unit; of a regression only."""

    mae: float | None = None
    """Mean absolute error, in the target's unit; of a regression only."""


class Predicted(Result):
    """`sisa predict`."""

    records: int
    """Count of rows predicted."""

    generation: int
    """Number of the generation that predicted them."""

    digest: str
    """Its digest, sha256 in hex."""

    out: str
    """File that they were written to."""


class Forgotten(Result):
    """`sisa forget`."""

    request_id: str | None
    """Id of the erasure request; null for a dry run, or if nothing was to be erased."""

    status: Literal["planned", "accepted", "blocked", "certified", "not_found", "on_hold"]
    """`certified` is done, `accepted` is rolled back and waits for `sisa work`, `blocked` waits
    for another process, `on_hold` waits for its release, `planned` is a dry run, `not_found` means
    that no id is known."""

    records_erased: int
    """Count of records that the request covers."""

    shards_affected: tuple[int, ...]
    """Shards that hold such a record, from 0."""

    accepted_seconds: float | None
    """Seconds from entering the command to the request being durable; null if nothing was
    accepted."""

    rolled_back_seconds: float | None
    """Seconds from entering the command until serving no longer had the influence; null if nothing
    was rolled back."""

    samples_trained: int
    """Samples that retraining visited, or would visit in a dry run; a record counts once per
    epoch."""

    samples_full: int
    """Samples that retraining everything would visit."""

    generation: int | None
    """Number of the generation that is current now; null in a dry run or before the first
    training."""

    digest: str | None
    """Its digest, sha256 in hex; null like the generation."""

    certificate: str | None
    """Path of the certificate; null until there is one."""

    not_found: tuple[str, ...]
    """Ids of the call that are not known, as they were given; stored nowhere."""

    @property
    def exit_code(self) -> int:
        """75 if another process is writing: the request is accepted, and waits."""
        return 75 if self.status == "blocked" else 0


class RequestState(Result):
    """An erasure request."""

    id: str
    """Id of the request."""

    external_id: str | None
    """Its name in the system that it came from; null if it has none."""

    status: str
    """Where it stands: `accepted`, `published` or `certified`, `on_hold` or `blocked` if something
    keeps an open one from going on, or `duplicate`, `not_found`, `cancelled`, `denied`."""

    regulation: str | None
    """What it is made under; null if that was not said."""

    received: str
    """When it was received, ISO 8601 in UTC."""

    due: str
    """When it is due, ISO 8601 in UTC."""

    overdue: bool
    """Whether it is open and past due."""

    records: int
    """Count of records that its ids stood for."""

    shards_affected: tuple[int, ...]
    """Shards that hold such a record, from 0."""

    hold: str | None
    """Why its records must not be destroyed yet; null if it is not on hold."""

    blocked: str | None
    """What keeps it from being certified; null if nothing does."""

    retry: str | None
    """When that is worth another try, ISO 8601 in UTC; null if nothing keeps it."""

    reason: str | None
    """Why it was cancelled or denied; null otherwise."""

    duplicate_of: str | None
    """Id of the request that erases the same already; null if it is no duplicate."""

    certificate: str | None
    """Path of its certificate; null until there is one."""


class Submitted(Result):
    """`sisa request submit`."""

    status: Literal["planned", "accepted"]
    """`accepted` if the requests are durable, `planned` in a dry run."""

    requests: tuple[RequestState, ...]
    """The request of each submission, in their order; empty in a dry run."""

    accepted: int
    """Count of requests that this call made and that are to be carried out."""

    duplicates: int
    """Count of requests that this call made and that erase nothing more."""

    known: int
    """Count of submissions that were answered with a request there was."""

    records: int
    """Count of records that the accepted requests stand for."""

    shards_affected: tuple[int, ...]
    """Shards that hold such a record, from 0."""

    accepted_seconds: float | None
    """Seconds from entering the command to the requests being durable; null in a dry run."""

    rolled_back_seconds: float | None
    """Seconds from entering the command until serving no longer had the influence; null in a dry
    run."""

    generation: int | None
    """Number of the current generation; null in a dry run or before the first training."""

    digest: str | None
    """Its digest, sha256 in hex; null like the generation."""

    not_found: tuple[str, ...]
    """Ids of the call that are not known, as they were given; stored nowhere."""


class Requests(Result):
    """`sisa request list`."""

    requests: tuple[RequestState, ...]
    """The requests, the oldest first."""


class RequestEvent(Result):
    """Something that happened to a request."""

    time: str
    """When, ISO 8601 in UTC."""

    what: str
    """A status that it came to, or `held`, `released`, `readmitted`, `reopened`."""


class RequestPlace(Result):
    """A shard that a request touches."""

    shard: int
    """The shard, from 0."""

    first_slice: int
    """The first slice of it that is touched, from 1."""


class RequestStep(Result):
    """A step of an erasure."""

    name: Literal["rolled_back", "rebuilt", "rewritten", "purged", "certified"]
    """The step."""

    done: bool
    """Whether it is done, by what exists now."""


class RequestShown(Result):
    """`sisa request show`."""

    request: RequestState
    """The request."""

    events: tuple[RequestEvent, ...]
    """What happened to it, the oldest first."""

    places: tuple[RequestPlace, ...]
    """The shards that it touches."""

    generation_before: int | None
    """Number of the generation at its acceptance; null if there was none."""

    steps: tuple[RequestStep, ...]
    """The steps of its erasure in their order; empty if there is nothing to be carried out."""

    waits_for: tuple[str, ...]
    """Ids of requests on hold that name some of the same records, so that these stay."""


class RequestHeld(Result):
    """`sisa request hold`."""

    request: RequestState
    """The request as it is now."""


class RequestReleased(Result):
    """`sisa request release`."""

    request: RequestState
    """The request as it is now."""


class RequestCancelled(Result):
    """`sisa request cancel`."""

    request: RequestState
    """The request as it is now."""

    standing: tuple[str, ...]
    """Ids of requests that were duplicates of it and are to be carried out themselves now."""

    samples_trained: int
    """Samples that this call visited; 0 if the checkpoints of before were all there."""

    generation: int | None
    """Number of the current generation; null before the first training."""

    digest: str | None
    """Its digest, sha256 in hex; null like the generation."""


class Readmitted(Result):
    """`sisa request readmit`."""

    readmitted: int
    """Count of ids that may be ingested again."""

    not_found: tuple[str, ...]
    """Ids of the call that were not erased, as they were given; stored nowhere."""


class Worked(Result):
    """`sisa work`: the requests that it finished."""

    requests: tuple[RequestState, ...]
    """Requests that this call finished."""

    waiting: tuple[RequestState, ...]
    """Requests that are still open, such as those on hold."""

    samples_trained: int
    """Samples that this call visited."""
    samples_full: int
    """Samples that training everything would visit; 0 if nothing was finished."""

    generation: int | None
    """Number of the current generation; null before the first training."""

    digest: str | None
    """Its digest, sha256 in hex; null like the generation."""

    rounds: int | None = None
    """Count of rounds; null without `--every`."""

    interrupted: bool = False
    """Whether rounds ended because of a signal: the next call goes on."""

    blocked: str | None = None
    """What keeps requests from being certified, all else of them being done; null if nothing."""

    @property
    def exit_code(self) -> int:
        """130 if it was interrupted, 75 if requests are blocked."""
        return 130 if self.interrupted else 75 if self.blocked else 0


class Check(Result):
    """One check of `sisa verify`; `passed` is null where nothing can be said."""

    name: str
    """Name of the check."""

    passed: bool | None
    """Whether it passed; null where nothing can be said."""

    detail: str
    """What was found, in a sentence."""


class ShardReplay(Result):
    """A shard trained again: its digest as served, and as it came out."""

    shard: int
    """The shard, from 0."""

    digest: str | None
    """Tensors digest as served, sha256 in hex; null if no stage is served."""

    replay_digest: str | None
    """Tensors digest of the replay, sha256 in hex; null if it came to none."""

    comparable: bool
    """Whether both were trained in the same environment."""

    detail: str
    """The outcome, in a few words."""


class ResidueHit(Result):
    """Something that an erasure must not leave."""

    where: str
    """Where it is, from the name of a place on; names that hold it themselves are withheld."""

    kind: str
    """What it is a form of, such as `id`, `key`, `row key`, `row digest`, `value`, `text`."""


class Residue(Result):
    """What a search for residue found."""

    files: int
    """Count of files that were searched."""

    bytes: int
    """Their size."""

    decoded: dict[str, int]
    """Count of contents that were decoded, by format, nested ones included."""

    opaque: int
    """Count of contents of no known format, searched as they are."""

    undecodable: tuple[str, ...]
    """Names of what could not be read or decoded to its end."""

    refused: tuple[str, ...]
    """Names of what came to too many bytes, or was nested too deep."""

    hits: tuple[ResidueHit, ...]
    """What was found in places of the system."""

    elsewhere: tuple[ResidueHit, ...]
    """What was found in other files of the workspace."""

    expected: int
    """In how many places of the ledger keys of open requests are, as they must be."""

    controls: dict[str, bool]
    """Whether each positive control was found."""

    valid: bool
    """Whether all of them were: otherwise nothing follows from finding nothing."""

    sought: dict[str, int]
    """How many forms were looked for, by kind."""

    short: int
    """How many ids and texts were too short to be looked for."""

    legitimate: int
    """How many ids, keys and values were not looked for because they occur in what stays."""

    digest: str
    """sha256 of the outcome, hex."""


class Verified(Result):
    """`sisa verify`."""

    exact: bool | None
    """Whether every bit is what training on the stored data gives; null if that was not, or could
    not be, shown."""

    generation: int
    """Number of the generation that was verified."""

    digest: str
    """Its digest, sha256 in hex."""

    checks: tuple[Check, ...]
    """All checks, in the order in which they ran."""

    shards: tuple[ShardReplay, ...]
    """Shards that were trained again; empty without a replay."""

    replayed: bool
    """Whether anything was trained again."""

    residue: Residue | None = None
    """What was searched for residue and found; null without `--residue`."""

    @property
    def exit_code(self) -> int:
        """4 if exactness is disproved or residue is found, 6 if something could not be compared."""
        if any(c.passed is False for c in self.checks):
            return 4
        if self.residue is not None and not self.residue.valid:
            return 6
        # what could not be decoded is listed; it does not make the search invalid
        return 6 if any(c.passed is None for c in self.checks if c.name != "residue") else 0


class LineageRecord(Result):
    """Where one record sits and came from; keys are keyed hashes in hex."""

    record_key: str
    """Keyed hash of the record's id, hex."""

    subject_key: str
    """Keyed hash of the subject's id, hex."""

    shard: int
    """Its shard, from 0."""

    slice: int
    """Its slice, from 1."""

    source: str | None
    """File that it was ingested from; null if the journal does not say."""

    row: int | None
    """Position of its row in that file, from 0; null like the source."""


class LineageStage(Result):
    """A stage of the current chain that has seen a record of the subject."""

    shard: int
    """The shard, from 0."""

    slice: int
    """The slice, from 1."""

    key: str
    """Stage key, hex."""


class LineageResult(Result):
    """`sisa lineage`."""

    records: tuple[LineageRecord, ...]
    """Stored records of the subject, or the one record."""

    stages: tuple[LineageStage, ...]
    """Stages of the current chain that have seen one of them."""

    generations: tuple[int, ...]
    """Numbers of generations that hold such a stage."""

    erased: bool
    """Whether the subject or record is erased."""

    status: str | None
    """Status of the erasure request; null without one."""

    certificate: str | None
    """Path of its certificate; null until there is one."""


class Price(Result):
    """What some training costs."""

    samples: int
    """Samples that it visits; a record counts once per epoch."""

    seconds: float
    """Estimated wall-clock seconds."""


class Waiting(Result):
    """What it saves to carry out the open requests and the ids of a call together."""

    open: Price
    """The open requests, carried out now."""

    alone: Price
    """The ids of the call, as if nothing else were open."""

    together: Price
    """All of them at once."""

    one_after_other: Price
    """The open requests first, the ids of the call after that."""

    saved_by_waiting: Price
    """One after the other, less together."""


class WindowState(Result):
    """Until when open requests wait for more."""

    opens: str
    """When the oldest of them was accepted, ISO 8601 in UTC."""

    closes: str
    """When a service or `sisa work --every` carries them out, ISO 8601 in UTC."""

    reason: Literal["unfinished", "due", "max_wait", "depth", "quorum", "retry"]
    """What closes it: a due date less what carrying out takes, the longest wait, too much that is
    rolled back, a quorum in danger, something that was begun, or another try of what is blocked."""

    requests: tuple[str, ...]
    """Ids of the requests, the oldest first; none that is on hold."""


class Choice(Result):
    """Numbers of shards and slices, and what erasures at a rate would cost with them."""

    shards: int
    """Number of shards."""

    slices: int
    """Number of slices of a shard."""

    samples: float
    """Samples a day that retraining is expected to visit."""

    seconds: float
    """Seconds a day that one worker is expected to train; 0 if nothing was ever trained."""

    steps: int
    """About how many optimizer steps a first stage takes: under 20 it costs accuracy and time."""

    present: bool
    """Whether it is what the recipe has."""


class Round(Result):
    """One round of `sisa work --every`: a line of what it prints before its document."""

    round: int
    """Number of the round, from 1."""

    time: str
    """When it ended, ISO 8601 in UTC."""

    state: Literal["idle", "waiting", "worked", "failed"]
    """`idle` if nothing is open, `waiting` until the window closes, `worked` if requests were
    finished, `failed` if it is tried again in the next round."""

    requests: tuple[RequestState, ...] = ()
    """Requests that it finished."""

    waiting: tuple[RequestState, ...] = ()
    """Requests that are open when it ends, those on hold included."""

    samples_trained: int = 0
    """Samples that it visited."""

    samples_full: int = 0
    """Samples that training everything would visit; 0 if nothing was finished."""

    generation: int | None = None
    """Number of the current generation; null before the first training or if the round failed."""

    digest: str | None = None
    """Its digest, sha256 in hex; null like the generation."""

    window: WindowState | None = None
    """The window of what is still open; null if nothing is."""

    error: Fault | None = None
    """Why the round failed; null if it did not."""


class Planned(Result):
    """`sisa plan`: what an erasure will cost, or with `--rate` what a day of them will."""

    either: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("records", "shards_affected", "stages", "samples", "seconds", "not_found", "waiting"),
        (
            "rate",
            "requests_per_batch",
            "samples_per_day",
            "seconds_per_day",
            "best",
            "choices",
        ),
    )

    records: int | None = None
    """Count of records that would be erased."""

    shards_affected: tuple[int, ...] | None = None
    """Shards that hold such a record, from 0."""

    stages: int | None = None
    """Count of stages that would be trained again."""

    samples: int | None = None
    """Samples that retraining would visit, what is open already included; a record counts once per
    epoch."""

    seconds: float | None = None
    """Estimated wall-clock seconds of retraining."""

    not_found: tuple[str, ...] | None = None
    """Ids of the call that are not known, as they were given."""

    waiting: Waiting | None = None
    """What waiting for each other saves."""

    rate: float | None = None
    """Requests a day."""

    requests_per_batch: float | None = None
    """Mean number of requests that are carried out together."""

    samples_per_day: float | None = None
    """Samples a day that retraining is expected to visit, with the shards and slices there are."""

    seconds_per_day: float | None = None
    """Seconds a day that one worker is expected to train."""

    best: Choice | None = None
    """The choice that costs least."""

    choices: tuple[Choice, ...] | None = None
    """Choices whose stages are not too small, and the present one; the cheapest first."""

    samples_full: int
    """Samples that retraining everything would visit."""

    window: WindowState | None = None
    """The window of the requests that are open now; null if none is."""


class Status(Result):
    """`sisa status`."""

    workspace: str
    """Folder of the workspace, absolute."""

    generation: int | None
    """Number of the current generation; null before the first training."""

    digest: str | None
    """Its digest, sha256 in hex; null like the generation."""

    reason: str | None
    """Why it was published: `train`, `erasure`, `roll-back` or `cancelled`; null like the
    generation."""

    voting: int
    """Count of constituents that vote."""

    shards: int
    """Count of shards of the recipe."""

    depth: float
    """Mean share of its stages that a served constituent has, 0 to 1."""

    quorate: bool
    """Whether enough constituents vote for predictions."""

    records: int
    """Count of records in the store."""

    partitions: int
    """Count of partitions in the store."""

    requests: tuple[RequestState, ...]
    """All erasure requests, the oldest first."""

    certificate_head: str | None
    """sha256 of the last certificate, hex; null before the first."""

    outbox: int
    """Count of generations that MLflow has not been told of yet."""


class HistoryEntry(Result):
    """A generation; once retired, number, digest, time and reason are all that is kept."""

    number: int
    """Number of the generation, from 1."""

    digest: str
    """Its digest, sha256 in hex."""

    time: str
    """When it was published, ISO 8601 in UTC."""

    reason: str
    """Why: `train`, `erasure`, `roll-back` or `cancelled`."""

    current: bool
    """Whether it is the current one."""

    retired: bool
    """Whether its manifest is destroyed."""


class History(Result):
    """`sisa history`."""

    generations: tuple[HistoryEntry, ...]
    """All generations, the oldest first."""


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


class Epoch(Result):
    """A live tombstone epoch."""

    number: int
    """Its number, from 1."""

    opened: str
    """When it was opened, ISO 8601 in UTC."""

    closed: str | None
    """When another one followed it; null for the one that new tombstones are made under."""

    over: str | None
    """From when on its key may be destroyed: `runtime.erasure.backups` later."""

    tombstones: int
    """Count of its tombstones."""

    waiting: int
    """Count of those that open requests made; while there is one, it is kept."""


class KeysShown(Result):
    """`sisa keys list`."""

    signing_key: str
    """Id of the key that certificates and the log are signed with: sha256 of the public half."""

    trusted: tuple[str, ...]
    """Ids of all keys whose signature counts, former ones included."""

    epochs: tuple[Epoch, ...]
    """Live tombstone epochs, the last one is the open one."""


class KeysRotated(Result):
    """`sisa keys rotate`: of tombstone epochs or, with `--signing`, of the signing key."""

    either: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("epoch", "destroyed", "epochs"),
        ("signing_key", "former_signing_key", "public_key", "former_public_key"),
    )

    epoch: int | None = None
    """Number of the epoch that new tombstones are made under from now on."""

    destroyed: tuple[int, ...] | None = None
    """Numbers of the epochs whose keys are destroyed: their tombstones mean nothing any more."""

    epochs: tuple[Epoch, ...] | None = None
    """The live epochs."""

    signing_key: str | None = None
    """Id of the key that certificates are signed with from now on: sha256 of the public half."""

    former_signing_key: str | None = None
    """Id of the one before."""

    public_key: str | None = None
    """File of the new public half."""

    former_public_key: str | None = None
    """File of the former public half, which older certificates are checked with."""


class MethodShown(Result):
    """A method of approximate unlearning."""

    name: str
    """As `sisa unlearn` takes it."""

    kind: Literal["objective", "edit"]
    """Steps of an optimizer on an objective, or one edit of the parameters."""

    needs: tuple[str, ...]
    """What it needs besides the model and the forget items."""

    cost: str
    """What it costs beside one forward and backward of the forget items."""

    defaults: dict[str, bool | int | float | str | None]
    """Its own settings as its authors give them."""

    source: str
    """Where it is from."""


class MethodsListed(Result):
    """`sisa unlearn list`."""

    methods: tuple[MethodShown, ...]
    """All methods of approximate unlearning."""

    def text(self) -> str:
        """A paragraph a method."""
        return "\n".join(
            f"{m.name}\n"
            f"  needs     {'; '.join(m.needs) or 'nothing more'}\n"
            f"  costs     {m.cost}\n"
            f"  settings  {', '.join(f'{k}={v}' for k, v in m.defaults.items()) or '-'}\n"
            f"  from      {m.source}\n"
            for m in self.methods
        )


class Unlearned(Result):
    """`sisa unlearn`: approximate, whatever the method."""

    status: Literal["planned", "written"]
    """`planned` is a dry run."""

    exactness: Literal["approximate"]
    """Never anything else."""

    method: str
    """Name of the method."""

    settings: dict[str, bool | int | float | str | None]
    """All settings, defaults included."""

    forget_items: int
    """Count of items to forget."""

    forget_positions: int
    """Count of their labelled positions."""

    retain_items: int
    """Count of items to keep; 0 without a retain file."""

    retain_positions: int
    """Count of their labelled positions."""

    steps: int
    """Optimizer steps that were made, or would be at most."""

    stopped: str | None
    """Why it ended before its last epoch; null if it did not, or in a dry run."""

    seconds: float | None
    """Wall-clock seconds of the method; null in a dry run."""

    peak_bytes: int | None
    """Most memory in use; null in a dry run."""

    out: str
    """The model folder."""

    statement: str | None
    """File of the approximate statement; null in a dry run."""

    sha256: str | None
    """Its sha256, hex; null in a dry run."""

    key: str | None
    """Id of the key that signed it; null if it is not signed."""

    verdict: Literal["not evaluated", "evaluated"]
    """`not evaluated` unless membership, relearning and quantisation were all evaluated."""

    evidence: dict[str, Any]
    """What was measured, part by part, as in the statement; each is there whole, or is
    `not evaluated`."""

    run: str | None
    """Id of the run in MLflow; null if none was logged."""

    warnings: tuple[str, ...]
    """What to know, a sentence each."""


class AfterRequest(Result):
    """One request of a sequence, and what the model says after it."""

    unlearned: Unlearned
    """What was done."""

    forgotten: tuple[float, ...]
    """Mean probability, 0 to 1, of the items of each request so far, the first one first."""

    kept: float | None
    """Mean probability of the items to keep; null without a retain file."""


class UnlearnedInTurn(Result):
    """`sisa unlearn sequence`: requests one after the other; approximate, whatever the method."""

    status: Literal["planned", "written"]
    """`planned` is a dry run."""

    exactness: Literal["approximate"]
    """Never anything else."""

    out: str
    """The folder with a model folder for each request."""

    requests: tuple[AfterRequest, ...]
    """The requests in their order; empty in a dry run."""
