"""The doctor finds what would break the guarantee, all of it at once, and nothing in clean data."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from sklearn import datasets

from data_index.storage import Store
from sisa import Workspace, environments, rehearsal, stage_log
from sisa.config import Recipe
from sisa.doctor import diagnose
from sisa.errors import NotFoundError, UsageError
from sisa.executor import Node
from sisa.publish import build_and_publish
from sisa.rehearsal import Rehearsed
from sisa.results import Diagnosis, Finding

DATA = Path(os.environ.get("SISA_TEST_DATA", "../shared")) / "data"
SETTINGS = ("runtime.executor.kind=process", "runtime.tracking.uri=null")

SECRET = "5e" * 32

Make = Callable[..., Workspace]


@pytest.fixture(scope="module", autouse=True)
def one_secret() -> Iterator[None]:
    """Placement, and with it most findings, depends on the secret."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SISA_SECRET_KEY", SECRET)
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture(scope="module")
def rehearsed() -> dict[tuple[str, ...], Rehearsed]:
    """Dry steps that were taken, by what they depend on in this module."""
    return {}


@pytest.fixture(autouse=True)
def each_learner_is_rehearsed_once(
    rehearsed: dict[tuple[str, ...], Rehearsed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dry step of logistic takes a process each time; what it shows does not depend on rows."""
    under_way = rehearsal.under_way

    @contextmanager
    def once(recipe: Recipe, paths: Sequence[str]) -> Iterator[Callable[[], Rehearsed]]:
        key = (
            recipe.data.task,
            recipe.learner.model_dump_json(),
            recipe.training.model_dump_json(),
        )
        if recipe.learner.factory != "logistic":
            with under_way(recipe, paths) as found:
                yield found
        elif key in rehearsed:
            yield lambda: rehearsed[key]
        else:
            with under_way(recipe, paths) as found:
                yield lambda: rehearsed.setdefault(key, found())

    monkeypatch.setattr(rehearsal, "under_way", once)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes one workspace of a table, or of a file."""
    opened: list[Workspace] = []

    def workspace(data: pa.Table | Path, *settings: str, **choices: Any) -> Workspace:
        path = data if isinstance(data, Path) else tmp_path / "source.parquet"
        if not isinstance(data, Path):
            pq.write_table(data, path)
        chosen = {"record_id": "id", "target": "label", "learner": "logistic", **choices}
        Workspace.init(tmp_path / "ws", path, **chosen)
        secret = tmp_path / "ws" / "secret.key"
        secret.touch(0o600)
        secret.write_text(SECRET)
        opened.append(Workspace.open(tmp_path / "ws", [*SETTINGS, *settings]))
        return opened[-1]

    yield workspace
    for one in opened:
        one.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a current generation that no mirror has been told of."""
    folder = tmp_path_factory.mktemp("trained")
    pq.write_table(table(people=2), folder / "source.parquet")
    Workspace.init(
        folder / "ws",
        folder / "source.parquet",
        record_id="id",
        subject_id="person",
        target="label",
        learner="logistic",
        shards=4,
        slices=1,
    )
    with Workspace.open(folder / "ws", SETTINGS) as ws:
        ws.ingest()
        with ws.context.ledger.writer() as lease:
            build_and_publish(ws.context, lease, "train")
    return folder / "ws"


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Callable[..., Workspace]:
    shutil.copytree(trained, tmp_path / "copy")
    return lambda *settings: Workspace.open(tmp_path / "copy", [*SETTINGS, *settings])


def table(count: int = 400, people: int = 0, **columns: Any) -> pa.Table:
    """Rows that nothing is wrong with; `people` adds subjects, the rest replaces columns."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, count)
    found = {
        "id": [f"r{i:05d}" for i in range(count)],
        "label": label,
        "size": 20 + 5 * label + 10 * rng.random(count),
        "age": rng.integers(20, 60, count),
        "town": [["north", "south", None][i] for i in rng.integers(0, 3, count)],
    }
    if people:
        found["person"] = [f"who-zq-{i % people:03d}" for i in range(count)]
    return pa.table({**found, **columns})


def sklearn_table(name: str) -> pa.Table:
    """A data set that scikit-learn brings."""
    values, label = getattr(datasets, f"load_{name}")(return_X_y=True)
    columns = {f"x{i}": column for i, column in enumerate(values.T)}
    return pa.table({"id": np.arange(len(label)), "label": label, **columns})


def real(name: str) -> Path:
    path = DATA / f"{name}_train.parquet"
    if not path.exists():
        pytest.skip(f"{path} is missing")
    return path.absolute()


def of(diagnosis: Diagnosis, check: str) -> list[Finding]:
    return [f for f in diagnosis.findings if f.check == check]


def the_one(diagnosis: Diagnosis, check: str, severity: str) -> Finding:
    (found,) = of(diagnosis, check)
    assert found.severity == severity and found.message.endswith(".") and found.remedy
    return found


def before_and_after(ws: Workspace) -> list[Diagnosis]:
    """Of the sources, then of the store."""
    before = diagnose(ws.context, {})
    ws.ingest()
    return [before, diagnose(ws.context, {})]


def errors(diagnosis: Diagnosis) -> list[Finding]:
    return [f for f in diagnosis.findings if f.severity == "error"]


def test_clean_data_has_no_findings(make: Make) -> None:
    ws = make(table(4000), shards=2, slices=2)
    assert [d.findings for d in before_and_after(ws)] == [(), ()]


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer", "digits"])
def test_separable_data_has_no_errors(make: Make, name: str) -> None:
    for diagnosis in before_and_after(make(sklearn_table(name), shards=2, slices=2)):
        assert not errors(diagnosis) and diagnosis.exit_code == 0


def test_a_regression_has_no_errors(make: Make) -> None:
    ws = make(sklearn_table("diabetes"), task="regression", shards=2, slices=2)
    assert not any(errors(d) for d in before_and_after(ws))


@pytest.mark.parametrize(
    "leak",
    [
        pytest.param(lambda y: np.where(y, "yes", "no"), id="text"),
        pytest.param(lambda y: 3.0 * y - 1, id="number"),
        pytest.param(lambda y: y + np.random.default_rng(1).random(len(y)), id="threshold"),
        pytest.param(lambda y: pa.array(["seen"] * len(y), mask=y == 1), id="null"),
    ],
)
def test_a_column_that_gives_the_class_away_is_an_error(make: Make, leak: Any) -> None:
    rows = table()
    ws = make(rows.append_column("given", pa.array(leak(rows["label"].to_numpy()))))
    for diagnosis in before_and_after(ws):
        assert "'given'" in the_one(diagnosis, "leak", "error").message
        assert diagnosis.exit_code == 3


def test_a_column_that_gives_a_value_away_is_an_error(make: Make) -> None:
    value = np.random.default_rng(0).lognormal(size=400)
    ws = make(table(label=value, age=np.round(np.log(value), 4)), task="regression")
    assert "'age'" in the_one(diagnose(ws.context, {}), "leak", "error").message


def test_an_array_with_the_class_in_it_is_an_error(make: Make) -> None:
    rows = table()
    image = np.random.default_rng(0).integers(0, 255, (400, 9), dtype=np.uint8)
    image[:, 4] = rows["label"].to_numpy()
    flat = pa.FixedSizeListArray.from_arrays(pa.array(image.ravel()), 9)
    ws = make(rows.append_column("image", flat), shards=2)
    for diagnosis in before_and_after(ws):
        assert "Element 4 of column 'image'" in the_one(diagnosis, "leak", "error").message


def test_a_unique_column_gives_nothing_away(make: Make) -> None:
    rows = table(text=[f"note {i}" for i in range(400)])
    diagnosis = diagnose(make(rows).context, {})
    assert not of(diagnosis, "leak")
    assert "nearly unique" in the_one(diagnosis, "identity", "warning").message


def test_what_tells_subjects_apart_is_no_leak(make: Make) -> None:
    """The label is constant within each subject, so every number of a subject predicts it."""
    person, label = np.arange(400) % 40, np.random.default_rng(5).permutation(40) < 20
    rows = table(people=40, label=label[person].astype(int), age=person + 100)
    diagnosis = diagnose(make(rows, subject_id="person").context, {})
    assert not of(diagnosis, "leak")
    assert "'age' tells" in the_one(diagnosis, "identity", "warning").message


@pytest.mark.parametrize("ids", ["id", "person"])
def test_a_copy_of_an_id_is_an_error_that_names_no_id(make: Make, ids: str) -> None:
    rows = table(people=40)
    ws = make(rows.append_column("copy", rows[ids]), subject_id="person")
    for diagnosis in before_and_after(ws):
        assert "'copy'" in the_one(diagnosis, "identity", "error").message
        assert "zq" not in diagnosis.model_dump_json()


def test_a_column_that_nearly_determines_the_subject_is_a_warning(make: Make) -> None:
    """Not a name of it: values come again with others, in one row of twenty."""
    rng, count = np.random.default_rng(0), 4000
    person = np.arange(count) % 40
    seat = np.where(rng.random(count) < 0.95, person, rng.integers(0, 40, count))
    loose = np.where(rng.random(count) < 0.5, person, rng.integers(0, 40, count))
    rows = table(count, people=40, age=loose)
    rows = rows.append_column("seat", pa.array(seat))
    for diagnosis in before_and_after(make(rows, subject_id="person", shards=2, slices=2)):
        found = the_one(diagnosis, "identity", "warning")
        assert "'seat' nearly determines the data subject" in found.message


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("a{0}@example.org", "e-mail addresses"),
        ("+44 20 {0:04d} 55", "telephone numbers"),
        ("Ann-Marie O’Neil-{1}", "names of people"),
        ("she came late on day {0} and left", "free text"),
        ("Exec-managerial", None),
        ("grade {0}", None),
        ("North Village", None),
    ],
)
def test_texts_that_look_personal_are_found(make: Make, value: str, what: str | None) -> None:
    letters = "abcdefghij"
    texts = [
        value.format(i % 300, "".join(letters[int(d)] for d in str(i % 300))) for i in range(400)
    ]
    diagnosis = diagnose(make(table(town=texts)).context, {})
    if what is None:
        assert not of(diagnosis, "personal")
    else:
        found = the_one(diagnosis, "personal", "warning")
        assert what in found.message and "O’Neil" not in found.message


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_held_out_rows_and_subjects_that_are_in_the_store_are_counted(
    make: Make, tmp_path: Path, kind: str
) -> None:
    rows = table(4000, people=40)
    ws = make(rows, subject_id="person", shards=2, slices=2)
    ids, people = [f"zq{i}" for i in range(100)], [f"new-zq-{i}" for i in range(100)]

    def held_out(count: int, shared: int, known: int) -> Path:
        """Rows of which some are in the store, and some more are of people in it."""
        part = rows.slice(0, count).to_pydict()
        part["id"] = part["id"][:shared] + ids[: count - shared]
        part["person"] = part["person"][: shared + known] + people[: count - shared - known]
        path = tmp_path / f"test.{kind}"
        (pq.write_table if kind == "parquet" else pacsv.write_csv)(pa.table(part), path)
        return path

    told = of(ws.doctor([held_out(50, 3, 4)]), "held_out")
    assert [f.severity for f in told] == ["info"] and "no record yet" in told[0].message
    ws.ingest()
    assert not of(ws.doctor([held_out(50, 0, 0)]), "held_out")
    diagnosis = ws.doctor([held_out(50, 3, 4)])
    records, subjects = of(diagnosis, "held_out")
    assert records.message.startswith(f"3 records of test.{kind} (50 rows)")
    assert subjects.message.startswith(f"7 of 50 data subjects of test.{kind}")
    assert diagnosis.exit_code == 0 and "zq" not in diagnosis.model_dump_json()
    (subjects,) = of(ws.doctor([held_out(50, 0, 4)]), "held_out")
    assert subjects.message.startswith("4 of 50 data subjects")
    ws.train()
    ws.forget(subjects=rows["person"].to_pylist()[:2])
    assert of(ws.doctor([held_out(50, 0, 4)]), "held_out")[0].message.startswith("2 of 50")


def test_a_held_out_file_that_is_missing_or_does_not_fit_is_told(
    make: Make, tmp_path: Path
) -> None:
    ws = make(table(4000), shards=1, slices=1)
    ws.ingest()
    with pytest.raises(NotFoundError, match="gone"):
        ws.doctor([tmp_path / "gone.parquet"])
    with pytest.raises(UsageError, match="list is expected"):
        ws.doctor(str(tmp_path / "rows.parquet"))
    pq.write_table(table().drop_columns(["age"]), tmp_path / "short.parquet")
    found = the_one(ws.doctor([tmp_path / "short.parquet"]), "held_out", "error")
    assert "lacks the column age" in found.message


def test_columns_standardised_beforehand_are_found(make: Make) -> None:
    values = np.random.default_rng(0).gamma(2, size=(2, 400))
    size, age = (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True)
    ws = make(table(size=size, age=age))
    the_one(diagnose(ws.context, {}), "scaling", "warning")


def test_more_texts_than_buckets_are_found(make: Make) -> None:
    towns = [f"town {i % 60}" for i in range(400)]
    ws = make(table(town=towns), "recipe.data.hash_buckets=50")
    the_one(diagnose(ws.context, {}), "categories", "info")


def test_a_class_that_never_comes_is_found(make: Make) -> None:
    ws = make(table(), "recipe.data.classes=[0, 1, 7]", shards=1)
    assert "7" in the_one(diagnose(ws.context, {}), "classes", "info").message


def test_a_class_that_a_shard_lacks_is_found(make: Make) -> None:
    label = np.arange(400) % 2 + 1
    label[:3] = 0
    for diagnosis in before_and_after(make(table(label=label), shards=8)):
        assert "absent" in the_one(diagnosis, "classes", "warning").message


def test_short_stages_are_found(make: Make) -> None:
    for diagnosis in before_and_after(make(table(), shards=4, slices=2, epochs=2)):
        assert "8 of 8 stages" in the_one(diagnosis, "stages", "warning").message


def test_a_stage_is_short_by_its_steps(make: Make) -> None:
    ws = make(table(), "recipe.training.batch_size=2", shards=4, slices=2)
    assert not any(of(d, "stages") for d in before_and_after(ws))


def test_a_long_last_stage_leaves_the_others_short(make: Make) -> None:
    settings = ("recipe.training.batch_size=5", "recipe.training.last_stage_epochs=19")
    for diagnosis in before_and_after(make(table(), *settings, shards=4, slices=2)):
        assert "4 of 8 stages" in the_one(diagnosis, "stages", "warning").message


def test_empty_and_unequal_shards_and_large_subjects_are_found(make: Make) -> None:
    person = ["most"] * 340 + [f"other {i}" for i in range(60)]
    ws = make(table(person=person), subject_id="person", shards=50)
    for diagnosis in before_and_after(ws):
        empty, unequal = of(diagnosis, "shards")
        assert "no record" in empty.message and "unequal" in unequal.message
        assert "shard: 1," in the_one(diagnosis, "subjects", "info").message


def test_rows_are_sampled_from_all_of_a_source(make: Make) -> None:
    """Sorted by class, and more than are sampled."""
    count = 50_000
    rows = table(count, label=np.arange(count) // (count // 4))
    ws = make(rows, shards=2)
    for diagnosis in before_and_after(ws):
        assert not of(diagnosis, "classes") and not of(diagnosis, "shards")


def test_a_missing_source_is_an_error(make: Make, tmp_path: Path) -> None:
    ws = make(table(), 'runtime.sources=["gone.parquet"]')
    assert "gone.parquet" in the_one(diagnose(ws.context, {}), "data", "error").message


def test_a_source_that_does_not_fit_is_an_error(make: Make) -> None:
    ws = make(table(), "recipe.data.classes=[0, 5]")
    assert "declared classes" in the_one(diagnose(ws.context, {}), "data", "error").message


def test_a_workspace_without_any_row_says_so(make: Make) -> None:
    ws = make(table(), "runtime.sources=[]")
    the_one(diagnose(ws.context, {}), "data", "info")


def test_a_damaged_partition_hides_no_other_finding(make: Make) -> None:
    ws = make(table(), shards=1, slices=1)
    ws.ingest()
    (ref,) = ws.context.dataset().partitions
    ws.context.store.path(ref.file.path).write_bytes(b"")
    (ws.context.folder / "secret.key").chmod(0o644)
    diagnosis = diagnose(ws.context, {})
    assert "damaged" in the_one(diagnosis, "data", "error").message
    the_one(diagnosis, "keys", "error")


@pytest.mark.parametrize("name", ["secret.key", "signing.key"])
def test_keys_that_git_has_or_would_take_are_found(make: Make, tmp_path: Path, name: str) -> None:
    ws = make(table(4000), shards=1, slices=1)

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)

    def found() -> list[Finding]:
        return [f for f in of(diagnose(ws.context, {}), "keys") if name in f.message]

    assert not found()
    git("init")
    (warning,) = found()
    assert warning.severity == "warning" and "does not ignore" in warning.message
    git("add", f"ws/{name}")
    (error,) = found()
    assert error.severity == "error" and "version control" in error.message
    git("rm", "--cached", f"ws/{name}")
    (tmp_path / ".gitignore").write_text("*.key\n")
    assert not found()


def test_a_store_that_everybody_can_read_is_a_warning() -> None:
    with tempfile.TemporaryDirectory() as outer:  # pytest closes its own folders
        Path(outer).chmod(0o755)
        pq.write_table(table(4000), f"{outer}/rows.parquet")
        columns = {"record_id": "id", "target": "label", "learner": "logistic"}
        Workspace.init(f"{outer}/ws", f"{outer}/rows.parquet", **columns, shards=1, slices=1)
        with Workspace.open(f"{outer}/ws", SETTINGS) as ws:
            assert not of(ws.doctor(), "privacy")  # a new workspace is its owner's alone
            ws.context.folder.chmod(0o755)
            assert "runtime.store" in of(ws.doctor(), "privacy")[0].message
            ws.context.folder.chmod(0o750)
            assert not of(ws.doctor(), "privacy")


@pytest.mark.parametrize("name", ["secret.key", "signing.key"])
def test_keys_that_others_can_read_are_an_error(make: Make, name: str) -> None:
    ws = make(table(4000), shards=1, slices=1)
    path = ws.context.folder / name
    path.chmod(0o640)
    assert f"chmod 600 {path}" in the_one(diagnose(ws.context, {}), "keys", "error").remedy
    path.chmod(stat.S_IRUSR)
    assert not of(diagnose(ws.context, {}), "keys")


def test_a_missing_signing_key_is_an_error(make: Make) -> None:
    ws = make(table())
    (ws.context.folder / "signing.key").unlink()
    the_one(diagnose(ws.context, {}), "keys", "error")


def test_two_secrets_are_a_warning(make: Make) -> None:
    ws = make(table())
    the_one(diagnose(ws.context, {"SISA_SECRET_KEY": "0" * 64}), "keys", "warning")


def test_a_store_that_cannot_be_written_is_an_error(make: Make, tmp_path: Path) -> None:
    context = make(table()).context
    (tmp_path / "file").touch()
    broken = replace(context, store=Store(tmp_path / "file" / "store"))
    assert "cannot be written" in the_one(diagnose(broken, {}), "store", "error").message


def test_looking_leaves_nothing_in_the_store(make: Make) -> None:
    ws = make(table())
    before = list(ws.context.store.list())
    diagnose(ws.context, {})
    assert list(ws.context.store.list()) == before


def test_ray_that_is_not_installed_is_an_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    ws = make(table(), "runtime.executor.kind=ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    the_one(diagnose(ws.context, {}), "executor", "error")


@pytest.mark.ray
def test_a_ray_that_does_not_answer_is_a_warning(make: Make) -> None:
    pytest.importorskip("ray")
    ws = make(table())
    command = [str(Path(sys.executable).with_name("sisa")), "-C", str(ws.context.folder), "doctor"]
    with socket.socket() as closed:  # a process of its own: this one may be connected to Ray
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        for setting in ("kind=ray", f"address={address}"):
            command += ["--set", f"runtime.executor.{setting}"]
        done = subprocess.run([*command, "--output", "json"], capture_output=True, check=False)
    found = the_one(Diagnosis(**without_version(done.stdout)), "executor", "warning")
    assert "No Ray answers" in found.message


def without_version(document: bytes) -> dict[str, Any]:
    """What a printed document holds besides its schema's version."""
    body: dict[str, Any] = json.loads(document)
    del body["schema_version"]
    return body


@pytest.mark.ray
def test_nodes_of_ray_are_asked_whether_they_see_the_store(
    make: Make, local_ray: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ws = make(table(4000), "runtime.executor.kind=ray", "runtime.executor.address=auto", shards=1)
    assert not of(diagnose(ws.context, {}), "executor")
    (node,) = ws.context.make_executor().survey(ws.context.store)
    assert node.sees and node.environment["torch"]


def test_nodes_that_do_not_see_the_store_or_differ_are_found() -> None:
    one, other = {"machine": "x86_64", "numpy": "2.1"}, {"machine": "x86_64", "numpy": "2.2"}
    assert not list(environments.nodes([Node(True, one), Node(True, dict(one))]))
    unseen, differs = environments.nodes([Node(True, one), Node(False, other)])
    assert unseen.severity == "error" and "1 of 2 nodes" in unseen.message
    assert differs.severity == "warning" and "differ in numpy," in differs.message


@pytest.mark.parametrize(
    "setting", ["recipe.learner.factory=nowhere:make", "recipe.learner.params={depth: 3}"]
)
def test_a_learner_that_cannot_be_made_is_an_error(make: Make, setting: str) -> None:
    diagnosis = diagnose(make(table(), setting).context, {})
    the_one(diagnosis, "learner", "error")
    assert of(diagnosis, "stages")


def test_batch_norm_on_single_records_is_an_error(make: Make) -> None:
    ws = make(table(), "recipe.learner.params={batch_norm: true}", learner="mlp")
    assert not of(diagnose(ws.context, {}), "learner")
    with Workspace.open(
        ws.context.folder,
        [*SETTINGS, "recipe.learner.params={batch_norm: true}", "recipe.training.min_batch=1"],
    ) as changed:
        found = the_one(diagnose(changed.context, {}), "learner", "error")
    assert "min_batch" in found.remedy


def test_a_changed_layout_is_an_error(copied: Callable[..., Workspace]) -> None:
    with copied("recipe.partition.shards=7") as ws:
        assert "recipe.partition" in the_one(diagnose(ws.context, {}), "data", "error").message


def test_a_changed_recipe_needs_training(copied: Callable[..., Workspace]) -> None:
    with copied() as ws:
        assert not of(diagnose(ws.context, {}), "generation")
    with copied("recipe.training.lr=0.01") as ws:
        assert "recipe" in the_one(diagnose(ws.context, {}), "generation", "info").message


def test_new_data_needs_training(copied: Callable[..., Workspace], tmp_path: Path) -> None:
    more = table(people=2, id=[f"s{i}" for i in range(400)])
    pq.write_table(more, tmp_path / "more.parquet")
    with copied() as ws:
        ws.ingest(tmp_path / "more.parquet")
        assert "data" in the_one(diagnose(ws.context, {}), "generation", "info").message


def test_waiting_and_late_requests_are_warnings(copied: Callable[..., Workspace]) -> None:
    with copied("runtime.erasure.due=0h") as ws:
        ws.forget(records=["r00000"], wait=False)
        time.sleep(0.01)
        diagnosis = diagnose(ws.context, {})
        late, waiting = of(diagnosis, "requests")
        assert "past due: 1" in late.message and "not certified: 1" in waiting.message
        assert not of(diagnosis, "generation")
        ws.work()
        assert not of(diagnose(ws.context, {}), "requests")


def test_what_the_mirror_lacks_is_told(copied: Callable[..., Workspace]) -> None:
    with copied() as ws:
        assert not of(diagnose(ws.context, {}), "mirror")  # without a mirror nothing waits
        with ws.context.ledger.write() as connection:
            connection.exec_driver_sql("INSERT INTO outbox SELECT number FROM generations")
        the_one(diagnose(ws.context, {}), "mirror", "info")


def test_stages_from_other_environments_are_told(make: Make) -> None:
    ws = make(table(), shards=1, slices=2)
    ws.ingest()
    ws.train()
    assert not of(ws.doctor(), "environment")
    (log,) = (ws.context.folder / "store" / "stages").rglob("*.json")
    store, name = ws.context.store, log.relative_to(ws.context.folder / "store").as_posix()
    records = stage_log.read_segment(store, name)
    for severity, stage in (("warning", 0), ("info", 1)):  # one of two, then both
        fingerprint = {**records[stage].fingerprint, "numpy": "1.0"}
        records[stage] = replace(records[stage], fingerprint=fingerprint)
        stage_log.write_segment(store, name, records)
        found = the_one(ws.doctor(), "environment", severity)
        assert "in numpy:" in found.message


def test_too_few_votes_are_an_error(copied: Callable[..., Workspace]) -> None:
    with copied("runtime.erasure.quorum=1") as ws:
        the_one(diagnose(ws.context, {}), "quorum", "error")


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        pytest.param("adult", {"drop": ("income",)}, id="adult"),
        pytest.param("fashion_mnist", {}, id="fashion_mnist"),
        pytest.param(
            "parkinsons",
            {"subject_id": "subject_id", "drop": ("total_updrs", "motor_updrs")},
            id="parkinsons",
        ),
    ],
)
def test_real_data_has_no_errors_and_takes_seconds(
    make: Make, name: str, choices: dict[str, Any]
) -> None:
    ws = make(real(name), record_id="record_id", **choices)
    started = time.monotonic()
    found = before_and_after(ws)
    assert time.monotonic() - started < 60  # with an ingest, on a busy machine
    assert not any(map(errors, found))


def test_adult_gives_its_label_away_by_another_column(make: Make) -> None:
    for diagnosis in before_and_after(make(real("adult"), record_id="record_id")):
        assert "'income'" in the_one(diagnosis, "leak", "error").message


def test_parkinsons_gives_its_label_away_by_its_scores(make: Make) -> None:
    ws = make(real("parkinsons"), record_id="record_id", subject_id="subject_id")
    for diagnosis in before_and_after(ws):
        total, motor = of(diagnosis, "leak")
        assert total.severity == "error" and "'total_updrs'" in total.message
        assert motor.severity == "warning" and "'motor_updrs'" in motor.message
        assert "'subject_no'" in the_one(diagnosis, "identity", "warning").message
        assert "parkinsons-" not in diagnosis.model_dump_json().replace("parkinsons_", "")
