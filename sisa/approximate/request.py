"""What is asked of `sisa unlearn`: files, folders and settings, before anything is read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field

from data_index.envelope import Signer
from sisa.approximate import loop, mirror
from sisa.approximate.batches import PROMPT
from sisa.approximate.methods import METHODS, Method
from sisa.approximate.settings import parse
from sisa.errors import UsageError

FILES = ("retain", "alternatives", "holdout", "paraphrased")
"""Data files besides that of the items to forget."""

FOR_EVIDENCE = ("holdout", "paraphrased", "wrong")
"""What is only asked about: the model does not depend on it."""

BROUGHT = ("log", "original", "importance", "adapters")
"""What edits read besides: files and folders that an earlier training left."""


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        method: Name of the method.
        forget: File of the items to forget.
        model: Folder of the model.
        out: Folder of the model to be; it must not be there.
        retain: File of the items to keep, or None.
        alternatives: File of other answers, one for each item to forget and in their order, or
            None.
        holdout: File of items of the same kind that no model ever saw, or None; membership is
            asked beside them.
        paraphrased: File of the items to forget with the right answer in other words, in their
            order, or None.
        wrong: Files of the items to forget with a wrong answer, in their order.
        retrained: Folder of a model that never saw what is to be forgotten, or None.
        log: Folder of the update log of the model's training, or None.
        original: Folder of the model as it was before, or None.
        importance: File of the importance over all data, or None.
        adapters: Folders of adapters.
        evidence: Whether anything is measured.
        tries: How many choices of settings a search makes; 0 searches for none.
        settings: `name=value`, those of the method, of the loop and of `Choices`.
        signer: Signs the statement, or None.
        digest_key: Keys the digests of the data files, or None.
        tracking_uri: Where MLflow is, or None.
        experiment: Its experiment.
    """

    method: str
    forget: Path
    model: Path
    out: Path
    retain: Path | None = None
    alternatives: Path | None = None
    holdout: Path | None = None
    paraphrased: Path | None = None
    wrong: tuple[Path, ...] = ()
    retrained: Path | None = None
    log: Path | None = None
    original: Path | None = None
    importance: Path | None = None
    adapters: tuple[Path, ...] = ()
    evidence: bool = True
    tries: int = 0
    settings: tuple[str, ...] = ()
    signer: Signer | None = None
    digest_key: bytes | None = field(default=None, repr=False)
    tracking_uri: str | None = None
    experiment: str = mirror.EXPERIMENT

    @property
    def files(self) -> dict[str, Path]:
        """The data files that are given besides that of the items to forget, by name."""
        given = {name: getattr(self, name) for name in FILES}
        given |= {f"wrong/{number}": path for number, path in enumerate(self.wrong, 1)}
        return {name: path for name, path in given.items() if path is not None}

    @property
    def brought(self) -> dict[str, Path | tuple[Path, ...]]:
        """What edits read, as far as it is given, by name."""
        return {name: found for name in BROUGHT if (found := getattr(self, name))}


@dataclass(frozen=True)
class Choices:
    """Settings that are neither of a method nor of the loop.

    Attributes:
        max_tokens: Longest item; null for as long as it is.
        prompt: What stands before an answer; `{}` is the question.
        lora_rank: Of an adapter, which alone is trained; 0 trains all parameters.
        lora_alpha: What the adapter adds is scaled by it, over the rank.
        trained: Pattern of `fnmatch`; only parameters with such a name are trained.
        reference: How a method that compares with the model as it was comes by it, without an
            adapter: from values `kept` of one pass, or from a `second` model in memory.
        reference_top: Log-probabilities kept of each position, the largest.
        dtype: Of the parameters.
        device: Where it runs.
        workers: Processes that share the model out, each with a GPU where there are GPUs.
        floor: Least utility, as a share of that before: a run ends below it and goes back to its
            last epoch above, and a search accepts nothing below it (0.9 by default there).
        rewind: Whether to go back to the epoch whose error on the forget set is closest to that
            on held-out items.
        similarity: What tells when an item is forgotten, where a method stops item by item.
        evidence_items: Most items of each file that evidence is measured on.
        continued_items: Most items to forget whose beginning is continued; 0 for none.
        relearn_steps: Optimizer steps of the relearning attack.
        relearn_lr: Smallest learning rate of it; null for that of the method.
    """

    max_tokens: Annotated[int, Field(ge=2)] | None = None
    prompt: str = PROMPT
    lora_rank: Annotated[int, Field(ge=0)] = 0
    lora_alpha: float = 16.0
    trained: str = "*"
    reference: Literal["kept", "second"] = "kept"
    reference_top: Annotated[int, Field(ge=1)] = 256
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "cpu"
    workers: Annotated[int, Field(ge=1)] = 1
    floor: Annotated[float, Field(gt=0, le=1)] | None = None
    rewind: bool = False
    similarity: Literal["bleu", "rouge-l"] = "bleu"
    evidence_items: Annotated[int, Field(ge=2)] = 1000
    continued_items: Annotated[int, Field(ge=0)] = 100
    relearn_steps: Annotated[int, Field(ge=1)] = 20
    relearn_lr: Annotated[float, Field(gt=0)] | None = None


OF_EVIDENCE = ("evidence_items", "continued_items", "relearn_steps", "relearn_lr")
"""Settings that the model does not depend on."""

OF_EDITS = ("items_per_batch", "chunk_rows", "seed")
"""Settings of the loop that an edit has too."""

OF_LOOPS = (
    "lora_rank",
    "lora_alpha",
    "trained",
    "reference",
    "reference_top",
    "workers",
    "rewind",
    "similarity",
)
"""Settings among `Choices` that only what is trained has."""


@dataclass(frozen=True)
class Configured:
    """The settings of a request, each where it belongs.

    Attributes:
        method: With its settings.
        loop: Those of the loop.
        own: Those of `Choices`.
        settings: All of them, by name.
    """

    method: Method
    loop: loop.Settings
    own: Choices
    settings: dict[str, Any]


def configured(request: Request) -> Configured:
    """Check the settings of a request.

    Raises:
        UsageError: There is no such method, or a setting of the loop is out of its range.
        ConfigurationError: A setting is not known, or wrong.
    """
    method = METHODS.get(request.method)
    if method is None:
        raise UsageError(f"There is no method {request.method}.", "`sisa unlearn list` has all.")
    fields = _shared(method)
    for name, value in method.defaults.items():  # a method's own values outrank the loop's
        known = fields[name][0] if name in fields else method.types.get(name, float)
        fields[name] = (known, value)
    settings = parse(request.settings, fields)

    def of(kind: type[Any]) -> dict[str, Any]:
        return {name: settings[name] for name in _fields(kind) if name in settings}

    return Configured(
        method.configured(**{name: settings[name] for name in method.defaults}),
        loop.Settings(**of(loop.Settings)),
        Choices(**of(Choices)),
        settings,
    )


def _shared(method: Method) -> dict[str, tuple[Any, Any]]:
    """Settings that are not the method's own, as far as it heeds them."""
    of_loop, own = _fields(loop.Settings), _fields(Choices)
    if method.kind == "edit":
        of_loop = {name: of_loop[name] for name in OF_EDITS}
        own = {name: found for name, found in own.items() if name not in OF_LOOPS}
    return {**of_loop, **own}


def _fields(kind: type[Any]) -> dict[str, tuple[Any, Any]]:
    """Type and default of each field of a dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    return {f.name: (hints[f.name], f.default) for f in dataclasses.fields(kind)}
