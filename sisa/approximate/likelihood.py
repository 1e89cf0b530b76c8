"""The nll of rows and its gradients where a head is one matrix, in one buffer of logits.

Autograd would make three tensors as large as the logits of a chunk, and one as large as the head
for its gradient, of every chunk anew. Written out, logits become probabilities and then gradients
in one place, and the head's gradient is added to where it is (as in Hsu et al., "Liger Kernel",
2024, arXiv:2410.10989, for a mean; here for any loss of the values).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Slopes = Callable[[Tensor], Tensor]
"""From the values [n] of some rows to the derivative of the loss by each, [n]."""


class Likelihood:
    """The nll of rows under softmax(hidden @ matrix.T).

    Args:
        matrix: The head, float32 or float64 [V, d]; its gradient is added to where it is trained.
        chunk: Rows whose logits exist at once.
    """

    def __init__(self, matrix: Tensor, chunk: int) -> None:
        self._matrix, self._chunk = matrix, chunk
        self._buffer = matrix.new_empty(0, len(matrix))

    @torch.no_grad()
    def add_gradients(
        self, hidden: Tensor, labels: Tensor, slopes: Slopes
    ) -> tuple[Tensor, Tensor]:
        """Add the head's gradient of a loss, and give the loss's gradient of the hidden states.

        Logits of one chunk are made once; of several, those of all but the last are made again.

        Args:
            hidden: [n, d], of the matrix's dtype, one row or more.
            labels: int64 [n].
            slopes: Called once, with all values.

        Returns:
            Values [n], and gradients [n, d].
        """
        values, gradients = hidden.new_empty(len(hidden)), torch.empty_like(hidden)
        parts = [slice(at, at + self._chunk) for at in range(0, len(hidden), self._chunk)]
        for at in parts:
            values[at], masses, sums = self._forward(hidden[at], labels[at])
        slope = slopes(values)
        for at in reversed(parts):
            if at is not parts[-1]:
                _, masses, sums = self._forward(hidden[at], labels[at])
            scaled = masses.mul_((slope[at] / sums)[:, None])
            scaled[torch.arange(len(scaled), device=scaled.device), labels[at]] -= slope[at]
            torch.mm(scaled, self._matrix, out=gradients[at])
            if self._matrix.requires_grad:
                self._gradient().addmm_(scaled.T, hidden[at])
        return values, gradients

    def _forward(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values [n]; exp(logit - largest) [n, V], in the buffer; and the sums of these, [n]."""
        if len(self._buffer) < len(hidden):
            self._buffer = self._buffer.new_empty(len(hidden), len(self._matrix))
        logits = torch.mm(hidden, self._matrix.T, out=self._buffer[: len(hidden)])
        logits.sub_(logits.amax(dim=1, keepdim=True))
        own = logits.gather(1, labels[:, None])[:, 0]
        sums = logits.exp_().sum(dim=1)
        return sums.log() - own, logits, sums

    def _gradient(self) -> Tensor:
        if self._matrix.grad is None:
            self._matrix.grad = torch.zeros_like(self._matrix)
        return self._matrix.grad
