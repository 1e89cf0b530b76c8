"""Shadow models for `lira`: trained on random parts of the examples, each scored on all of them.

Each example is in the same number of models, and of those the same number forget it, so that no
example has fewer scores than another. What a model says is written before the next one is trained:
a driver that was killed goes on where it was. The models themselves are not kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from data_index.storage import Store, canonical_json, sha256
from sisa import checkpoint
from sisa.approximate.attacks.lira import (
    Array,
    Mask,
    Variance,
    leave_one_out,
    log_odds,
    sides,
)
from sisa.determinism import mix
from sisa.errors import DataError, IncompleteError, NotFoundError, UsageError

Model = TypeVar("Model")
Indices = npt.NDArray[np.int64]
Baseline = Literal["before", "after"]

FEWEST = 3
"""Shadow models of an example on either side: one is attacked, and a variance takes two."""


@dataclass(frozen=True)
class Plan:
    """Which shadow model is trained on which example, and which it unlearns.

    Attributes:
        examples: E.
        models: S.
        about: What else results depend on: a digest of examples, model and methods. Results about
            something else are not used again.
        seed: Of the choice, and of torch's generators while a model is trained.
        member_share: Share of the models that are trained on an example.
        forget_share: Share of the models that are, and then unlearn it; 0 unlearns nothing.
    """

    examples: int
    models: int
    about: str
    seed: int = 0
    member_share: float = 0.5
    forget_share: float = 0.0

    @property
    def members(self) -> Mask:
        """Which model is trained on which example, bool [S, E]."""
        return self._places < self._count(self.member_share)

    @property
    def forgotten(self) -> Mask:
        """Which model unlearns which of them, bool [S, E]."""
        return self._places < self._count(self.forget_share)

    @property
    def digest(self) -> str:
        """Names the folder of its results."""
        return sha256(canonical_json(asdict(self)))

    def check(self) -> None:
        """Refuse a plan that cannot be attacked with.

        Raises:
            IncompleteError: A side of an example, or a model, has too little.
            UsageError: A share does not fit.
        """
        if not 0 <= self.forget_share <= self.member_share < 1:
            raise UsageError(
                "Shares of shadow models must rise from 0 over forget_share and member_share to 1."
            )
        if self.examples < 2:
            raise IncompleteError(
                f"An attack needs two examples or more and has {self.examples}.",
                "Give it a larger set.",
            )
        inside = self._count(self.forget_share or self.member_share)
        if min(inside, self.models - self._count(self.member_share)) < FEWEST:
            raise IncompleteError(
                f"{self.models} shadow models leave an example fewer than {FEWEST} on one side.",
                "Plan for more.",
            )
        wanted = self.forgotten if self.forget_share else self.members
        if not wanted.any(axis=1).all():
            raise IncompleteError(
                "A shadow model would have no example to learn or to forget.",
                "Plan for more examples.",
            )

    @property
    def _places(self) -> Indices:
        """Each example's models in an order of its own, int64 [S, E]."""
        start = np.broadcast_to(np.arange(self.models)[:, None], (self.models, self.examples))
        return np.random.default_rng(self.seed).permuted(start, axis=0)

    def _count(self, share: float) -> int:
        return round(share * self.models)


@dataclass(frozen=True)
class Shadows:
    """What the shadow models say, arrays [S, E].

    Attributes:
        members: Which model was trained on which example.
        forgotten: Which model unlearned it again.
        before: phi before unlearning.
        after: phi after unlearning; None if nothing was unlearned.
    """

    members: Mask
    forgotten: Mask
    before: Array
    after: Array | None

    def lira(self, *, offline: bool = False, variance: Variance = "auto") -> tuple[Array, Array]:
        """Leave one out: results of members and of others, before unlearning."""
        found = sides(self.before, self.members, self.before, ~self.members)
        return leave_one_out(*found, offline=offline, variance=variance)

    def u_lira(
        self,
        baseline: Baseline = "before",
        *,
        offline: bool = False,
        variance: Variance = "auto",
    ) -> tuple[Array, Array]:
        """Leave one out: results of what was unlearned and of what never was there.

        Args:
            baseline: What was never there is scored by the models "before" unlearning, as an exact
                retrain would be, or "after" they unlearned other examples: then what unlearning
                does to a model as a whole tells nothing.
            offline: As for `lira.lira`.
            variance: As for `lira.lira`.

        Raises:
            IncompleteError: Nothing was unlearned, or models are too few.
        """
        if self.after is None:
            raise IncompleteError(
                "No shadow model has unlearned anything.", "Plan with a forget_share above 0."
            )
        out = self.before if baseline == "before" else self.after
        found = sides(self.after, self.forgotten, out, ~self.members)
        return leave_one_out(*found, offline=offline, variance=variance)


def run(
    plan: Plan,
    folder: Path,
    train: Callable[[Indices], Model],
    nll: Callable[[Model], npt.ArrayLike],
    unlearn: Callable[[Model, Indices, Indices], Model] | None = None,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> Shadows:
    """Train, score, unlearn and score again each shadow model that has no result yet.

    torch's generators stand under a seed of the model's own, and afterwards as they did, so that a
    driver that goes on comes to the results of one that was never stopped.

    Args:
        plan: Who is in which model.
        folder: Where results are written.
        train: Makes a model of the examples at these places, int64, ascending. What every model is
            trained on besides is its own business.
        nll: Negative log-likelihood of each example's label, [E]; of a text the mean of its rows.
        unlearn: Makes a model forget (model, forget, retain: places of the members that are left);
            may change the model that it is given.
        report: Told how many of how many models are done.

    Raises:
        IncompleteError: The plan leaves too little to attack.
        UsageError: The plan unlearns and there is nothing to do it with, or the other way round.
        DataError: A model gives other than one finite likelihood for each example.
        ExactnessError: A result is damaged.
    """
    plan.check()
    if bool(plan.forget_share) != (unlearn is not None):
        raise UsageError("Unlearning shadow models takes a forget_share and an unlearn function.")
    store, members, forgotten = Store(folder), plan.members, plan.forgotten
    found = []
    for number in range(plan.models):
        name = f"{plan.digest}/{number:05d}{checkpoint.SUFFIX}"
        try:
            result = checkpoint.load(store.read_unchecked(name))
        except NotFoundError:
            part = _Part(mix(plan.seed, number) >> 1, members[number], forgotten[number])
            result = part.result(train, nll, unlearn)
            store.put_named(name, checkpoint.dump(result))
        found.append(result)
        report(number + 1, plan.models)
    store.flush()
    after = np.stack([result["after"] for result in found]) if unlearn else None
    return Shadows(members, forgotten, np.stack([result["before"] for result in found]), after)


@dataclass(frozen=True)
class _Part:
    """One shadow model."""

    seed: int
    members: Mask
    forgotten: Mask

    def result(
        self,
        train: Callable[[Indices], Model],
        nll: Callable[[Model], npt.ArrayLike],
        unlearn: Callable[[Model, Indices, Indices], Model] | None,
    ) -> dict[str, Any]:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = train(np.flatnonzero(self.members))
            found = {"before": self._scores(nll(model))}
            if unlearn is not None:
                forget = np.flatnonzero(self.forgotten)
                model = unlearn(model, forget, np.flatnonzero(self.members & ~self.forgotten))
                found["after"] = self._scores(nll(model))
        return found

    def _scores(self, nll: npt.ArrayLike) -> Array:
        found = log_odds(nll)
        if found.shape != self.members.shape:
            raise DataError(
                f"A shadow model gave {found.size} likelihoods for {self.members.size} examples."
            )
        return found
