"""Approximate unlearning in words and columns, for who reads it at a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sisa.results.columns import columns

MIB = 2**20

CHANGES: Mapping[str, Mapping[str, str]] = {
    "memorisation": {
        "probability": "forget items, probability",
        "exact": "forget items, exact memorisation",
        "extraction_strength": "forget items, extraction strength",
    },
    "continuation": {
        "recall": "forget items said by itself, ROUGE-L recall",
        "f1": "forget items said by itself, ROUGE-L F1",
    },
    "truth": {"ratio": "forget items, truth ratio"},
    "utility": {
        "probability": "other items, probability",
        "exact": "other items, exact memorisation",
    },
}
"""What has a value before and after, in words, by part of the evidence and figure."""


def settings(found: Mapping[str, Any]) -> str:
    """All of them, as `--set` takes them."""
    return ", ".join(f"{name}={_setting(value)}" for name, value in found.items())


def evidence(found: Mapping[str, Any]) -> list[str]:
    """What was measured, part by part; what was not evaluated is named at the end."""
    there = {name: part for name, part in found.items() if not isinstance(part, str)}
    rows = [("", "before", "after")]
    for part, figures in CHANGES.items():
        for name, label in figures.items() if part in there else ():
            change = there[part][name]
            rows.append((label, _number(change["before"]), _number(change["after"])))
    lines = [*columns(rows)] if len(rows) > 1 else []
    lines += _compared(there)
    if "membership" in there:
        lines += _membership(there["membership"])
    lines += _recovered(there)
    lacking = [name for name in found if name not in there]
    return [*lines, *([f"not evaluated: {', '.join(lacking)}"] if lacking else [])]


def _compared(there: Mapping[str, Any]) -> Iterator[str]:
    """Beside a model that never saw the items."""
    for found in (there.get("oracle"), there.get("truth", {}).get("oracle")):
        if isinstance(found, Mapping):
            yield (
                f"beside the retrained model, by {found['statistic']}: KS distance "
                f"{_number(found['distance'])}, p-value {found['p_value']:.3g}"
            )
            if isinstance(far := found["predictions"], Mapping):
                yield (
                    f"its answers: total variation {_number(far['total_variation'])}, KL "
                    f"{_number(far['kl'])} nats, the same class for {100 * far['same']:.0f} %"
                )


def _membership(found: Mapping[str, Any]) -> Iterator[str]:
    rows = [("membership attack", "AUC", "TPR at 1 %", "TPR at 0.1 %")]
    for name, attack in found["attacks"].items():
        figures = (attack["auc"], attack["tpr_at_1_percent"], attack["tpr_at_01_percent"])
        rows.append((name.replace("_", "-"), *map(_number, figures)))
    yield from columns(rows)
    if (leaked := found["privacy_leakage"]) != "not evaluated":
        yield f"leakage beside the retrained model (PrivLeak): {leaked:.1f} %"


def _recovered(there: Mapping[str, Any]) -> Iterator[str]:
    """What of the forget items came back, by each attack."""
    if (found := there.get("relearning")) is not None:
        yield f"after {found['steps']} steps at {found['lr']:g}: {_back(found['recovery'])}"
    for bits, recovery in there.get("quantisation", {}).get("bits", {}).items():
        yield f"at {bits} bits: {_back(recovery)}"


def _back(found: Mapping[str, Any]) -> str:
    return (
        f"{found['metric']} of forget items {_number(found['attacked'])}, "
        f"{100 * found['recovered']:.0f} % of what was lost is back"
    )


def _number(value: Any) -> str:
    """A share or a probability; `-` where it was not evaluated."""
    return "-" if isinstance(value, str) else f"{value:.3f}"


def _setting(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return f"{value:g}" if isinstance(value, float) else str(value).replace("\n", "\\n")
