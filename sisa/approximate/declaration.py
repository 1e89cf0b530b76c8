"""What a method is: terms of a loss on named data, weights, a controller, needs and costs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_type_hints

from torch import Tensor

from sisa.approximate.controllers import Controller
from sisa.approximate.edits.given import Edited, Given
from sisa.approximate.objectives.rows import RowFunction
from sisa.approximate.objectives.sequences import Reduction
from sisa.approximate.rows import RowReference, Rows
from sisa.errors import UsageError

Data = Literal["forget", "alternatives", "pairs", "retain", "neighbours"]
"""What a term looks at: what is to be forgotten; the same items with other labels or answers; both,
the alternatives first; what is retained; of that, the nearest to what is to be forgotten."""

ReferenceKind = Literal["scores", "distribution", "hidden"]
"""Summed nll per item; log-probabilities per row; hidden states."""

Setting = float | int | str | None

HiddenObjective = Callable[[Tensor, Tensor, int, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Term:
    """One summand of a loss: a row function, its reduction and a weight.

    Attributes:
        row: From logits [n, V] and labels [n] to values [n].
        reduce: From values [N] to a scalar to be minimised.
        weight: Factor of the scalar, negative to maximise it.
        data: What the term looks at.
        reference: What of the reference it needs.
    """

    row: RowFunction
    reduce: Reduction
    weight: float = 1.0
    data: Data = "forget"
    reference: Literal["scores", "distribution"] | None = None

    def loss(
        self,
        rows: Rows,
        scores: Tensor | None = None,
        distribution: RowReference | None = None,
    ) -> Tensor:
        """Compute the weighted term on rows at once: what a loop computes in chunks.

        Args:
            rows: Rows of B items.
            scores: Summed nll of the reference [B].
            distribution: Log-probabilities of the reference at the rows.
        """
        values = self.row(rows.logits, rows.labels, distribution)
        return self.weight * self.reduce(values, rows.item, rows.items, scores)


@dataclass(frozen=True, slots=True)
class HiddenTerm:
    """One summand of a loss on hidden states after one layer, the setting `layer` of the method.

    Attributes:
        function: From hidden [M, d], item [M], items and target to a scalar to be minimised.
        target: `control` for one vector [d], which a run derives from its seed, so that no
            checkpoint has to hold it; `reference` for the hidden states of the reference [M, d].
        weight: Factor of the scalar.
        data: What the term looks at.
    """

    function: HiddenObjective
    target: Literal["control", "reference"]
    weight: float = 1.0
    data: Data = "forget"

    @property
    def reference(self) -> ReferenceKind | None:
        """What of the reference it needs."""
        return "hidden" if self.target == "reference" else None

    def loss(self, hidden: Tensor, item: Tensor, items: int, target: Tensor) -> Tensor:
        """Compute the weighted term."""
        return self.weight * self.function(hidden, item, items, target)


@dataclass(frozen=True, slots=True)
class Parts:
    """What of a method depends on its settings.

    Attributes:
        forget: Terms on what is to be forgotten.
        retain: Terms on what is retained.
        controller: What changes weights, items and sides as training goes.
    """

    forget: tuple[Term | HiddenTerm, ...]
    retain: tuple[Term | HiddenTerm, ...] = ()
    controller: Controller = field(default_factory=Controller)


@dataclass(frozen=True)
class Method:
    """A method: `gamma * sum of forget terms + alpha * sum of retain terms`, or an edit.

    Attributes:
        name: As in `sisa unlearn NAME`.
        kind: Trained through the loop, or an edit without an optimizer.
        defaults: Settings, those of the registry unless `configured`; `gamma`, `alpha`, those of
            the objective, and those of training, such as `lr` and `epochs`.
        also: What a user must bring that no term tells, in words of `NEEDS`.
        cost: What it costs beyond one pass over the forget set, in words.
        source: Where it comes from.
        build: Makes the parts from the settings it names; None for an edit.
        edit: Takes what it is given and the settings it names; None for an objective.
    """

    name: str
    kind: Literal["objective", "edit"]
    defaults: Mapping[str, Setting]
    also: tuple[str, ...]
    cost: str
    source: str
    build: Callable[..., Parts] | None = None
    edit: Callable[..., Edited] | None = None
    parts: Parts = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Build the parts from the settings."""
        chosen = {name: self.defaults[name] for name in _arguments(self.build)}
        parts = Parts(()) if self.build is None else self.build(**chosen)
        object.__setattr__(self, "parts", parts)

    @property
    def forget(self) -> tuple[Term | HiddenTerm, ...]:
        """Terms on what is to be forgotten."""
        return self.parts.forget

    @property
    def retain(self) -> tuple[Term | HiddenTerm, ...]:
        """Terms on what is retained; none where alpha is zero."""
        return self.parts.retain if self.parts.retain and self.alpha else ()

    @property
    def gamma(self) -> float:
        """Weight of the forget terms."""
        return self.number("gamma")

    @property
    def alpha(self) -> float:
        """Weight of the retain terms."""
        return self.number("alpha")

    def number(self, name: str) -> float:
        """Give a setting that is a number.

        Raises:
            UsageError: It is none.
        """
        value = self.defaults.get(name)
        if not isinstance(value, int | float):
            raise UsageError(f"{name} of {self.name} is {value!r}.", "Give a number.")
        return float(value)

    @property
    def types(self) -> dict[str, Any]:
        """The type of each setting of its own, by name."""
        function = self.build or self.edit
        hints = {} if function is None else get_type_hints(function)
        return {name: hint for name, hint in hints.items() if name in self.defaults}

    def edited(self, given: Given) -> Edited:
        """Give the edit what it needs, with the method's settings.

        Raises:
            UsageError: The method is no edit.
            SisaError: Whatever the edit refuses.
        """
        if self.edit is None:
            raise UsageError(f"{self.name} is no edit.", "Train with it.")
        return self.edit(given, **{name: self.defaults[name] for name in _settings(self.edit)})

    @property
    def controller(self) -> Controller:
        """What changes weights, items and sides as training goes."""
        return self.parts.controller

    @property
    def needs(self) -> tuple[str, ...]:
        """What a user must bring, in words of `NEEDS`."""
        told = {_BROUGHT[term.data] for term in (*self.forget, *self.retain)}
        return tuple(sorted((told | {*self.also}) - {""}))

    @property
    def references(self) -> frozenset[ReferenceKind]:
        """What of the reference the terms need."""
        needed = (term.reference for term in (*self.forget, *self.retain))
        return frozenset(kind for kind in needed if kind is not None)

    def configured(self, **settings: Setting) -> Method:
        """Give the method with other settings.

        Raises:
            UsageError: It has no such setting.
        """
        for name in sorted(settings.keys() - self.defaults.keys()):
            known = ", ".join(sorted(self.defaults))
            raise UsageError(f"{self.name} has no setting {name!r}.", f"Its settings: {known}.")
        return replace(self, defaults={**self.defaults, **settings})


_BROUGHT: Mapping[Data, str] = {
    "forget": "",
    "alternatives": "alternatives",
    "pairs": "alternatives",
    "retain": "retain",
    "neighbours": "retain",
}
"""What a user must bring for the data of a term; the nearest are found among what is retained."""


def _arguments(build: Callable[..., Parts] | None) -> tuple[str, ...]:
    return () if build is None else tuple(inspect.signature(build).parameters)


def _settings(edit: Callable[..., Edited]) -> dict[str, Setting]:
    """The settings of an edit, which it takes by keyword alone, with their defaults."""
    given = inspect.signature(edit).parameters.values()
    return {p.name: p.default for p in given if p.kind is p.KEYWORD_ONLY}


def edit(
    name: str,
    function: Callable[..., Edited],
    *,
    also: tuple[str, ...] = (),
    cost: str,
    source: str,
) -> Method:
    """Declare an edit; what `function` takes by keyword alone becomes its settings."""
    return Method(name, "edit", _settings(function), also, cost, source, edit=function)


def objective(
    name: str,
    build: Callable[..., Parts],
    *,
    also: tuple[str, ...] = (),
    cost: str,
    source: str,
    **training: Setting,
) -> Method:
    """Declare a method that the loop trains; the defaults of `build` become its settings."""
    own = {key: given.default for key, given in inspect.signature(build).parameters.items()}
    defaults: dict[str, Setting] = {"gamma": 1.0, "alpha": 1.0, **own, **training}
    return Method(name, "objective", defaults, also, cost, source, build)
