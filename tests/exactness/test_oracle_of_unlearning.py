"""The exact half gives the approximate one its oracle: a shard's constituent without a subject."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from sisa import checkpoint
from sisa.approximate import answers, classifier_folder, statement, unlearn
from sisa.approximate.classifier_folder import About, FolderClassifier
from sisa.approximate.examples import read_examples
from sisa.approximate.request import Request
from sisa.learners import mlp

WIDTHS = {"inputs": 64, "outputs": 10, "hidden": [32]}
ABOUT = About(
    factory="sisa.learners.mlp:factory",
    params=WIDTHS,
    columns={"input": "image", "label": "label", "id": "record_id"},
    scale=255.0,
    classes=10,
)
CHOICES = {"shards": 2, "slices": 1, "epochs": 20, "learner": "mlp"}


def constituent(ws: Any, shard: int, folder: Path) -> Path:
    """What a shard is served with, as a model folder."""
    _, generation = ws.context.current()
    (found,) = [c for c in generation.constituents if c.shard == shard]
    state = checkpoint.read(ws.context.store, found.stages[-1].file, found.stages[-1].tensors)
    module = mlp.factory(**WIDTHS)
    own = {name.removeprefix("module."): torch.from_numpy(np.array(a)) for name, a in state.items()}
    module.load_state_dict({name: own[name] for name in module.state_dict()})
    classifier_folder.save(FolderClassifier(module, ABOUT), folder)
    return folder


@pytest.fixture
def made(lab: Any, data: Any, tmp_path: Path) -> dict[str, Any]:
    """One shard's model with a patient and, exactly, without; and the rows of both sides."""
    table = as_bytes(data("patients"))
    ws = lab.workspace(
        "ws", table, "recipe.learner.params={hidden: [32]}", "recipe.training.lr=0.3", **CHOICES
    )
    ws.train()
    people = pc.unique(table["subject_id"]).to_pylist()
    shard_of = {p: ws.lineage(subject=p).records[0].shard for p in people}
    counts = {p: pc.sum(pc.equal(table["subject_id"], p)).as_py() for p in people}
    gone = max((p for p in people if shard_of[p] == 0), key=lambda p: counts[p])
    base = constituent(ws, 0, tmp_path / "base")
    assert ws.forget(subjects=[gone]).status == "certified" and ws.verify().exact
    exact = constituent(ws, 0, tmp_path / "exact")
    owner = pc.equal(table["subject_id"], gone)
    here = pc.is_in(table["subject_id"], pa.array([p for p in people if shard_of[p] == 0]))
    sides = {
        "forget": owner,
        "retain": pc.and_(here, pc.invert(owner)),
        "holdout": pc.invert(here),  # no record of another shard was ever opened by this one
    }
    for name, mask in sides.items():
        pq.write_table(table.filter(mask), tmp_path / f"{name}.parquet")
    return {"base": base, "exact": exact, "folder": tmp_path}


def as_bytes(table: pa.Table) -> pa.Table:
    """Images as uint8, which a stage does not standardise by its own records."""
    values = table["image"].combine_chunks().flatten().to_numpy()
    flat = pa.array((values * 15).astype(np.uint8))
    images = pa.FixedSizeListArray.from_arrays(flat, 64)
    return table.set_column(table.column_names.index("image"), "image", images)


def test_unlearning_a_shard_is_held_against_its_exact_retrain(made: dict[str, Any]) -> None:
    folder = made["folder"]
    files = {n: folder / f"{n}.parquet" for n in ("forget", "retain", "holdout")}
    request = Request(
        "gradient-difference",
        model=made["base"],
        retrained=made["exact"],
        out=folder / "new",
        settings=("lr=1e-3", "epochs=3", "items_per_batch=16"),
        **files,
    )
    done = unlearn.run(request)
    assert done.verdict == "evaluated"
    found = done.evidence["oracle"]
    said = statement.read((folder / "new" / statement.FILE).read_bytes()).predicate
    assert said.retrained == statement.base(made["exact"])

    exact = unlearn.run(replace(request, model=made["exact"], out=folder / "itself", settings=NONE))
    nothing = unlearn.run(replace(request, out=folder / "nothing", settings=NONE))
    assert exact.evidence["oracle"]["distance"] == 0, "the oracle is the oracle"
    assert 0 < found["distance"] < nothing.evidence["oracle"]["distance"]


NONE = ("lr=0", "weight_decay=0", "epochs=1", "items_per_batch=16", "relearn_lr=1e-4")
"""A run that changes nothing."""


def test_a_constituent_says_what_its_folder_says(made: dict[str, Any]) -> None:
    subject = classifier_folder.load(made["exact"])
    retain = read_examples(made["folder"] / "retain.parquet", "retain", subject)
    rows = answers.statistics(subject, retain)
    assert rows.greedy_hit.double().mean() > 0.9
