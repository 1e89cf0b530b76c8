"""What is to be forgotten and kept: read, and checked before anything is spent on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sisa.approximate.batches import Batch, Items, read_texts
from sisa.errors import DataError


def read(path: Path, what: str, tokenizer: Any, prompt: str, max_tokens: int | None) -> Items:
    """The items of a file.

    Args:
        path: Parquet, CSV or JSON lines; see `read_texts`.
        what: Names it in an error: `forget`, `retain` or `alternatives`.
        tokenizer: Of transformers.
        prompt: What stands before an answer; `{}` is the question.
        max_tokens: Longest item.

    Raises:
        DataError: It holds no item, or none with a labelled position, or cannot be read.
        NotFoundError: There is no such file.
    """
    empty = path.is_file() and path.stat().st_size == 0
    found = None if empty else read_texts(path, tokenizer, prompt=prompt, max_tokens=max_tokens)
    if found is None or not len(found):
        raise DataError(f"The {what} file holds no item.", "Put at least one row into it.")
    if not any(found.counts()):
        raise DataError(
            f"No item of the {what} file has a labelled position, so there is nothing to learn "
            "from it.",
            "An item needs two tokens, and an answer one.",
        )
    return found


def check(
    forget: Batch, retain: Batch | None = None, alternatives: Batch | None = None
) -> tuple[str, ...]:
    """Check what is to be forgotten against what else was given.

    Args:
        forget: The items to forget.
        retain: Those to keep.
        alternatives: Those to say instead, one for each item to forget.

    Returns:
        Warnings, one sentence each.

    Raises:
        DataError: An item is in two files, or there are too many or too few alternatives.
    """
    named = {"forget": forget, "retain": retain, "alternatives": alternatives}
    digests = set(forget.digests())
    for name, items in list(named.items())[1:]:
        if items is not None and (both := len(digests & set(items.digests()))):
            raise DataError(
                f"{both} of the items to forget are in the {name} file too.",
                f"Take them out of the {name} file.",
            )
    if alternatives is not None and len(alternatives) != len(forget):
        raise DataError(
            f"There are {len(forget)} items to forget and {len(alternatives)} alternatives.",
            "Give one for each, in the same order.",
        )
    warnings = []
    if len(forget) == 1:
        warnings.append("There is one item to forget: statistics over one item mean nothing.")
    for name, items in named.items():
        if items is not None and (idle := sum(not n for n in items.counts())):
            warnings.append(f"{idle} items of the {name} file have no labelled position.")
    return tuple(warnings)
