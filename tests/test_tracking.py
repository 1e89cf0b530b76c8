"""The MLflow mirror: told everything that is published, and nothing about anybody."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_index import keys
from data_index.dataset import DataSet
from data_index.ingest import Grid, ingest
from data_index.ledger import Ledger, retire_generations
from data_index.lineage import Selection
from data_index.storage import Store
from data_index.view import through
from sisa import build, learners, stage_log, tracking
from sisa.config import Recipe, Tracking
from sisa.executor import ProcessExecutor
from sisa.generation import Failure, Generation
from sisa.tracked import sheets

MARK = "marzipan"
COLUMN = "quince"
SHARDS, SLICES = 3, 2
RECIPE = Recipe.model_validate(
    {
        "data": {
            "record_id": "id",
            "target": "y",
            "classes": [0, 1],
            "features": {"a": "float64", COLUMN: "float64", "weird name/ü": "float64"},
        },
        "partition": {"shards": SHARDS, "slices": SLICES},
        "learner": {"factory": "logistic"},
        "training": {"epochs": 2, "lr": 0.1},
    }
)


@dataclass
class Place:
    """A workspace's folder with what drain needs, and the sentences it was warned with."""

    folder: Path
    ledger: Ledger
    store: Store
    warnings: list[str]

    @classmethod
    def of(cls, folder: Path) -> Place:
        return cls(folder, Ledger("sqlite:///ledger.db", folder), Store(folder / "store"), [])

    def drain(self, section: Tracking) -> int:
        return tracking.drain(section, self.folder, self.ledger, self.store, self.warnings.append)

    def publish(self, generation: Generation) -> int:
        manifest = generation.save(self.store)
        self.store.flush()
        with self.ledger.writer() as lease:
            return self.ledger.publish(manifest, generation.digest, generation.reason, 0, lease)


def train(folder: Path) -> None:
    """A workspace with a trained generation and one that rolls its first shard back."""
    rng = np.random.default_rng(0)
    rows = 90
    table: dict[str, Any] = {name: rng.normal(size=rows) for name in RECIPE.data.features}
    table |= {"id": [f"{MARK}-{n}" for n in range(rows)], "y": rng.integers(0, 2, rows)}
    source = folder / f"{MARK}.parquet"
    pq.write_table(pa.table(table), source)
    place, columns, ring = Place.of(folder), RECIPE.data.columns(), keys.derive(bytes(32))
    before = DataSet(RECIPE.layout_digest())
    grid = Grid(SHARDS, SLICES)
    nobody = lambda found: np.zeros(len(found), dtype=bool)  # noqa: E731
    data = ingest(place.store, ring, columns, grid, before, [source], nobody).dataset
    views = through(place.store, ring, columns, data, Selection.nothing())
    training = RECIPE.training_digest(learners.code_digest(RECIPE.learner.factory))
    walks = build.walk(place.store, views, training)
    built = build.build(place.store, RECIPE, training, walks, ProcessExecutor(1))
    parts = tuple((v.shard, v.slice, v.rows, v.logical) for v in views)
    first = Generation(RECIPE, training, built.constituents, parts, "train", None)
    place.publish(first)
    rolled = (first.constituents[0].before(SLICES), *first.constituents[1:])
    place.publish(replace(first, constituents=rolled, reason="roll-back"))
    place.ledger.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(folder)
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    folder = tmp_path / "workspace"
    shutil.copytree(trained, folder)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = Place.of(folder)
    yield found
    found.ledger.close()
    assert not list(Path().iterdir()), "something was written to the current folder"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module", autouse=True)
def starting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server on its way up while the first tests run."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(port), "--backend-store-uri", "sqlite:///server.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | quiet,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the group that it leads: itself and its worker
        process.wait()


@pytest.fixture
def server(starting: str) -> str:
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"{starting}/health", timeout=5):
                return starting
        except OSError:
            time.sleep(0.2)
    raise TimeoutError("the server does not come up")


def runs_of(uri: str, experiment: str = "sisa") -> list[Any]:
    """All runs, the first one first."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return sorted(client.search_runs([found.experiment_id]), key=lambda r: r.info.run_name)


def history(uri: str, run: Any, metric: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    found = MlflowClient(uri).get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in found)


def names(runs: list[Any]) -> list[str]:
    return [run.info.run_name for run in runs]


EVERY_RUN = [
    "generation-1",
    "generation-2",
    *(f"shard-{shard}" for shard in range(SHARDS) for _ in (1, 2)),
]


def check_mirror(uri: str, place: Place, experiment: str) -> None:
    """Everything that a mirror of both generations has to have."""
    runs = runs_of(uri, experiment)
    assert names(runs) == EVERY_RUN
    assert {run.info.status for run in runs} == {"FINISHED"}
    for entry, run in zip(place.ledger.generations(), runs[:2], strict=True):
        tags, metrics = run.data.tags, run.data.metrics
        assert entry.manifest is not None
        assert tags["sisa.generation"] == str(entry.number)
        assert tags["sisa.digest"] == entry.digest
        assert tags["sisa.manifest_sha256"] == entry.manifest.sha256
        assert tags["sisa.reason"] == entry.reason
        assert tags["sisa.exactness"] == "bitwise"
        assert tags["sisa.fingerprint.numpy"] == np.__version__
        assert run.data.params["training.lr"] == "0.1"
        assert run.data.params["learner.factory"] == "logistic"
        assert COLUMN in run.data.params["data.features"]
        generation = Generation.load(place.store, entry.manifest)
        assert tags["sisa.training_digest"] == generation.training
        assert metrics["voting"] == SHARDS
        assert metrics["depth"] == generation.depth
        check_shards(uri, place, generation, run, runs[2:])


def check_shards(
    uri: str, place: Place, generation: Generation, parent: Any, runs: list[Any]
) -> None:
    mine = {
        int(run.data.tags["sisa.shard"]): run
        for run in runs
        if run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    }
    assert set(mine) == set(range(SHARDS))
    samples = 0
    for constituent in generation.constituents:
        run = mine[constituent.shard]
        log = stage_log.read_shard(place.store, constituent.shard)
        records = [log[stage.key] for stage in constituent.stages]
        samples += sum(record.samples for record in records)
        for name in ("loss", "samples", "seconds", "steps"):
            told = [(record.slice, getattr(record, name)) for record in records]
            assert history(uri, run, name) == told
    assert parent.data.metrics["samples"] == samples


def test_every_generation_is_mirrored_without_a_word_or_an_identifier(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    section = Tracking()
    tracking.prefetch(section)
    assert place.drain(section) == 2
    assert (place.warnings, capfd.readouterr()) == ([], ("", ""))
    assert place.ledger.outbox() == []
    file = place.folder / "mlflow.db"
    check_mirror(f"sqlite:///{file}", place, "sisa")
    for written in place.folder.glob("mlflow.db*"):
        assert MARK.encode() not in written.read_bytes()
    assert COLUMN.encode() in file.read_bytes()  # the search finds what is there


def test_artefacts_of_an_own_experiment_go_under_the_workspace(place: Place) -> None:
    from mlflow import MlflowClient

    place.drain(Tracking(uri="sqlite:///sub/own.db", experiment="mine"))
    found = MlflowClient(f"sqlite:///{place.folder}/sub/own.db").get_experiment_by_name("mine")
    assert found is not None
    assert found.artifact_location == f"file://{place.folder}/mlartifacts"


def test_a_delivery_that_was_not_noted_is_not_repeated(place: Place) -> None:
    place.drain(Tracking())
    uri = f"sqlite:///{place.folder}/mlflow.db"
    before = {run.info.run_id for run in runs_of(uri)}
    requeue(place)
    assert place.drain(Tracking()) == 2
    assert {run.info.run_id for run in runs_of(uri)} == before
    assert place.ledger.outbox() == []


def requeue(place: Place) -> None:
    """As after a crash between the delivery and its note."""
    with place.ledger.write() as connection:
        connection.exec_driver_sql("INSERT INTO outbox SELECT number FROM generations")


def test_a_delivery_that_was_cut_off_is_continued(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    calls = 0
    ended = MlflowClient.set_terminated

    def cut(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls in (2, 4):  # inside a shard's run, and inside the generation's
            raise ConnectionError("cut off")
        ended(*args)

    monkeypatch.setattr(MlflowClient, "set_terminated", cut)
    assert (place.drain(Tracking()), place.ledger.outbox()) == (0, [1, 2])
    assert (place.drain(Tracking()), place.ledger.outbox()) == (0, [1, 2])
    assert (place.drain(Tracking()), place.ledger.outbox()) == (2, [])
    assert [warning.count("cut off") for warning in place.warnings] == [1, 1]
    check_mirror(f"sqlite:///{place.folder}/mlflow.db", place, "sisa")


def test_what_takes_too_long_goes_on_next_time(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "BUDGET", -1.0)
        assert place.drain(Tracking()) == 0
    assert "2 generations wait" in place.warnings[0]
    assert place.drain(Tracking()) == 2


def test_the_oldest_generation_comes_first(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[int] = []
    note = place.ledger.delivered

    def delivered(numbers: Sequence[int]) -> None:
        noted.extend(numbers)
        note(numbers)

    monkeypatch.setattr(place.ledger, "delivered", delivered)
    place.drain(Tracking())
    assert noted == [1, 2]
    first, second = runs_of(f"sqlite:///{place.folder}/mlflow.db")[:2]
    assert first.info.start_time <= second.info.start_time


def test_a_retired_generation_leaves_the_outbox_unmirrored(place: Place) -> None:
    with place.ledger.write() as connection:
        retire_generations(connection, {2})
    assert place.drain(Tracking()) == 1
    assert place.ledger.outbox() == []
    found = runs_of(f"sqlite:///{place.folder}/mlflow.db")
    assert names(found) == ["generation-2", *(f"shard-{n}" for n in range(SHARDS))]


def test_without_a_mirror_nothing_waits_for_one(place: Place) -> None:
    assert place.drain(Tracking(uri=None)) == 0
    assert (place.ledger.outbox(), place.warnings) == ([], [])
    assert not (place.folder / "mlflow.db").exists()


def test_a_damaged_manifest_is_a_warning(place: Place) -> None:
    manifest = place.ledger.generations()[1].manifest
    assert manifest is not None
    place.store.path(manifest.path).write_bytes(b"{}")
    assert place.drain(Tracking()) == 1
    assert place.ledger.outbox() == [2]
    assert "is damaged" in place.warnings[0] and "1 generation waits" in place.warnings[0]


def test_a_failed_shard_is_a_failed_run(place: Place) -> None:
    entry = place.ledger.generations()[0]
    assert entry.manifest is not None
    generation = Generation.load(place.store, entry.manifest)
    whole = generation.constituents[0]
    good = stage_log.read_shard(place.store, 0)[whole.stages[-1].key]
    bad = replace(good, key="f" * 64, tensors="", file=None, loss=None, failure=MARK)
    stage_log.write_segment(place.store, "stages/0000/bad-000001.json", [bad])
    broken = replace(whole, stages=whole.stages[:1], failed=Failure(2, bad.key))
    number = place.publish(replace(generation, constituents=(broken, *generation.constituents[1:])))
    parent, children = sheets(place.ledger.generations()[number - 1], place.store)
    assert [child.status for child in children] == ["FAILED", "FINISHED", "FINISHED"]
    assert [at for name, _, at in children[0].metrics if name == "loss"] == [1]
    assert children[0].tags["sisa.votes"] == "false"
    assert ("failed", 1.0, 0) in parent.metrics
    assert MARK not in repr((parent, children))  # a learner's words may quote its data


def test_a_server_that_is_down_delays_nothing_and_is_caught_up_with(
    place: Place, server: str, capfd: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    down = Tracking(uri=f"http://me:secret@127.0.0.1:{free_port()}")
    assert place.drain(down) == 0
    assert time.monotonic() - started < 3
    assert place.ledger.outbox() == [1, 2]
    assert len(place.warnings) == 1
    assert "cannot be reached" in place.warnings[0]
    assert "2 generations wait in the outbox." in place.warnings[0]
    assert "secret" not in place.warnings[0]
    assert place.drain(Tracking(uri=server, experiment="caught-up")) == 2
    assert (len(place.warnings), capfd.readouterr()) == (1, ("", ""))
    check_mirror(server, place, "caught-up")
    assert not (place.folder / tracking.ARTIFACTS).exists()


def test_a_server_that_never_answers_is_given_up(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        assert place.drain(Tracking(uri=f"http://127.0.0.1:{mute.getsockname()[1]}")) == 0
    assert time.monotonic() - started < 5
    assert place.ledger.outbox() == [1, 2]
    assert (len(place.warnings), capfd.readouterr()) == (1, ("", ""))


def test_loggers_are_left_as_they_were(place: Place) -> None:
    place.drain(Tracking(uri=None))
    import mlflow  # noqa: F401 - sets them when it is imported

    before = logging.getLogger("mlflow").level
    place.drain(Tracking())
    assert logging.getLogger("mlflow").level == before


def test_mlflow_is_not_loaded_before_it_is_needed() -> None:
    code = "import sys, sisa.tracking; assert not {'mlflow', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
