"""The table of a data set: a line a model, and what its columns mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import common

from unlearning.lines import Line, geometric, log_p
from unlearning.trials import MOST

COLUMNS: Mapping[str, str] = {
    "KS": "Kolmogorov-Smirnov distance of the probabilities of the forget items, one an item, to "
    "those under the exact retrain; 0 is like it, 1 is apart from it",
    "log10 p": "forget quality: logarithm of the p-value of that test (two-sided, exact); 0 is the "
    "best there is, and under -1.3 the two are told apart at 5 %",
    "KS TR": "the same distance for truth ratios (the answer of another subject against the right "
    "one), which is TOFU's forget quality; `label-flip` has learned these very answers",
    "utility": "mean probability, exp(-mean negative log likelihood of an item's labels), of "
    f"{MOST} of the retained items",
    "forget": "the same of the forget items",
    "log10": "logarithm of the geometric mean of the same, which tells too much from too little",
    "ES": "mean extraction strength of the forget items: what share greedy decoding completes",
    "says": "ROUGE-L (F1) of what the model says by itself after the question, or after the first "
    "half of the passage, with what follows in truth; mean over the forget items",
    "PrivLeak": "leakage of MUSE in percent: area of Min-K at 40 % against that of the retrain; "
    "below 0 the forget items are still known, above 0 they stand out as unknown",
    "TPR": "forget items told from never seen ones at 1 % false positives, by the best of the "
    "membership attacks, in whichever direction tells more, and which attack that is; the figure "
    "of `retrain` is by how much the subjects differ anyway",
    "relearn": "probability of one half of the forget items after relearning the other half, and "
    "the share of what the method had taken that came back",
    "int4": "probability of the forget items with the weights rounded to 4 bits, and that share",
    "s": "seconds in the method, the least of its trials, as the machine was not idle",
    "MB": "largest memory of its process, 2^20 bytes; the line `nothing` has what a process with "
    "the model in it holds anyway",
    "chosen": "what the chosen trial was set to",
}
"""Meaning of each column but the first."""


def table(lines: Sequence[Line]) -> list[str]:
    """Lines of the Markdown table."""
    return common.table(["model", *COLUMNS], [_cells(line) for line in lines])


def _cells(line: Line) -> list[str]:
    said = line.said
    if said is None or line.chosen is None:
        return [line.name, *["-"] * (len(COLUMNS) - 1), "no number in any trial"]
    return [
        line.name,
        f"{said.distance:.2f}",
        f"{log_p(said.p_value):.1f}",
        _of(line, "truth", "oracle", "distance", digits=2),
        f"{said.utility:.3f}",
        f"{said.forget:.3f}",
        f"{geometric(said.each):.1f}",
        f"{said.extraction:.2f}",
        _of(line, "continuation", "f1", "after", digits=2),
        _of(line, "membership", "privacy_leakage", digits=0),
        _worst(line.evidence["membership"]),
        _recovered(line, "relearning", "recovery"),
        _recovered(line, "quantisation", "bits", "4"),
        f"{min(trial['seconds'] for trial in line.trials):.1f}",
        f"{line.chosen['peak_bytes'] / 2**20:.0f}",
        line.chosen["settings"][0] if len(line.trials) > 1 else "",
    ]


def _of(line: Line, part: str, *path: str, digits: int) -> str:
    """A number of the evidence."""
    found = line.evidence[part]
    for key in path:
        found = "-" if isinstance(found, str) else found[key]
    return "-" if isinstance(found, str) else f"{found:.{digits}f}"


def _worst(membership: Any) -> str:
    """Largest rate of all attacks, with the attack."""
    if isinstance(membership, str):
        return "-"
    rates = {name: found["tpr_at_1_percent"] for name, found in membership["attacks"].items()}
    name = max(rates, key=lambda each: rates[each])
    return f"{rates[name]:.2f} {name.replace('_', '-')}"


def _recovered(line: Line, part: str, *path: str) -> str:
    """The metric after the attack, and the share of what was lost that came back."""
    found = line.evidence[part]
    if isinstance(found, str):
        return "-"
    for key in path:
        found = found[key]
    if line.name == "nothing":  # nothing was taken that could come back
        return f"{found['attacked']:.3f}" if part == "quantisation" else "-"
    return f"{found['attacked']:.3f} ({100 * found['recovered']:.0f} %)"
