"""Mistakes found in other toolkits: the right value, and that the mistake would give another."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sisa.approximate import rows
from sisa.approximate.controllers import Dual
from sisa.approximate.methods import METHODS
from sisa.approximate.objectives.hidden import distance
from sisa.approximate.objectives.rows import divergence, margin, nll, undial
from sisa.approximate.objectives.sequences import squashed, token_mean
from sisa.approximate.rows import RowReference, Rows

B, T = 3, 7


def batch(vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw logits, those of a reference, and labels with prompts, padding and unequal lengths."""
    draw = torch.Generator().manual_seed(vocabulary)
    logits = 2 * torch.randn(B, T, vocabulary, generator=draw, dtype=torch.float64)
    other = 2 * torch.randn(B, T, vocabulary, generator=draw, dtype=torch.float64)
    labels = torch.randint(vocabulary, (B, T), generator=draw)
    labels[0, :2] = labels[1, :4] = labels[1, 6:] = labels[2, :1] = rows.IGNORED
    return logits, other, labels


def labelled(labels: Tensor) -> list[tuple[int, int]]:
    """Give the places whose logits predict a label."""
    return [(b, t) for b in range(B) for t in range(T - 1) if labels[b, t + 1] != rows.IGNORED]


def mean(reduce_rows: list[float]) -> float:
    return sum(reduce_rows) / len(reduce_rows)


@pytest.mark.parametrize("vocabulary", [9, 130])
def test_undial_lowers_no_token_at_ignored_positions(vocabulary: int) -> None:
    # indexing with the label -100 lowers token V - 100 there, and fails for V < 100
    logits, other, labels = batch(vocabulary)
    logits.requires_grad_()
    found, reference = rows.of_sequences(logits, labels), rows.of_sequences(other, labels)
    values = undial(10.0)(found.logits, found.labels, RowReference.of_logits(reference.logits))
    loss = token_mean()(values, found.item, B, None)
    expected = []
    for b, t in labelled(labels):
        edited = other[b, t].clone()
        edited[labels[b, t + 1]] -= 10.0
        log_p = logits[b, t] - torch.logsumexp(logits[b, t], 0)
        target = torch.exp(edited - torch.logsumexp(edited, 0))
        expected.append(-(target * log_p).sum().item())
    assert loss.item() == pytest.approx(mean(expected), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, logits)
    places = set(labelled(labels))
    for b in range(B):
        for t in range(T):
            assert bool(gradient[b, t].any()) == ((b, t) in places)


def test_rmu_averages_items_of_unequal_lengths_apart() -> None:
    # [B] / [B, 1] is [B, B]: each item's sum divided by every item's length
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn(6, 4, generator=draw, dtype=torch.float64)
    item, target = torch.tensor([0, 0, 0, 0, 0, 1]), torch.full((4,), 0.5, dtype=torch.float64)
    squares = ((hidden - target) ** 2).mean(-1)
    right = (squares[:5].sum() / 5 + squares[5] / 1) / 2
    sums, counts = torch.stack([squares[:5].sum(), squares[5]]), torch.tensor([[5.0], [1.0]])
    wrong = (sums / counts).mean()
    found = distance(hidden, item, 2, target)
    assert found.item() == pytest.approx(right.item(), rel=1e-14)
    assert abs(wrong - right) > 0.1


def test_pdu_takes_the_logits_that_predict_labels() -> None:
    # a mask of labels that is not shifted takes the logits one place too late
    logits, _, labels = batch(9)
    found = rows.of_sequences(logits, labels)
    loss = token_mean()(margin(found.logits, found.labels), found.item, B, None)

    def flatness(b: int, t: int) -> float:
        z = logits[b, t].tolist()
        return (max(z) - sum(z) / 9) ** 2

    right = mean([flatness(b, t) for b, t in labelled(labels)])
    late = mean(
        [flatness(b, t) for b in range(B) for t in range(T) if labels[b, t] != rows.IGNORED]
    )
    assert loss.item() == pytest.approx(right, rel=1e-13)
    assert abs(late - right) > 0.1


def test_divergence_is_averaged_over_labelled_rows_only() -> None:
    # a mean over all B T positions takes in prompts and padding
    logits, other, labels = batch(9)
    found, reference = rows.of_sequences(logits, labels), rows.of_sequences(other, labels)
    (term,) = METHODS["gradient-difference"].configured(retain="kl").retain
    loss = term.loss(found, None, RowReference.of_logits(reference.logits))
    log_p, log_q = torch.log_softmax(logits, -1), torch.log_softmax(other, -1)
    each = (log_q.exp() * (log_q - log_p)).sum(-1)
    right = mean([each[b, t].item() for b, t in labelled(labels)])
    assert loss.item() == pytest.approx(right, rel=1e-12)
    assert abs(each.mean().item() - right) > 0.05


@pytest.mark.parametrize("name", ["npo", "simnpo", "wga", "pdu", "ce-u", "undial", "scrub"])
def test_an_item_with_all_labels_ignored_adds_nothing_and_no_nan(name: str) -> None:
    # dividing by its number of labels gives NaN for the whole batch
    logits, other, labels = batch(9)
    empty = torch.cat([labels, torch.full((1, T), rows.IGNORED)])
    wider, further = torch.cat([logits, logits[:1]]), torch.cat([other, other[:1]])

    def loss(z: Tensor, q: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = z.clone().requires_grad_()
        found, reference = rows.of_sequences(z, y), rows.of_sequences(q, y)
        sums = rows.item_sums(
            nll(reference.logits, reference.labels), reference.item, reference.items
        )
        summed = z.new_zeros(())
        for term in METHODS[name].forget:
            summed = summed + term.loss(found, sums, RowReference.of_logits(reference.logits))
        return summed.detach(), torch.autograd.grad(summed, z)[0]

    with_it, gradient = loss(wider, further, empty)
    without, expected = loss(logits, other, labels)
    assert with_it == without
    assert torch.equal(gradient[:B], expected)
    assert not gradient[B].any()


def test_the_dual_moves_once_per_optimizer_step() -> None:
    # an update per micro-batch moves four times as far when a step is split in four
    dual = Dual(epsilon=1.0, eta=1.0, first=50.0, warmup_epochs=0)
    micro_batches = [1.8, 1.2, 2.0, 1.4]
    once = dual.stepped(dual.start(), 0, mean(micro_batches))
    assert dual.weights(once).retain == pytest.approx(50.6)
    each = dual.start()
    for loss in micro_batches:
        each = dual.stepped(each, 0, loss)
    assert dual.weights(each).retain == pytest.approx(52.4)


def npo_loss(found: Rows, sums: Tensor) -> Tensor:
    values = nll(found.logits, found.labels)
    return squashed(0.1)(values, found.item, found.items, sums)


def test_npo_compares_log_probabilities_of_sequences_not_raw_logits() -> None:
    # the difference of raw logits, averaged over B T V, has next to no gradient
    logits, other, labels = batch(9)
    reference = rows.of_sequences(other, labels)
    sums = rows.item_sums(nll(reference.logits, reference.labels), reference.item, B)
    logits.requires_grad_()
    right = npo_loss(rows.of_sequences(logits, labels), sums)
    expected = 0.0
    for b in range(B):
        score = 0.0
        for place, t in labelled(labels):
            if place == b:
                y = labels[b, t + 1]
                score += (torch.logsumexp(logits[b, t], 0) - logits[b, t, y]).item()
                score -= (torch.logsumexp(other[b, t], 0) - other[b, t, y]).item()
        expected += 20 * math.log(1 + math.exp(-0.1 * score)) / B
    assert right.item() == pytest.approx(expected, rel=1e-12)
    wrong = -20 * functional.logsigmoid(-0.1 * (logits - other)).mean()
    (strong,) = torch.autograd.grad(right, logits)
    (weak,) = torch.autograd.grad(wrong, logits)
    assert strong.norm() > 10 * weak.norm()
    shifted = rows.of_sequences(logits + torch.arange(T)[:, None], labels)
    torch.testing.assert_close(npo_loss(shifted, sums), right)


def test_divergence_compares_distributions_not_raw_logits() -> None:
    # kl_div of raw logits is no divergence: it is not zero where the two are equal
    logits, _, labels = batch(9)
    found = rows.of_sequences(logits, labels)
    shifted = RowReference.of_logits(found.logits + 3.0)
    assert divergence()(found.logits, found.labels, shifted).abs().max() < 1e-13
    raw = functional.kl_div(
        found.logits, found.logits + 3.0, log_target=True, reduction="batchmean"
    )
    assert raw > 1
