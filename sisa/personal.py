"""Text columns whose values look like names, addresses, numbers of people, or sentences."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from data_index.schema import Columns
from sisa.results import Finding
from sisa.sample import Sample

FEWEST = 20
MOST = 0.8
"""Share of values from which they are all taken for one kind of thing."""

VARIED = 0.1
"""Share of distinct values under which a column is a list of categories."""

EMAIL = r"^[^@\s]+@[^@\s]+\.[A-Za-z]{2,}$"
PHONE = r"^\+?[\d\s()./-]*\d{3,}[\s()./-]*\d{2,}[\d\s()./-]*$"
NAME = r"^\p{Lu}[\p{L}'’-]+,? (?:\p{Lu}\.? )*\p{Lu}[\p{L}'’-]+(?: \p{Lu}[\p{L}'’-]+)?$"
SENTENCE = r"^\S+(?:\s+\S+){4,}"
"""Five words or more."""

KINDS = (
    ("e-mail addresses", EMAIL, 0.0),
    ("telephone numbers", PHONE, VARIED),
    ("names of people", NAME, VARIED),
    ("free text, which may name people", SENTENCE, VARIED),
)
"""What values may be, the pattern that tells, and how varied they must be."""


def findings(sample: Sample, columns: Columns) -> Iterator[Finding]:
    """Text features that look personal; a value itself is never shown."""
    for feature in columns.features:
        if feature.kind != "text":
            continue
        what = _kind(sample.rows[feature.column].drop_null())
        if what is not None:
            yield Finding(
                severity="warning",
                check="personal",
                message=f"Column {feature.name!r} looks like {what}.",
                remedy=f"Leave {feature.name!r} out of recipe.data.features, if it does.",
            )


def _kind(values: pa.ChunkedArray) -> str | None:
    if len(values) < FEWEST:
        return None
    varied = pc.count_distinct(values).as_py() / len(values)
    for what, pattern, least in KINDS:
        matched = pc.mean(pc.match_substring_regex(values, pattern)).as_py()
        if matched >= MOST and varied >= least:
            return what
    return None
