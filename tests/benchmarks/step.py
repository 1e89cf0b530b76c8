"""What one training step costs, against the fastest plain torch that we could write.

Ours is the loop of a stage, order of records, isolation and reported loss included. The plain loops
train the same perceptron from the same bytes in memory, in a random order for each epoch, with the
same loss, optimizer and rate. All are interleaved, epoch by epoch, so that other load meets each of
them, and timed by the processor time of their one thread; what is compared is the median over pairs
of epochs.

    SISA_TEST_DATA=/where/data/lies .venv/bin/python tests/benchmarks/step.py
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import common
import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn import functional

from sisa import learners
from sisa.config import Recipe
from sisa.determinism import StagePlan, pin_threads, scatter
from sisa.learners import torch_optim
from sisa.learners.torch_module import TorchLearner
from sisa.learners.torch_parts import isolated

RATE, MOMENTUM, SCALE = 0.05, 0.9, 1 / 255
Epoch = Callable[[], None]


def rows(count: int) -> tuple[Tensor, Tensor]:
    """Images uint8 [n, 784] and classes int64 [n]."""
    table = pq.read_table(common.data("fashion_mnist")).slice(0, count)
    flat = table["image"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    images = np.ascontiguousarray(flat.astype(np.uint8).reshape(count, 784))
    return torch.from_numpy(images), torch.from_numpy(table["label"].to_numpy().astype(np.int64))


def ours(x: Tensor, y: Tensor, batch: int) -> Epoch:
    """An epoch as a stage trains it."""
    recipe = Recipe.model_validate(
        {
            "data": {
                "record_id": "record_id",
                "target": "label",
                "classes": list(range(10)),
                "features": {"image": "uint8[784]"},
            },
            "partition": {"shards": 1, "slices": 1},
            "training": {"epochs": 1, "batch_size": batch, "lr": RATE, "momentum": MOMENTUM},
        }
    )
    learner = learners.load(recipe)
    assert isinstance(learner, TorchLearner)
    state = learner.init(0)
    with isolated(0):
        module = learner._load(state, 0)
    parameters = dict(module.named_parameters())
    optimizer = torch_optim.make(recipe.training, parameters, state)
    matrix = ((x, (0.0, SCALE)),)
    words = scatter(np.arange(len(y), dtype=np.uint64), 1)
    slices = itertools.count(1)

    def epoch() -> None:
        plan = StagePlan(recipe.training, 1, 0, next(slices), words)
        with isolated(0):
            learner._train(module, optimizer, list(parameters.values()), matrix, y, plan)

    return epoch


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def autograd(x: Tensor, y: Tensor, batch: int) -> Epoch:
    """As a good tutorial has it."""
    module = perceptron()
    optimizer = torch.optim.SGD(module.parameters(), RATE, MOMENTUM, fused=True)

    def epoch() -> None:
        for chosen in torch.randperm(len(y)).split(batch):
            optimizer.zero_grad()
            image = x.index_select(0, chosen).to(torch.float32).mul_(SCALE)
            functional.cross_entropy(module(image), y.index_select(0, chosen)).backward()
            optimizer.step()

    return epoch


def fused(parameters: list[Tensor]) -> Callable[[list[Tensor]], None]:
    momenta = [torch.zeros_like(p) for p in parameters]
    settings = {"dampening": 0.0, "nesterov": False, "maximize": False, "is_first_step": False}

    def step(gradients: list[Tensor]) -> None:
        torch._fused_sgd_(
            parameters,
            gradients,
            momenta,
            weight_decay=0.0,
            momentum=MOMENTUM,
            lr=RATE,
            **settings,
        )

    return step


def function(x: Tensor, y: Tensor, batch: int) -> Epoch:
    """No module and no optimizer object."""
    parameters: list[Tensor] = list(perceptron().parameters())
    w1, b1, w2, b2 = parameters
    step = fused(parameters)

    def epoch() -> None:
        for chosen in torch.randperm(len(y)).split(batch):
            image = x.index_select(0, chosen).to(torch.float32).mul_(SCALE)
            hidden = torch.addmm(b1, image, w1.t()).relu_()
            output = torch.addmm(b2, hidden, w2.t())
            loss = functional.cross_entropy(output, y.index_select(0, chosen))
            found = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                step(list(found))

    return epoch


def by_hand(buffers: bool) -> Callable[[Tensor, Tensor, int], Epoch]:
    """The gradient written out, without a graph and without the value of the loss."""

    def start(x: Tensor, y: Tensor, batch: int) -> Epoch:
        parameters = [p.detach() for p in perceptron().parameters()]
        w1, b1, w2, b2 = parameters
        w1t, w2t = w1.t(), w2.t()
        gradients = [torch.zeros_like(p) for p in parameters]
        g1, h1, g2, h2 = gradients
        step = fused(parameters)
        raw, cast = torch.empty(batch, 784, dtype=torch.uint8), torch.empty(batch, 784)
        one, aten = torch.ones(()), torch.ops.aten

        @torch.no_grad()
        def epoch() -> None:
            for chosen in torch.randperm(len(y)).split(batch):
                if buffers and len(chosen) == batch:
                    torch.index_select(x, 0, chosen, out=raw)
                    image = cast.copy_(raw).mul_(SCALE)
                else:
                    image = x.index_select(0, chosen).to(torch.float32).mul_(SCALE)
                target = y.index_select(0, chosen)
                hidden = torch.addmm(b1, image, w1t).relu_()
                logs = torch.log_softmax(torch.addmm(b2, hidden, w2t), 1)
                total = torch.tensor(float(len(chosen)))
                delta = aten.nll_loss_backward.default(one, logs, target, None, 1, -100, total)
                delta = torch._log_softmax_backward_data(delta, logs, 1, torch.float32)
                torch.mm(delta.t(), hidden, out=g2)
                torch.sum(delta, 0, out=h2)
                delta = aten.threshold_backward.default(torch.mm(delta, w2), hidden, 0)
                torch.mm(delta.t(), image, out=g1)
                torch.sum(delta, 0, out=h1)
                step(gradients)

        return epoch

    return start


PLAIN: dict[str, Callable[[Tensor, Tensor, int], Epoch]] = {
    "autograd": autograd,
    "functional": function,
    "by hand": by_hand(buffers=False),
    "by hand, buffers": by_hand(buffers=True),
}


def timed(epoch: Epoch) -> float:
    began = time.thread_time()
    epoch()
    return time.thread_time() - began


def compare(x: Tensor, y: Tensor, batch: int, repetitions: int) -> dict[str, Any]:
    """Median microseconds of a step of each loop, and of ours by each plain one in its turn."""
    mine = ours(x, y, batch)
    others = {name: start(x, y, batch) for name, start in PLAIN.items()}
    for epoch in (mine, *others.values()):
        epoch()
    times: dict[str, list[float]] = {name: [] for name in ("ours", *others)}
    ratios: dict[str, list[float]] = {name: [] for name in others}
    for repetition in range(repetitions):
        for name, epoch in others.items():
            if repetition % 2:
                own, its = timed(mine), timed(epoch)
            else:
                its, own = timed(epoch), timed(mine)
            times["ours"].append(own)
            times[name].append(its)
            ratios[name].append(own / its)
    steps = -(-len(y) // batch)
    return {
        "step": {name: median(found) / steps * 1e6 for name, found in times.items()},
        "ratio": {name: median(found) for name, found in ratios.items()},
    }


def main() -> None:
    """Compare at each batch size, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=24_000)
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--repetitions", type=int, default=20)
    options = parser.parse_args()
    started = time.monotonic()
    pin_threads(1)
    x, y = rows(options.rows)
    lines = []
    for batch in options.batch:
        found = compare(x, y, batch, options.repetitions)
        ratios = found["ratio"]
        cells = [f"{found['step'][n]:.0f}" for n in ("ours", *PLAIN)]
        lines.append([str(batch), *cells, f"**{max(ratios.values()):.3f}**"])
        print(lines[-1], flush=True)
    text = common.text(
        "Microseconds of processor time of one training step, 784-128-10, SGD with momentum, one",
        "thread, as it runs in a stage: order of records, determinism and reported loss included.",
        "Beside it plain loops over the same bytes in memory: autograd as a tutorial has it,",
        "autograd without module and optimizer objects, and gradients written by hand, without the",
        "value of the loss, also with buffers that are used again. Ratio: ours by the fastest of",
        "them, median over pairs of epochs that follow one another.",
    )
    table = common.table(["batch", "ours", *PLAIN, "ratio"], lines)
    common.publish("Steps", "step.py", [*text, *table], time.monotonic() - started)


if __name__ == "__main__":
    main()
