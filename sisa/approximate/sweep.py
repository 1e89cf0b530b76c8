"""The search for settings: the best forget quality among those that keep utility above a floor.

A try is a whole run of the method on a model of its own, without evidence and without checkpoints.
What is tried next is chosen by the tree-structured Parzen estimator of optuna under a constraint
(Bergstra et al., NeurIPS 2011). Tries are written down one by one: a search that was interrupted
goes on.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sisa.approximate import answers
from sisa.approximate.batches import Batch
from sisa.approximate.item_values import mean_probability
from sisa.approximate.metrics.probability import probability
from sisa.approximate.metrics.quality import forget_quality
from sisa.approximate.metrics.scores import Scores
from sisa.approximate.models import Subject
from sisa.approximate.plan import Plan, trained
from sisa.approximate.request import configured
from sisa.errors import BusyError, ConfigurationError, IncompleteError, SisaError, WorkerError

FILE = "sweep.json"
"""Name of the table of all tries in the folder of the model."""

SHARES = ("share", "top", "fraction", "utility", "below")
"""Settings that are at most 1."""

PRECISION = ("tolerance", "epsilon")
"""Settings that say how exactly something is computed, which is not searched for."""

FLOOR = 0.9
"""Least utility that is accepted unless the request says otherwise, as a share of that before."""

Run = Callable[[Plan], None]
"""Lets the method of a plan change its model."""


@dataclass(frozen=True)
class Try:
    """One choice of settings, and what it came to.

    Attributes:
        settings: What was varied, by name.
        distance: Kolmogorov-Smirnov distance of the forget items' probabilities from those that are
            aimed at, 0 to 1; None if the method left all numbers behind.
        p_value: Forget quality, the p-value of that test.
        utility: Mean probability of what is kept, over that of the model before.
    """

    settings: Mapping[str, float]
    distance: float | None
    p_value: float | None
    utility: float | None

    @property
    def figures(self) -> dict[str, float | None]:
        """What it came to, by name."""
        return {"distance": self.distance, "utility": self.utility}


@dataclass(frozen=True)
class Aim:
    """What tries are judged by.

    Attributes:
        forget: Items to forget.
        kept: Items whose probability is to stay.
        before: Their mean probability under the model before.
        target: Probabilities that the forget items should have; None for those of `holdout` under
            the same model.
        holdout: Items that no model ever saw, where there is no target.
        floor: Least utility, as a share of that before.
    """

    forget: Batch
    kept: Batch
    before: float
    target: Scores | None
    holdout: Batch | None
    floor: float

    @classmethod
    def of(cls, plan: Plan) -> Aim:
        """Aim at the retrained model where there is one, else at what was never seen.

        Raises:
            ConfigurationError: There is neither, or nothing is kept.
        """
        holdout, kept = plan.others.get("holdout"), plan.others.get("retain")
        if plan.retrained is None and holdout is None:
            raise ConfigurationError(
                "A search needs to know what forgotten items should look like.",
                "Name a retrained model with --retrained, or unseen items with --holdout.",
            )
        if kept is None and (kept := holdout) is None:
            raise ConfigurationError("A search needs items to keep.", "Name them with --retain.")
        target = None
        if plan.retrained is not None:
            target = probability(answers.statistics(plan.retrained, plan.forget))
        before = mean_probability(plan.subject, kept)
        return cls(plan.forget, kept, before, target, holdout, plan.chosen.own.floor or FLOOR)

    def judged(self, subject: Subject, settings: Mapping[str, float]) -> Try:
        """What a model came to under some settings."""
        found = probability(answers.statistics(subject, self.forget))
        target = self.target
        if target is None:
            assert self.holdout is not None
            target = probability(answers.statistics(subject, self.holdout))
        quality = forget_quality(found, target)
        kept = mean_probability(subject, self.kept)
        return Try(dict(settings), quality.distance, quality.p_value, kept / self.before)

    def lacking(self, made: Try) -> float:
        """How far utility is below the floor; at most 0 where a try kept what it should."""
        return 1.0 if made.utility is None else self.floor - made.utility


def search(
    plan: Plan,
    tries: int,
    folder: Path,
    run: Run,
    report: Callable[[int, Try], None] = lambda number, made: None,
) -> tuple[Plan, tuple[Try, ...]]:
    """Find settings for a plan.

    Args:
        plan: With its settings as they are given; those that the request names stay.
        tries: How many, those of an interrupted search included.
        folder: Where tries are written down.
        run: Lets the method of a plan change its model.
        report: Told each try and its number from 1.

    Returns:
        The plan with the best settings and a fresh model, and all tries.

    Raises:
        ConfigurationError: There is nothing to aim at, or nothing to vary.
        IncompleteError: No try kept utility above the floor.
        BusyError: A machine is not to be had; called again, the search goes on. So WorkerError.
    """
    aim, ranges = Aim.of(plan), space(plan)
    study = _study(folder, plan.chosen.loop.seed)
    while len(made := _tries(study)) < tries:
        trial = study.ask()
        settings = {name: suggest(trial, name) for name, suggest in ranges.items()}
        found = _tried(plan, settings, aim, run)
        trial.set_user_attr("try", asdict(found))
        trial.set_constraint("floor", aim.lacking(found))
        # one that broke the model is the worst there is, which the sampler can learn from
        study.tell(trial, 1.0 if found.distance is None else found.distance)
        report(len(made) + 1, found)
    good = [each for each in made if aim.lacking(each) <= 0 and each.distance is not None]
    if not good:
        raise IncompleteError(
            f"None of {len(made)} tries kept {aim.floor:g} of the utility.",
            "Try more, set a lower floor, or choose another method.",
        )
    best = min(good, key=lambda each: (each.distance, -(each.utility or 0)))
    return _with(plan, best.settings), tuple(made)


def space(plan: Plan) -> dict[str, Callable[[Any, str], float]]:
    """What is varied, and how: the learning rate, epochs, and the method's own positive numbers.

    The learning rate over three decades about its default, epochs up to twice, a share up to 1,
    others over two decades. The weight of the retain terms is not varied beside that of the forget
    terms. What the request sets stays as it is.

    Raises:
        ConfigurationError: Everything is set, or there is nothing to set.
    """
    pinned = {text.partition("=")[0] for text in plan.request.settings}
    method, settings = plan.method, plan.chosen.settings
    named = [n for n, v in method.defaults.items() if isinstance(v, float) and v > 0]
    named += [name for name in ("lr", "epochs") if name in settings]
    left = {*pinned, *PRECISION, *(("alpha",) if method.kind == "objective" else ())}
    free = [name for name in dict.fromkeys(named) if name not in left]
    if not free:
        raise ConfigurationError(
            f"{plan.method.name} has no setting left to search for.", "Leave out --sweep."
        )
    return {name: _range(name, settings[name]) for name in free}


def note(made: tuple[Try, ...], plan: Plan) -> str:
    """A sentence for the statement."""
    aimed = "a retrained model's" if plan.retrained is not None else "those of unseen items"
    floor = plan.chosen.own.floor or FLOOR
    return (
        f"Settings are the best of {len(made)} tries by the distance of the forget items' "
        f"probabilities from {aimed}, with at least {floor:g} of the utility; {FILE} has all."
    )


def write(folder: Path, made: tuple[Try, ...]) -> None:
    """Write the table of all tries into a folder."""
    (folder / FILE).write_text(json.dumps([asdict(each) for each in made], indent=1) + "\n")


def _range(name: str, value: float) -> Callable[[Any, str], float]:
    if name == "epochs":
        return lambda trial, key: int(trial.suggest_int(key, 1, 2 * int(value)))
    low, high = (value / 10, value * 100) if name == "lr" else (value / 10, value * 10)
    if name in SHARES:
        high = min(high, 1.0)
    return lambda trial, key: float(trial.suggest_float(key, low, high, log=True))


def _tried(plan: Plan, settings: Mapping[str, float], aim: Aim, run: Run) -> Try:
    own = _with(plan, settings)
    try:
        with torch.random.fork_rng():
            run(own)
        return aim.judged(own.subject, settings)
    except (BusyError, WorkerError):  # of the machines, which say nothing of a setting
        raise
    except SisaError:  # a setting that breaks the model is a try that failed
        return Try(dict(settings), None, None, None)


def _with(plan: Plan, settings: Mapping[str, float]) -> Plan:
    """The plan with other settings, and a fresh model."""
    texts = tuple(f"{name}={value!r}" for name, value in settings.items())
    request = replace(plan.request, settings=(*plan.request.settings, *texts))
    chosen = configured(request)
    return replace(plan, request=request, chosen=chosen, subject=trained(request, chosen))


def _study(folder: Path, seed: int) -> Any:
    """The search as it stands in a folder."""
    optuna = importlib.import_module("optuna")
    journal = importlib.import_module("optuna.storages.journal")
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    return optuna.create_study(
        study_name="sweep",
        storage=optuna.storages.JournalStorage(
            journal.JournalFileBackend(str(folder / "sweep.journal"))
        ),
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=5),
        direction="minimize",
        load_if_exists=True,
    )


def _tries(study: Any) -> list[Try]:
    """Those that came to an end; one that was interrupted is made anew."""
    return [Try(**t.user_attrs["try"]) for t in study.get_trials() if t.state.is_finished()]
