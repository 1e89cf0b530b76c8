"""The same steps in plain torch: no store, no keys, no checkpoints; what `train` is held against.

    bare.py SOURCE PLAN THREADS

PLAN is a JSON file: for each shard, for each stage, the number of its records and of the records in
each epoch. It prints the seconds from the first read to the last step, and the number of steps.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn

BATCH, LR, MOMENTUM = 64, 0.05, 0.9


def read(source: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 [n, 784] and labels int64 [n]."""
    table = pq.read_table(source, columns=["image", "label"])
    images = np.concatenate([c.flatten().to_numpy() for c in table["image"].chunks])
    images = images.reshape(table.num_rows, -1)
    return torch.from_numpy(images.copy()), torch.from_numpy(
        table["label"].to_numpy().astype(np.int64)
    )


def stage(module: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: list[int]) -> int:
    """Take the steps of one stage with an optimizer of its own."""
    optimizer = torch.optim.SGD(module.parameters(), LR, momentum=MOMENTUM, fused=True)
    steps = 0
    for taken in epochs:
        order = torch.randperm(len(images))[:taken]
        cuts = list(order.split(BATCH))
        if len(cuts) > 1 and len(cuts[-1]) < 2:
            last = cuts.pop()
            cuts[-1] = torch.cat([cuts[-1], last])
        for rows in cuts:
            batch = images.index_select(0, rows).to(torch.float32).mul_(1 / 255)
            loss = nn.functional.cross_entropy(module(batch), labels.index_select(0, rows))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
    return steps


def main() -> None:
    """Train every shard, stage by stage."""
    source, plan, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(threads)
    shards = json.loads(Path(plan).read_text("utf-8"))
    started, steps, first = time.perf_counter(), 0, 0
    images, labels = read(source)
    for stages in shards:
        module = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
        for records, epochs in stages:
            own = slice(first, first + records)
            steps += stage(module, images[own], labels[own], epochs)
        first += stages[-1][0] if stages else 0
    print(json.dumps({"seconds": time.perf_counter() - started, "steps": steps}))


if __name__ == "__main__":
    main()
