"""Rows of sequences and classes, against loops over positions."""

from __future__ import annotations

import math

import pytest
import torch

from sisa.approximate import rows
from sisa.approximate.rows import RowReference

LABELS = torch.tensor([[-100, -100, 3, 1], [-100, -100, -100, -100], [2, 4, -100, 0]])
LOGITS = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_position_t_predicts_the_label_after_it() -> None:
    found = rows.of_sequences(LOGITS, LABELS)
    expected = [
        (b, t, int(LABELS[b, t + 1]))
        for b in range(3)
        for t in range(3)
        if LABELS[b, t + 1] != rows.IGNORED
    ]
    assert expected == [(0, 1, 3), (0, 2, 1), (2, 0, 4), (2, 2, 0)]
    assert found.labels.tolist() == [label for _, _, label in expected]
    assert found.item.tolist() == [b for b, _, _ in expected]
    assert found.items == 3
    assert found.logits.tolist() == [LOGITS[b, t].tolist() for b, t, _ in expected]


@pytest.mark.parametrize("length", [0, 1])
def test_sequences_without_a_next_token_have_no_rows(length: int) -> None:
    found = rows.of_sequences(LOGITS[:, :length], LABELS[:, :length])
    assert found.logits.shape == (0, 5)
    assert found.items == 3


def test_each_labelled_image_is_one_row() -> None:
    logits = LOGITS[0]
    found = rows.of_classes(logits, torch.tensor([4, -100, 0, 2]))
    assert found.item.tolist() == [0, 2, 3]
    assert found.labels.tolist() == [4, 0, 2]
    assert torch.equal(found.logits, logits[[0, 2, 3]])


def test_sums_means_and_positions_of_items() -> None:
    item = torch.tensor([0, 0, 2, 2, 2])
    values = torch.tensor([1.0, 2.0, 3.0, 5.0, 7.0], dtype=torch.float64)
    assert rows.item_sums(values, item, 4).tolist() == [3, 0, 15, 0]
    assert rows.item_counts(item, 4).tolist() == [2, 0, 3, 0]
    assert rows.item_means(values, item, 4).tolist() == [1.5, 0, 5, 0]
    assert rows.positions(item, 4).tolist() == [0, 1, 0, 1, 2]


def test_inactive_items_keep_their_numbers_but_no_rows() -> None:
    found = rows.keep(rows.of_sequences(LOGITS, LABELS), torch.tensor([False, True, True]))
    assert found.item.tolist() == [2, 2]
    assert found.labels.tolist() == [4, 0]
    assert found.items == 3


def test_the_largest_and_the_tail_of_a_reference() -> None:
    logits = LOGITS[0]
    kept = RowReference.of_logits(logits, top=2)
    assert kept.tokens is not None
    assert kept.log_tail is not None
    for row, scores in enumerate(logits.tolist()):
        total = sum(math.exp(score) for score in scores)
        ranked = sorted(range(5), key=lambda token: -scores[token])
        assert kept.tokens[row].tolist() == ranked[:2]
        for place, token in enumerate(ranked[:2]):
            assert kept.log_probs[row, place].exp() == pytest.approx(
                math.exp(scores[token]) / total, rel=1e-12
            )
        tail = sum(math.exp(scores[token]) for token in ranked[2:]) / total
        assert kept.log_tail[row].exp() == pytest.approx(tail, rel=1e-12)
    assert RowReference.of_logits(logits, top=5).tokens is None


def test_part_of_a_reference() -> None:
    whole = RowReference.of_logits(LOGITS[0], top=2)
    part = whole.part(slice(1, 3))
    assert whole.tokens is not None
    assert part.tokens is not None
    assert part.log_tail is not None
    assert torch.equal(part.tokens, whole.tokens[1:3])
    assert part.log_probs.shape == (2, 2)
    assert part.log_tail.shape == (2,)
    assert RowReference.of_logits(LOGITS[0]).part(slice(0, 1)).log_probs.shape == (1, 5)


@pytest.mark.parametrize(
    ("given", "computed"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_precision_is_at_least_float32(given: torch.dtype, computed: torch.dtype) -> None:
    assert rows.wide(torch.zeros(1, dtype=given)).dtype == computed
