"""AUC against all pairs, and PrivLeak against published figures."""

from __future__ import annotations

import pytest
import torch

from sisa.approximate.metrics.privacy import auc, privacy_leakage
from sisa.approximate.metrics.scores import Figure
from sisa.errors import DataError


def scores(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def auc_of_pairs(positives: list[float], negatives: list[float]) -> float:
    won = sum((p > n) + (p == n) / 2 for p in positives for n in negatives)
    return won / (len(positives) * len(negatives))


def test_auc_is_that_of_all_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    positives = torch.randint(0, 6, (23,), generator=generator).double() + 1  # many are equal
    negatives = torch.randint(0, 6, (31,), generator=generator).double()
    wanted = auc_of_pairs(positives.tolist(), negatives.tolist())
    assert auc(positives, negatives).value == pytest.approx(wanted, rel=1e-14)
    assert auc(negatives, positives).value == pytest.approx(1 - wanted, rel=1e-14)
    assert wanted > 0.6
    assert auc(positives, negatives).counted == 54


def test_members_with_higher_scores_give_an_area_of_one() -> None:
    assert auc(scores(2, 3), scores(0, 1)).value == 1
    assert auc(scores(0, 1), scores(2, 3)).value == 0
    assert auc(scores(1, 1), scores(1)).value == 0.5
    assert auc(scores(torch.inf), scores(1, torch.inf)).value == 0.75


def test_a_loss_with_holdout_as_positive_is_the_same_area() -> None:
    forget, holdout = [0.1, 0.9, 0.4], [0.5, 0.3, 2.0, 1.1]  # losses, as MUSE orders them
    found = auc(-scores(*forget), -scores(*holdout)).value
    assert found == pytest.approx(auc_of_pairs(holdout, forget))


def test_an_empty_side_has_a_reason() -> None:
    assert auc(scores(), scores(1)) == Figure(None, 0, 1, "there are no positives")
    assert auc(scores(1), scores()).reason == "there are no negatives"
    with pytest.raises(DataError, match="not numbers"):
        auc(scores(float("nan")), scores(1))


def test_leakage_of_a_model_that_still_knows() -> None:
    found = privacy_leakage(Figure(0.981, 100), Figure(0.5, 100))
    assert found.value == pytest.approx(-96.2)
    assert found.counted == 200


def test_leakage_has_the_sign_of_what_went_wrong() -> None:
    reference = Figure(0.6, 1)
    assert privacy_leakage(reference, reference).value == 0
    over = privacy_leakage(Figure(0.2, 1), reference).value
    assert over == pytest.approx(100 * (0.8 - 0.4) / 0.4)


def test_leakage_without_a_reference_has_a_reason() -> None:
    assert privacy_leakage(Figure(0.5, 1), Figure(1.0, 1)).value is None
    lacking = privacy_leakage(Figure(None, 0, 3, "why"), Figure(0.5, 1))
    assert lacking.value is None and lacking.reason == "why" and lacking.left_out == 3
