"""Documents of the main job: `init`, `ingest`, `train`, `evaluate` and `predict`."""

from __future__ import annotations

from typing import ClassVar

from sisa.results.base import Result


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
