"""What is tried of each method: the same budget, and as many trials for one as for another."""

from __future__ import annotations

from collections.abc import Mapping

from sisa.approximate.methods import METHODS, NEEDS, Method

EPOCHS, ITEMS, WARMUP = 5, 8, 10
"""Passes over the forget set, items of each side in a step, and steps in which the rate rises."""

RATES = ("lr=1e-4", "lr=3e-4", "lr=1e-3")
"""Learning rates tried of each method that has one; the models were made at the last of them."""

GRIDS: Mapping[str, tuple[str, ...]] = {
    "ssd": ("alpha=2", "alpha=3", "alpha=4"),
    "ssd-label-free": ("alpha=2", "alpha=3", "alpha=4"),
    "prune": ("share=0.005", "share=0.02", "share=0.08"),
    "reset": ("share=0.005", "share=0.02", "share=0.08"),
    "partial-amnesiac": ("share=0.01", "share=0.03", "share=0.1"),
    "code-ablation": ("ratio=1.5", "ratio=2", "ratio=3"),
    "newton": ("damping=0.01", "damping=0.1", "damping=1"),
    "mix": ("utility=0.8", "utility=0.9", "utility=0.95"),
}
"""Settings tried of edits, which have no learning rate. The authors' alpha of 10 selects nothing
where a fifth of all items is to be forgotten: no parameter can be more than 5 times as important
for them as for all."""

ONE = ("amnesiac", "drop-adapter")
"""Methods with nothing to vary: one trial."""

FIXED: Mapping[str, tuple[str, ...]] = {
    "eul": ("lora_rank=8",),
    "newton": (f"limit={EPOCHS}",),
    "pdu": ("warmup_epochs=1",),
    "rmu": ("layer=2", "reference=second"),
    "scrub": ("reference=second",),
}
"""Settings that the size of the model or of the budget asks for; all others are the defaults."""

MIXED = "gradient-ascent"
"""Whose model, of the first of its trials, `mix` mixes with the base."""

GIVEN = {*NEEDS} - {"classifier"}
"""Needs that are met here."""


def tried() -> dict[str, tuple[tuple[str, ...], ...]]:
    """Settings of each trial of each method whose needs are met, by its name."""
    return {name: _trials(method) for name, method in METHODS.items() if not lacking(method)}


def lacking(method: Method) -> str:
    """What a method needs and is not here, in words; empty if it is all here."""
    return " and ".join(NEEDS[need] for need in method.needs if need not in GIVEN)


def adapters(settings: tuple[str, ...]) -> tuple[str, ...]:
    """Settings of `eul`, for the adapters that a trial of `fuse` with these settings fuses."""
    return next(each for each in tried()["eul"] if each[0] == settings[0])


def _trials(method: Method) -> tuple[tuple[str, ...], ...]:
    how = [f"items_per_batch={ITEMS // 2}"]
    if method.name in ONE:
        return (tuple(how),)
    if method.kind == "objective":
        how += ["accumulate=2", *FIXED.get(method.name, ()), f"warmup={WARMUP}", f"epochs={EPOCHS}"]
    else:
        how += FIXED.get(method.name, ())
        how += [f"epochs={EPOCHS}"] if "epochs" in method.defaults else []
    return tuple((one, *how) for one in GRIDS.get(method.name, RATES))
