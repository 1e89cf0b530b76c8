"""How probable answers are: probability, truth ratio, and utility of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from sisa.approximate.metrics.scores import Figure, Scores, aligned, item_means, mean_of
from sisa.approximate.metrics.statistics import RowStatistics


def probability(statistics: RowStatistics) -> Scores:
    """Probability of each item, normalised by its length: exp(-S/n).

    S is the sum of the nll of its n labelled tokens (Maini et al. 2024, TOFU, section 2.2).
    """
    nll = mean_nll(statistics)
    return Scores(torch.exp(-nll.values), nll.item, nll.items)


def mean_nll(statistics: RowStatistics) -> Scores:
    """Mean nll of each item's labelled tokens, S/n, in nats."""
    return item_means(statistics.nll, statistics.item, statistics.items)


def choice_probability(right: RowStatistics, wrong: Sequence[RowStatistics]) -> Scores:
    """Share of the right answer among all given answers: P(right) / sum of P (TOFU).

    Args:
        right: The right answer of each item.
        wrong: Wrong answers, one statistics for each alternative; the same items.
    """
    scores = aligned(mean_nll(right), *(mean_nll(w) for w in wrong))
    logs = torch.stack([-s.values for s in scores])
    return Scores(torch.softmax(logs, dim=0)[0], scores[0].item, right.items)


def log_truth_ratio(right: RowStatistics, wrong: Sequence[RowStatistics]) -> Scores:
    """Logarithm of the truth ratio P(wrong) / P(right) of each item.

    P(wrong) is the geometric mean over the alternatives of exp(-S/n), as TOFU's
    `aggregate_eval_stat.py` and OpenUnlearning have it; TOFU's `utils.py` takes the arithmetic one.
    Items that any answer leaves without a row have no score. The logarithm does not overflow,
    and a rank test sees no difference.

    Args:
        right: The right answer in other words (a paraphrase), one item each.
        wrong: Wrong answers, one statistics for each alternative; the same items.

    Raises:
        ValueError: There is no wrong answer, or answers are of different numbers of items.
    """
    if not wrong:
        raise ValueError("a truth ratio needs a wrong answer")
    truth, *lies = aligned(mean_nll(right), *(mean_nll(w) for w in wrong))
    false = torch.stack([lie.values for lie in lies]).mean(0)
    return Scores(truth.values - false, truth.item, truth.items)


def truth_ratio_of_forgotten(logs: Scores) -> Figure:
    """Mean of min(R, 1/R): 1 where wrong and right answers are equally probable (TOFU)."""
    return mean_of(torch.exp(-logs.values.abs()), logs.items)


def truth_ratio_of_retained(logs: Scores) -> Figure:
    """Mean of max(0, 1 - R): 1 where wrong answers have no probability (TOFU)."""
    return mean_of(-torch.expm1(logs.values.clamp(max=0)), logs.items)


def truth_share(logs: Scores) -> Figure:
    """Mean of P(right) / (P(right) + P(wrong)) (Dorna et al. 2025, OpenUnlearning)."""
    return mean_of(torch.sigmoid(-logs.values), logs.items)


def model_utility(parts: Mapping[str, Figure]) -> Figure:
    """Harmonic mean of figures in [0, 1]; 0 where one of them is 0 (TOFU has nine).

    Raises:
        ValueError: A figure is below 0.
    """
    missing = [name for name, figure in parts.items() if figure.value is None]
    if missing or not parts:
        lacking = f"no figure for {', '.join(missing)}" if missing else "there are no figures"
        return Figure(None, len(parts) - len(missing), len(missing), lacking)
    values = [figure.value for figure in parts.values() if figure.value is not None]
    if min(values) < 0:
        raise ValueError("a harmonic mean needs figures that are not negative")
    mean = len(values) / sum(1 / v for v in values) if min(values) > 0 else 0.0
    return Figure(mean, len(values))
