"""Let the method of a plan change its model: an edit, or the loop with all that it is to have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sisa.approximate import editing, loop, reference
from sisa.approximate.asked import Asked, Known
from sisa.approximate.attacked import Attacked
from sisa.approximate.batches import Batch
from sisa.approximate.declaration import Method
from sisa.approximate.floor import with_floor
from sisa.approximate.item_values import mean_probability
from sisa.approximate.models import Subject
from sisa.approximate.neighbours import nearest
from sisa.approximate.plan import Plan, loaded
from sisa.approximate.reference import Reference
from sisa.approximate.rewind import Epochs, rewind
from sisa.approximate.similarity import Examiner
from sisa.approximate.targets import Attacks
from sisa.approximate.team import Alone, Team
from sisa.errors import ConfigurationError, IncompleteError


@dataclass(frozen=True)
class Carried:
    """What became of a plan that was carried out.

    Attributes:
        outcome: Of the method.
        before: What the model said before; None if evidence is not wanted.
        after: What it says now, if it was asked.
        attacked: What attacks on it came to, if they were made.
    """

    outcome: loop.Outcome
    before: Known | None = None
    after: Known | None = None
    attacked: Attacked | None = None


Carrier = Callable[[Plan, Path, loop.Report], Carried]
"""Changes a plan's model in place; takes a working folder, and what is told of every step."""


def asked(plan: Plan) -> Asked:
    """What the plan's model is asked before and afterwards."""
    others, own = plan.others, plan.chosen.own
    return Asked.of(
        plan.forget,
        others.get("retain"),
        others.get("holdout"),
        own.evidence_items,
        paraphrased=others.get("paraphrased"),
        wrong=[items for name, items in others.items() if name.startswith("wrong/")],
        continued=own.continued_items,
    )


def attacks(plan: Plan) -> Attacks:
    """How the plan's model is attacked afterwards."""
    own, how = plan.chosen.own, plan.chosen.loop
    lr = how.lr if own.relearn_lr is None else own.relearn_lr
    return Attacks(lr, own.relearn_steps, how.seed, how.items_per_batch, how.chunk_rows)


def carried_out(plan: Plan, working: Path, report: loop.Report) -> loop.Outcome:
    """Change the plan's model in place.

    Args:
        plan: What to do.
        working: Folder of checkpoints and of what is kept of the reference.
        report: Called after every optimizer step.

    Raises:
        ConfigurationError: The method compares more with the model as it was than can be kept.
        DivergedError: The method left all numbers behind; the last checkpoint is kept.
        IncompleteError: The method took no step.
    """
    how, retain = plan.chosen.loop, plan.others.get("retain")
    if plan.method.kind == "edit":
        brought = plan.request.brought
        return editing.run(plan.subject, plan.method, plan.forget, retain, brought, how, report)
    epochs = Epochs(plan.subject, working / "epochs", plan.identity)
    rewinds, near = plan.chosen.own.rewind, neighbours(plan)
    after_epoch = epochs.keep if rewinds else lambda epoch: None
    outcome = looped(plan, working, report, _reference(plan, near, working), near, after_epoch)
    if not rewinds:
        return outcome
    sizes = (how.items_per_batch, how.chunk_rows)
    rewound = rewind(epochs, plan.forget, plan.others["holdout"], *sizes)
    return replace(outcome, notes=(*outcome.notes, rewound.note))


def looped(
    plan: Plan,
    working: Path,
    report: loop.Report,
    asked: Reference | None,
    near: Batch | None = None,
    after_epoch: Callable[[int], None] = lambda epoch: None,
    *,
    team: Team | None = None,
    identity: str | None = None,
) -> loop.Outcome:
    """Run the loop with all that the plan's method is to have.

    Args:
        plan: What to do.
        working: Folder of checkpoints.
        report: Called after every optimizer step.
        asked: What the method compares with.
        near: See `neighbours`.
        after_epoch: See `loop.run`, as for the last two.
        team: Those who make the run together.
        identity: Of the run, where the model is held in parts.

    Raises:
        DivergedError: The method left all numbers behind; the last checkpoint is kept.
        IncompleteError: The method took no step.
    """
    how, retain, own = plan.chosen.loop, plan.others.get("retain"), plan.chosen.own
    sizes = (how.items_per_batch, how.chunk_rows)
    outcome = loop.run(
        plan.subject,
        _floored(plan, team or Alone()),
        plan.forget,
        retain,
        how,
        working,
        asked,
        report,
        alternatives=plan.others.get("alternatives"),
        neighbours=near,
        measure=Examiner(plan.subject, plan.forget, retain, own.similarity, *sizes),
        after_epoch=after_epoch,
        team=team,
        identity=identity,
    )
    if not outcome.steps:
        raise IncompleteError(f"{plan.method.name} took no step: {outcome.stopped}.")
    return outcome


def _floored(plan: Plan, team: Team) -> Method:
    """The method, with a floor of utility where one is asked for."""
    floor, retain, how = plan.chosen.own.floor, plan.others.get("retain"), plan.chosen.loop
    if floor is None:
        return plan.method
    if retain is None:
        raise ConfigurationError(
            "A floor of utility needs items to keep.", "Name them with --retain."
        )
    sizes = (how.items_per_batch, how.chunk_rows)
    before = team.agreed(mean_probability(plan.subject, retain, *sizes))
    return with_floor(plan.method, floor, before)


def neighbours(plan: Plan) -> Batch | None:
    """The nearest item to keep of each item to forget, where the method looks at it."""
    retain = plan.others.get("retain")
    terms = (*plan.method.forget, *plan.method.retain)
    if retain is None or all(term.data != "neighbours" for term in terms):
        return None
    size = plan.chosen.loop.items_per_batch
    return retain.select(nearest(plan.subject, plan.forget, retain, items_per_batch=size).indices)


def _reference(plan: Plan, near: Batch | None, working: Path) -> Reference | None:
    """What the method compares with, in one process; see `reference_of`."""
    chunk = plan.chosen.loop.chunk_rows
    return reference_of(
        plan,
        near,
        lambda: loaded(plan.request.model, plan.chosen.own),
        lambda batches, top: reference.keep(
            plan.subject, batches, top=top, folder=working, chunk=chunk
        ),
    )


def reference_of(
    plan: Plan,
    near: Batch | None,
    second: Callable[[], Subject],
    keep: Callable[[list[Batch], int | None], Reference],
) -> Reference | None:
    """What the method compares with: the model as it was, without a second one if that can be.

    Args:
        plan: With the model that is trained.
        near: See `neighbours`.
        second: Makes a second model.
        keep: Keeps values of items: their scores, or so many log-probabilities of each position.

    Raises:
        ConfigurationError: It compares more than can be kept.
    """
    needed, chunk, own = plan.method.references, plan.chosen.loop.chunk_rows, plan.chosen.own
    if not needed:
        return None
    if own.lora_rank:
        return reference.AdapterOff(plan.subject, chunk)
    if own.reference == "second":
        return reference.Live(second(), chunk)
    if "hidden" in needed or len(needed) > 1:
        raise ConfigurationError(
            f"{plan.method.name} compares more with the model as it was than can be kept of it.",
            "Set lora_rank, or reference=second for a second model in memory.",
        )
    return keep(compared(plan, near), None if needed == {"scores"} else own.reference_top)


def compared(plan: Plan, near: Batch | None) -> list[Batch]:
    """The items whose values of the model as it was the method asks for."""
    terms = (*plan.method.forget, *plan.method.retain)
    kinds = {term.data for term in terms if term.reference is not None}
    named = {"forget": plan.forget, "neighbours": near, **plan.others}
    names = sorted(kinds - {"pairs"} | ({"forget", "alternatives"} if "pairs" in kinds else set()))
    return [found for name in names if (found := named.get(name)) is not None]
