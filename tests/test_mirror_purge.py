"""What MLflow holds of retired generations is destroyed, and nothing of anybody else's."""

from __future__ import annotations

import base64
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_index.ledger import Ledger
from data_index.storage import Store
from sisa import Workspace, mirror_artefacts, mirror_purge, mirror_rows, outbox, tracked, tracking
from sisa.config import Tracking
from sisa.context import Reporter
from sisa.errors import BlockedError, SisaError
from sisa.generation import Generation
from sisa.mirror_purge import MirrorPurge
from sisa.tracking import Source

CITY = "quincetown"
"""A declared category: free text that no row of a retired generation may keep."""


def rows(first: int, count: int) -> pa.Table:
    rng = np.random.default_rng(first)
    return pa.table(
        {
            "id": [f"row-{first + n}" for n in range(count)],
            "customer": [f"customer-{n % 30}" for n in range(count)],
            "bought": rng.integers(0, 2, count),
            "spent": rng.normal(size=count),
            "city": rng.choice([CITY, "other"], count),
        }
    )


def predicate(folder: Path, certificate: str) -> dict[str, Any]:
    """What a certificate says."""
    envelope = json.loads((folder / "store" / certificate).read_bytes())
    return dict(json.loads(base64.b64decode(envelope["payload"]))["predicate"])


@dataclass
class Shop:
    """A workspace, and what it was warned of."""

    folder: Path
    warnings: list[str] = field(default_factory=list)

    def open(self, *settings: str) -> Workspace:
        return Workspace.open(self.folder, settings, Reporter(warn=self.warnings.append))

    @property
    def source(self) -> Source:
        ledger = Ledger("sqlite:///ledger.db", self.folder)
        return Source(self.folder, ledger, Store(self.folder / "store"), 0.5)

    def drain(self, section: Tracking | None = None) -> None:
        tracking.drain(section or Tracking(), self.source, self.warnings.append)
        assert self.warnings == []

    def purge(self, section: Tracking | None = None) -> MirrorPurge:
        return mirror_purge.purge(section or Tracking(), self.source, tracking.load)

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder}/mlflow.db"

    def checkpoints(self, number: int) -> dict[str, str]:
        """Name and sha256 of the served checkpoints of a generation that is not retired."""
        entry = self.source.ledger.generations()[number - 1]
        assert entry.manifest is not None
        generation = Generation.load(self.source.store, entry.manifest)
        votes = (c.stages[-1] for c in generation.constituents if c.votes)
        return {s.file.path: s.file.sha256 for s in votes if s.file is not None}

    def requeue(self) -> None:
        """As a ledger that has yet to deliver all that is not retired."""
        with self.source.ledger.write() as connection:
            connection.exec_driver_sql("DELETE FROM mirrored")
            connection.exec_driver_sql("INSERT INTO outbox SELECT number FROM generations")


@dataclass(frozen=True)
class Canary:
    """Bytes that only retired generations have: digests of files, and tensors in them."""

    digests: frozenset[str]
    patterns: tuple[bytes, ...]

    @classmethod
    def of(cls, shop: Shop, retired: int, current: int) -> Canary:
        kept = set(shop.checkpoints(current).values())
        gone = {p: d for p, d in shop.checkpoints(retired).items() if d not in kept}
        assert gone, "the generations serve the same checkpoints"
        stays = b"".join(
            (shop.folder / "store" / p).read_bytes() for p in shop.checkpoints(current)
        )
        bodies = [(shop.folder / "store" / path).read_bytes() for path in gone]
        windows = (body[n : n + 24] for body in bodies for n in range(0, len(body) - 24, 8))
        own = [w for w in windows if len(set(w)) > 16 and w not in stays]
        assert own, "no tensor is the retired generation's own"
        return cls(frozenset(gone.values()), tuple(own))

    def found(self, *folders: Path) -> int:
        """How many files below the folders are or hold one of them."""
        files = [p for folder in folders for p in folder.rglob("*") if p.is_file()]
        bodies = [p.read_bytes() for p in files]
        return sum(
            hashlib.sha256(body).hexdigest() in self.digests
            or any(pattern in body for pattern in self.patterns)
            for body in bodies
        )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained and rolled back for a first request, both of which MLflow has."""
    folder = tmp_path_factory.mktemp("trained")
    pq.write_table(rows(0, 150), folder / "rows.parquet")
    settings = ["runtime.executor.kind=process", f"recipe.data.categories={{city: [{CITY}]}}"]
    Workspace.init(
        folder,
        folder / "rows.parquet",
        record_id="id",
        subject_id="customer",
        target="bought",
        learner="logistic",
        shards=3,
        slices=2,
        epochs=2,
        settings=settings,
    )
    with Workspace.open(folder) as ws:
        ws.ingest()
        ws.train()
        ws.forget(["customer-3"], wait=False)
    return folder


@pytest.fixture
def shop(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A copy of its own, with a mirror that knows no other place."""
    for name, value in outbox.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = Shop(tmp_path / "shop")
    shutil.copytree(trained, found.folder)
    with closing(sqlite3.connect(found.folder / "mlflow.db")) as database, database:
        for table, column in (
            ("experiments", "artifact_location"),
            ("runs", "artifact_uri"),
            ("model_versions", "storage_location"),
        ):
            move = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
            database.execute(move, (str(trained), str(found.folder)))
    return found


def texts(database: Path) -> str:
    """All that a SQLite file's rows hold."""
    with closing(sqlite3.connect(database)) as found:
        return "\n".join(found.iterdump())


def cells(database: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database)) as found:
        return list(found.execute(query))


def loads(uri: str, at: str) -> bool:
    """Whether MLflow still gives a model for a URI or a folder."""
    import mlflow

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        try:
            mlflow.pyfunc.load_model(at)
        except (mlflow.MlflowException, OSError):
            return False
        return True


GEN = "sisa.generation"


def runs(uri: str, number: int | None = None) -> list[str]:
    """Ids of active runs, nested ones too."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("sisa")
    assert experiment is not None
    where = "" if number is None else f"tags.`{GEN}` = '{number}'"
    return [r.info.run_id for r in client.search_runs([experiment.experiment_id], where)]


def test_a_file_keeps_no_byte_and_no_row_of_a_retired_generation(shop: Shop) -> None:
    canary, folder = Canary.of(shop, 1, 2), shop.folder / "mlartifacts"
    retired, (parent,) = (
        runs(shop.uri, 1),
        cells(shop.folder / "mlflow.db", "SELECT run_uuid FROM runs WHERE name = 'generation-1'"),
    )
    digest, manifest = (
        shop.source.ledger.generations()[0].digest,
        shop.source.ledger.generations()[0].manifest,
    )
    at = folder / parent[0] / "artifacts" / "model"
    places = ["models:/sisa/1", f"runs:/{parent[0]}/model", str(at)]
    assert len(retired) == 4 and canary.found(folder) and all(loads(shop.uri, p) for p in places)
    told = shop.purge()
    assert told == MirrorPurge("local", (1,), {"versions": 1, "runs": 4, "artefacts": 1})
    assert not canary.found(folder) and not any(loads(shop.uri, p) for p in places)
    assert loads(shop.uri, "models:/sisa@champion")
    kept = texts(shop.folder / "mlflow.db")
    assert not [run for run in retired if run in kept]
    assert manifest is not None
    for file in shop.folder.glob("mlflow.db*"):
        body = file.read_bytes()
        for word in (*retired, digest, manifest.sha256):
            assert word.encode() not in body, file.name
    assert {v[0] for v in cells(shop.folder / "mlflow.db", "SELECT count(*) FROM runs")} == {4}
    assert cells(shop.folder / "mlflow.db", "SELECT count(*) FROM datasets") == [(1,)]
    assert cells(shop.folder / "mlflow.db", "PRAGMA freelist_count") == [(0,)]
    assert shop.source.ledger.mirror.superseded() == []
    assert shop.purge() == MirrorPurge("local")


def test_a_data_set_that_no_other_run_names_goes_with_the_last_one(shop: Shop) -> None:
    with shop.open("runtime.tracking.uri=null") as ws:
        ws.ingest()  # nothing new: the data set stays
    database = shop.folder / "mlflow.db"
    with closing(sqlite3.connect(database)) as found, found:  # the second run names another one
        found.execute(
            "INSERT INTO datasets SELECT 'other', experiment_id, name, 'other', "
            "dataset_source_type, dataset_source, dataset_schema, dataset_profile FROM datasets"
        )
        found.execute(
            "UPDATE inputs SET source_id = 'other' WHERE destination_id IN "
            "(SELECT run_uuid FROM runs WHERE name = 'generation-2')"
        )
    shop.purge()
    assert cells(database, "SELECT dataset_uuid FROM datasets") == [("other",)]
    assert cells(database, "SELECT count(*) FROM inputs") == [(1,)]
    assert cells(database, "SELECT count(*) FROM input_tags") == [(1,)]


@pytest.mark.parametrize(
    ("owner", "step", "found"),
    [
        (mirror_artefacts.Artefacts, "delete", "1 artefacts of retired"),
        (mirror_rows.Rows, "drop", r"4 runs, \d+ rows of retired"),
    ],
)
def test_what_is_still_there_is_not_taken_for_purged(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, owner: type, step: str, found: str
) -> None:
    monkeypatch.setattr(owner, step, lambda _: 0)
    with pytest.raises(SisaError, match=found):
        shop.purge()
    assert [e.number for e in shop.source.ledger.mirror.superseded()] == [1]


STEPS = {
    "versions": (mirror_purge._Place, "_delete_versions"),
    "artefacts": (mirror_artefacts.Artefacts, "delete"),
    "traces": (mirror_artefacts.Beside, "delete_traces"),
    "rows": (mirror_rows.Rows, "drop"),
    "file": (mirror_purge, "scrub"),
    "listing": (mirror_purge._Place, "_require_gone"),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_purge_that_was_killed_is_repeated(shop: Shop, step: str) -> None:
    canary = Canary.of(shop, 1, 2)
    owner, name = STEPS[step]

    def die() -> None:
        done: Callable[..., Any] = getattr(owner, name)

        def last(*args: Any) -> None:
            done(*args)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, name, last)
        shop.purge()

    tracking.load()
    child = multiprocessing.get_context("fork").Process(target=die)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert [e.number for e in shop.source.ledger.mirror.superseded()] == [1]
    shop.purge()
    assert not canary.found(shop.folder / "mlartifacts")
    assert runs(shop.uri) == runs(shop.uri, 2) and len(runs(shop.uri)) == 4
    assert loads(shop.uri, "models:/sisa@champion") and not loads(shop.uri, "models:/sisa/1")


def test_what_others_have_is_left_alone(shop: Shop, tmp_path: Path) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Dataset, DatasetInput

    client = MlflowClient(shop.uri)
    home = client.get_experiment_by_name("sisa")
    assert home is not None
    elsewhere = client.create_experiment("other", (shop.folder / "mlartifacts/other").as_uri())
    (tmp_path / "file").write_text("theirs")
    made = []
    for experiment in (home.experiment_id, elsewhere):
        run = client.create_run(experiment, tags={GEN: "1", "sisa.workspace": "of another"})
        shared = Dataset("data-set", dataset_digest(shop), "code", '{"tags": {}}')
        client.log_inputs(run.info.run_id, [DatasetInput(shared)])
        client.log_artifact(run.info.run_id, str(tmp_path / "file"))
        client.log_metric(run.info.run_id, "loss", 1.0)
        at = f"runs:/{run.info.run_id}/file"
        made.append(client.create_model_version("sisa", at, run.info.run_id, tags={GEN: "1"}))
    client.set_registered_model_alias("sisa", "theirs", made[0].version)
    model = client.create_logged_model(home.experiment_id, "theirs")
    kept = texts(shop.folder / "mlflow.db")
    mine = set(runs(shop.uri, 1)) - {v.run_id for v in made}
    shop.purge()
    after = texts(shop.folder / "mlflow.db")
    theirs = [v.run_id for v in made] + [model.model_id]
    for word in theirs:
        assert kept.count(word) == after.count(word)
    for version in made:
        found = client.get_model_version("sisa", version.version)
        assert found.run_id == version.run_id
        assert client.list_artifacts(version.run_id)
        assert len(client.get_run(version.run_id).inputs.dataset_inputs) == 1
    assert client.get_model_version_by_alias("sisa", "theirs").version == made[0].version
    assert mine and not [run for run in mine if run in after]


def dataset_digest(shop: Shop) -> str:
    digest = shop.source.ledger.generations()[0].dataset
    assert digest is not None
    return digest[:32]


def test_what_a_user_made_of_a_mirrored_run_goes_with_it(shop: Shop) -> None:
    from mlflow import MlflowClient

    client, (own,) = (
        MlflowClient(shop.uri),
        [
            v.run_id
            for v in MlflowClient(shop.uri).search_model_versions("name = 'sisa'")
            if v.tags[GEN] == "1"
        ],
    )
    home = client.get_run(own).info.experiment_id
    model = client.create_logged_model(home, "evaluated", source_run_id=own)
    folder = shop.folder / "mlartifacts" / "models" / model.model_id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights").write_text("theirs")
    client.copy_model_version("models:/sisa/1", "copied")
    client.set_registered_model_alias("sisa", "mine", "1")
    told = shop.purge()
    assert told.destroyed["logged_models"] == 1 and told.destroyed["versions"] == 2
    assert not folder.exists()
    assert model.model_id not in texts(shop.folder / "mlflow.db")
    assert not client.search_model_versions("name = 'copied'")


def test_copies_of_a_workspace_purge_their_own_artefacts(shop: Shop, tmp_path: Path) -> None:
    canary = Canary.of(shop, 1, 2)
    copy = Shop(tmp_path / "copy")
    shutil.copytree(shop.folder, copy.folder)
    copy.purge()
    assert not canary.found(copy.folder / "mlartifacts")
    assert canary.found(shop.folder / "mlartifacts")
    assert loads(shop.uri, "models:/sisa/1")


def test_a_database_that_is_lost_leaves_its_artefacts_to_be_purged(shop: Shop) -> None:
    canary = Canary.of(shop, 1, 2)
    (shop.folder / "mlflow.db").unlink()
    assert shop.purge().destroyed == {"artefacts": 1}
    assert not canary.found(shop.folder / "mlartifacts")
    assert not (shop.folder / "mlflow.db").exists()


def test_a_delivery_that_was_killed_leaves_no_copy_of_a_model(shop: Shop) -> None:
    canary = Canary.of(shop, 1, 2)
    left = shop.folder / tracking.OUTGOING
    (left / "model").mkdir(parents=True)
    for name in shop.checkpoints(1):
        shutil.copy(shop.folder / "store" / name, left / "model")
    assert canary.found(left)
    shop.purge()
    assert not left.exists()


def test_a_delivery_is_known_before_it_begins(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    canary = Canary.of(shop, 1, 2)
    here = Tracking(uri="sqlite:///second.db", experiment="second", model="second")
    uri = f"sqlite:///{shop.folder}/second.db"
    shop.requeue()
    shop.source.ledger.delivered([2])

    def cut(*_: Any, **__: Any) -> None:
        raise ConnectionError("cut off")

    with monkeypatch.context() as patch:  # uploaded, but neither registered nor delivered
        patch.setattr(MlflowClient, "create_model_version", cut)
        tracking.drain(here, shop.source, shop.warnings.append)
    (entry,) = shop.source.ledger.mirror.superseded()
    assert entry.run is not None and entry.version is None
    shutil.rmtree(shop.folder / "mlartifacts" / run_named(shop, "generation-1"))
    assert canary.found(shop.folder / "mlartifacts")
    shop.purge(here)
    assert not canary.found(shop.folder / "mlartifacts")
    assert entry.run not in texts(shop.folder / "second.db")
    assert not MlflowClient(uri).search_model_versions("name = 'second'")


def run_named(shop: Shop, name: str) -> str:
    query = f"SELECT run_uuid FROM runs WHERE name = '{name}'"
    return str(cells(shop.folder / "mlflow.db", query)[0][0])


def test_an_erasure_purges_the_mirror_before_it_is_certified(shop: Shop) -> None:
    import mlflow

    canary = Canary.of(shop, 1, 2)
    assert canary.found(shop.folder / "mlartifacts")
    with shop.open() as ws:
        done = ws.work()
        assert ws.predict(rows(500, 9)).num_rows == 9
        (request,) = done.requests
        assert request.status == "certified" and request.certificate is not None
        assert predicate(shop.folder, request.certificate)["mirror"] == {
            "mode": "local",
            "generations": [1, 2],
            "destroyed": {"artefacts": 2, "runs": 8, "versions": 2},
            "left": {},
        }
        assert not canary.found(shop.folder / "mlartifacts", shop.folder / "store")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", shop.uri)
            champion = mlflow.pyfunc.load_model("models:/sisa@champion")
        test = rows(500, 9)
        expected = ws.predict(test)
        given = champion.predict(test.drop_columns(["id", "customer", "bought"]).to_pandas())
        for name in expected.column_names:
            assert given[name].tolist() == expected[name].to_pylist()
    assert shop.warnings == []
    assert len(runs(shop.uri)) == len(runs(shop.uri, 3)) == 4


def test_work_without_a_request_purges_what_training_retired(shop: Shop) -> None:
    with shop.open() as ws:
        ws.work()
    pq.write_table(rows(1000, 40), shop.folder / "more.parquet")
    with shop.open() as ws:
        ws.ingest(shop.folder / "more.parquet")
        ws.train()
    assert len(runs(shop.uri)) == 8  # a training retires nothing by itself
    with shop.open() as ws:
        ws.work()
    assert len(runs(shop.uri)) == len(runs(shop.uri, 4)) == 4


def test_a_mirror_that_is_no_longer_named_is_purged_where_it_was(shop: Shop) -> None:
    canary = Canary.of(shop, 1, 2)
    with shop.open("runtime.tracking.uri=null") as ws:
        assert [r.status for r in ws.work().requests] == ["certified"]
    assert not canary.found(shop.folder / "mlartifacts")
    assert runs(shop.uri) == []
    assert not loads(shop.uri, "models:/sisa@champion")


def test_after_the_loss_of_the_ledger_the_mirror_is_purged_all_the_same(shop: Shop) -> None:
    """The log tells what was mirrored, and by which name it is found."""
    canary = Canary.of(shop, 1, 2)
    with shop.open("runtime.tracking.uri=null"):
        pass  # the log gets what messengers noted
    for tail in ("", "-wal", "-shm"):
        (shop.folder / f"ledger.db{tail}").unlink(missing_ok=True)
    with Workspace.open(shop.folder, ["runtime.tracking.uri=null"], restored=True) as ws:
        assert [r.status for r in ws.work().requests] == ["certified"]
    assert not canary.found(shop.folder / "mlartifacts")
    assert runs(shop.uri) == []


def test_without_anything_mirrored_nothing_is_waited_for(shop: Shop) -> None:
    with shop.source.ledger.write() as connection:
        connection.exec_driver_sql("DELETE FROM mirrored")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with shop.open(f"runtime.tracking.uri=http://127.0.0.1:{port}") as ws:
        assert [r.status for r in ws.work().requests] == ["certified"]


class Server:
    """A real MLflow server that can be taken down, over a database to look into."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def up(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--workers", "1", "--port", str(self._port)]
        command += ["--backend-store-uri", "sqlite:///server.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self._process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=os.environ | quiet,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait(self) -> None:
        for _ in range(900):
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        raise TimeoutError("the server does not come up")

    def down(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)  # the group that it leads
            self._process.wait()
            self._process = None


@pytest.fixture(scope="module", autouse=True)
def starting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It comes up while the first tests run."""
    server = Server(tmp_path_factory.mktemp("server"))
    server.up()
    yield server
    server.down()


@pytest.fixture
def server(starting: Server) -> Server:
    starting.wait()
    return starting


def test_a_server_keeps_digests_counts_and_metrics_only(
    shop: Shop, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Down first: the certificate waits, and nothing else does."""
    from mlflow import MlflowClient

    canary = Canary.of(shop, 1, 2)
    shop.requeue()
    shutil.rmtree(shop.folder / "mlartifacts")
    (shop.folder / "mlflow.db").unlink()
    section, database = Tracking(uri=server.uri), server.folder / "server.db"
    shop.drain(section)
    own = cells(database, "SELECT run_uuid FROM runs WHERE name = 'generation-1'")[0][0]
    places = ["models:/sisa/1", f"runs:/{own}/model", f"mlflow-artifacts:/1/{own}/artifacts/model"]
    assert canary.found(server.folder / "artifacts")
    assert all(loads(server.uri, place) for place in places)
    assert CITY in texts(database)
    trace(server.uri, own)
    assert "whispered" in texts(database)
    other = MlflowClient(server.uri).create_run("1", tags={GEN: "1"})
    server.down()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    command = [str(Path(sys.executable).with_name("sisa")), "-C", str(shop.folder)]
    forget = [*command, "forget", "--subject", "customer-5", "--yes", "--output", "json"]
    blocked = subprocess.run(forget, capture_output=True, text=True)
    assert blocked.returncode == 75, blocked.stderr
    told = json.loads(blocked.stdout)
    assert told["status"] == "blocked" and told["certificate"] is None
    assert told["generation"] in (3, 4)  # by the secret, the roll-back for the other one sufficed
    assert "cannot be purged now" in blocked.stderr
    assert not canary.found(shop.folder / "store")  # all else is done
    work = [*command, "work", "--output", "json"]
    assert subprocess.run(work, capture_output=True).returncode == 75
    server.up()
    server.wait()
    again = subprocess.run(work, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    requests = json.loads(again.stdout)["requests"]
    assert [r["status"] for r in requests] == ["certified", "certified"]
    for request in requests:
        mirror = predicate(shop.folder, request["certificate"])["mirror"]
        left = mirror["left"]
        assert mirror["mode"] == "server"
        assert left["runs"] == 8 and left["model_versions"] == 2 and left["inputs"] == 2
    assert not canary.found(server.folder / "artifacts", shop.folder)
    assert not any(loads(server.uri, place) for place in places)
    assert loads(server.uri, "models:/sisa@champion")
    assert MlflowClient(server.uri).get_run(other.info.run_id).info.lifecycle_stage == "active"
    assert "whispered" not in texts(database) and CITY in texts(database)  # of the current one
    check_rows(database, left)


def trace(uri: str, run: str) -> None:
    """As a user who tries a mirrored model out."""
    import mlflow

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        with mlflow.start_run(run_id=run), mlflow.start_span("predict") as span:
            span.set_inputs({"text": "whispered"})
        mlflow.flush_trace_async_logging()


def check_rows(database: Path, left: dict[str, int]) -> None:
    """What is listed is what is there, and no text of it is free."""
    dead = "SELECT run_uuid FROM runs WHERE lifecycle_stage = 'deleted'"
    of = f"run_uuid IN ({dead})"

    def count(table: str, where: str) -> int:
        return int(cells(database, f"SELECT count(*) FROM {table} WHERE {where}")[0][0])

    assert count("runs", of) == left["runs"]
    assert count("params", of) == left["params"]
    assert count("latest_metrics", of) == left["metrics"]
    assert count("tags", of) == left["tags"]
    assert count("inputs", f"destination_id IN ({dead})") == left["inputs"]
    versions = "current_stage = 'Deleted_Internal'"
    assert count("model_versions", versions) == left["model_versions"]
    for key, value in cells(database, f"SELECT key, value FROM tags WHERE {of}"):
        assert value == "" or key in tracked.KEPT, (key, value)
    for key, _ in cells(database, f"SELECT key, value FROM params WHERE {of}"):
        assert key.startswith(("partition.", "training.", "aggregation")), key
    gone = f"SELECT name, version FROM model_versions WHERE {versions}"
    tagged = f"SELECT key FROM model_version_tags WHERE (name, version) IN ({gone})"
    assert {key for (key,) in cells(database, tagged)} <= {
        "sisa.workspace",
        GEN,
        "sisa.digest",
        "sisa.manifest_sha256",
        "sisa.exactness",
    }
    stages = f"SELECT source, run_id, description FROM model_versions WHERE {versions}"
    assert set(cells(database, stages)) == {("REDACTED-SOURCE-PATH", "REDACTED-RUN-ID", None)}


def test_a_server_that_hangs_is_given_up(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        uri = f"http://127.0.0.1:{mute.getsockname()[1]}"
        with shop.source.ledger.write() as connection:
            connection.exec_driver_sql("UPDATE mirrored SET uri = ?", (uri,))
        with shop.open(f"runtime.tracking.uri={uri}") as ws:
            started = time.monotonic()
            with pytest.raises(BlockedError, match="takes more than 1 s") as caught:
                ws._outbox.purge(1)
            assert time.monotonic() - started < 15 and caught.value.retry > 0
