"""Edits that add up weights: logged updates taken back, a task vector, a mixture of two models."""

from __future__ import annotations

from sisa.approximate import loop
from sisa.approximate.declaration import Parts, Term, objective
from sisa.approximate.edits.amnesiac import undo
from sisa.approximate.edits.given import Edited, Given
from sisa.approximate.edits.mappings import Parameters, into_module, of_module
from sisa.approximate.edits.mix import mix_to, task_vector
from sisa.approximate.edits.original import original_parameters
from sisa.approximate.edits.updates import Log
from sisa.approximate.item_values import mean_probability
from sisa.approximate.objectives.rows import nll
from sisa.approximate.objectives.sequences import token_mean
from sisa.errors import ConfigurationError, IncompleteError

LEARNING = objective(
    "fine-tuning",
    lambda: Parts((Term(nll, token_mean()),)),
    cost="nothing",
    source="plain training on what is to be forgotten",
    alpha=0.0,
)
"""What overfits a model to the forget set for its task vector."""


def amnesiac(given: Given) -> Edited:
    """Take back the updates of the steps that held an item of the forget set; see `undo`."""
    return _undone(given, 1.0)


def partial_amnesiac(given: Given, *, share: float = 0.1) -> Edited:
    """Take back the largest part of each layer's updates alone; see `undo`."""
    return _undone(given, share)


def away_from_overfitting(
    given: Given,
    *,
    alpha: float = 1.0,
    epochs: int = 5,
    lr: float = 1e-5,
    weight_decay: float = 0.01,
) -> Edited:
    """Train further on the forget set, and go the other way; see `task_vector`."""
    subject, before = given.subject, given.parameters()
    how = loop.Settings(
        epochs=epochs,
        lr=lr,
        weight_decay=weight_decay,
        items_per_batch=given.items_per_batch,
        chunk_rows=given.chunk_rows,
        seed=given.seed,
        checkpoint_every=0,
    )
    try:
        done = loop.run(subject, LEARNING, given.forget, None, how, None, report=given.report)
        overfitted = of_module(subject.module)
    finally:
        into_module(subject.module, before)
    if not done.steps:
        raise IncompleteError(
            "No item of the forget set has a labelled position.", "Give at least one that has."
        )
    note = f"The task vector is of {done.steps} steps on the forget set."
    return Edited(task_vector(before, overfitted, alpha), (note,))


def mixed(given: Given, *, utility: float = 0.95, tolerance: float = 1 / 64) -> Edited:
    """Put back as little of the original model as reaches a share of its utility; see `mix_to`.

    Utility is the mean probability of the retained items.
    """
    if not 0 < utility <= 1:
        raise ConfigurationError(
            f"The utility {utility} is not in (0, 1].", "Give a share of the original's."
        )
    subject, retain = given.subject, given.retain
    assert retain is not None
    unlearned, original = given.parameters(), original_parameters(given)

    def measured(params: Parameters) -> float:
        into_module(subject.module, params)
        return mean_probability(subject, retain, given.items_per_batch, given.chunk_rows)

    try:
        whole = measured(original)
        found = mix_to(original, unlearned, measured, utility * whole, tolerance)
    finally:
        into_module(subject.module, unlearned)
    return Edited(
        found.params,
        (
            f"The original's share is {found.share:.4g}, which gives retained items a mean "
            f"probability of {found.utility:.4g}; the original gives {whole:.4g}.",
        ),
    )


def _undone(given: Given, share: float) -> Edited:
    log = Log.open(given.path("log"))
    params = undo(given.parameters(), log, given.forget.ids, share)
    steps = sum(step.file is not None for step in log.holding(given.forget.ids))
    return Edited(
        params,
        (
            f"{steps} of {len(log.steps)} steps were taken back.",
            "The update log still holds them: once this model is safe, take the items out of it "
            "with Log.remove, or the next request takes them back again.",
        ),
    )
