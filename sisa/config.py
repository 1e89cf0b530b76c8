"""Recipe and runtime: frozen models of sisa.yaml, overlaid by the environment and `--set`.

The recipe is hashed and decides every bit; the runtime says where things lie and run.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    field_validator,
    model_validator,
)

from data_index.schema import Columns, feature
from data_index.storage import canonical_json
from sisa.errors import ConfigurationError, NotFoundError, UsageError

FILE = "sisa.yaml"
PREFIX = "SISA__"

ARITHMETIC = 1
"""Version of what our own code computes; raised when a golden digest changes on purpose."""


def _number(value: object) -> object:
    """YAML reads 1e-3 as text and yes as a truth value: take the first, refuse the second."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    if isinstance(value, str):
        return float(value)
    return value


Integer = Annotated[int, Strict()]
Text = Annotated[str, Strict()]
Real = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]


class Section(BaseModel):
    """Base of all sections: frozen, and nothing unknown in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(Section):
    """What the source tables hold; fixed at the first ingest."""

    record_id: Text
    subject_id: Text | None = None
    target: Text
    task: Literal["classification", "regression"] = "classification"
    classes: tuple[Integer | Text, ...] = ()
    features: dict[str, Text]
    categories: dict[str, tuple[Text, ...]] = {}
    hash_buckets: Integer = Field(64, ge=1, le=1_000_000)
    scales: dict[str, tuple[Real, Annotated[Real, Field(gt=0)]]] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Data:
        for name, declared in self.features.items():
            try:
                feature(name, declared)
            except ConfigurationError as error:  # becomes one of all that is wrong
                raise ValueError(str(error).removesuffix(".")) from None
        named = {self.record_id, self.subject_id, self.target} & set(self.features)
        if named:
            raise ValueError(f"{', '.join(sorted(map(str, named)))} cannot be a feature as well")
        texts = {n for n, declared in self.features.items() if declared == "text"}
        if set(self.categories) - texts:
            raise ValueError("categories can be declared for text features only")
        arrays = {n for n, declared in self.features.items() if declared.endswith("]")}
        if set(self.scales) - arrays:
            raise ValueError("scales can be declared for array features only")
        if not self.features:
            raise ValueError("there is no feature")
        if self.task == "classification" and len(self.classes) < 2:
            raise ValueError("a classification needs at least two classes")
        if len(set(self.classes)) != len(self.classes) or len({*map(type, self.classes)}) > 1:
            raise ValueError("classes must be distinct and of one type")
        if self.task == "regression" and self.classes:
            raise ValueError("a regression has no classes")
        return self

    def columns(self) -> Columns:
        """What the data index needs to know of it."""
        classes = self.classes if self.task == "classification" else None
        return Columns.of(self.record_id, self.subject_id, self.target, classes, self.features)


class Partition(Section):
    """Where records go; fixed at the first ingest."""

    shards: Integer = Field(8, ge=1, le=9999)
    slices: Integer = Field(4, ge=1, le=9999)
    policy: Literal["uniform"] = "uniform"


BUILT_IN = ("cnn", "logistic", "mlp")
"""Learners of ours: each a module of sisa.learners with a function `load(recipe)`."""


class LearnerSection(Section):
    """What is trained: a learner of ours, or `module:factory` of a torch module."""

    factory: Text = "mlp"
    version: Integer = 1
    params: dict[str, Any] = {}

    @field_validator("factory")
    @classmethod
    def _known(cls, name: str) -> str:
        module, _, path = name.partition(":")
        if name not in BUILT_IN and not (module and path):
            raise ValueError(
                f"there is no learner {name!r}; use {', '.join(BUILT_IN)}, or module:factory"
            )
        return name


Schedule = Literal["constant", "linear", "cosine", "last_stage_linear", "last_stage_cosine"]


class Training(Section):
    """How a stage trains.

    `epochs` is the number an unsliced training would take; a stage takes its part of it.
    """

    epochs: Annotated[Real, Field(gt=0)] = 10
    last_stage_epochs: Annotated[Real, Field(gt=0)] = 1
    batch_size: Integer = Field(64, ge=1)
    min_batch: Integer = Field(2, ge=1)
    optimizer: Text = "sgd"
    lr: Annotated[Real, Field(gt=0)] = 0.05
    momentum: Annotated[Real, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[Real, Field(ge=0)] = 0.0
    optimizer_params: dict[str, Any] = {}
    loss: Text | None = None
    label_smoothing: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    class_weights: tuple[Annotated[Real, Field(gt=0)], ...] = ()
    clip_norm: Annotated[Real, Field(gt=0)] | None = None
    schedule: Schedule = "constant"
    warmup: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    optimizer_state: Literal["reset", "carry"] = "reset"
    seed: Integer = Field(0, ge=0, lt=2**63)
    threads: Integer = Field(1, ge=1, le=1024)
    device: Literal["cpu"] = "cpu"

    @model_validator(mode="after")
    def _consistent(self) -> Training:
        if self.min_batch > self.batch_size:
            raise ValueError("min_batch is larger than batch_size")
        for name in ("label_smoothing", "class_weights"):
            if getattr(self, name) and self.loss not in (None, "cross_entropy"):
                raise ValueError(f"{name} is for the loss cross_entropy, not for {self.loss}")
        return self


Aggregation = Literal["mean", "vote", "log_mean", "median"]


class Recipe(Section):
    """All that decides the bits of a model, besides the data and the secret."""

    data: Data
    partition: Partition = Partition()
    learner: LearnerSection = LearnerSection()
    training: Training = Training()
    aggregation: Aggregation = "mean"

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        classification = self.data.task == "classification"
        if classification and self.aggregation == "median":
            raise ValueError("aggregation median is for regression")
        if not classification and self.aggregation in ("vote", "log_mean"):
            raise ValueError(f"aggregation {self.aggregation} is for classification")
        for name in ("label_smoothing", "class_weights"):
            if getattr(self.training, name) and not classification:
                raise ValueError(f"training.{name} is for classification")
        weights, classes = len(self.training.class_weights), len(self.data.classes)
        if weights not in (0, classes):
            raise ValueError(f"training.class_weights has {weights} values for {classes} classes")
        return self

    def layout_digest(self) -> str:
        """Digest of what is fixed at the first ingest."""
        chosen = self.model_dump(mode="json", exclude_defaults=True, include={"data", "partition"})
        return hashlib.sha256(canonical_json(chosen)).hexdigest()

    def training_digest(self, code: str) -> str:
        """Digest of all that decides a stage besides its records and its parent.

        Fields equal to their default are left out, so that a new field changes no digest; the
        aggregation is left out, because it trains nothing.

        Args:
            code: Digest or version of the learner's own code.
        """
        chosen = self.model_dump(mode="json", exclude_defaults=True, exclude={"aggregation"})
        body = {"recipe": chosen, "code": code, "arithmetic": ARITHMETIC}
        return hashlib.sha256(canonical_json(body)).hexdigest()


class ExecutorSection(Section):
    """Where shards are trained."""

    kind: Literal["ray", "process"] = "ray"
    address: Text | None = None
    workers: Annotated[Integer, Field(ge=1)] | None = None
    cpus_per_shard: Annotated[Real, Field(gt=0)] = 1
    gpus_per_shard: Annotated[Real, Field(ge=0)] = 0


class Erasure(Section):
    """How erasures are served."""

    rollback: Literal["immediate", "batch"] = "immediate"
    max_wait: Annotated[Text, Field(pattern=r"^\d{1,5}[smhd]$")] = "1h"
    min_depth: Annotated[Real, Field(ge=0, le=1)] = 0.9
    quorum: Annotated[Real, Field(gt=0, le=1)] = 0.5
    due: Annotated[Text, Field(pattern=r"^\d{1,5}[mhd]$")] = "30d"
    replay: Literal["none", "sample", "all"] = "none"
    residue: Literal["scan", "none"] = "scan"
    backups: Annotated[Text, Field(pattern=r"^\d{1,5}[smhd]$")] = "90d"


class Checkpoints(Section):
    """Which checkpoints a build keeps; without limits, all."""

    max_share: Annotated[Real, Field(gt=0, le=1)] | None = None
    max_bytes: Annotated[Integer, Field(ge=1)] | None = None


class Tracking(Section):
    """The MLflow mirror; without a uri there is none."""

    uri: Text | None = "sqlite:///mlflow.db"
    experiment: Text = "sisa"
    model: Annotated[Text, Field(pattern=r"^[^/:'\"]+$")] = "sisa"


class Runtime(Section):
    """Where things lie and run; never hashed."""

    sources: tuple[Text, ...] = ()
    store: Text = "store"
    ledger: Text = "sqlite:///ledger.db"
    executor: ExecutorSection = ExecutorSection()
    erasure: Erasure = Erasure()
    checkpoints: Checkpoints = Checkpoints()
    tracking: Tracking = Tracking()


class Config(Section):
    """The whole of sisa.yaml."""

    recipe: Recipe
    runtime: Runtime = Runtime()


def period(text: str) -> timedelta:
    """A time such as `90s`, `10m`, `8h` or `30d`.

    Raises:
        UsageError: It is not written like that.
    """
    match = re.fullmatch(r"(\d{1,5})([smhd])", text)
    if match is None:
        raise UsageError(f"{text!r} is no time.", "Write a number with s, m, h or d, such as 10m.")
    unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[match[2]]
    return timedelta(**{unit: int(match[1])})


def find(start: Path) -> Path:
    """The workspace folder: the nearest one upward that holds sisa.yaml.

    Raises:
        NotFoundError: There is none.
    """
    for folder in (start, *start.parents):
        if (folder / FILE).is_file():
            return folder
    raise NotFoundError(f"No {FILE} in {start} or above.", "Run `sisa init` first.")


def located(root: Path, location: str) -> str:
    """A location as seen from the workspace."""
    return location if "://" in location else str(root / location)


def load(
    folder: Path, settings: Sequence[str] = (), environment: Mapping[str, str] = os.environ
) -> Config:
    """Read a workspace's configuration: file, then environment, then settings.

    Args:
        folder: Holds sisa.yaml.
        settings: `a.b=value`, the value in YAML.
        environment: `SISA__A__B=value` sets the same.

    Raises:
        NotFoundError: There is no sisa.yaml.
        ConfigurationError: Something in it is wrong; all that is wrong is named at once.
    """
    try:
        body = yaml.safe_load((folder / FILE).read_text("utf-8"))
    except FileNotFoundError:
        raise NotFoundError(f"No {FILE} in {folder}.", "Run `sisa init` first.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise ConfigurationError(f"{FILE} is no YAML: {first}.", "Correct the file.") from None
    if not isinstance(body, dict):
        raise ConfigurationError(f"{FILE} holds no settings.", "Run `sisa init` elsewhere.")
    for name, value in environment.items():
        if name.startswith(PREFIX):
            _overlay(body, name.removeprefix(PREFIX).lower().split("__"), value, name)
    overlay(body, settings)
    if environment.get("RAY_ADDRESS"):
        _overlay(body, ["runtime", "executor", "address"], environment["RAY_ADDRESS"], "")
    if environment.get("MLFLOW_TRACKING_URI"):
        _overlay(body, ["runtime", "tracking", "uri"], environment["MLFLOW_TRACKING_URI"], "")
    return validate(body)


def validate(body: dict[str, Any]) -> Config:
    """Check a configuration.

    Raises:
        ConfigurationError: With everything that is wrong in one sentence.
    """
    try:
        return Config.model_validate(body)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        )
        raise ConfigurationError(f"The configuration is wrong: {wrong}.", "Correct it.") from None


def overlay(body: dict[str, Any], settings: Sequence[str]) -> None:
    """Put `a.b=value` settings, the value in YAML, on top of a configuration.

    Raises:
        ConfigurationError: A setting has no value, or its name leads nowhere.
    """
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ConfigurationError(f"--set {setting} has no value.", "Write --set name=value.")
        _overlay(body, name.split("."), value, f"--set {name}")


def _overlay(body: dict[str, Any], path: list[str], value: str, name: str) -> None:
    at = body
    for part in path[:-1]:
        at = at.setdefault(part, {})
        if not isinstance(at, dict):
            raise ConfigurationError(f"{name} names no setting.", "See sisa.yaml for the names.")
    try:
        at[path[-1]] = yaml.safe_load(value)
    except yaml.YAMLError:
        at[path[-1]] = value


def dump(config: Config) -> str:
    """The text of a sisa.yaml: what is chosen and what may be changed."""
    body = config.model_dump(mode="json")
    return yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=100)
