"""The one loop: passes of an epoch, steps, checkpoints, and the end of a run.

A run continued from its checkpoint does what the run that was not interrupted does: to the same
bits on a processor, with the same number of threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from data_index.storage import canonical_json, sha256
from sisa.approximate import progress
from sisa.approximate.batches import Batch
from sisa.approximate.controllers import Measure, Measured, Side, Weights
from sisa.approximate.declaration import HiddenTerm, Method, Term
from sisa.approximate.memory import Peak
from sisa.approximate.models import Subject
from sisa.approximate.objectives.hidden import control_vector
from sisa.approximate.order import FORGET, RETAIN, Order
from sisa.approximate.reference import Reference, digest
from sisa.approximate.step import Pass, Sources
from sisa.approximate.team import Alone, Team, like, own, whole
from sisa.determinism import mix
from sisa.errors import ConfigurationError, DivergedError, UsageError

Report = Callable[[Mapping[str, float], int], None]
"""Takes what a step was, by name, and its number from 1: what MLflow's `log_metrics` takes.

Several workers are reported of in another thread, where MLflow wants to be given the run's id.
"""

Measurer = Callable[[frozenset[Measure], Sequence[str]], Measured]
"""Measures what a controller asks for at the end of an epoch; takes the ids still active too."""


@dataclass(frozen=True)
class Settings:
    """How a method is run.

    Attributes:
        epochs: Over what is to be forgotten.
        items_per_batch: Items of each side that go through the model at once.
        accumulate: Batches of an optimizer step.
        lr: Learning rate, constant after the warm-up.
        weight_decay: Of AdamW (Loshchilov and Hutter, ICLR 2019).
        warmup: Optimizer steps in which the rate rises linearly.
        max_grad_norm: Gradients are scaled down to this Euclidean norm.
        precision: `bf16` computes in bfloat16 where torch's autocast holds it safe; parameters and
            losses stay as they are.
        seed: Of the order and of everything random.
        chunk_rows: Labelled positions whose logits exist at once.
        checkpoint_every: Steps between checkpoints; none is written if 0.
    """

    epochs: int = 5
    items_per_batch: int = 4
    accumulate: int = 1
    lr: float = 1e-5
    weight_decay: float = 0.01
    warmup: int = 0
    max_grad_norm: float = 1.0
    precision: Literal["float32", "bf16"] = "float32"
    seed: int = 0
    chunk_rows: int = 256
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        """Check them.

        Raises:
            UsageError: One is out of its range.
        """
        for name in ("epochs", "items_per_batch", "accumulate", "chunk_rows"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}.", "Give 1 or more.")
        for name in ("lr", "weight_decay", "warmup", "checkpoint_every"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} is {getattr(self, name)}.", "Give 0 or more.")
        if not self.max_grad_norm > 0:
            raise UsageError("max_grad_norm is not above 0.", "Give inf for no limit.")
        if self.precision not in ("float32", "bf16"):
            raise UsageError(f"There is no precision {self.precision}.", "float32 or bf16.")


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        steps: Optimizer steps that were taken.
        losses: Weighted loss of each.
        seconds: In the loop, those before an interruption included.
        peak_bytes: Largest memory since the run was last taken up.
        stopped: Why it ended before its epochs were over.
        notes: What a reader of a report should know.
    """

    steps: int
    losses: tuple[float, ...]
    seconds: float
    peak_bytes: int
    stopped: str | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a run is; plain values, which go into the checkpoint.

    Attributes:
        passes: Sides of each pass of this epoch.
        epoch: From 0.
        number: Of the pass in its epoch.
        start: Items of the pass that are done.
        retained: Retained items that were visited.
        step: Steps that are done, those without a labelled position included.
    """

    passes: tuple[tuple[Side, ...], ...]
    epoch: int = 0
    number: int = 0
    start: int = 0
    retained: int = 0
    step: int = 0


def run(
    subject: Subject,
    method: Method,
    forget: Batch,
    retain: Batch | None,
    settings: Settings,
    folder: Path | None,
    reference: Reference | None = None,
    report: Report = lambda metrics, step: None,
    *,
    alternatives: Batch | None = None,
    neighbours: Batch | None = None,
    measure: Measurer | None = None,
    after_epoch: Callable[[int], None] = lambda epoch: None,
    team: Team | None = None,
    identity: str | None = None,
) -> Outcome:
    """Train a model by a method; take the run up where a checkpoint is.

    Args:
        subject: The model, changed in place.
        method: What to minimise.
        forget: What is to be forgotten.
        retain: What is retained, where the method needs it.
        settings: How.
        folder: Of the checkpoints; None keeps none.
        reference: What the model said before, where the method needs it.
        report: Called after every optimizer step.
        alternatives: Items of `forget`, in its order, with other labels or answers.
        neighbours: For each item of `forget`, the nearest retained one.
        measure: Measures what the method's controller asks for.
        after_epoch: Called after each epoch, from 0, that is not given up; before its checkpoint.
        team: Those who make the run together, each with this call; None is this process alone.
        identity: Of the run, where the model is held in parts; see `identity_of`.

    Raises:
        UsageError: Nothing is to be forgotten, or data that the method needs is missing.
        ConfigurationError: The folder's checkpoint is of another run, or the method needs a
            reference or a measurement that is not given.
        DivergedError: A loss, a gradient or a parameter is no longer a number. The last checkpoint
            is as it was.
    """
    sources = Sources(forget, retain, alternatives, neighbours)
    terms = (*method.forget, *method.retain)
    if not len(forget):
        raise UsageError("Nothing is to be forgotten: the forget set is empty.")
    sources.require(terms)
    if method.controller.wants and measure is None:
        raise ConfigurationError(f"{method.name} needs measurements that are not given.")
    passes = Pass(
        subject,
        sources,
        reference,
        settings.chunk_rows,
        settings.precision == "bf16",
        method.defaults.get("layer"),
        team=team or Alone(),
    )
    if any(isinstance(t, HiddenTerm) and t.target == "control" for t in terms):
        control = _control(passes, method.number("coefficient"), settings.seed)
        passes = replace(passes, control=control)
    with torch.random.fork_rng(), torch.enable_grad():
        going = _Run(passes, method, settings, folder, report, measure, after_epoch, identity)
        return going.to_the_end()


class _Run:
    """A run as it goes."""

    def __init__(
        self,
        passes: Pass,
        method: Method,
        settings: Settings,
        folder: Path | None,
        report: Report,
        measure: Measurer | None,
        after_epoch: Callable[[int], None],
        identity: str | None,
    ) -> None:
        self._after_epoch = after_epoch
        self._pass, self._method, self._settings = passes, method, settings
        self._folder, self._report, self._measure = folder, report, measure
        sources = passes.sources
        self._forget = Order(sources.forget.ids, settings.seed, FORGET)
        self._retain = Order(sources.retain.ids if sources.retain else (), settings.seed, RETAIN)
        self._parameters = passes.subject.trainable()
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        self._state = method.controller.start()
        self._place = Place(method.controller.sides(self._state, 0))
        self._losses: list[float] = []
        self._good: dict[str, Tensor] = {}
        if identity is None and folder is not None:
            identity = identity_of(passes.subject, sources, method, settings)
        self._identity = identity or ""
        self._peak, self._seconds, self._since = Peak(passes.subject.device), 0.0, time.monotonic()
        self._resume()
        self._require_in_step()
        if not self._good:
            self._keep_good()

    def to_the_end(self) -> Outcome:
        """Go on until the epochs are over or the controller stops."""
        controller = self._method.controller
        while (why := controller.stopped(self._state)) is None:
            if self._place.epoch == self._settings.epochs:
                break
            if self._place.number == len(self._place.passes):
                self._end_epoch()
            elif not (indices := self._next()):
                self._place = replace(self._place, number=self._place.number + 1, start=0)
            else:
                self._step(indices)
        self._back_to_good()
        self._save()
        if why is None and not self._losses:
            why = "nothing that is to be forgotten has a labelled position"
        return Outcome(
            len(self._losses),
            tuple(self._losses),
            self._spent(),
            self._peak.bytes(),
            why,
            controller.notes(self._state),
        )

    @property
    def _sides(self) -> tuple[Side, ...]:
        return self._place.passes[self._place.number]

    def _next(self) -> list[int]:
        """Indices, into the leading side of this pass, of the next step's items."""
        place, count = self._place, self._settings.items_per_batch * self._settings.accumulate
        if "forget" not in self._sides:
            left = len(self._pass.sources.retain or ()) - place.start
            return self._retain.stream(place.retained, max(min(count, left), 0))
        active = self._method.controller.active(self._state, self._pass.sources.forget.ids)
        order = [i for i in self._forget.epoch(place.epoch) if active[i]]
        return order[place.start : place.start + count]

    def _step(self, indices: Sequence[int]) -> None:
        """Take one optimizer step, or none where nothing that should be is labelled."""
        torch.manual_seed(mix(self._settings.seed, self._place.step) >> 1)
        self._optimizer.zero_grad(set_to_none=True)
        weights = self._method.controller.weights(self._state)
        micro: dict[Side, list[list[int]]] = {}
        if "forget" in self._sides:
            micro["forget"] = self._split(list(indices))
        if "retain" in self._sides:
            retained = self._retain.stream(self._place.retained, len(indices))
            micro["retain"] = self._split(retained)
        found: dict[Side, float | None] = {}
        for side in self._sides:
            factor = self._factor(side, weights)
            found[side] = self._pass.side(self._terms(side), micro, factor)
            if found[self._sides[0]] is None:
                break
        if found[self._sides[0]] is not None:  # retaining alone would be another method
            self._update(found, weights)
        self._place = replace(
            self._place,
            start=self._place.start + len(indices),
            retained=self._place.retained + sum(map(len, micro.get("retain", ()))),
            step=self._place.step + 1,
        )
        every = self._settings.checkpoint_every
        if every and self._place.step % every == 0:
            self._save()

    def _split(self, indices: list[int]) -> list[list[int]]:
        size = self._settings.items_per_batch
        return [indices[at : at + size] for at in range(0, len(indices), size)]

    def _terms(self, side: Side) -> tuple[Term | HiddenTerm, ...]:
        return self._method.forget if side == "forget" else self._method.retain

    def _factor(self, side: Side, weights: Weights) -> float:
        if side == "forget":
            return self._method.gamma * weights.forget
        return self._method.alpha * weights.retain

    def _update(self, found: Mapping[Side, float | None], weights: Weights) -> None:
        """Let the optimizer move the parameters, unless something is no longer a number."""
        sides = {side: value for side, value in found.items() if value is not None}
        loss = sum(self._factor(side, weights) * value for side, value in sides.items())
        parameters = self._parameters.values()
        if all(p.grad is None for p in parameters):
            raise ConfigurationError(
                f"No parameter that is trained has a gradient of {self._method.name}.",
                "Set trained to names that it reaches.",
            )
        found_norm = torch.nn.utils.clip_grad_norm_(parameters, self._settings.max_grad_norm)
        norm = float(whole(found_norm))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._diverged("loss" if not math.isfinite(loss) else "gradient")
        rate = self._settings.lr * min(1.0, (len(self._losses) + 1) / (self._settings.warmup or 1))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._losses.append(loss)
        controller, epoch = self._method.controller, self._place.epoch
        self._state = controller.stepped(self._state, epoch, found.get("retain"))
        told: dict[str, float] = {"loss": loss, **{str(k): v for k, v in sides.items()}}
        told |= {"gradient_norm": norm, "lr": rate, "seconds": self._spent()}
        told["peak_bytes"] = float(self._peak.bytes())
        self._report(told, len(self._losses))

    def _end_epoch(self) -> None:
        controller, epoch = self._method.controller, self._place.epoch
        if controller.wants:
            assert self._measure is not None
            ids = self._pass.sources.forget.ids
            active = list(compress(ids, controller.active(self._state, ids)))
            with torch.no_grad():
                measured = self._pass.team.agreed(self._measure(controller.wants, active))
            self._state = controller.epoch_ended(self._state, epoch, measured)
        else:
            self._state = controller.epoch_ended(self._state, epoch, Measured())
        if not controller.gives_up(self._state):
            self._keep_good()
            self._after_epoch(epoch)
        passes = controller.sides(self._state, epoch + 1)
        self._place = replace(self._place, passes=passes, epoch=epoch + 1, number=0, start=0)

    def _keep_good(self) -> None:
        """Remember the parameters where a floor of utility may ask for them again."""
        if "utility" in self._method.controller.wants:
            self._good = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def _back_to_good(self) -> None:
        """Give up the epoch that ended the run, where the controller says so."""
        if self._method.controller.gives_up(self._state):
            for name, tensor in self._good.items():
                self._parameters[name].copy_(tensor)

    def _save(self) -> None:
        """Write a checkpoint.

        Raises:
            DivergedError: A parameter is no longer a number; the checkpoint before stays.
        """
        team, parameters = self._pass.team, self._parameters
        broken = sum(not bool(torch.isfinite(own(p)).all()) for p in parameters.values())
        if team.sum(torch.tensor(broken)):
            raise self._diverged("parameter")
        if self._folder is None or not self._settings.checkpoint_every:
            return
        tensors: dict[str, Tensor] = {f"parameter/{name}": p for name, p in parameters.items()}
        tensors |= {f"good/{name}": p for name, p in self._good.items()}
        for number, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{name}": t for name, t in state.items()}
        values = {
            "place": asdict(self._place),
            "state": self._state,
            "losses": self._losses,
            "seconds": self._spent(),
        }
        tensors = team.gather(tensors)
        if team.first:
            where = progress.Progress(self._identity, self._place.step, tensors, values)
            progress.write(self._folder, where)

    def _resume(self) -> None:
        if self._folder is None or (kept := progress.read(self._folder, self._identity)) is None:
            return
        optimizer: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for name, tensor in kept.tensors.items():
                kind, _, rest = name.partition("/")
                if kind == "parameter":
                    self._parameters[rest].copy_(like(tensor, self._parameters[rest]))
                elif kind == "good":
                    self._good[rest] = like(tensor, self._parameters[rest])
                else:
                    number, _, field = rest.partition("/")
                    of = list(self._parameters.values())[int(number)]
                    held = like(tensor, of) if tensor.shape == of.shape else tensor
                    optimizer.setdefault(int(number), {})[field] = held
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": optimizer, "param_groups": groups})
        place = dict(kept.values["place"])
        place["passes"] = tuple(tuple(sides) for sides in place["passes"])
        self._place, self._state = Place(**place), kept.values["state"]
        self._losses, self._seconds = list(kept.values["losses"]), kept.values["seconds"]

    def _require_in_step(self) -> None:
        """Check that all of a team begin where the first does.

        Raises:
            ConfigurationError: They see different checkpoints.
        """
        team, place = self._pass.team, self._place
        if team.sum(torch.tensor(int(place != team.agreed(place)))):
            raise ConfigurationError(
                f"The workers see different checkpoints in {self._folder}.",
                "Call again once all nodes see the same files there.",
            )

    def _spent(self) -> float:
        return self._seconds + time.monotonic() - self._since

    def _diverged(self, what: str) -> DivergedError:
        kept = None if self._folder is None else progress.last(self._folder)
        return DivergedError(
            f"A {what} of step {self._place.step + 1} is no longer a number.",
            "Lower the learning rate or the weight of the forget loss."
            + (f" {kept} holds the last checkpoint." if kept else " No checkpoint was written."),
        )


def identity_of(subject: Subject, sources: Sources, method: Method, settings: Settings) -> str:
    """Digest of all that the parameters after a run are a function of.

    Args:
        subject: The model as it is before, whole.
        sources: All items.
        method: What is minimised.
        settings: How.
    """
    sides = (sources.forget, sources.retain, sources.alternatives, sources.neighbours)
    chosen = {name: value for name, value in asdict(settings).items() if name != "checkpoint_every"}
    found = {
        "settings": {name: str(value) for name, value in chosen.items()},
        "method": [method.name, {name: str(value) for name, value in method.defaults.items()}],
        "trained": sorted(subject.trainable()),
        "model": digest(subject),
        "items": [[d.hex() for d in side.digests()] if side is not None else [] for side in sides],
        "ids": [list(side.ids) if side is not None else [] for side in sides],
    }
    return sha256(canonical_json(found))


def _control(passes: Pass, coefficient: float, seed: int) -> Tensor:
    """The control vector of a run, a function of its seed."""
    with torch.no_grad():
        first = passes.subject.hidden(passes.sources.forget.select([0]), passes.layer)
    generator = torch.Generator().manual_seed(mix(seed, 1) >> 1)
    drawn = control_vector(first.hidden.shape[1], coefficient, generator)
    return drawn.to(passes.subject.device)
