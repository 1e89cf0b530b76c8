"""What changes while a method runs: weights, which items and sides count, and when to stop.

A controller is a frozen declaration; what it remembers is a dict of plain values that goes into the
checkpoint, so that a run continued is the run that was not interrupted. The loop asks for `sides`
at the start of an epoch and for `weights` at the start of an optimizer step, and tells `stepped`
once per optimizer step (never per micro-batch) and `epoch_ended` once per epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

State = dict[str, Any]
"""What a controller remembers: only what JSON holds."""

Side = Literal["forget", "retain"]

Measure = Literal["utility", "similarity"]


class Weights(NamedTuple):
    """Factors of a method's gamma and alpha."""

    forget: float = 1.0
    retain: float = 1.0


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured at the end of an epoch, as far as a controller `wants` it.

    Attributes:
        utility: Utility on retained data, larger is better.
        similarity: By item, how close what the model says is to what is to be forgotten, from 0 to
            1: BLEU or ROUGE of its continuation, of the items still active.
    """

    utility: float | None = None
    similarity: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Controller:
    """Changes nothing and never stops: the constant controller, and what others start from."""

    @property
    def wants(self) -> frozenset[Measure]:
        """What is to be measured at the end of an epoch."""
        return frozenset()

    def start(self) -> State:
        """Give the state before the first step."""
        return {}

    def sides(self, state: State, epoch: int) -> tuple[tuple[Side, ...], ...]:
        """Name the passes of an epoch, counted from zero, and the sides each pass trains on."""
        return (("forget", "retain"),)

    def weights(self, state: State) -> Weights:
        """Give the factors of gamma and alpha for the next optimizer step."""
        return Weights()

    def active(self, state: State, ids: Sequence[str]) -> list[bool]:
        """Say which items of the forget set still count."""
        return [True] * len(ids)

    def stepped(self, state: State, epoch: int, retain_loss: float | None) -> State:
        """Give the state after an optimizer step.

        Args:
            state: The state before it.
            epoch: Counted from zero.
            retain_loss: Mean of the unweighted retain terms over the step's micro-batches.
        """
        return state

    def epoch_ended(self, state: State, epoch: int, measured: Measured) -> State:
        """Give the state after an epoch."""
        return state

    def stopped(self, state: State) -> str | None:
        """Say why the run ends, or None while it goes on."""
        return None

    def gives_up(self, state: State) -> bool:
        """Say whether the epoch that just ended is undone, and the run with it."""
        return False

    def notes(self, state: State) -> tuple[str, ...]:
        """Give sentences for the report on what a reader should know."""
        return ()


@dataclass(frozen=True)
class Dual(Controller):
    """Retain as a constraint: minimise the forget loss subject to retain loss <= epsilon.

    After each optimizer step beyond the warm-up the multiplier of the retain terms becomes
    max(0, min(ceiling, multiplier + eta (retain loss - epsilon))): projected dual ascent (Entesari
    et al., 2025, arXiv:2506.05314). It is told once per optimizer step, so that it does not depend
    on how a step is split.

    Attributes:
        epsilon: Bound on the retain loss; None for `slack` times that of the first step.
        eta: Dual step size.
        first: Multiplier before any update.
        warmup_epochs: Epochs without updates.
        ceiling: Where the multiplier ends; an epsilon that cannot be met would raise it for ever.
        slack: How far above the retain loss of the first step epsilon is.
    """

    epsilon: float | None = None
    eta: float = 1.0
    first: float = 50.0
    warmup_epochs: int = 3
    ceiling: float = 1000.0
    slack: float = 1.05

    def start(self) -> State:
        """Give the state before the first step."""
        return {"multiplier": self.first, "epsilon": self.epsilon, "bounded": 0, "updates": 0}

    def weights(self, state: State) -> Weights:
        """Give the multiplier as the factor of alpha."""
        return Weights(retain=state["multiplier"])

    def stepped(self, state: State, epoch: int, retain_loss: float | None) -> State:
        """Move the multiplier once; a loss that is missing or not finite moves nothing."""
        if retain_loss is None or not math.isfinite(retain_loss):
            return state
        if state["epsilon"] is None:
            state = {**state, "epsilon": self.slack * retain_loss}
        if epoch < self.warmup_epochs:
            return state
        moved = state["multiplier"] + self.eta * (retain_loss - state["epsilon"])
        return {
            **state,
            "multiplier": max(0.0, min(self.ceiling, moved)),
            "bounded": state["bounded"] + (moved > self.ceiling),
            "updates": state["updates"] + 1,
        }

    def notes(self, state: State) -> tuple[str, ...]:
        """Say whether the multiplier had to be held, or was never moved at all."""
        if not state["updates"]:
            return (
                f"The retain multiplier stayed at {self.first:g}: every epoch was one of the "
                "warm-up. Raise epochs, or lower warmup_epochs.",
            )
        if not state["bounded"]:
            return ()
        times = "once" if state["bounded"] == 1 else f"{state['bounded']} times"
        return (
            f"The retain multiplier was held at {self.ceiling:g} {times}: the bound on the retain "
            f"loss, {state['epsilon']:.4g}, was not met. Raise epsilon.",
        )


@dataclass(frozen=True)
class PerItemStop(Controller):
    """Leave an item alone as soon as the model's continuation no longer resembles it.

    ICU's iterative refinement (Tang et al., 2024, arXiv:2407.20271). An item that is left alone
    stays so; the run ends when all are. Its authors' code also leaves an item alone at a BERTScore
    below 0.3, measures before the first epoch too, and ends a run whose memorisation accuracy and
    extraction likelihood are below those of unseen text: here fewer items stop, and later.

    Attributes:
        below: Similarity under which an item is forgotten.
    """

    below: float = 0.01

    @property
    def wants(self) -> frozenset[Measure]:
        """Similarity of the items still active."""
        return frozenset({"similarity"})

    def start(self) -> State:
        """Give the state before the first step."""
        return {"forgotten": [], "left": None}

    def active(self, state: State, ids: Sequence[str]) -> list[bool]:
        """Leave out what is forgotten."""
        forgotten = set(state["forgotten"])
        return [item not in forgotten for item in ids]

    def epoch_ended(self, state: State, epoch: int, measured: Measured) -> State:
        """Leave out what resembles its item too little by now."""
        met = {item for item, value in measured.similarity.items() if value < self.below}
        left = len(measured.similarity) - len(met)
        return {"forgotten": sorted({*state["forgotten"], *met}), "left": left}

    def stopped(self, state: State) -> str | None:
        """End when no item is active."""
        return "Every item is forgotten." if state["left"] == 0 else None


@dataclass(frozen=True)
class Alternating(Controller):
    """Train on one set alone, then on the other alone, in each epoch or in the first ones.

    SCRUB (Kurmanji et al., NeurIPS 2023, arXiv:2302.09880) begins with the forget set, and later
    epochs only retain; EUL (Chen and Yang, EMNLP 2023, arXiv:2310.20150) begins with the retain
    set.

    Attributes:
        msteps: Epochs with a pass over the forget set; None for all.
        first: The set that an epoch begins with.
    """

    msteps: int | None = 3
    first: Side = "forget"

    def sides(self, state: State, epoch: int) -> tuple[tuple[Side, ...], ...]:
        """Name the passes of an epoch."""
        if self.msteps is not None and epoch >= self.msteps:
            return (("retain",),)
        both: tuple[tuple[Side, ...], ...] = (("forget",), ("retain",))
        return both if self.first == "forget" else both[::-1]


@dataclass(frozen=True)
class UtilityFloor(Controller):
    """End as soon as utility is below a floor, or no longer a number.

    Attributes:
        floor: Least utility.
    """

    floor: float = 0.0

    @property
    def wants(self) -> frozenset[Measure]:
        """Utility."""
        return frozenset({"utility"})

    def start(self) -> State:
        """Give the state before the first step."""
        return {"good_epoch": None, "below": None}

    def epoch_ended(self, state: State, epoch: int, measured: Measured) -> State:
        """Remember the last epoch at or above the floor, to which the run goes back."""
        if measured.utility is None:
            return state
        if measured.utility >= self.floor:
            return {"good_epoch": epoch, "below": None}
        return {**state, "below": measured.utility if math.isfinite(measured.utility) else "nan"}

    def stopped(self, state: State) -> str | None:
        """End below the floor."""
        if state["below"] is None:
            return None
        below = state["below"]
        told = below if isinstance(below, str) else f"{below:.4g}"
        return f"Utility is {told}, below the floor of {self.floor:g}."

    def gives_up(self, state: State) -> bool:
        """Undo the epoch that fell below the floor."""
        return state["below"] is not None


@dataclass(frozen=True)
class Together(Controller):
    """Several controllers at once: factors multiply, an item counts while all say so.

    Attributes:
        parts: At least one; the first that has passes of its own names them.
    """

    parts: tuple[Controller, ...] = ()

    @property
    def wants(self) -> frozenset[Measure]:
        """What any of them wants."""
        return frozenset[Measure]().union(*(part.wants for part in self.parts))

    def start(self) -> State:
        """Give the states before the first step."""
        return {"parts": [part.start() for part in self.parts]}

    def sides(self, state: State, epoch: int) -> tuple[tuple[Side, ...], ...]:
        """Name the passes of an epoch."""
        usual = super().sides(state, epoch)
        named = (part.sides(own, epoch) for part, own in self._each(state))
        return next((passes for passes in named if passes != usual), usual)

    def weights(self, state: State) -> Weights:
        """Multiply the factors."""
        factors = [part.weights(own) for part, own in self._each(state)]
        return Weights(
            math.prod(each.forget for each in factors), math.prod(each.retain for each in factors)
        )

    def active(self, state: State, ids: Sequence[str]) -> list[bool]:
        """Keep what all of them keep."""
        said = [part.active(own, ids) for part, own in self._each(state)]
        return [all(column) for column in zip(*said, strict=True)]

    def stepped(self, state: State, epoch: int, retain_loss: float | None) -> State:
        """Tell all of them."""
        return {"parts": [p.stepped(own, epoch, retain_loss) for p, own in self._each(state)]}

    def epoch_ended(self, state: State, epoch: int, measured: Measured) -> State:
        """Tell all of them."""
        return {"parts": [p.epoch_ended(own, epoch, measured) for p, own in self._each(state)]}

    def stopped(self, state: State) -> str | None:
        """End as soon as one of them ends."""
        reasons = (part.stopped(own) for part, own in self._each(state))
        return next((reason for reason in reasons if reason is not None), None)

    def gives_up(self, state: State) -> bool:
        """Undo what one of them undoes, whatever the others say."""
        return any(part.gives_up(own) for part, own in self._each(state))

    def notes(self, state: State) -> tuple[str, ...]:
        """Give the sentences of all of them."""
        return tuple(note for part, own in self._each(state) for note in part.notes(own))

    def _each(self, state: State) -> list[tuple[Controller, State]]:
        return list(zip(self.parts, state["parts"], strict=True))
