"""U-LiRA: shadow models that are trained once, and unlearned by each method in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

from data_index.storage import canonical_json, sha256
from sisa.approximate.answers import statistics
from sisa.approximate.attacks import roc, shadow
from sisa.approximate.batches import Examples
from sisa.approximate.declaration import Setting
from sisa.errors import SisaError
from unlearning_classifier import training
from unlearning_classifier.applied import change
from unlearning_classifier.images import SHADOW, SHARE, TRAINED, Sides, shadow_rows
from unlearning_classifier.measured import TOGETHER
from unlearning_classifier.training import Model, copied
from unlearning_classifier.trials import timed

MODELS = 16
"""Shadow models."""

FORGET_SHARE = SHARE * TRAINED / SHADOW
"""Share of the shadow models that unlearn a record: each unlearns as many as the base does."""

RESAMPLES = 200
"""Of the bootstrap over records: the scores of one under several models are not independent."""


@dataclass(frozen=True)
class Attacked:
    """How well U-LiRA tells the unlearned from what was never learned.

    Attributes:
        auc: Both under models after they unlearned.
        low: Lower end of its 95 % bootstrap interval.
        high: Upper end.
        tpr: True positive rate at 1 % false positives.
        strict: The same at 0.1 %.
        auc_before: Area where what was never learned is scored by models that unlearned nothing.
        failed: Why there is no number.
    """

    auc: float = 0.0
    low: float = 0.0
    high: float = 0.0
    tpr: float = 0.0
    strict: float = 0.0
    auc_before: float = 0.0
    failed: str = ""


def result(found: shadow.Shadows) -> Attacked:
    """Attack each shadow model with the help of the others."""
    inside, outside = found.u_lira("after")
    never = ~found.members
    low, high = _interval(_by_record(inside, found.forgotten), _by_record(outside, never))
    tpr, strict = (roc.tpr_at(inside, outside, rate) for rate in (0.01, 0.001))
    before = roc.auc(*found.u_lira("before"))
    return Attacked(roc.auc(inside, outside), low, high, tpr, strict, before)


def _by_record(results: Any, use: Any) -> Any:
    """Results of the models that a side's mask [S, E] names, one row a record: [E, k]."""
    order = np.argsort(np.nonzero(use)[1], kind="stable")
    return results[order].reshape(use.shape[1], -1)


def _interval(inside: Any, outside: Any) -> tuple[float, float]:
    """Ends of the 95 % bootstrap interval of the area, records drawn with all their results."""
    draws = np.random.default_rng(common.SEED)
    areas = []
    for _ in range(RESAMPLES):
        drawn = draws.integers(0, len(inside), len(inside))
        areas.append(roc.auc(inside[drawn], outside[drawn]))
    low, high = np.quantile(areas, [0.025, 0.975])
    return float(low), float(high)


Unlearn = Callable[[Model, Sides], Model]


@dataclass(frozen=True)
class Attack:
    """The shadow models of all methods.

    Attributes:
        folder: Of models and of what they say.
        every: What each of them learns.
        some: What half of them learn, and the attack is about.
        holdout: What none does.
    """

    folder: Path
    every: Examples
    some: Examples
    holdout: Examples

    @classmethod
    def of(cls, folder: Path) -> Attack:
        """Read the records."""
        return cls(folder, *shadow_rows())

    def by(self, method: str, settings: Mapping[str, Setting]) -> Attacked:
        """Let a method unlearn parts of all shadow models, and attack it."""

        def unlearn(model: Model, sides: Sides) -> Model:
            change(model, method, settings, sides)
            return model

        return self._of(method, settings, unlearn)

    def on_nothing(self) -> Attacked:
        """Attack models that unlearn nothing: how well their records are known."""
        return self._of("nothing", {}, lambda model, sides: model)

    def on_retrains(self) -> Attacked:
        """Attack exact retrains, which should be a guess."""
        return self._of(
            "retrain", {}, lambda model, sides: training.trained(sides.retain, model.seed)
        )

    def _of(self, method: str, settings: Mapping[str, Setting], unlearn: Unlearn) -> Attacked:
        about = canonical_json([method, settings]).decode()
        plan = shadow.Plan(
            SHADOW, MODELS, about, common.SEED, member_share=0.5, forget_share=FORGET_SHARE
        )
        file = self.folder / "attacks" / f"{plan.digest}.json"
        return Attacked(**_without(timed(file, partial(self._attacked, plan, unlearn)), "took"))

    def _attacked(self, plan: shadow.Plan, unlearn: Unlearn) -> dict[str, Any]:
        def unlearned(model: Model, forget: Any, retain: Any) -> Model:
            sides = Sides(
                self.some.select(forget.tolist()),
                self.every + self.some.select(retain.tolist()),
                self.holdout,
            )
            return unlearn(copied(model), sides)

        try:
            found = shadow.run(plan, self.folder, self._trained, self._nll, unlearned)
        except SisaError as error:
            return asdict(Attacked(failed=error.message))
        return asdict(result(found))

    def _trained(self, places: Any) -> Model:
        """A shadow model, trained once for all methods."""
        seed = torch.initial_seed()
        name = sha256(canonical_json([seed, places.tolist()]))[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        return training.kept(
            self.folder / name, self.every + self.some.select(places.tolist()), seed
        )

    def _nll(self, model: Model) -> Any:
        return np.asarray(statistics(model.subject, self.some, TOGETHER).nll)


def _without(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != name}
