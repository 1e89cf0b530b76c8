"""A request after all of it has been looked at: everything that can be wrong, before any step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import ceil
from pathlib import Path

import torch

from data_index.storage import canonical_json, sha256
from sisa.approximate import (
    classifier_folder,
    editing,
    inputs,
    model_folder,
    models,
    statement,
    subjects,
)
from sisa.approximate.batches import Batch, Examples
from sisa.approximate.classifier_folder import FolderClassifier
from sisa.approximate.methods import NEEDS, Method
from sisa.approximate.models import LanguageModel, Subject
from sisa.approximate.request import (
    FILES,
    FOR_EVIDENCE,
    OF_EVIDENCE,
    Choices,
    Configured,
    Request,
    configured,
)
from sisa.approximate.settings import plain
from sisa.approximate.statement import Base, Data
from sisa.errors import ConfigurationError, NotFoundError


@dataclass(frozen=True)
class Plan:
    """What will be done.

    Attributes:
        request: What was asked for.
        chosen: Its settings.
        subject: The model.
        retrained: The model that it is compared with, if one is given.
        forget: What to forget.
        others: What was given besides, as `Request.files` names it.
        data: What the statement says of all files, by the same names.
        bases: What it says of the model and of the retrained one, as `base` and `retrained`.
        brought: What it says of what else the method reads.
        warnings: What to know.
    """

    request: Request
    chosen: Configured
    subject: Subject
    retrained: Subject | None
    forget: Batch
    others: Mapping[str, Batch]
    data: Mapping[str, Data]
    bases: Mapping[str, Base]
    brought: Mapping[str, Base]
    warnings: tuple[str, ...]

    @property
    def method(self) -> Method:
        """The method with its settings."""
        return self.chosen.method

    @property
    def identity(self) -> str:
        """Digest of all that decides what comes out."""
        searched = self.request.tries > 0  # then what is aimed at decides too
        data = {
            name: said.digest
            for name, said in self.data.items()
            if searched or name.partition("/")[0] not in FOR_EVIDENCE
        }
        if searched and "retrained" in self.bases:
            data["retrained"] = self.bases["retrained"].digest
        named = {
            "method": self.method.name,
            "base": self.bases["base"].digest,
            "data": data,
        }
        named["brought"] = {name: said.digest for name, said in self.brought.items()}
        settings = {n: v for n, v in self.chosen.settings.items() if n not in OF_EVIDENCE}
        return sha256(canonical_json({**named, "settings": plain(settings)}))

    @property
    def steps(self) -> int:
        """Optimizer steps, if nothing stops it; none of an edit."""
        if self.method.kind == "edit":
            return 0
        controller, how = self.method.controller, self.chosen.loop
        size, kept = how.items_per_batch * how.accumulate, len(self.others.get("retain", ()))
        state = controller.start()
        return sum(
            ceil((len(self.forget) if "forget" in sides else kept) / size)
            for epoch in range(how.epochs)
            for sides in controller.sides(state, epoch)
        )


def look(request: Request) -> Plan:
    """Read and check everything, the cheapest first.

    Raises:
        UsageError: The folder to be is there already, or a method or setting is not.
        ConfigurationError: A setting is wrong, the method needs what is not there, or a folder
            holds no model that is known.
        DataError: A data file does not do.
        NotFoundError: A file or folder is missing.
    """
    model_folder.refuse_existing(request.out)
    chosen = configured(request)
    _meet(chosen, request)
    folders = _there(request)
    subject = trained(request, chosen)
    if chosen.method.kind == "edit":
        editing.require(chosen.method, subject, request.retain is not None, request.brought)
    retrained = None if request.retrained is None else loaded(request.retrained, chosen.own)
    if retrained is not None:
        _comparable(subject, retrained)
    paths = {"forget": request.forget, **request.files}
    found = {name: read(path, name, request, subject, chosen.own) for name, path in paths.items()}
    items = {name: own for name, (own, _) in found.items()}
    forget = items.pop("forget")
    warnings = (*inputs.check(forget, items), *inputs.alike(forget, items, subject))
    if (
        "alternatives" in chosen.method.needs
        and isinstance(forget, Examples)
        and isinstance(subject, FolderClassifier)
    ):
        classes = subject.about.classes
        items.setdefault("alternatives", inputs.other_labels(forget, classes, chosen.loop.seed))
    return Plan(
        request,
        chosen,
        subject,
        retrained,
        forget,
        items,
        {name: said for name, (_, said) in found.items()},
        {name: statement.base(folder) for name, folder in folders.items()},
        brought(request),
        warnings,
    )


def _comparable(subject: Subject, retrained: Subject) -> None:
    """Check that a retrained model answers what the model answers.

    Raises:
        ConfigurationError: It is of another kind, or has other tokens or classes.
    """
    built = {(subjects.kind(each), _outputs(each)) for each in (subject, retrained)}
    if len(built) > 1:
        raise ConfigurationError(
            "The retrained model is of another kind, or has other tokens or classes.",
            "Retrain a model of the same build.",
        )


def _outputs(subject: Subject) -> int | None:
    """How many tokens or classes a model chooses among; None where that is not known."""
    if isinstance(subject, LanguageModel):
        return int(subject.module.get_output_embeddings().weight.shape[0])
    return subject.about.classes if isinstance(subject, FolderClassifier) else None


def _there(request: Request) -> dict[str, Path]:
    """Model folders by what the statement calls them, once it is seen that all files are there."""
    for path in (request.forget, *request.files.values()):
        if not path.is_file():
            raise NotFoundError(f"There is no file {path}.")
    given = {"base": request.model, "retrained": request.retrained}
    folders = {name: path for name, path in given.items() if path is not None}
    for path in folders.values():
        if not path.is_dir():
            raise NotFoundError(f"There is no model folder {path}.")
    return folders


def brought(request: Request) -> dict[str, Base]:
    """What the statement says of what edits read."""
    named: dict[str, Path] = {}
    for name, given in request.brought.items():
        if isinstance(given, Path):
            named[name] = given
        else:
            named |= {f"{name}/{number}": path for number, path in enumerate(given, 1)}
    return {name: statement.base(path) for name, path in named.items()}


def trained(request: Request, chosen: Configured) -> Subject:
    """The model as the method meets it: with a fresh adapter if one is asked for, and with all
    parameters frozen that are not to be trained.

    Raises:
        ConfigurationError: It has an adapter already, no parameter is to be trained, or its folder
            holds no model that is known.
    """
    subject, pattern = _adapted(request, chosen), chosen.own.trained
    for name, parameter in subject.trainable().items():
        parameter.requires_grad_(fnmatchcase(name, pattern))
    if not subject.trainable():
        raise ConfigurationError(f"No parameter has a name like {pattern}.", "Correct trained.")
    return subject


def _adapted(request: Request, chosen: Configured) -> Subject:
    subject, own = loaded(request.model, chosen.own), chosen.own
    if not own.lora_rank:
        return subject
    if not isinstance(subject, LanguageModel):
        raise ConfigurationError("A classifier takes no adapter.", "Leave lora_rank at 0.")
    if subject.adapted:
        raise ConfigurationError("The model has an adapter already.", "Set lora_rank to 0.")
    return models.with_lora(subject, own.lora_rank, own.lora_alpha, chosen.loop.seed)


def loaded(folder: Path, own: Choices) -> Subject:
    """A model of a folder; on the processor where workers take it from there."""
    device = "cpu" if own.workers > 1 else _device(own.device)
    return subjects.load(folder.resolve(), own.dtype, device)


def _meet(chosen: Configured, request: Request) -> None:
    """Check that there is what a method of the loop needs, and what its settings do."""
    if chosen.own.rewind and request.holdout is None:
        raise ConfigurationError("Rewinding needs held-out items.", "Name a file with --holdout.")
    edits = chosen.method.kind == "edit"
    if request.paraphrased is not None and not request.wrong:
        raise ConfigurationError(
            "Paraphrases are asked beside wrong answers.", "Name a file with --wrong."
        )
    if chosen.own.floor is not None and edits and not request.tries:
        raise ConfigurationError(
            "An edit has no epochs, and ends at no floor.", "Set floor for a --sweep alone."
        )
    if chosen.own.floor is not None and request.retain is None and not edits:
        raise ConfigurationError(
            "A floor of utility needs items to keep.", "Name a file with --retain."
        )
    classifier = classifier_folder.is_one(request.model)
    there = {**dict.fromkeys(request.files, True), "similarity": not classifier}
    there["adapter"] = chosen.own.lora_rank > 0
    there["alternatives"] = request.alternatives is not None or classifier
    how = {"adapter": "Set lora_rank."} | {n: f"Name a file with --{n}." for n in FILES}
    for need in () if edits else chosen.method.needs:
        if not there.get(need):
            raise ConfigurationError(
                f"{chosen.method.name} needs {NEEDS[need]}, and there is nothing of the kind.",
                how.get(need, "Use another method."),
            )


def _device(name: str) -> str:
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = ""
    if kind != "cpu" and not (kind == "cuda" and torch.cuda.is_available()):
        raise ConfigurationError(f"There is no device {name} here.", "Set device to cpu.")
    return name


def read(
    path: Path, what: str, request: Request, subject: Subject, own: Choices
) -> tuple[Batch, Data]:
    """The items of a file, and what the statement says of it."""
    items = inputs.read(path, what, subject, own.prompt, own.max_tokens)
    key = request.digest_key
    return items, Data(
        items=len(items),
        positions=sum(items.counts()),
        digest=statement.file_digest(path, key),
        keyed=key is not None,
    )
