"""Gradients of a module: by autograd, or, of a perceptron, by the same kernels called directly.

Small batches spend much of a step on recording and walking the graph. The bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sisa.config import Training
from sisa.learners.torch_parts import Loss, class_weights

Gradients = Callable[[Tensor, Tensor], Tensor]
"""Puts the gradients of a batch's loss by its columns and target into `grad`; returns the loss.

Called without a graph being recorded."""

aten: Any = torch.ops.aten
MEAN, IGNORED = 1, -100
"""Defaults of cross-entropy, as its kernels want them: reduction and ignored class."""


def by_autograd(module: nn.Module, loss_of: Loss) -> Gradients:
    """Of any module that is in training mode."""
    parameters = list(module.parameters())

    def gradients(x: Tensor, target: Tensor) -> Tensor:
        with torch.enable_grad():
            loss = loss_of(module(x), target)
        for parameter in parameters:
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    return gradients


def is_perceptron(module: nn.Module, training: Training, classes: int | None) -> bool:
    """Whether `of_perceptron` may be used: linear layers with ReLU between, plain cross-entropy."""
    kinds = [type(layer) for layer in module.children()]
    linear = [layer for layer in module.children() if isinstance(layer, nn.Linear)]
    return (
        type(module) is nn.Sequential
        and kinds == [nn.Linear, nn.ReLU] * (len(kinds) // 2) + [nn.Linear]
        and all(layer.bias is not None for layer in linear)
        and classes is not None
        and training.loss in (None, "cross_entropy")
        and not training.label_smoothing
    )


def of_perceptron(module: nn.Module, training: Training) -> Gradients:
    """Of a module that `is_perceptron`: the kernels that autograd would call, in its order."""
    layers = [layer for layer in module.children() if isinstance(layer, nn.Linear)]
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    weights = class_weights(training)
    *hidden, last = [(layer.bias, layer.weight.t()) for layer in layers]
    backwards = [(layer.weight, layer.weight.grad, layer.bias.grad) for layer in reversed(layers)]
    one = torch.ones(())

    def gradients(x: Tensor, target: Tensor) -> Tensor:
        seen = [x]
        for bias, weight in hidden:
            seen.append(torch.addmm(bias, seen[-1], weight).relu_())
        logs = torch.log_softmax(torch.addmm(last[0], seen[-1], last[1]), 1)
        loss, total = aten.nll_loss_forward.default(logs, target, weights, MEAN, IGNORED)
        delta = aten.nll_loss_backward.default(one, logs, target, weights, MEAN, IGNORED, total)
        delta = torch._log_softmax_backward_data(delta, logs, 1, torch.float32)
        for weight, by_weight, by_bias in backwards:
            x = seen.pop()
            torch.mm(delta.t(), x, out=by_weight)
            torch.sum(delta, 0, out=by_bias)
            if seen:
                delta = aten.threshold_backward.default(torch.mm(delta, weight), x, 0)
        return loss  # type: ignore[no-any-return]

    return gradients
