"""The JSON document of `sisa report`; see `sisa.results` for what all documents share."""

from __future__ import annotations

from typing import Any, Literal

from sisa.results import Check, Epoch, Finding, Result


class Verdict(Result):
    """What a reader in a hurry should know."""

    state: Literal["sound", "attention", "overdue", "failed"]
    """`failed`: something is not as promised; `overdue`: a request is past due; `attention`:
    nothing failed, but something is open or could not be looked at; `sound`: none of these."""

    headline: str
    """The state in one sentence."""

    sentences: tuple[str, ...]
    """What is served, what is open, whether the checks passed, what was replayed."""


class Environment(Result):
    """An environment that served stages were trained in."""

    stages: int
    """Count of served stages that were trained in it."""

    fingerprint: dict[str, Any]
    """What their bits may depend on besides recipe and data."""


class Served(Result):
    """The generation that is served."""

    generation: int
    """Its number."""

    digest: str
    """Its digest, sha256 in hex."""

    since: str
    """When it was published, ISO 8601 in UTC."""

    reason: str
    """Why: `train`, `erasure` or `roll-back`."""

    training: str
    """Training digest of its recipe, sha256 in hex."""

    voting: int
    """Count of constituents that vote."""

    depth: float
    """Mean share of its stages that a voting constituent has, 0 to 1."""

    quorate: bool
    """Whether enough constituents vote for predictions."""

    failed_shards: tuple[int, ...]
    """Shards whose training failed deterministically."""

    environments: tuple[Environment, ...]
    """Where its stages were trained, the most frequent first."""


class RecipeSummary(Result):
    """The recipe: that of what is served, or the one in sisa.yaml before the first training."""

    learner: str
    """What is trained."""

    task: str
    """`classification` or `regression`."""

    target: str
    """Column to predict."""

    classes: tuple[int | str, ...]
    """Target values in the order of the model's outputs; empty for a regression."""

    features: dict[str, str]
    """Declared type of each feature column, by name."""

    shards: int
    """Count of shards."""

    slices: int
    """Count of slices of a shard, appends left aside."""

    epochs: float
    """Epochs that an unsliced training would take."""

    aggregation: str
    """How votes become a prediction."""


class Cell(Result):
    """A partition: one slice of one shard."""

    shard: int
    """The shard, from 0."""

    slice: int
    """The slice, from 1; appended slices follow those of the recipe."""

    records: int
    """Count of records in its file."""

    state: Literal["served", "rolled_back", "failed", "untrained", "empty"]
    """`served`: what is served has seen it; `rolled_back`: what is served was taken back to before
    it; `failed`: its shard's training failed here or before; `untrained`: no generation has seen
    it yet; `empty`: it has no record."""

    requests: int
    """Count of erasure requests that touched it or an earlier slice of its shard."""

    retrained: int
    """How often erasures had it trained again; requests that were carried out together count
    once."""


class ShardRow(Result):
    """One shard."""

    shard: int
    """The shard, from 0."""

    records: int
    """Count of its records."""

    served: int
    """Count of stages that it is served with."""

    stages: int
    """Count of stages that its chain has."""

    votes: bool
    """Whether its constituent takes part."""

    failed_slice: int | None
    """Slice whose training failed; null if none did."""

    requests: int
    """Count of erasure requests that touched it."""

    retrained: int
    """Count of times that erasures had stages of it trained again."""


class Grid(Result):
    """Shards by slices."""

    shards: int
    """Count of shards of the recipe."""

    slices: int
    """Count of slices, appended ones included."""

    rows: tuple[ShardRow, ...]
    """All shards."""

    cells: tuple[Cell, ...]
    """Partitions that have a record or were touched by an erasure, in the order of shard and
    slice."""


class Touched(Result):
    """What an erasure request touched in one shard."""

    shard: int
    """The shard, from 0."""

    first_slice: int
    """The first slice that it touched, from 1; all later ones descend from it."""


class RequestRow(Result):
    """An erasure request, without anything about whom it names."""

    id: str
    """Random id of the request."""

    state: str
    """Where it stands; `on_hold` and `blocked` are states of open requests."""

    reason: str | None
    """Why it is held, blocked, cancelled or denied; null otherwise."""

    retry: str | None
    """When what blocks it is worth another try, ISO 8601 in UTC; null if nothing does."""

    received: str
    """When it came in, ISO 8601 in UTC."""

    accepted: str | None
    """When it was accepted and serving rolled back; null if it was not."""

    published: str | None
    """When the rebuilt generation was published; null until then."""

    certified: str | None
    """When its certificate was issued; null until then."""

    due: str
    """When it is due, ISO 8601 in UTC."""

    overdue: bool
    """Whether it is open and past due."""

    late: bool
    """Whether it was certified after it was due."""

    records: int
    """Count of records that it covers."""

    touched: tuple[Touched, ...]
    """Shards that it touched."""


class RequestsReport(Result):
    """All erasure requests."""

    total: int
    """Count of requests."""

    open: int
    """Count of those that are not closed."""

    overdue: int
    """Count of open ones past due."""

    late: int
    """Count of those certified after they were due."""

    by_state: dict[str, int]
    """Count of requests in each state, by name."""

    records: int
    """Count of records that certified requests covered."""

    median_seconds: float | None
    """Median of seconds from received to certified; null before the first certificate."""

    longest_seconds: float | None
    """The longest of these; null before the first certificate."""

    items: tuple[RequestRow, ...]
    """All requests, the oldest first."""


class BatchCost(Result):
    """What one rebuild for erasure requests cost."""

    generation: int
    """Number of the generation that it published."""

    time: str
    """When, ISO 8601 in UTC."""

    requests: int
    """Count of requests certified by it so far."""

    samples_trained: int
    """Samples that it visited; a record counts once per epoch."""

    samples_full: int
    """Samples that training everything would have visited."""


class Costs(Result):
    """Cost of erasures against full retraining."""

    samples_trained: int
    """Sum over all rebuilds."""

    samples_full: int
    """Sum over all rebuilds."""

    saved: float | None
    """Share of full retraining that was saved, up to 1; null before the first rebuild."""

    unrecorded: int
    """Count of rebuilds whose cost is not known."""

    batches: tuple[BatchCost, ...]
    """All rebuilds whose cost is known, the oldest first."""


class ReplayOutcome(Result):
    """The last replay by `sisa verify`."""

    time: str
    """When, ISO 8601 in UTC."""

    generation: int
    """Number of the generation that was replayed."""

    digest: str
    """Its digest, sha256 in hex."""

    exact: bool | None
    """Whether every bit came out the same; null if that was not shown for all shards."""

    shards: int
    """Count of shards that were replayed."""

    constituents: int
    """Count of shards with records at that time."""

    detail: str
    """What was found, in a sentence."""


class ResidueOutcome(Result):
    """The search for residue that went before a certificate."""

    digest: str
    """Digest of the whole outcome, hex."""

    found: int
    """Count of places where something was left."""

    files: int
    """Count of files that were searched."""

    bytes: int
    """Their bytes, those that were unpacked included."""

    controls: int
    """Count of hidden canaries, all of which it found."""

    opaque: int
    """Count of contents of no known format, searched as they lie."""

    not_decoded: int
    """Count of files of known formats that could not be decoded."""

    too_short: int
    """Count of ids and texts that were too short to be looked for."""


class CertificateRow(Result):
    """A certificate in the store."""

    request: str
    """Id of its request."""

    issued: str | None
    """When, ISO 8601 in UTC; null if it cannot be read."""

    generation: int | None
    """Number of the generation that no longer descends from what was erased; null if there was
    none, or it cannot be read."""

    sha256: str
    """sha256 of the file, hex."""

    previous: str | None
    """sha256 of the certificate before it; null for the first."""

    key_id: str | None
    """Id of the public key that it names as its signer; null if it is not signed."""

    chained: bool
    """Whether the chain leads from its head to it."""

    residue: ResidueOutcome | None
    """What was searched for residue before it was issued; null if nothing was."""


class Certificates(Result):
    """All certificates."""

    head: str | None
    """sha256 of the last certificate as the ledger has it; null before the first."""

    chained: int
    """Count of certificates that the chain leads to from its head."""

    items: tuple[CertificateRow, ...]
    """All files, in the order in which they were issued."""


class LogHead(Result):
    """The signed log of everything that changed, and where it ends."""

    entries: int
    """Count of its entries, which are numbered from 1; 0 before the first."""

    time: str | None
    """Time of the last one, ISO 8601 in UTC; null before the first."""

    kind: str | None
    """What changed with it; null before the first."""

    digest: str | None
    """sha256 of the last one, which fixes all before it; null before the first."""


class GenerationRow(Result):
    """A generation."""

    number: int
    """Number of the generation, from 1."""

    digest: str
    """Its digest, sha256 in hex."""

    time: str
    """When it was published, ISO 8601 in UTC."""

    reason: str
    """Why: `train`, `erasure` or `roll-back`."""

    current: bool
    """Whether it is the current one."""

    retired: bool
    """Whether its manifest is destroyed."""

    samples_trained: int | None
    """Samples that its build visited; null for a roll-back, or if it is not known."""

    samples_full: int | None
    """Samples that training everything would have visited; null likewise."""


class LineageCounts(Result):
    """What the data set and its indexes hold; counts only."""

    dataset: str | None
    """sha256 of the data set's manifest, hex; null before the first ingest."""

    records: int
    """Count of records."""

    subjects: int | None
    """Count of data subjects; null if the index cannot be read."""

    partitions: int
    """Count of partitions with records."""

    by_record: int | None
    """Count of entries of the index by record; null if it cannot be read."""

    by_subject: int | None
    """Count of entries of the index by subject; null if it cannot be read."""

    journals: int
    """Count of ingest journals."""

    appends: int
    """Count of appends."""

    tombstones: int
    """Count of tombstones: ids that must not come back."""


class Mirror(Result):
    """The MLflow mirror."""

    kind: Literal["none", "local", "database", "server"]
    """Where MLflow's rows are: nowhere, in a local file, in a database where they can be dropped,
    or behind a server that drops none."""

    meaning: str
    """What that means for an erasure, in a sentence."""

    waiting: int
    """Count of generations that MLflow has not been told of yet."""

    unpurged: int
    """Count of superseded generations that it still has something of."""

    left: dict[str, int]
    """Rows of retired generations that servers keep, by kind."""


class Risk(Result):
    """Something that exactness does not cover."""

    name: str
    """What it is."""

    residual: str
    """What is left over, in a sentence."""


class Report(Result):
    """`sisa report`: with `--out`, the same as one HTML page."""

    made: str
    """When the report was made, ISO 8601 in UTC."""

    version: str
    """Version of this tool."""

    out: str | None
    """File that the page was written to; null without `--out`."""

    verdict: Verdict
    """The whole in a few sentences."""

    served: Served | None
    """What is served; null before the first training, or if its manifest is damaged."""

    recipe: RecipeSummary
    """What decides the model besides the data and the secret."""

    grid: Grid
    """Records, served stages and erasures by shard and slice."""

    requests: RequestsReport
    """Erasure requests against their due dates."""

    costs: Costs
    """What erasures cost, and what they saved."""

    checks: tuple[Check, ...]
    """The checks of `sisa verify --no-replay`, run for this report, and what else could not be
    read; empty if they were not run."""

    checks_skipped: str | None
    """Why the checks were not run; null if they were."""

    replay: ReplayOutcome | None
    """The last replay; null if none is recorded."""

    certificates: Certificates
    """Certificates and their chain."""

    log: LogHead
    """The end of the signed log."""

    epochs: tuple[Epoch, ...]
    """Live tombstone epochs, the last one is the open one."""

    generations: tuple[GenerationRow, ...]
    """All generations, the oldest first."""

    lineage: LineageCounts
    """What the data set holds."""

    mirror: Mirror
    """How much of what MLflow holds an erasure can reach."""

    outside: tuple[str, ...]
    """What certificates name as outside of the guarantee."""

    risks: tuple[Risk, ...]
    """What exactness does not cover; docs/threat-model.md says more."""

    findings: tuple[Finding, ...]
    """What `sisa doctor` finds without looking at rows or taking training steps."""

    def brief(self) -> dict[str, Any]:
        """The verdict alone."""
        return {
            "state": self.verdict.state,
            "verdict": self.verdict.headline,
            "": " ".join(self.verdict.sentences),
            "written": self.out,
        }

    @property
    def exit_code(self) -> int:
        """4 if a check failed, as `sisa verify` has it."""
        return 4 if any(c.passed is False for c in self.checks) else 0
