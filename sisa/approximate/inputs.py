"""What is to be forgotten and kept: read, and checked before anything is spent on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sisa.approximate.batches import Batch, Examples, Items, read_texts
from sisa.approximate.classifier_folder import FolderClassifier
from sisa.approximate.edits.partial import flipped
from sisa.approximate.examples import read_examples
from sisa.approximate.models import LanguageModel, Subject
from sisa.approximate.rows import IGNORED
from sisa.errors import ConfigurationError, DataError


def read(path: Path, what: str, subject: Subject, prompt: str, max_tokens: int | None) -> Batch:
    """The items of a file, as the kind of model takes them.

    Args:
        path: Parquet, CSV or JSON lines; see `read_texts` and `read_examples`.
        what: Names it in an error: `forget`, `retain` or `alternatives`.
        subject: The model: a language model with its tokenizer, or a classifier of a folder.
        prompt: What stands before an answer; `{}` is the question. For texts alone.
        max_tokens: Longest item. For texts alone.

    Raises:
        DataError: It holds no item, or none with a labelled position, or cannot be read.
        ConfigurationError: The model takes no such items.
        NotFoundError: There is no such file.
    """
    found = None
    if not path.is_file() or path.stat().st_size:
        found = _items(path, what, subject, prompt, max_tokens)
    if found is None or not len(found):
        raise DataError(f"The {what} file holds no item.", "Put at least one row into it.")
    if not any(found.counts()):
        raise DataError(
            f"No item of the {what} file has a labelled position, so there is nothing to learn "
            "from it.",
            "An item needs two tokens, an answer one, and an example a label.",
        )
    return found


def other_labels(forget: Examples, classes: int, seed: int) -> Examples:
    """The same examples with other labels, each of the other classes equally likely.

    What stands in for a file of alternatives where a classifier is to learn wrong labels.

    Args:
        forget: The examples.
        classes: How many there are.
        seed: Of what is drawn.

    Raises:
        ConfigurationError: There is no other class.
    """
    draws = torch.Generator().manual_seed(seed)
    return replace(forget, labels=flipped(forget.labels, classes, draws))


def _items(path: Path, what: str, subject: Subject, prompt: str, max_tokens: int | None) -> Batch:
    if isinstance(subject, FolderClassifier):
        return read_examples(path, what, subject)
    if isinstance(subject, LanguageModel):
        return read_texts(path, subject.tokenizer, prompt=prompt, max_tokens=max_tokens)
    raise ConfigurationError(
        "The columns of this classifier's examples are not known.", "Give a FolderClassifier."
    )


ALIGNED = ("alternatives", "paraphrased", "wrong")
"""Files that have one item for each to forget, in the same order."""


def check(forget: Batch, others: Mapping[str, Batch]) -> tuple[str, ...]:
    """Check what is to be forgotten against what else was given.

    Args:
        forget: The items to forget.
        others: Those to keep, those to say instead and so on, as `Request.files` names them.

    Returns:
        Warnings, one sentence each.

    Raises:
        DataError: An item is in two files, or there are not as many of one for each to forget.
    """
    digests = set(forget.digests())
    for name, items in others.items():
        if both := len(digests & set(items.digests())):
            raise DataError(
                f"{both} of the items to forget are in the {name} file too.",
                f"Take them out of the {name} file.",
            )
        if name.partition("/")[0] in ALIGNED:
            _check_aligned(forget, items, name)
    if "retain" in others and "holdout" in others:
        both = len(set(others["retain"].digests()) & set(others["holdout"].digests()))
        if both:
            raise DataError(
                f"{both} items of the holdout file are in the retain file too.",
                "No model may have seen what is held out.",
            )
    warnings = []
    if len(forget) == 1:
        warnings.append("There is one item to forget: statistics over one item mean nothing.")
    if twice := len(forget) - len(digests):
        warnings.append(f"{twice} items of the forget file repeat others of it.")
    for name, items in {"forget": forget, **others}.items():
        if idle := sum(not n for n in items.counts()):
            warnings.append(f"{idle} items of the {name} file have no labelled position.")
    return tuple(warnings)


def _check_aligned(forget: Batch, items: Batch, name: str) -> None:
    """Refuse what does not stand beside each item to forget."""
    order = "Give one for each, in the same order."
    if len(items) != len(forget):
        raise DataError(
            f"There are {len(forget)} items to forget and {len(items)} in the {name} file.", order
        )
    if odd := _elsewhere(forget, items):
        raise DataError(
            f"{odd} items of the {name} file ask something else than those to forget.", order
        )


def _elsewhere(forget: Batch, other: Batch) -> int:
    """How many items have another question, or are another example, than that in their place."""
    if isinstance(forget, Examples) and isinstance(other, Examples):
        return int((forget.inputs != other.inputs).flatten(1).any(1).sum())
    assert isinstance(forget, Items) and isinstance(other, Items)
    sides = (zip(i.tokens, i.labels, strict=True) for i in (forget, other))
    asked = ([tokens[labels == IGNORED] for tokens, labels in side] for side in sides)
    return sum(not torch.equal(one, two) for one, two in zip(*asked, strict=True))


def alike(forget: Batch, others: Mapping[str, Batch], subject: Subject) -> tuple[str, ...]:
    """Warn of texts to forget that are elsewhere in other spacing or case: they would be kept.

    Args:
        forget: The items to forget.
        others: As for `check`.
        subject: With the tokenizer of the items; without one nothing is compared.
    """
    if not isinstance(subject, LanguageModel) or subject.tokenizer is None:
        return ()
    sought = set(_spelled(forget, subject.tokenizer))
    found = {
        name: sum(text in sought for text in _spelled(others[name], subject.tokenizer))
        for name in ("retain", "holdout")
        if name in others
    }
    return tuple(
        f"{count} items of the {name} file are to be forgotten in other spacing or case."
        for name, count in found.items()
        if count
    )


def _spelled(items: Batch, tokenizer: Any) -> Iterator[str]:
    """Texts of items, whatever their spacing and case."""
    assert isinstance(items, Items)
    for tokens in items.tokens:
        text = tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
        yield " ".join(text.split()).casefold()
