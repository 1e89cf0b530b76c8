"""A classifier of clouds of points in a model folder, with all that edits may ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sisa.approximate import classifier_folder
from sisa.approximate.batches import Examples
from sisa.approximate.classifier_folder import About, FolderClassifier
from sisa.approximate.edits import importance_files
from sisa.approximate.edits.bottlenecks import codebook_of
from sisa.approximate.edits.importance import fisher
from sisa.approximate.edits.recorder import Recorder
from sisa.approximate.examples import read_examples

CLASSES, WIDTH, EACH = 3, 6, 20

SOURCE = """
import torch
from torch import nn

from sisa.approximate.edits.bottlenecks import QuantisedBottleneck


def make(width, hidden, classes, codes=0):
    narrow = [QuantisedBottleneck(torch.randn(codes, hidden))] if codes else []
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), *narrow, nn.Linear(hidden, classes))
"""


def about(**more: Any) -> About:
    params = {"width": WIDTH, "hidden": 16, "classes": CLASSES, **more}
    columns = {"input": "point", "label": "cloud", "id": "name"}
    told = {"factory": "clouds_net:make", "params": params, "columns": columns, "scale": 2.0}
    return About.model_validate({**told, "classes": CLASSES})


def points() -> tuple[Tensor, Tensor]:
    """float32 [n, WIDTH] and int64 [n], cloud by cloud."""
    draws = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(CLASSES, WIDTH, generator=draws)
    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    return centres[labels] + torch.randn(len(labels), WIDTH, generator=draws), labels


def write_points(path: Path, first: int, last: int) -> Path:
    """A Parquet file of some of the points."""
    inputs, labels = points()
    flat = pa.array(inputs[first:last].numpy().ravel())
    table = {
        "name": [f"secret-{i}" for i in range(first, last)],
        "point": pa.FixedSizeListArray.from_arrays(flat, WIDTH),
        "cloud": labels[first:last].numpy().astype(np.int32),
    }
    pq.write_table(pa.table(table), path)
    return path


def learn(subject: FolderClassifier, found: Examples, recorder: Recorder | None) -> None:
    """Every cloud in steps of its own, so that what one taught can be taken back."""
    optimizer = torch.optim.SGD(subject.module.parameters(), lr=0.1)
    for at in [i for _ in range(8) for i in range(0, len(found), EACH)]:
        batch = found.select(range(at, at + EACH))
        optimizer.zero_grad()
        cross_entropy(subject.module(batch.inputs), batch.labels).backward()
        if recorder is None:
            optimizer.step()
        else:
            with recorder.step(batch.ids):
                optimizer.step()


def made_clouds(folder: Path) -> Path:
    """Fill a folder.

    `start` and `base` are model folders before and after training, `narrow` is the latter with a
    bottleneck of nine codes behind its hidden layer; `log` is the training's update log,
    `importance.safetensors` the importance of all data; `all`, `forget` (the first cloud) and
    `retain` are files of points.
    """
    (folder / "clouds_net.py").write_text(SOURCE, "utf-8")
    paths = {"all": (0, 3 * EACH), "forget": (0, EACH), "retain": (EACH, 3 * EACH)}
    for name, (first, last) in paths.items():
        write_points(folder / f"{name}.parquet", first, last)
    scope: dict[str, Any] = {}
    exec(SOURCE, scope)  # the folder that names it is not there yet
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = scope["make"](**about().params)
    subject = FolderClassifier(module, about(), folder / "clouds_net.py")
    classifier_folder.save(subject, folder / "start")
    found = read_examples(folder / "all.parquet", "data", subject)
    with Recorder.start(folder / "log", dict(module.named_parameters())) as recorder:
        learn(subject, found, recorder)
    classifier_folder.save(subject, folder / "base")
    narrow = FolderClassifier(scope["make"](**about(codes=9).params), about(codes=9), subject.code)
    narrow_down(module, narrow.module, found.inputs)
    classifier_folder.save(narrow, folder / "narrow")
    whole = fisher(module, [(found.inputs, found.labels)])
    importance_files.save(whole, folder / "importance.safetensors")
    return folder


@torch.no_grad()
def narrow_down(wide: Any, narrow: Any, inputs: Tensor) -> None:
    """Give a module with a bottleneck the weights of one without, and codes of these inputs."""
    for at, own in ((0, 0), (2, 3)):
        narrow[own].load_state_dict(wide[at].state_dict())
    codes = codebook_of(wide[:2](inputs), 9, torch.Generator().manual_seed(0))
    narrow[2].codebook.copy_(codes)


@torch.no_grad()
def accuracy(subject: FolderClassifier, found: Examples) -> float:
    return float((subject.module(found.inputs).argmax(1) == found.labels).double().mean())
