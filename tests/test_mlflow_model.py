"""The ensemble as an MLflow model: loaded and served, it predicts what `sisa predict` predicts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sisa import Workspace, outbox
from sisa.config import Data
from sisa.context import Reporter
from sisa.errors import ExactnessError, IncompleteError

LEARNER = """
import torch

def net(inputs, outputs, hidden=8):
    return torch.nn.Sequential(
        torch.nn.Linear(inputs, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, outputs)
    )
"""
FEATURES = {
    "age": "int64",
    "big": "uint64",
    "member": "bool",
    "spent": "float32",
    "colour": "text",
    "pixels": "uint8[4]",
    "wave": "float64[3]",
}
SETTINGS = (
    "runtime.executor.kind=process",
    "runtime.executor.workers=1",
    f"recipe.data.features={json.dumps(FEATURES)}",
    "recipe.data.categories={colour: [red, green]}",
    "recipe.data.hash_buckets=4",
    "recipe.learner={factory: 'mine:net', params: {hidden: 5}}",
)
GONE = "customer-3"


def rows(first: int, count: int) -> pa.Table:
    """Every kind of feature, with nulls where they may be."""
    rng = np.random.default_rng(first)
    holes = rng.random((4, count)) < 0.1
    age = rng.integers(18, 90, count)
    columns = {
        "id": [f"row-{first + i}" for i in range(count)],
        "customer": [f"customer-{i % 40}" for i in range(count)],
        "bought": np.where(rng.random(count) + age / 100 > 1, "yes", "no"),
        "age": pa.array(age, mask=holes[0]),
        "big": pa.array(rng.integers(2**63, 2**64 - 1, count, dtype=np.uint64)),
        "member": pa.array(rng.random(count) < 0.5, mask=holes[1]),
        "spent": pa.array(rng.gamma(2, 50, count).astype(np.float32), mask=holes[2]),
        "colour": pa.array(rng.choice(["red", "green", "mauve"], count), mask=holes[3]),
        "pixels": pa.array(rng.integers(0, 256, (count, 4)).tolist(), pa.list_(pa.uint8(), 4)),
        "wave": pa.array(rng.normal(size=(count, 3)).tolist(), pa.list_(pa.float64(), 3)),
    }
    return pa.table(columns)


@dataclass
class Shop:
    """A workspace that is mirrored on a real server."""

    folder: Path
    uri: str

    def open(self, uri: str | None = None, warn: Callable[[str], None] = pytest.fail) -> Workspace:
        setting = f"runtime.tracking.uri={uri or self.uri}"
        return Workspace.open(self.folder, [setting], Reporter(warn=warn))

    def aliases(self) -> dict[str, int]:
        from mlflow import MlflowClient

        found = MlflowClient(self.uri).get_registered_model("shop").aliases
        return {name: int(version) for name, version in found.items()}


@pytest.fixture(scope="module")
def shop(mlflow_starting: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Trained while its mirror was down."""
    folder = tmp_path_factory.mktemp("shop")
    pq.write_table(rows(0, 400), folder / "rows.parquet")
    (folder / "mine.py").write_text(LEARNER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_starting)
        patch.setattr(sys, "path", [*sys.path])  # a workspace adds itself to it
        Workspace.init(
            folder,
            folder / "rows.parquet",
            record_id="id",
            subject_id="customer",
            target="bought",
            shards=3,
            slices=2,
            epochs=2,
            settings=[*SETTINGS, "runtime.tracking.model=shop", "runtime.tracking.experiment=shop"],
        )
        patch.delenv("MLFLOW_TRACKING_URI")  # it would outrank a setting
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        yield Shop(folder, mlflow_starting)


@pytest.fixture
def registry(shop: Shop, mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user of MLflow sets."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)


def champion() -> Any:
    import mlflow

    return mlflow.pyfunc.load_model("models:/shop@champion")


def same(found: pd.DataFrame, expected: pa.Table) -> None:
    """Bit for bit."""
    assert list(found.columns) == expected.column_names
    for name in found.columns:
        assert found[name].tolist() == expected[name].to_pylist()


def test_what_a_mirror_missed_is_delivered_by_the_next_command(
    shop: Shop, mlflow_server: str
) -> None:
    warnings: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        down = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with shop.open(down, warnings.append) as ws:
        ws.ingest()
        ws.train()
        assert ws.status().outbox == 1
    assert len(warnings) == 1 and "1 generation waits" in warnings[0]
    code = f"""
import sys
from sisa import Workspace, outbox
outbox.BUDGET = 400.0
ws = Workspace.open({str(shop.folder)!r}, ["runtime.tracking.uri={shop.uri}"])
ws.ingest()  # publishes nothing, and is not closed
assert not {{"mlflow", "torch"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    with shop.open() as ws:
        assert ws.status().outbox == 0
    assert shop.aliases() == {"champion": 1}
    assert not (shop.folder / "outgoing").exists()


@pytest.mark.usefixtures("registry")
def test_the_champion_predicts_what_the_workspace_predicts(shop: Shop) -> None:
    from mlflow.models import Model

    test, model = rows(1000, 50), champion()
    with shop.open() as ws:
        same(model.predict(test.to_pandas()), ws.predict(test))
    found = Model.load("models:/shop@champion")
    assert found.metadata == {"sisa.features": FEATURES}
    assert len(model.predict(found.load_input_example("models:/shop@champion"))) == 1


@pytest.mark.usefixtures("registry")
def test_other_code_than_was_trained_is_not_served(shop: Shop, tmp_path: Path) -> None:
    import mlflow

    folder = mlflow.artifacts.download_artifacts("models:/shop@champion", dst_path=str(tmp_path))
    mlflow.pyfunc.load_model(folder)
    (code,) = Path(folder, "code").glob("mine.py")
    code.write_text(LEARNER.replace("Tanh", "ReLU"))
    with pytest.raises(ExactnessError, match="other code of its learner"):
        mlflow.pyfunc.load_model(folder)


@pytest.mark.usefixtures("registry")
def test_the_model_holds_no_row_no_id_no_place_and_no_pickle(shop: Shop, tmp_path: Path) -> None:
    import mlflow

    folder = mlflow.artifacts.download_artifacts("models:/shop@champion", dst_path=str(tmp_path))
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pt", ".pth")]
    secret = (shop.folder / "secret.key").read_text().strip()
    for path in files:
        text = path.read_bytes()
        for word in (secret, "customer-", "row-", "mauve", str(shop.folder), "rows.parquet"):
            assert word.encode() not in text, path.name
    assert b"green" in (Path(folder) / "artifacts/ensemble/ensemble.json").read_bytes()


def test_only_the_certificate_waits_for_a_mirror(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "BUDGET", 0.1)
    warnings: list[str] = []
    shutil.copytree(shop.folder, tmp_path / "copy")
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections, never answers
        late = Shop(tmp_path / "copy", f"http://127.0.0.1:{mute.getsockname()[1]}")
        with late.open(warn=warnings.append) as ws:
            done = ws.forget(subjects=["customer-5"])
            assert done.status == "blocked" and done.samples_trained > 0
            now = ws.status()
            assert (now.depth, now.outbox, now.requests[-1].status) == (1, 1, "blocked")
            assert ws.lineage(subject="customer-5").records == (), "rewritten"
    assert any("wait" in text for text in warnings)


@pytest.mark.usefixtures("registry")
def test_the_champion_follows_the_roll_back(shop: Shop) -> None:
    test = rows(1000, 50)
    with shop.open() as ws:
        before = ws.predict(test)
        assert ws.forget(subjects=[GONE], wait=False).status == "accepted"
        after = ws.predict(test)
    assert shop.aliases() == {"champion": 2}
    assert not after.equals(before)
    same(champion().predict(test.to_pandas()), after)


@pytest.mark.usefixtures("registry")
def test_a_served_champion_answers_as_the_command_does(shop: Shop, tmp_path: Path) -> None:
    test = rows(1000, 50)
    pq.write_table(test, tmp_path / "test.parquet")
    out = tmp_path / "out.parquet"
    with shop.open() as ws:
        ws.work()
        ws.predict_file(tmp_path / "test.parquet", out)
    assert shop.aliases()["champion"] == 3
    data = {"columns": list(FEATURES), "data": [list(r.values()) for r in features(test)]}
    with serving(tmp_path / "log") as address:
        answer = ask(address, {"dataframe_split": data})
        data["data"][0][0] = "old"
        with pytest.raises(urllib.error.HTTPError, match="400"):
            ask(address, {"dataframe_split": data})
    same(pd.DataFrame(answer["predictions"]), pq.read_table(out).drop_columns("id"))


def features(table: pa.Table) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = table.select(list(FEATURES)).to_pylist()
    return found


class serving:
    """`mlflow models serve` of the champion, on a free port."""

    def __init__(self, log: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "mlflow", "models", "serve", "--port", str(port)]
        command += ["-m", "models:/shop@champion", "--env-manager", "local"]
        paths = os.pathsep.join(p for p in sys.path if p)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                env=os.environ | {"PYTHONPATH": paths, "PATH": path},
                cwd=log.parent,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def __enter__(self) -> str:
        for _ in range(1800):
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=5):
                    return self.address
            except OSError:
                time.sleep(0.2)
        self.__exit__()
        raise TimeoutError("the model is not served")

    def __exit__(self, *_: object) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)  # the group that it leads
        self.process.wait()


def ask(address: str, body: dict[str, Any]) -> Any:
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/invocations", json.dumps(body).encode(), head)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_signature_and_example_come_from_the_recipe_alone() -> None:
    from sisa.mlflow_model import example, signature

    data = Data.model_validate(
        {
            "record_id": "id",
            "target": "y",
            "classes": [3, 7],
            "features": FEATURES,
            "categories": {"colour": ["red", "green"]},
        }
    )
    found = signature(data)
    assert {c.name: str(c.type) for c in found.inputs} == {
        "age": "Any",
        "big": "Any",
        "colour": "DataType.string",
        "member": "Any",
        "pixels": "Array(long)",
        "spent": "DataType.double",
        "wave": "Array(double)",
    }
    assert found.outputs.input_names() == ["prediction", "probability_3", "probability_7"]
    assert example(data).to_dict("records") == [
        {
            "age": 0,
            "big": 0,
            "colour": "red",
            "member": False,
            "pixels": [0] * 4,
            "spent": 0.0,
            "wave": [0.0] * 3,
        }
    ]
    value = data.model_copy(update={"task": "regression", "classes": ()})
    assert [(c.name, str(c.type)) for c in signature(value).outputs] == [
        ("prediction", "DataType.double")
    ]


def test_a_messenger_knows_no_secret_and_outlives_no_parent(shop: Shop) -> None:
    code = f"""
import time
from sisa import Workspace
ws = Workspace.open({str(shop.folder)!r}, ["runtime.tracking.uri=http://127.0.0.1:1"])
ws._outbox.begin()
print(ws._outbox._messenger._process.pid, flush=True)
time.sleep(600)
"""
    secret = (shop.folder / "secret.key").read_text().strip()
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"SISA_SECRET_KEY": secret, "MARK": "marzipan"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert parent.stdout is not None
        child = Path("/proc", parent.stdout.readline().strip())
        environment = b""
        while not environment and alive(child):  # empty until the new program has begun
            environment = (child / "environ").read_bytes()
        assert b"marzipan" in environment and secret.encode() not in environment
        assert secret.encode() not in (child / "cmdline").read_bytes()
    finally:
        parent.kill()
        parent.communicate()
    deadline = time.monotonic() + 300
    while alive(child):
        assert time.monotonic() < deadline, "the messenger outlives its parent"
        time.sleep(0.1)


@pytest.mark.usefixtures("registry")
def test_a_champion_without_a_vote_is_out_of_service(shop: Shop, tmp_path: Path) -> None:
    """The last test, as nobody is left: the server answers 503, not an older model's prediction."""
    everybody = [f"customer-{i}" for i in range(40) if f"customer-{i}" != GONE]
    with shop.open() as ws:
        assert ws.forget(subjects=everybody, wait=False).status == "accepted"
        with pytest.raises(IncompleteError):
            ws.predict(rows(1000, 5))
    test = rows(1000, 5)
    data = {"columns": list(FEATURES), "data": [list(r.values()) for r in features(test)]}
    with serving(tmp_path / "log") as address, pytest.raises(urllib.error.HTTPError, match="503"):
        ask(address, {"dataframe_split": data})


def alive(process: Path) -> bool:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
