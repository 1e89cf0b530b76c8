"""Row functions: what a row's logits and label say, as one number to be made smaller or larger.

A row function is `f(logits [n, V], labels [n], reference) -> [n]`. It is pure and treats each row
alone, so that a loop can apply it in chunks and compute it again in the backward pass. All of them
compute in at least float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from sisa.approximate.rows import RowReference, wide
from sisa.errors import ConfigurationError

RowFunction = Callable[[Tensor, Tensor, RowReference | None], Tensor]


def nll(logits: Tensor, labels: Tensor, reference: RowReference | None = None) -> Tensor:
    """Give -log p(label), in nats."""
    return functional.cross_entropy(wide(logits), labels, reduction="none")


def temperature(degree: float) -> RowFunction:
    """Give -log p(label) of softmax(logits / degree) (Wang et al., ICLR 2025, arXiv:2406.09179)."""

    def tempered(logits: Tensor, labels: Tensor, reference: RowReference | None = None) -> Tensor:
        return nll(wide(logits) / degree, labels)

    return tempered


def margin(logits: Tensor, labels: Tensor, reference: RowReference | None = None) -> Tensor:
    """Give (max z - mean z)^2, zero where all tokens are alike.

    The forget loss of PDU (Entesari et al., 2025, arXiv:2506.05314).
    """
    scores = wide(logits)
    return (scores.amax(dim=-1) - scores.mean(dim=-1)) ** 2


def ce_u(logits: Tensor, labels: Tensor, reference: RowReference | None = None) -> Tensor:
    """Give the cross-entropy to the model's own distribution without the label.

    The target is softmax(z with z[label] = -inf) and gets no gradient (Yang, 2025,
    arXiv:2503.01224); the value is its entropy minus log(1 - p(label)).
    """
    scores = wide(logits)
    target = scores.detach().scatter(-1, labels[:, None], -torch.inf)
    return _cross_entropy(torch.log_softmax(target, dim=-1), torch.log_softmax(scores, dim=-1))


def undial(beta: float) -> RowFunction:
    """Distil from the reference with its label's logit lowered by beta.

    The cross-entropy to softmax(z_ref - beta onehot(label)) (Dong et al., NAACL 2025,
    arXiv:2402.10052). Of a reference that keeps the k largest, a label that is not among them stays
    in the tail as it is.
    """

    def distilled(logits: Tensor, labels: Tensor, reference: RowReference | None = None) -> Tensor:
        assert reference is not None
        log_p = _cells(wide(logits), reference)
        tokens = torch.arange(log_p.shape[-1], device=labels.device)
        if reference.tokens is not None:
            tokens = functional.pad(reference.tokens, (0, 1), value=-1)
        target = _known(reference, log_p) - beta * (tokens == labels[:, None])
        return _cross_entropy(torch.log_softmax(target, dim=-1), log_p)

    return distilled


def divergence(degree: float = 1.0) -> RowFunction:
    """Give KL(q || p) from the reference q, both at a temperature, times its square.

    Of a reference that keeps the k largest tokens, all others count as one: a lower bound of the
    divergence that is zero where the reference is met (Hinton et al., 2015, arXiv:1503.02531, for
    the temperature and its square).

    Args:
        degree: Temperature; other than 1 it needs the reference's whole vocabulary.
    """

    def diverging(logits: Tensor, labels: Tensor, reference: RowReference | None = None) -> Tensor:
        assert reference is not None
        if degree != 1 and reference.tokens is not None:
            raise ConfigurationError(
                f"A temperature of {degree:g} needs the reference's whole vocabulary.",
                "Set lora_rank, reference=second, reference_top to all tokens, or degree to 1.",
            )
        log_p = _cells(wide(logits) / degree, reference)
        target = torch.log_softmax(_known(reference, log_p) / degree, dim=-1)
        entropy = _cross_entropy(target, target)
        return degree**2 * (_cross_entropy(target, log_p) - entropy)

    return diverging


def _cells(scores: Tensor, reference: RowReference) -> Tensor:
    """Give the log-probabilities of what the reference tells apart: [n, V] or [n, k + 1]."""
    log_p = torch.log_softmax(scores, dim=-1)
    if reference.tokens is None:
        return log_p
    others = log_p.scatter(-1, reference.tokens, -torch.inf)
    tail = torch.logsumexp(others, dim=-1, keepdim=True)
    return torch.cat([log_p.gather(-1, reference.tokens), tail], dim=-1)


def _known(reference: RowReference, like: Tensor) -> Tensor:
    """Give what the reference says of the same: its log-probabilities, with the tail last."""
    log_q = reference.log_probs.detach().to(like)
    if reference.log_tail is None:
        return log_q
    return torch.cat([log_q, reference.log_tail.detach().to(like)[:, None]], dim=-1)


def _cross_entropy(log_target: Tensor, log_p: Tensor) -> Tensor:
    """Give -sum of target * log p, where what the target rules out adds nothing."""
    target = log_target.exp()
    return -torch.where(target > 0, target * log_p, 0).sum(dim=-1)
