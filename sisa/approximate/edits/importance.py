"""How much each parameter matters for a set of examples: diagonal Fisher and a label-free measure.

Measured once over all data and saved, it serves every later request: what all data give without
the forget set needs no pass over the rest (`without`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from sisa.approximate.edits.mappings import check, wide
from sisa.approximate.edits.passes import Batch, Labelled, evaluating, inputs_of, logits_of, some
from sisa.errors import ConfigurationError, DataError

Loss = Callable[[Any, Tensor], Tensor]
"""From what the module returns for n examples and their labels to the mean of their losses."""

Kind = Literal["fisher", "batch_fisher", "sensitivity"]


@dataclass(frozen=True)
class Importance:
    """One number per element of each trained parameter.

    Attributes:
        values: By parameter, of its shape; float32 or float64, finite and not negative.
        kind: What was measured; only the same kinds can be compared.
        count: Terms of the mean: examples, or batches for `batch_fisher`.

    Raises:
        DataError: A value is negative or not finite.
    """

    values: dict[str, Tensor]
    kind: Kind
    count: int

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            if not bool(((value >= 0) & value.isfinite()).all()):
                raise DataError(
                    f"The importance of {name} is negative or not finite.",
                    "Look for NaN in the model and in the examples.",
                )

    def comparable(self, other: Importance) -> None:
        """Check that both measure the same of the same parameters.

        Raises:
            ConfigurationError: They do not.
        """
        check(self.values, other.values)
        check(other.values, self.values)
        if self.kind != other.kind:
            raise ConfigurationError(
                f"Importance of kind {self.kind} cannot be compared with {other.kind}.",
                "Measure both in the same way.",
            )


def fisher(
    module: nn.Module, batches: Iterable[Labelled], loss: Loss | None = None, chunk: int = 16
) -> Importance:
    """Diagonal of the empirical Fisher matrix: the mean of squared gradients of single examples.

    D_i = 1/n sum_k (d loss_k / d theta_i)^2, Kirkpatrick et al., PNAS 2017. How examples are put
    into batches does not matter.

    Args:
        module: Any module of tensors; it is not changed.
        batches: Inputs [n, ...] and labels [n, ...] on the module's device; without padding, as all
            positions count.
        loss: Of what the module returns; default is cross-entropy of logits [n, C].
        chunk: Examples whose gradients are held at once.

    Raises:
        IncompleteError: There is no example.
        DataError: A gradient is not finite.
    """
    loss = loss or _cross_entropy

    def of_one(output: Any, labels: Tensor | None) -> Tensor:
        assert labels is not None
        return loss(output, labels)

    return _per_example(module, batches, of_one, torch.square, "fisher", chunk)


def sensitivity(module: nn.Module, batches: Iterable[Batch], chunk: int = 16) -> Importance:
    """Without labels: how far each parameter moves the squared norm of the logits.

    Omega_i = 1/n sum_k |d ||f(x_k)||^2 / d theta_i|, Aljundi et al., ECCV 2018; as importance for
    dampening in Foster et al., "Loss-Free Machine Unlearning", 2024, whose code takes the gradient
    of a batch's mean instead of that of each example.

    Args:
        module: Any module of tensors; it is not changed.
        batches: Inputs [n, ...]; labels behind them are not looked at.
        chunk: Examples whose gradients are held at once.

    Raises:
        IncompleteError: There is no example.
        DataError: A gradient is not finite.
    """

    def of_one(output: Any, _: Tensor | None) -> Tensor:
        return wide(logits_of(output)).square().sum()

    unlabelled = (inputs_of(batch) for batch in batches)
    return _per_example(module, unlabelled, of_one, torch.abs, "sensitivity", chunk)


def batch_fisher(
    module: nn.Module, batches: Iterable[Labelled], loss: Loss | None = None
) -> Importance:
    """The variant of the authors of SSD: the mean over batches of the squared *batch* gradient.

    D_i = 1/B sum_b (d mean_{k in b} loss_k / d theta_i)^2. Gradients of a batch's examples cancel
    before they are squared, so that this depends on the size and order of batches and is mostly
    smaller than `fisher`: with independent gradients of mean 0, by the batch size. Use the same
    batch size for both sides of a comparison. It needs one backward pass per batch, and works for
    modules that cannot be vectorised.

    Args:
        module: Any module; it is not changed.
        batches: Inputs [n, ...] and labels [n, ...] on the module's device.
        loss: Of what the module returns; default is cross-entropy of logits [n, C].

    Raises:
        IncompleteError: There is no example.
        DataError: A gradient is not finite.
    """
    loss = loss or _cross_entropy
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    totals = {name: torch.zeros_like(wide(p.detach())) for name, p in trained.items()}
    count = 0
    with evaluating(module), torch.enable_grad():
        for inputs, labels in some(batches, "set of examples"):
            value = loss(module(inputs), labels)
            found = torch.autograd.grad(value, list(trained.values()), materialize_grads=True)
            for total, gradient in zip(totals.values(), found, strict=True):
                total += wide(gradient).square()
            count += 1
    return Importance({name: t / count for name, t in totals.items()}, "batch_fisher", count)


def joined(first: Importance, second: Importance) -> Importance:
    """The importance over both sets of examples, which have none in common."""
    first.comparable(second)
    count = first.count + second.count
    values = {
        name: (value * first.count + second.values[name] * second.count) / count
        for name, value in first.values.items()
    }
    return Importance(values, first.kind, count)


def without(whole: Importance, part: Importance) -> Importance:
    """The importance over the rest, from that over all examples and over a part of them.

    Rounding can leave a small number where the rest gives none; below 0 it is 0.

    Raises:
        ConfigurationError: They cannot be compared, or the part is not smaller than the whole.
    """
    whole.comparable(part)
    count = whole.count - part.count
    if count < 1:
        raise ConfigurationError(
            f"{part.count} of {whole.count} examples leave nothing to keep.",
            "Measure the importance over all data.",
        )
    values = {
        name: ((value * whole.count - part.values[name] * part.count) / count).clamp(min=0)
        for name, value in whole.values.items()
    }
    return Importance(values, whole.kind, count)


def _cross_entropy(output: Any, labels: Tensor) -> Tensor:
    return cross_entropy(wide(logits_of(output)), labels)


def _per_example(
    module: nn.Module,
    batches: Iterable[Batch],
    of_one: Callable[[Any, Tensor | None], Tensor],
    measure: Callable[[Tensor], Tensor],
    kind: Kind,
    chunk: int,
) -> Importance:
    """The mean over examples of a measure of each one's gradient."""
    trained = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    totals = {name: torch.zeros_like(wide(p)) for name, p in trained.items()}

    def value(params: dict[str, Tensor], inputs: Tensor, labels: Tensor | None) -> Tensor:
        output = functional_call(module, params, (inputs.unsqueeze(0),))
        return of_one(output, None if labels is None else labels.unsqueeze(0))

    count = 0
    with evaluating(module):
        for batch in some(batches, "set of examples"):
            inputs = inputs_of(batch)
            labels = None if isinstance(batch, Tensor) else batch[1]
            gradients = vmap(grad(value), in_dims=(None, 0, None if labels is None else 0))
            for begin in range(0, len(inputs), chunk):
                rows = slice(begin, begin + chunk)
                found = gradients(trained, inputs[rows], None if labels is None else labels[rows])
                for name, gradient in found.items():
                    totals[name] += measure(wide(gradient)).sum(0)
            count += len(inputs)
    return Importance({name: total / count for name, total in totals.items()}, kind, count)
