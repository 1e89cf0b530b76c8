"""Columns that single records or data subjects out, or that were made from all records together."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_index import keys
from data_index.keys import Keyring, Keys
from data_index.schema import RECORD_KEY, SUBJECT_KEY, Columns, Feature
from sisa.config import Data
from sisa.errors import DataError
from sisa.held_out import held_out, numbers, of_number, of_text
from sisa.results import Finding
from sisa.sample import Sample

FEWEST = 20
UNIQUE = 0.95
"""Share of distinct values from which a column is nearly unique."""

NAMED = 0.9
"""Share of rows from which a column nearly determines the data subject."""

COMPARED = 256
"""Rows of which a value is compared with the ids."""

STANDARD = 0.02
"""How far mean and deviation of a standardised column may be from 0 and 1 in a sample."""

EXACT = 1e-6


def identities(sample: Sample, columns: Columns, ring: Keyring) -> Iterator[Finding]:
    """Features that are an id, tell subjects apart, or differ in nearly every row."""
    if len(sample) < FEWEST:
        return
    for feature in columns.features:
        if feature.kind == "array":
            continue
        what = f"Column {feature.name!r}"
        drop = f"Leave {feature.name!r} out of recipe.data.features."
        if _is_id(sample, feature, ring):
            message = f"{what} repeats the ids, so that partitions would hold them as they are."
            yield Finding(severity="error", check="identity", message=message, remedy=drop)
            continue
        codes, known = _codes(sample, feature)
        if columns.subject_id is not None and _tells_apart(
            codes, sample.subjects[known], several=_whole(feature)
        ):
            message = f"{what} tells data subjects apart: no two of them share a value."
            yield Finding(severity="warning", check="identity", message=message, remedy=drop)
        elif columns.subject_id is not None and (share := _names(sample, feature)) >= NAMED:
            message = (
                f"{what} nearly determines the data subject: by itself it names the right one for "
                f"{share:.1%} of rows that it was not learned from."
            )
            yield Finding(severity="warning", check="identity", message=message, remedy=drop)
        elif _whole(feature) and len(codes) >= FEWEST and codes.max() + 1 >= UNIQUE * len(codes):
            message = f"{what} is nearly unique, so it may identify records and predicts nothing."
            yield Finding(severity="warning", check="identity", message=message, remedy=drop)


def scaling(sample: Sample, columns: Columns) -> Iterator[Finding]:
    """Columns that look as if they had been standardised over all records beforehand."""
    if len(sample) < FEWEST:
        return
    floats = [f for f in columns.features if f.kind == "number" and f.element.startswith("float")]
    scaled = [f.name for f in floats if _standardised(numbers(sample.rows[f.column]))]
    if len(scaled) >= 2 and 2 * len(scaled) >= len(floats):
        yield Finding(
            severity="warning",
            check="scaling",
            message=f"{len(scaled)} columns such as {scaled[0]!r} look standardised over all "
            "records; what an erased one contributed to the scale stays in all others.",
            remedy="Ingest the values as they were measured: every stage standardises its own.",
        )


def categories(sample: Sample, data: Data) -> Iterator[Finding]:
    """Text features with more undeclared values than buckets, so that values share one."""
    for feature in data.columns().features:
        if feature.kind != "text":
            continue
        found = set(sample.rows[feature.column].combine_chunks().unique().to_pylist())
        count = len(found - {None} - set(data.categories.get(feature.name, ())))
        if count > data.hash_buckets:
            yield Finding(
                severity="info",
                check="categories",
                message=f"Column {feature.name!r} has at least {count} distinct values for "
                f"{data.hash_buckets} hash buckets.",
                remedy="Raise recipe.data.hash_buckets, or declare its frequent values in "
                "recipe.data.categories.",
            )


def _whole(feature: Feature) -> bool:
    """Whether values can be names: text and integers, but no measurements."""
    return feature.kind == "text" or feature.element.startswith(("int", "uint"))


def _is_id(sample: Sample, feature: Feature, ring: Keyring) -> bool:
    """Whether it holds the record's or the subject's own id, by comparing keyed hashes."""
    if not _whole(feature):
        return False
    rows = sample.rows.slice(0, COMPARED)
    try:
        ids = keys.canonical_ids(rows[feature.column], feature.name)
    except DataError:  # nulls, padding: not the ids, which have neither
        return False

    def equal(column: str, hashes: Callable[[Keyring, list[bytes]], Keys]) -> bool:
        same = (hashes(ring, ids) == keys.from_arrow(rows[column])).all(axis=1)
        return bool(same.mean() >= UNIQUE)

    return equal(RECORD_KEY, keys.record_keys) or equal(SUBJECT_KEY, keys.subject_keys)


def _codes(sample: Sample, feature: Feature) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """A number for each distinct value of the rows that are not null, and which rows they are."""
    column = sample.rows[feature.column]
    known = column.is_valid().to_numpy()
    values = of_text(column).codes if feature.kind == "text" else numbers(column)
    codes: npt.NDArray[np.int64] = np.unique(values[known], return_inverse=True)[1]
    return codes, known


def _tells_apart(
    codes: npt.NDArray[np.int64], subjects: npt.NDArray[np.int64], several: bool
) -> bool:
    """Whether each value belongs to one subject, though values and subjects come repeatedly.

    Args:
        codes: Distinct values by number, int64 [n].
        subjects: Subjects by number, int64 [n].
        several: Whether a subject may have several; a measurement seldom meets another's anyway.
    """
    if len(codes) < FEWEST:
        return False
    values, people = codes.max() + 1, len(np.unique(subjects))
    if people < 5 or values < people / 2 or 2 * max(values, people) > len(codes):
        return False
    pairs = len(np.unique(codes * (subjects.max() + 1) + subjects))
    return bool(UNIQUE * pairs <= values and (several or UNIQUE * pairs <= people))


def _names(sample: Sample, feature: Feature) -> float:
    """Share of rows whose subject the column predicts, among those it can know; else 0."""
    half, subjects = sample.half(RECORD_KEY), sample.subjects
    known = np.isin(subjects, np.intersect1d(subjects[half], subjects[~half]))
    people = len(np.unique(subjects[known]))
    # Of a few people, or of people with a few rows each, chance alone names too many.
    if known.sum() < FEWEST * 2 or people < 5 or known.sum() < 4 * people:
        return 0.0
    column = sample.rows[feature.column].filter(pa.array(known))
    coded = [of_text(column)] if feature.kind == "text" else of_number(numbers(column))
    found = [held_out(c, subjects[known], half[known]) for c in coded]
    best = min(found, key=lambda error: error.wrong)
    return 1 - best.wrong if best.baseline > 0.5 else 0.0


def _standardised(values: npt.NDArray[np.float64]) -> bool:
    values = values[~np.isnan(values)]
    if len(values) < FEWEST or (deviation := float(values.std())) == 0:
        return False
    mean = abs(float(values.mean())) / deviation
    return mean < EXACT or (mean < STANDARD and abs(deviation - 1) < STANDARD)
