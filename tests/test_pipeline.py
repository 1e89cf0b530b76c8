"""The example pipeline step reacts to every exit code, for real and from outside."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sisa import Workspace

pytestmark = pytest.mark.slow

PIPELINE = Path(__file__).resolve().parent.parent / "examples" / "pipeline"
QUIET = {
    "SISA__RUNTIME__EXECUTOR__KIND": "process",
    "SISA__RUNTIME__EXECUTOR__WORKERS": "1",
    "SISA__RUNTIME__TRACKING__URI": "null",
    "PYTHON": sys.executable,
    "RETRIES": "0",
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
}


class Pipeline:
    """A workspace, and the step that is run on it from its own folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workspace = folder / "ws"
        self.promoted = self.workspace / "promoted.json"
        self.withdrawn = self.workspace / "promoted.json.withdrawn"

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        outer = {k: v for k, v in os.environ.items() if not k.startswith("SISA_")}
        return subprocess.Popen(
            words,
            cwd=self.workspace,
            env={**outer, **QUIET, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def step(self, *words: str, code: int = 0, **environment: str) -> str:
        """Run the shell step. Returns what it says."""
        run = self.start(str(PIPELINE / "step.sh"), *words, **environment)
        _, said = run.communicate(timeout=300)
        assert run.returncode == code, said
        return said

    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.promoted.read_text())
        return found


def flip(pipeline: Pipeline) -> str:
    """Change one bit of one checkpoint. Returns its name."""
    victim = max(pipeline.workspace.rglob("*.safetensors"))
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    return victim.name


@pytest.fixture(autouse=True)
def no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SISA_SECRET_KEY", raising=False)


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    """A workspace that holds nothing yet."""
    return empty(tmp_path)


def empty(folder: Path) -> Pipeline:
    rng = np.random.default_rng(0)
    age = rng.integers(18, 90, 2000)
    rows = {
        "id": [f"r{i}" for i in range(2000)],
        "who": [f"p{i % 20}" for i in range(2000)],
        "age": age,
        "bought": (age + rng.normal(0, 15, 2000) > 50).astype(np.int64),
    }
    pq.write_table(pa.table(rows), folder / "rows.parquet")
    columns = {"record_id": "id", "subject_id": "who", "target": "bought"}
    size: dict[str, Any] = {"shards": 2, "slices": 2, "learner": "logistic"}
    Workspace.init(folder / "ws", folder / "rows.parquet", **columns, **size)
    (folder / "ws" / "ids.txt").write_text("p3\np4\n")
    return Pipeline(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SISA_SECRET_KEY", raising=False)
        pipeline = empty(tmp_path_factory.mktemp("pipeline"))
    pipeline.step("train")
    return pipeline.folder


@pytest.fixture
def promoted(trained: Path, tmp_path: Path) -> Pipeline:
    """One that the step has trained and promoted."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return Pipeline(tmp_path)


def test_what_is_sound_is_promoted_and_a_writer_is_waited_for(promoted: Pipeline) -> None:
    pipeline = promoted
    first = pipeline.document()
    assert first["exact"] is True and first["generation"] == 1
    with closing(Workspace.open(pipeline.workspace)) as other:
        with other.context.ledger.writer():
            said = pipeline.step("forget", "ids.txt", code=75, RETRIES="1", BACKOFF="0")
            assert said.count("trying again") == 1
            assert [r.status for r in other.status().requests] == ["accepted"]
            assert pipeline.document()["generation"] == 1
            run = pipeline.start(
                str(PIPELINE / "step.sh"), "forget", "ids.txt", RETRIES="6", BACKOFF="1"
            )
            assert run.stderr is not None
            assert "trying again in 1 s" in run.stderr.readline()
        _, said = run.communicate(timeout=300)
        assert run.returncode == 0, said
        assert [r.status for r in other.status().requests] == ["certified"]
    after = pipeline.document()
    assert after["exact"] is True and after["digest"] != first["digest"]


def test_too_few_votes_are_not_promoted(pipeline: Pipeline) -> None:
    lonely = pipeline.workspace / "sisa.yaml"
    lonely.write_text(lonely.read_text().replace("shards: 2", "shards: 60"))
    said = pipeline.step("train", code=6, SISA__RUNTIME__ERASURE__QUORUM="1")
    assert "sisa train: exit code 6" in said
    assert not pipeline.promoted.exists()


def test_a_tainted_store_withdraws_what_was_promoted(promoted: Pipeline) -> None:
    name = flip(promoted)
    said = promoted.step("train", code=4)
    assert "sisa verify: exit code 4" in said and name in said
    assert not promoted.promoted.exists() and promoted.withdrawn.exists()


def test_what_must_be_corrected_is_told_and_not_tried_again(pipeline: Pipeline) -> None:
    said = pipeline.step("train", code=3, RETRIES="9", SISA__RECIPE__TRAINING__LR="-1")
    assert "recipe.training.lr" in said and "trying again" not in said
    (pipeline.workspace / "secret.key").chmod(0o644)
    said = pipeline.step("train", code=3)
    assert "sisa doctor: exit code 3" in said and "chmod 600" in said
    assert not pipeline.promoted.exists()


@pytest.mark.parametrize(
    ("words", "code"), [(("promote",), 2), (("forget",), 2), (("forget", "gone.txt"), 5)]
)
def test_a_wrong_call_is_refused(pipeline: Pipeline, words: tuple[str, ...], code: int) -> None:
    assert pipeline.step(*words, code=code)


def test_the_python_step_gives_the_same_codes(pipeline: Pipeline) -> None:
    def step(code: int, **environment: str) -> str:
        words = (sys.executable, str(PIPELINE / "step.py"), str(pipeline.workspace))
        run = pipeline.start(*words, **environment)
        _, said = run.communicate(timeout=300)
        assert run.returncode == code, said
        return said

    step(0)
    with closing(Workspace.open(pipeline.workspace)) as other, other.context.ledger.writer():
        assert "try again" in step(75)
    assert "recipe.training.lr" in step(3, SISA__RECIPE__TRAINING__LR="-1")
    flip(pipeline)
    step(4)
