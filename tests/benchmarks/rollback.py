"""From the call to the rolled-back generation being current, for a model and one 100 times larger.

Time does not grow with the model, because rolling back changes a manifest and moves no tensor.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import common
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_index.storage import FileRef
from sisa import Workspace

DRAWS, ROWS, SHARDS, SLICES = 15, 4000, 4, 3
WIDTHS = (128, 12_812)
"""Hidden units: 784-128-10 has 101,770 parameters, 784-12812-10 a hundred times as many."""


def parameters(width: int) -> int:
    """Parameters of a 784-width-10 perceptron."""
    return 784 * width + width + width * 10 + 10


def main() -> None:
    """Run it and write the section."""
    started = time.monotonic()
    rows = []
    with tempfile.TemporaryDirectory(prefix="sisa-bench-") as scratch:
        source = Path(scratch) / "some.parquet"
        pq.write_table(pq.read_table(common.data("fashion_mnist")).slice(0, ROWS), source)
        ids = pq.read_table(source, columns=["record_id"])["record_id"]
        drawn = np.random.default_rng(common.SEED).choice(len(ids), DRAWS, replace=False)
        for width in WIDTHS:
            root = Path(scratch) / f"width-{width}"
            shape = {"shards": SHARDS, "slices": SLICES, "epochs": 1}
            recipe = (f"recipe.learner.params.hidden=[{width}]",)
            with common.workspace(root, source, recipe=recipe, **shape) as ws:
                ws.train()
                taken = [roll_back(ws, row) for row in ids.take(pa.array(drawn)).to_pylist()]
                size = sum(f.size for f in _files(ws))
            rolled, answered = zip(*taken, strict=True)
            cells = [f"{common.median(rolled):.3f}", f"{max(rolled):.3f}"]
            cells.append(f"{common.median(answered):.3f}")
            rows.append([f"{parameters(width):,}", f"{size / 1e6:.1f}", str(DRAWS), *cells])
            print(rows[-1], flush=True)
    head = [
        "parameters a constituent",
        "served checkpoints, MB",
        "draws",
        "median s",
        "largest s",
        "answer, median s",
    ]
    lines = [
        *common.text(
            "From the call of `forget` in a running process to the rolled-back generation being",
            f"current and durable; S={SHARDS}, R={SLICES}, {ROWS:,} records of Fashion-MNIST, one",
            "record a call. The answer also says what retraining everything would visit, for which",
            "the checkpoints to go on from are read.",
        ),
        *common.table(head, rows),
    ]
    common.publish("Roll-back", "rollback.py", lines, time.monotonic() - started)


def roll_back(ws: Workspace, record: int) -> tuple[float, float]:
    """Seconds until a record is out of what is served, and until the call has answered."""
    started = time.perf_counter()
    done = ws.forget(records=[record], wait=False)
    seconds = time.perf_counter() - started
    assert done.status == "accepted" and ws.status().reason == "roll-back"
    return done.rolled_back_seconds or 0.0, seconds


def _files(ws: Workspace) -> list[FileRef]:
    return [c.file for c in ws.context.served()[1].voting]


if __name__ == "__main__":
    main()
