"""Statistics of rows, against loops over the vocabulary in plain arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sisa.approximate.metrics import scores, statistics
from sisa.approximate.metrics.probability import probability
from sisa.errors import SisaError


def logits_of(rows: int, vocabulary: int = 7, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, vocabulary, dtype=torch.float64, generator=generator)


def by_hand(logits: list[float], label: int) -> tuple[float, bool, float, float]:
    """Nll, hit, mean and variance of log p under p of one row."""
    total = sum(math.exp(z) for z in logits)
    p = [math.exp(z) / total for z in logits]
    mean = sum(q * math.log(q) for q in p)
    variance = sum(q * math.log(q) ** 2 for q in p) - mean**2
    return -math.log(p[label]), max(p) == p[label], mean, variance


@pytest.mark.parametrize("chunk_rows", [1, 2, 5, 100])
def test_statistics_are_those_of_a_loop(chunk_rows: int) -> None:
    logits = logits_of(5)
    labels = torch.tensor([int(logits[0].argmax()), 1, 2, 6, 0])
    found = statistics.of_rows(
        logits, labels, torch.tensor([0, 0, 1, 3, 3]), 5, chunk_rows=chunk_rows
    )
    wanted = [by_hand(z, y) for z, y in zip(logits.tolist(), labels.tolist(), strict=True)]
    assert found.nll.tolist() == pytest.approx([w[0] for w in wanted], rel=1e-12)
    assert found.greedy_hit.tolist() == [w[1] for w in wanted]
    assert found.greedy_hit[0] and not found.greedy_hit.all()
    assert found.mean_log_p.tolist() == pytest.approx([w[2] for w in wanted], rel=1e-12)
    assert found.var_log_p.tolist() == pytest.approx([w[3] for w in wanted], rel=1e-10)
    assert (found.log_p == -found.nll).all()
    assert found.items == 5 and found.nll.dtype == torch.float64


def test_one_head_call_a_row_feeds_everything() -> None:
    """Toolkits run a second forward for Min-K++, and log_softmax of all rows at once."""
    head, seen = nn.Linear(4, 7, dtype=torch.float64), []
    head.register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
    hidden = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels, item = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([0, 0, 0, 1, 1])
    found = statistics.of_rows(hidden, labels, item, 2, head, chunk_rows=2)
    assert seen == [(2, 7), (2, 7), (1, 7)]
    whole = statistics.of_rows(head(hidden), labels, item, 2)
    for name in ("nll", "greedy_hit", "mean_log_p", "var_log_p"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name), rtol=1e-12, atol=0)
        assert not getattr(found, name).requires_grad


def test_a_certain_row_has_no_variance_and_no_nan() -> None:
    logits = torch.tensor([[0.0, 2000.0, -2000.0], [0.0, 0.0, -torch.inf]])
    found = statistics.of_rows(logits, torch.tensor([1, 0]), torch.tensor([0, 1]), 2)
    assert found.nll.tolist() == pytest.approx([0, math.log(2)])
    assert found.mean_log_p.tolist() == pytest.approx([0, -math.log(2)])
    assert found.var_log_p.tolist() == pytest.approx([0, 0], abs=1e-12)


def test_float32_keeps_the_variance_of_large_logits() -> None:
    # mean log p is near -11.5, so that a difference of squares would lose all but three digits
    logits = 1e-3 * torch.randn(1, 100_000, generator=torch.Generator().manual_seed(2))
    labels, item = torch.tensor([0]), torch.tensor([0])
    found = statistics.of_rows(logits, labels, item, 1)
    wanted = statistics.of_rows(logits.double(), labels, item, 1)
    assert found.var_log_p.dtype == torch.float32
    assert float(found.var_log_p) == pytest.approx(float(wanted.var_log_p), rel=1e-3)


def test_half_precision_is_computed_in_float32() -> None:
    logits = logits_of(3).bfloat16()
    labels, item = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2])
    found = statistics.of_rows(logits, labels, item, 3)
    wanted = statistics.of_rows(logits.float(), labels, item, 3)
    assert found.nll.dtype == torch.float32 and torch.equal(found.nll, wanted.nll)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_collapsed_model_is_an_error_and_not_a_figure(bad: float) -> None:
    logits = logits_of(2)
    logits[1, 3] = bad
    with pytest.raises(SisaError, match="no finite log probability"):
        statistics.of_rows(logits, torch.tensor([0, 1]), torch.tensor([0, 1]), 2)


def test_joined_batches_are_one_batch() -> None:
    logits, labels = logits_of(6), torch.tensor([0, 1, 2, 3, 4, 5])
    whole = statistics.of_rows(logits, labels, torch.tensor([0, 0, 2, 3, 5, 5]), 7)
    first = statistics.of_rows(logits[:3], labels[:3], torch.tensor([0, 0, 2]), 3)
    second = statistics.of_rows(logits[3:], labels[3:], torch.tensor([0, 2, 2]), 4)
    found = statistics.joined([first, second])
    assert found.items == 7 and found.item.tolist() == whole.item.tolist()
    assert torch.equal(found.nll, whole.nll) and torch.equal(found.greedy_hit, whole.greedy_hit)
    assert torch.equal(found.var_log_p, whole.var_log_p)
    assert statistics.joined([]).items == 0


@pytest.mark.parametrize("items", [0, 3])
def test_all_labels_ignored_leaves_items_out_and_counts_them(items: int) -> None:
    """Toolkits divide by a label count of 0."""
    none = torch.zeros(0, dtype=torch.int64)
    found = statistics.of_rows(torch.zeros(0, 7, dtype=torch.float64), none, none, items)
    assert len(found.nll) == 0 and found.items == items
    mean = probability(found).mean()
    assert mean.value is None and mean.reason
    assert (mean.counted, mean.left_out) == (0, items)


def test_items_without_rows_are_not_in_a_mean() -> None:
    item = torch.tensor([1, 1, 3])
    found = scores.item_means(torch.tensor([1.0, 2.0, 5.0]), item, 5)
    assert found.item.tolist() == [1, 3] and found.values.tolist() == [1.5, 5.0]
    assert found.mean() == scores.Figure(3.25, 2, 3)


def test_aligned_scores_belong_to_the_same_items() -> None:
    a = scores.Scores(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 2, 3]), 5)
    b = scores.Scores(torch.tensor([10.0, 20.0, 30.0]), torch.tensor([2, 3, 4]), 5)
    left, right = scores.aligned(a, b)
    assert left.item.tolist() == right.item.tolist() == [2, 3]
    assert left.values.tolist() == [2.0, 3.0] and right.values.tolist() == [10.0, 20.0]
    with pytest.raises(ValueError, match="different sets"):
        scores.aligned(a, scores.Scores(b.values, b.item, 6))


@pytest.mark.parametrize("item", [[1, 0, 2], [0, 1, 3], [-1, 0, 1], [0, 1]])
def test_rows_out_of_order_are_refused(item: list[int]) -> None:
    with pytest.raises(ValueError, match=r"ascending|number of rows"):
        statistics.of_rows(logits_of(3), torch.tensor([0, 1, 2]), torch.tensor(item), 3)
