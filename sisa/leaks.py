"""Columns that give the target away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from data_index.partition import array_values
from data_index.schema import RECORD_KEY, SUBJECT_KEY, Columns, Feature
from sisa.held_out import FEWEST, Coded, Half, correlation, held_out, numbers, of_number, of_text
from sisa.results import Finding, Severity
from sisa.sample import Sample

GIVEN_AWAY = 0.005
"""Share of wrong predictions, or of unexplained variance, up to which the target is given away."""

PROXY = 0.15
"""Share of the baseline's errors up to which a column stands for a class."""

REGRESSION_PROXY = 0.05
CORRELATED = 0.999
ELEMENT_ROWS = 4_000
MOST_ELEMENTS = 4_096


def findings(sample: Sample, columns: Columns) -> Iterator[Finding]:
    """Columns that (nearly) determine the target."""
    if len(sample) < FEWEST:
        return
    halves = [sample.half(RECORD_KEY)]
    by_subject = sample.half(SUBJECT_KEY)
    # A column that only tells subjects apart predicts nothing about subjects not seen before.
    if columns.subject_id is not None and 0.1 < by_subject.mean() < 0.9:
        halves.append(by_subject)
    for feature in columns.features:
        if feature.kind == "array":
            yield from _elements(sample, feature, halves)
            continue
        column = sample.rows[feature.column]
        number = numbers(column) if feature.kind == "number" else None
        coded = [of_text(column)] if number is None else of_number(number)
        found = _severity(coded, number, sample.target, halves)
        if found is not None:
            yield _finding(f"Column {feature.name!r}", *found, drop=feature.name)


def _elements(sample: Sample, feature: Feature, halves: list[Half]) -> Iterator[Finding]:
    """Each element of an array by itself, on fewer rows; only what gives the target away."""
    column = sample.rows[feature.column]
    rows = np.arange(0, len(sample), max(1, len(sample) // ELEMENT_ROWS))
    matrix = array_values(column, feature.dtype, feature.size)[rows, :MOST_ELEMENTS]
    target, cut = sample.target[rows], [h[rows] for h in halves]
    given = []
    for element, values in enumerate(matrix.T.astype(np.float64)):
        found = _severity(of_number(values), values, target, cut)
        if found is not None and found[0] == "error":
            given.append((element, found[1]))
    if given:
        what = f"Element {given[0][0]} of column {feature.name!r}"
        yield _finding(what, "error", given[0][1], drop=feature.name)


def _severity(
    codings: list[Coded],
    number: npt.NDArray[Any] | None,
    target: npt.NDArray[Any],
    halves: list[Half],
) -> tuple[Severity, str] | None:
    """How bad it is and what the column tells of the target; None if it is not bad."""
    regression = target.dtype.kind == "f"
    tried = [(held_out(coded, target, halves[0]), coded) for coded in codings]
    first, coded = min(tried, key=lambda pair: pair[0].wrong)
    # Fewer than ten rows to get wrong may be chance.
    if first.baseline == 0 or (not regression and first.baseline * len(target) < 10):
        return None
    if regression and number is not None and (r := correlation(number, target)) > CORRELATED:
        return "error", f"its correlation with it is {r:.4f}"
    rest = [held_out(coded, target, half) for half in halves[1:]]
    if regression:
        what = f"it explains {1 - first.wrong / first.baseline:.1%} of the variance"
        given, proxy = first.under(GIVEN_AWAY), first.under(REGRESSION_PROXY)
    else:
        what = f"by itself it predicts {1 - first.wrong:.1%} of rows that it was not learned from"
        given = first.wrong <= GIVEN_AWAY and first.under(10 * GIVEN_AWAY)
        proxy = first.under(PROXY)
    if given and all(e.under(10 * GIVEN_AWAY) for e in rest):
        return "error", what
    return ("warning", what) if proxy and all(e.under(0.5) for e in rest) else None


def _finding(what: str, severity: Severity, tells: str, drop: str) -> Finding:
    verb = "gives the target away" if severity == "error" else "is a strong proxy of the target"
    return Finding(
        severity=severity,
        check="leak",
        message=f"{what} {verb}: {tells}.",
        remedy=f"Unless it is known when predicting, leave {drop!r} out of recipe.data.features.",
    )
