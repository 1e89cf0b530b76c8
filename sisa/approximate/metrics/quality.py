"""Forget quality: whether the unlearned model can be told from an exact retrain."""

from __future__ import annotations

from dataclasses import dataclass

from scipy import stats

from sisa.approximate.metrics.scores import Scores


@dataclass(frozen=True)
class ForgetQuality:
    """A two-sample Kolmogorov-Smirnov test of truth ratios.

    Attributes:
        p_value: Probability of a distance this large if both were of one distribution; large is
            good. None where a side has no score.
        distance: Largest distance of the two distribution functions, in [0, 1].
        unlearned: Scores of the unlearned model.
        retrained: Scores of the exact retrain.
        reason: Why there is no test.
    """

    p_value: float | None
    distance: float | None
    unlearned: int
    retrained: int
    reason: str | None = None


def forget_quality(unlearned: Scores, retrained: Scores) -> ForgetQuality:
    """Compare the truth ratios of an unlearned model with those of an exact retrain (TOFU).

    Two-sided; the p value is exact up to 10 000 scores a side, and conservative where scores are
    equal (Hodges 1958). The test is of ranks: ratios or their logarithms give the same.
    """
    sizes = len(unlearned.values), len(retrained.values)
    if not all(sizes):
        side = "the retrained" if sizes[0] else "the unlearned"
        return ForgetQuality(None, None, *sizes, f"{side} model has no score")
    found = stats.ks_2samp(unlearned.values.numpy(), retrained.values.numpy())
    return ForgetQuality(float(found.pvalue), float(found.statistic), *sizes)
