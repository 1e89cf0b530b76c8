"""What a classifier says after a method, and how far that is from an exact retrain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sisa.approximate.answers import statistics
from sisa.approximate.attacked import Seen, membership
from sisa.approximate.batches import Examples
from sisa.approximate.evidence import Membership
from sisa.approximate.metrics.classifier import PredictionDistance, accuracy, prediction_distance
from sisa.approximate.metrics.scores import Figure
from sisa.approximate.models import Classifier
from sisa.approximate.targets import Attacks, Held
from unlearning_classifier.images import Scenario

TOGETHER = 500
"""Records that go through a model at once."""

ATTACKS = Attacks(lr=1e-3, items=TOGETHER)


@dataclass(frozen=True)
class Said:
    """Figures of one model.

    Attributes:
        forget: Accuracy on the forget set.
        retain: On the retain set.
        test: On test records of the kinds that are kept.
        unseen: On test records of the kind that is forgotten.
        tv_forget: Total variation to the exact retrain, mean over the forget set.
        tv_test: The same over those test records.
        kl_forget: KL(retrain || model), nats, mean over the forget set.
        agreement: Share of forget and test records of which both say the same class.
        attack: Membership attack with the largest rate.
        tpr: Its true positive rate at 1 % false positives, in the better direction.
    """

    forget: float
    retain: float
    test: float
    unseen: float
    tv_forget: float
    tv_test: float
    kl_forget: float
    agreement: float
    attack: str
    tpr: float


def said(subject: Classifier, scenario: Scenario, retrain: Classifier) -> Said:
    """Ask a model, compare it with the exact retrain, and attack it.

    Raises:
        SisaError: It has collapsed to no number.
    """
    sides = scenario.sides
    parts = (sides.forget, sides.retain, scenario.test, scenario.unseen)
    rows = [statistics(subject, part, TOGETHER) for part in parts]
    far = [_distance(subject, retrain, part) for part in (sides.forget, scenario.test)]
    never = [statistics(retrain, part, TOGETHER) for part in (sides.forget, scenario.unseen)]
    target = Held(subject, ATTACKS)
    attacks = membership(
        subject,
        Seen(sides.forget, rows[0], never[0], target.gradients(sides.forget)),
        Seen(scenario.unseen, rows[3], never[1], target.gradients(scenario.unseen)),
    )
    same = [_value(each.agreement) for each in far]
    counts = [len(sides.forget), len(scenario.test)]
    attack, tpr = _worst(attacks)
    forget, retain, test, unseen = (_value(accuracy(each)) for each in rows)
    return Said(
        forget,
        retain,
        test,
        unseen,
        tv_forget=_value(far[0].total_variation),
        tv_test=_value(far[1].total_variation),
        kl_forget=_value(far[0].kl),
        agreement=sum(s * n for s, n in zip(same, counts, strict=True)) / sum(counts),
        attack=attack,
        tpr=tpr,
    )


def _distance(subject: Classifier, retrain: Classifier, items: Examples) -> PredictionDistance:
    with torch.no_grad():
        return prediction_distance([(subject.module(items.inputs), retrain.module(items.inputs))])


def _worst(found: Membership) -> tuple[str, float]:
    """The attack with the largest rate, of those that there are enough records for."""
    rates: dict[str, Any] = {name: each.tpr_at_1_percent for name, each in found.attacks.items()}
    name = max(rates, key=lambda each: rates[each])
    return name, float(rates[name])


def _value(figure: Figure) -> float:
    assert figure.value is not None
    return figure.value
