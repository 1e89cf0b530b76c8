"""What is tried of each method: the same budget, and as many tries for one as for another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import common

from sisa.approximate.declaration import Setting
from sisa.approximate.loop import Settings
from sisa.approximate.methods import METHODS, NEEDS, Method

HOW = Settings(epochs=5, items_per_batch=32, seed=common.SEED, chunk_rows=256, checkpoint_every=0)
"""Passes over the forget set and records of each side in a step, for every method."""

REWOUND = "scrub, rewound"
"""SCRUB that goes back to the epoch whose error on the forget set is that on held-out records."""

MIXED: tuple[str, Mapping[str, Setting]] = ("gradient-ascent", {"lr": 1e-3})
"""Whose model `mix` mixes with the original."""

RATES = ("lr", (5e-5, 1e-4, 2e-4, 1e-3, 5e-3))
"""Learning rates tried of each method that has one; the model was made at 2e-3."""

SHARES = ("share", (0.02, 0.05, 0.1, 0.15, 0.3))

GRIDS: Mapping[str, tuple[str, Sequence[Setting]]] = {
    "ssd": ("alpha", (1.1, 1.5, 2.0, 3.0, 6.0)),
    "ssd-label-free": ("alpha", (1.1, 1.5, 2.0, 3.0, 6.0)),
    "prune": SHARES,
    "reset": SHARES,
    "relevance-path": SHARES,
    "partial-amnesiac": ("share", (0.003, 0.01, 0.03, 0.1, 0.3)),
    "partial-label-flip": ("lr", (0.01, 0.02, 0.05, 0.1, 0.25)),
    "partial-optimisation": ("lr", (0.003, 0.01, 0.02, 0.05, 0.25)),
    "mix": ("utility", (0.8, 0.9, 0.95, 0.98, 0.99)),
    "newton": ("damping", (0.001, 0.003, 0.01, 0.1, 1.0)),
    "code-ablation": ("ratio", (1.2, 1.5, 2.0, 3.0, 5.0)),
}
"""What is tried of edits instead of a rate of AdamW."""

FIXED: Mapping[str, Mapping[str, Setting]] = {
    "ce-u": {"skip": 0},
    "newton": {"limit": 20},
    "pdu": {"warmup_epochs": 1},
    "rmu": {"layer": "1", "alpha": 1.0},
}
"""Settings that a label alone, a small model or the budget asks for; others are the defaults."""

BOTTLENECK: Mapping[str, Any] = {"codes": 512, "strongest": 4, "epochs": 20, "lr": 3e-3}
"""What is fitted to the hidden layer of a model for `code-ablation`, as language models get one."""

ONE = ("amnesiac",)
"""Methods with nothing to vary: one try."""

LEFT_OUT: Mapping[str, str] = {
    "idk": "with a label in the place of an answer it is `label-flip`",
    "loss-selection": "with one label a record it is `gradient-difference`",
    "icu": f"needs {NEEDS['similarity']}",
    "eul": f"needs {NEEDS['adapter']}",
    "fuse": "is for language models",
    "drop-adapter": "is for language models",
}
"""Methods that do not apply to this classifier, and why."""

ALSO_LEFT_OUT: Mapping[str, Mapping[str, str]] = {
    "class": {},
    "random": {"relevance-path": "silences what carries whole classes, and every class is there"},
}

NO_LIRA: Mapping[str, str] = dict.fromkeys(
    ("amnesiac", "partial-amnesiac"), "would take a log of all updates of every shadow model"
)
"""Methods that U-LiRA leaves out for their cost."""


def tried(scenario: str) -> dict[str, tuple[dict[str, Setting], ...]]:
    """Settings of each try of each method that applies, by its name."""
    without = {*LEFT_OUT, *ALSO_LEFT_OUT[scenario]}
    found = {name: _tries(method) for name, method in METHODS.items() if name not in without}
    return {**found, REWOUND: found["scrub"]}


def _tries(method: Method) -> tuple[dict[str, Setting], ...]:
    fixed = dict(FIXED.get(method.name, {}))
    if "epochs" in method.defaults:
        fixed["epochs"] = HOW.epochs
    if method.name in ONE:
        return (fixed,)
    name, values = GRIDS.get(method.name, RATES)
    return tuple({name: value, **fixed} for value in values)
