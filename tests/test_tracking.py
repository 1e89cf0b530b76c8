"""The MLflow mirror: told everything that is published, and nothing about anybody."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
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
from sisa import build, learners, outbox, stage_log, tracking
from sisa.config import Recipe, Tracking
from sisa.errors import ExactnessError
from sisa.executor import ProcessExecutor
from sisa.generation import Failure, Generation
from sisa.outbox import Order, Outbox
from sisa.tracked import sheets
from sisa.tracking import Source

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
        return tracking.drain(section, self.source, self.warnings.append)

    @property
    def source(self) -> Source:
        return Source(self.folder, self.ledger, self.store, 0.5)

    def outbox(self, section: Tracking) -> Outbox:
        store = str(self.store.root)
        order = Order(str(self.folder), store, "sqlite:///ledger.db", section, 0.5, ())
        return Outbox(order, self.ledger, self.warnings.append)

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
    manifest = data.save(place.store)
    place.store.flush()
    with place.ledger.writer() as lease:
        place.ledger.commit_dataset(manifest, lease)
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
    """Both generations, and an empty MLflow database, whose tables take seconds to make."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder = tmp_path_factory.mktemp("trained")
    train(folder)
    store = SqlAlchemyStore(f"sqlite:///{folder}/mlflow.db", (folder / "mlartifacts").as_uri())
    store.engine.dispose()
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    folder = tmp_path / "workspace"
    shutil.copytree(trained, folder)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name, value in outbox.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    found = Place.of(folder)
    yield found
    found.ledger.close()
    assert not list(Path().iterdir()), "something was written to the current folder"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module", autouse=True)
def starting(mlflow_starting: str) -> str:
    """The server comes up while the first tests run."""
    return mlflow_starting


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


def versions_of(uri: str) -> tuple[list[dict[str, str]], dict[str, int]]:
    """Tags of all versions of the registered model, the first one first, and its aliases."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = sorted(client.search_model_versions("name = 'sisa'"), key=lambda v: int(v.version))
    runs = {v.run_id: client.get_run(v.run_id).data.tags for v in found}
    assert all(runs[v.run_id]["sisa.digest"] == v.tags["sisa.digest"] for v in found)
    aliases = client.get_registered_model("sisa").aliases
    return [v.tags for v in found], {name: int(version) for name, version in aliases.items()}


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
    check_model(uri, place)
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
        assert tags["sisa.learner.factory"] == "logistic"
        assert tags["sisa.workspace"] == place.ledger.mirror.mark()
        assert COLUMN in tags["sisa.data.features"]
        generation = Generation.load(place.store, entry.manifest)
        assert tags["sisa.training_digest"] == generation.training
        assert metrics["voting"] == SHARDS
        assert metrics["depth"] == generation.depth
        (data,) = run.inputs.dataset_inputs
        assert entry.dataset is not None
        assert data.dataset.digest == entry.dataset[:32]
        assert [tag.value for tag in data.tags] == [entry.dataset]
        check_shards(uri, place, generation, run, runs[2:])


def check_model(uri: str, place: Place) -> None:
    """One version a generation, the last one champion."""
    entries = place.ledger.generations()
    versions, aliases = versions_of(uri)
    assert versions == [
        {
            "sisa.workspace": place.ledger.mirror.mark(),
            "sisa.generation": str(entry.number),
            "sisa.digest": entry.digest,
            "sisa.manifest_sha256": entry.manifest.sha256,
            "sisa.exactness": "bitwise",
        }
        for entry in entries
        if entry.manifest is not None
    ]
    assert aliases == {"champion": len(entries)}


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
    messenger = place.outbox(Tracking())
    with place.ledger.messenger():  # another process is at it: this one waits for it
        messenger.begin()
        time.sleep(2)
        messenger.published()
    messenger.close()
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


@pytest.mark.parametrize(
    "call",
    ["log_artifacts", "create_model_version", "set_registered_model_alias", "log_inputs"],
)
def test_a_model_whose_delivery_was_cut_off_is_registered_once(
    place: Place, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    from mlflow import MlflowClient

    done = getattr(MlflowClient, call)

    def cut(*args: Any, **extra: Any) -> None:
        done(*args, **extra)
        raise ConnectionError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, call, cut)
        assert (place.drain(Tracking()), place.ledger.outbox()) == (0, [1, 2])
    assert place.drain(Tracking()) == 2
    assert len(place.warnings) == 1
    check_mirror(f"sqlite:///{place.folder}/mlflow.db", place, "sisa")
    assert not (place.folder / tracking.OUTGOING).exists()


def test_champion_never_goes_back(place: Place) -> None:
    place.ledger.delivered([1])
    assert place.drain(Tracking()) == 1
    uri = f"sqlite:///{place.folder}/mlflow.db"
    assert versions_of(uri)[1] == {"champion": 1}  # the first version, of the second generation
    requeue(place)
    assert place.drain(Tracking()) == 2
    versions, aliases = versions_of(uri)
    assert [tags["sisa.generation"] for tags in versions] == ["2", "1"]
    assert aliases == {"champion": 1}


def test_the_champion_of_another_workspace_is_left_alone(place: Place) -> None:
    from mlflow import MlflowClient

    place.drain(Tracking())
    client = MlflowClient(f"sqlite:///{place.folder}/mlflow.db")
    client.set_model_version_tag("sisa", "2", "sisa.digest", "0" * 64)
    last = place.ledger.generations()[-1].manifest
    assert last is not None
    place.publish(replace(Generation.load(place.store, last), reason="train"))
    assert (place.drain(Tracking()), place.ledger.outbox()) == (0, [3])
    assert "set runtime.tracking.model to another name" in place.warnings[0]
    assert place.drain(Tracking(model="mine")) == 1
    champions = [
        {
            alias: int(version)
            for alias, version in client.get_registered_model(name).aliases.items()
        }
        for name in ("mine", "sisa")
    ]
    assert champions == [{"champion": 1}, {"champion": 2}]


def test_what_is_retired_while_it_is_delivered_is_no_failure(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    upload = MlflowClient.log_artifacts

    def retire(*args: Any) -> None:
        with place.ledger.write() as connection:
            retire_generations(connection, {2})
        monkeypatch.setattr(MlflowClient, "log_artifacts", upload)
        raise OSError("swept")

    monkeypatch.setattr(MlflowClient, "log_artifacts", retire)
    assert place.drain(Tracking()) == 1
    assert (place.ledger.outbox(), place.warnings) == ([], [])
    versions, aliases = versions_of(f"sqlite:///{place.folder}/mlflow.db")
    assert [tags["sisa.generation"] for tags in versions] == ["2"]
    assert aliases == {"champion": 1}


def test_too_few_votes_make_a_champion_that_refuses(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    first, _ = place.ledger.generations()
    assert first.manifest is not None
    whole = Generation.load(place.store, first.manifest)
    gone = tuple(c.before(1) for c in whole.constituents[:2])
    place.publish(replace(whole, constituents=(*gone, whole.constituents[2]), reason="roll-back"))
    assert place.drain(Tracking()) == 3
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place.folder}/mlflow.db")
    row = {name: [0.0] for name in RECIPE.data.features}
    champion = mlflow.pyfunc.load_model("models:/sisa@champion")
    with pytest.raises(mlflow.MlflowException, match="Generation 3 does not predict: Only 1 of 3"):
        champion.predict(pa.table(row).to_pandas())
    before = mlflow.pyfunc.load_model("models:/sisa/2")  # an ensemble with votes does answer
    assert len(before.predict(pa.table(row).to_pandas())) == 1


def test_a_damaged_model_is_not_loaded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    place.drain(Tracking())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place.folder}/mlflow.db")
    mlflow.pyfunc.load_model("models:/sisa/1")
    for file in (place.folder / tracking.ARTIFACTS).rglob("*.safetensors"):
        data = bytearray(file.read_bytes())
        data[-1] ^= 4
        file.write_bytes(data)
    with pytest.raises(ExactnessError, match="damaged"):
        mlflow.pyfunc.load_model("models:/sisa/1")


def test_what_takes_too_long_goes_on_next_time(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, monkeypatch.context() as patch:
        patch.setattr(outbox, "BUDGET", 0.5)
        messenger = place.outbox(Tracking(uri=f"http://127.0.0.1:{mute.getsockname()[1]}"))
        messenger.published()
        messenger.close()
    (warning,) = place.warnings
    assert "it takes more than 0.5 s" in warning and "2 generations wait" in warning
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
    (place.folder / "mlflow.db").unlink()
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
    entry = place.ledger.generations()[number - 1]
    assert entry.manifest is not None
    told = Generation.load(place.store, entry.manifest)
    parent, children = sheets(entry, told, place.store, "mark")
    assert [child.status for child in children] == ["FAILED", "FINISHED", "FINISHED"]
    assert [at for name, _, at in children[0].metrics if name == "loss"] == [1]
    assert children[0].tags["sisa.votes"] == "false"
    assert ("failed", 1.0, 0) in parent.metrics
    assert MARK not in repr((parent, children))  # a learner's words may quote its data


def test_a_server_that_is_down_is_told_once_and_caught_up_with(
    place: Place, mlflow_server: str, capfd: pytest.CaptureFixture[str]
) -> None:
    down = place.outbox(Tracking(uri=f"http://me:secret@127.0.0.1:{free_port()}"))
    down.published()
    down.published()
    down.close()
    assert place.ledger.outbox() == [1, 2]
    assert len(place.warnings) == 1
    assert "cannot be reached" in place.warnings[0]
    assert "2 generations wait in the outbox." in place.warnings[0]
    assert "secret" not in place.warnings[0]
    up = place.outbox(Tracking(uri=mlflow_server, experiment="caught-up"))
    up.catch_up()
    up.close()
    assert (len(place.warnings), capfd.readouterr()) == (1, ("", ""))
    check_mirror(mlflow_server, place, "caught-up")
    assert not (place.folder / tracking.ARTIFACTS).exists()


def test_a_server_that_never_answers_is_given_up(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        assert place.drain(Tracking(uri=f"http://127.0.0.1:{mute.getsockname()[1]}")) == 0
    assert time.monotonic() - started < 30  # a second, and MLflow's import on a busy machine
    assert place.ledger.outbox() == [1, 2]
    assert (len(place.warnings), capfd.readouterr()) == (1, ("", ""))


def test_mlflow_is_not_loaded_before_it_is_needed() -> None:
    code = "import sys, sisa.workspace; assert not {'mlflow', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
