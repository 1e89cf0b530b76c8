"""Model folders of either kind: a causal language model, or a classifier with its own module."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sisa.approximate import classifier_folder, models
from sisa.approximate.models import Classifier, LanguageModel, Subject
from sisa.errors import NotFoundError, UsageError

Kind = Literal["classifier", "language"]


def kind(subject: Subject) -> Kind:
    """What a subject is, in a word of `NEEDS`."""
    return "classifier" if isinstance(subject, Classifier) else "language"


def load(folder: Path, dtype: str = "float32", device: str = "cpu") -> Subject:
    """Load a model folder: a classifier where there is a `classifier.json`.

    Args:
        folder: See `classifier_folder.load` and `models.load`.
        dtype: Of the parameters in memory.
        device: Where they shall be.

    Raises:
        NotFoundError: There is no such folder.
        ConfigurationError: It holds no model that is known.
    """
    if not folder.is_dir():
        raise NotFoundError(f"There is no model folder {folder}.", "Correct its path.")
    loader = classifier_folder.load if classifier_folder.is_one(folder) else models.load
    return loader(folder, dtype, device)


def save(subject: Subject, folder: Path) -> None:
    """Write a model folder of the same kind.

    Args:
        subject: The model.
        folder: Is made; files of the same names are replaced.

    Raises:
        UsageError: It is a classifier that is of no folder.
    """
    if isinstance(subject, LanguageModel):
        models.save(subject, folder)
    elif isinstance(subject, classifier_folder.FolderClassifier):
        classifier_folder.save(subject, folder)
    else:
        raise UsageError("How this model is made again is not known.", "Give a FolderClassifier.")
