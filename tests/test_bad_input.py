"""Whatever is wrong: one clear sentence, the right exit code, and a workspace as it was."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_index.ledger import Ledger
from sisa.cli import main

SISA = Path(sys.executable).with_name("sisa")
MARK = "person-zq"
"""The beginning of every id: no message may hold it."""

ENVIRONMENT = {
    "SISA__RUNTIME__EXECUTOR__KIND": "process",
    "SISA__RUNTIME__EXECUTOR__WORKERS": "1",
    "SISA__RUNTIME__TRACKING__URI": "null",
}
SHARDS = 3


def source(count: int = 60, start: int = 0) -> pa.Table:
    """Rows of an endless table, two to a subject."""
    rows = np.arange(start, start + count)
    return pa.table(
        {
            "id": [f"{MARK}-r{n}" for n in rows],
            "who": [f"{MARK}-s{n // 2}" for n in rows],
            "y": pa.array(rows % 2),
            "a": np.sin(rows) + rows % 2,
            "v": pa.array([[float(n % 5), 1.0] for n in rows], pa.list_(pa.float32(), 2)),
        }
    )


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


@dataclass
class Shop:
    """A workspace, and its commands run in this process."""

    folder: Path
    capture: Any
    patch: pytest.MonkeyPatch

    def run(self, *arguments: Any, folder: Path | None = None) -> Done:
        """One command; `-C` is put before it."""
        words = ["-C", str(folder or self.folder), *map(str, arguments)]
        self.capture.readouterr()
        with self.patch.context() as patch:
            patch.setattr(sys, "argv", ["sisa", *words])
            with pytest.raises(SystemExit) as end:
                main(words)
        out, err = self.capture.readouterr()
        return Done(int(end.value.code or 0), out, err)

    def good(self, *arguments: Any) -> dict[str, Any]:
        done = self.run(*arguments, "--output", "json")
        assert done.code == 0, (done.out, done.err)
        return done.document

    def write(self, table: pa.Table, name: str = "wrong.parquet") -> Path:
        path = self.folder.parent / name
        pq.write_table(table, path)
        return path

    def state(self) -> dict[str, str]:
        """Digest of every file but the ledger's, and what the ledger knows."""
        files = (p for p in sorted(self.folder.rglob("*")) if p.is_file())
        found = {
            str(p.relative_to(self.folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in files
            if not p.name.startswith("ledger.db") and p.suffix != ".pyc"
        }
        ledger = Ledger("sqlite:///ledger.db", self.folder)
        known = [ledger.dataset(), ledger.generations(), ledger.requests(), ledger.outbox()]
        ledger.close()
        return {**found, "ledger": repr(known)}

    def refused(self, code: int, *arguments: Any, state: bool = True) -> str:
        """The message of a command that fails, after text, JSON and the workspace were checked."""
        before = self.state() if state else None
        text = self.run(*arguments)
        checked_text(text, code)
        document = self.run(*arguments, "--output", "json")
        error = checked_json(document, code)
        assert text.err.splitlines()[-1] == f"Error: {error['message']} {error['remedy']}".strip()
        if state:
            assert self.state() == before
        return str(error["message"])


def checked_text(done: Done, code: int) -> None:
    assert done.code == code, (done.out, done.err)
    assert done.out == ""
    assert "Traceback" not in done.err and "Errno" not in done.err
    assert MARK not in done.err
    errors = [line for line in done.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and done.err.splitlines()[-1] == errors[0]
    assert errors[0].endswith(".")


def checked_json(done: Done, code: int) -> dict[str, Any]:
    assert done.code == code, (done.out, done.err)
    assert "Traceback" not in done.err and "Error" not in done.err
    assert MARK not in done.out + done.err
    assert len(done.out.splitlines()) == 1
    assert set(done.document) == {"schema_version", "error"}
    error: dict[str, Any] = done.document["error"]
    assert set(error) == {"code", "message", "remedy"}
    assert "\n" not in error["message"]
    assert error["message"].endswith(".") or error["code"] == "usage"  # click's have no stop
    return error


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    for name in ("SISA_SECRET_KEY", "RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with 60 records of 30 subjects and a generation."""
    folder = tmp_path_factory.mktemp("bad-input") / "shop"
    folder.mkdir()
    pq.write_table(source(), folder / "rows.parquet")
    init = f"init {folder} --data {folder}/rows.parquet --record-id id --subject-id who --target y"
    options = f"--learner logistic --shards {SHARDS} --slices 2 --epochs 2"
    commands = [f"{init} {options}", f"-C {folder} ingest", f"-C {folder} train"]
    for command in commands:
        subprocess.run(
            [SISA, *command.split()], env=os.environ | ENVIRONMENT, check=True, capture_output=True
        )
    return folder


@pytest.fixture
def shop(
    trained: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Shop:
    folder = tmp_path / "shop"
    shutil.copytree(trained, folder)
    return Shop(folder, capfd, monkeypatch)


MORE = source(20, start=60)
INPUTS: dict[str, tuple[Callable[[], pa.Table], str]] = {
    "duplicate ids": (
        lambda: pa.concat_tables([MORE, MORE.slice(3, 2)]),
        "2 record ids come twice in this call",
    ),
    "a changed row": (
        lambda: with_column(source(20), "y", 1 - source(20)["y"].to_numpy()),
        "20 stored records have another row",
    ),
    "missing columns": (lambda: MORE.drop_columns(["a", "who"]), "lacks the columns who, a"),
    "a null id": (
        lambda: with_column(MORE, "id", [None, *MORE["id"].to_pylist()[1:]]),
        "1 null ids",
    ),
    "a null subject": (
        lambda: with_column(MORE, "who", [*MORE["who"].to_pylist()[1:], None]),
        "'who' of wrong.parquet has 1 null ids",
    ),
    "a null target": (
        lambda: with_column(MORE, "y", [None, *MORE["y"].to_pylist()[1:]]),
        "1 null targets",
    ),
    "integer ids": (
        lambda: with_column(MORE, "id", range(20)),
        "integer ids, but the data set has string ids",
    ),
    "floats as ids": (
        lambda: with_column(MORE, "who", np.arange(20.0)),
        "ids must be integers or text",
    ),
    "padded ids": (
        lambda: with_column(MORE, "id", [f"{i} " for i in MORE["id"].to_pylist()]),
        "padded with white space",
    ),
    "an unknown class": (
        lambda: with_column(MORE, "y", [7, *MORE["y"].to_pylist()[1:]]),
        "1 values that are not among the declared classes",
    ),
    "text in a number": (
        lambda: with_column(MORE, "a", MORE["id"]),
        "'a' of wrong.parquet has string values that do not fit",
    ),
    "an infinite number": (
        lambda: with_column(MORE, "a", [float("inf"), *MORE["a"].to_pylist()[1:]]),
        "infinite values",
    ),
    "arrays of another length": (
        lambda: with_column(MORE, "v", [[1.0]] * 20),
        "arrays of another length than 2",
    ),
    "no rows": (lambda: MORE.slice(0, 0), "hold no rows"),
    "a column twice": (
        lambda: pa.Table.from_arrays([*MORE.columns, MORE["a"]], [*MORE.column_names, "a"]),
        "more than one column a",
    ),
}


@pytest.mark.parametrize("name", INPUTS)
def test_a_source_that_does_not_fit_is_refused_and_nothing_of_it_stays(shop, name):
    make, reason = INPUTS[name]
    assert reason in shop.refused(1, "ingest", shop.write(make()))


def test_good_files_beside_a_bad_one_are_not_taken_either(shop):
    good = shop.write(MORE, "good.parquet")
    bad = shop.write(source(5, start=90).drop_columns(["y"]))
    assert "lacks the column y" in shop.refused(1, "ingest", good, bad)
    assert shop.good("ingest", good)["records"] == 20


def test_unreadable_files_are_refused(shop):
    whole = shop.write(MORE).read_bytes()
    cut = shop.folder.parent / "cut.parquet"
    cut.write_bytes(whole[:-30])
    assert "cut.parquet cannot be read" in shop.refused(1, "ingest", cut)
    empty = shop.folder.parent / "empty.csv"
    empty.touch()
    assert "empty.csv cannot be read" in shop.refused(1, "ingest", empty)
    odd = shop.folder.parent / "rows.xlsx"
    odd.write_bytes(whole)
    assert "rows.xlsx is of an unknown kind" in shop.refused(1, "ingest", odd)
    hollow = shop.folder.parent / "hollow"
    hollow.mkdir()
    assert "holds no Parquet" in shop.refused(1, "ingest", hollow)


def test_a_csv_row_is_not_quoted(shop):
    path = shop.folder.parent / "rows.csv"
    path.write_text(f"id,who,y,a,v\n{MARK}-1,{MARK}-2,0,1,2\n{MARK}-3,{MARK}-4\n")
    shop.refused(1, "ingest", path)


@pytest.mark.parametrize("command", ["ingest", "evaluate", "predict --out out.csv"])
def test_a_file_that_is_not_there_is_not_found(shop, command):
    name, *options = command.split()
    assert "does not exist" in shop.refused(5, name, shop.folder / "no.parquet", *options)


def test_a_list_of_ids_that_is_not_there_is_not_found(shop):
    shop.refused(5, "forget", "--yes", "--file", shop.folder / "no.txt")


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("recipe.training.lr=fast", "recipe.training.lr"),
        ("recipe.training.lr=yes", "recipe.training.lr"),
        ("recipe.training.epochs=-1", "recipe.training.epochs"),
        ("recipe.training.rate=1", "recipe.training.rate"),
        ("recipe.training.optimizer=adam", "plain sgd"),
        ("recipe.learner.factory=oracle", "oracle"),
        ("recipe.learner.params.depth=3", "no parameters"),
        ("recipe.learner.factory=no_such_module:make", "no_such_module"),
        ("runtime.store=s3://bucket/prefix", "s3://"),
        ("runtime.ledger=postgresql://host/db", "Only SQLite"),
        ("runtime.ledger=sqlite:///no/such/ledger.db", "unable to open"),
        ("nonsense", "has no value"),
    ],
)
def test_a_wrong_setting_is_refused(shop, setting, reason):
    done = shop.run("train", "--set", setting)
    assert reason in done.err
    shop.refused(3, "train", "--set", setting)


FACTORIES = """
def raising(inputs, outputs):
    raise ValueError("the weights are not where they were")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("their:raising", "ValueError: the weights are not where they were"),
        ("their:missing", "has no function missing"),
    ],
)
def test_a_factory_that_fails_is_named(shop, factory, reason):
    (shop.folder / "their.py").write_text(FACTORIES)
    before = shop.state()
    done = shop.run("train", "--set", f"recipe.learner.factory={factory}", "--output", "json")
    error = checked_json(done, 3)
    assert reason in error["message"]
    assert shop.state() == before


def with_infinities(shop: Shop, subjects: Callable[[int], bool]) -> pa.Table:
    """Rows whose arrays overflow the loss, for the subjects of some shards."""
    from data_index import keys
    from sisa import secrets

    ring = keys.derive(secrets.read(shop.folder, {}))
    table = source(40, start=60)
    found = keys.subject_keys(ring, [w.encode() for w in table["who"].to_pylist()])
    shard, _ = keys.place(found, SHARDS, 2)
    arrays = [[float("inf") if subjects(s) else 1.0, 1.0] for s in shard]
    return table.set_column(4, "v", pa.array(arrays, pa.list_(pa.float32(), 2)))


@pytest.mark.slow
def test_a_shard_whose_loss_is_not_finite_leaves_the_vote(shop):
    shop.good("ingest", shop.write(with_infinities(shop, lambda shard: shard == 1)))
    done = shop.run("train", "--output", "json")
    assert done.code == 0
    assert done.document["failed_shards"] == [1]
    assert (done.document["voting"], done.document["quorate"]) == (SHARDS - 1, True)
    assert "Traceback" not in done.err and MARK not in done.err
    again = shop.good("train")
    assert (again["generation"], again["samples_trained"]) == (done.document["generation"], 0)
    assert shop.good("verify")["exact"] is True


@pytest.mark.slow
def test_when_no_shard_is_left_the_exit_code_says_so(tmp_path, trained, shop):
    wide = shop.write(with_infinities(shop, lambda shard: True), "wide.parquet")
    folder = tmp_path / "other"
    options = "--record-id id --subject-id who --target y --learner logistic --shards 3 --slices 1"
    assert shop.run("init", "--data", wide, *options.split(), folder=folder).code == 0
    assert shop.run("ingest", folder=folder).code == 0
    done = shop.run("train", "--output", "json", folder=folder)
    assert done.code == 6
    assert done.document["failed_shards"] == [0, 1, 2]
    assert (done.document["voting"], done.document["quorate"]) == (0, False)
    assert "Traceback" not in done.err
    for command in (["evaluate", wide], ["predict", wide, "--out", tmp_path / "out.csv"]):
        checked_text(shop.run(*command, folder=folder), 6)
        checked_json(shop.run(*command, "--output", "json", folder=folder), 6)
    assert not (tmp_path / "out.csv").exists()


COMMANDS: dict[str, list[str]] = {
    "ingest": ["ingest", "{rows}"],
    "train": ["train"],
    "evaluate": ["evaluate", "{rows}"],
    "predict": ["predict", "{rows}", "--out", "{out}"],
    "forget": ["forget", "--subject", "x", "--yes"],
    "forget --dry-run": ["forget", "--subject", "x", "--dry-run"],
    "work": ["work"],
    "verify": ["verify"],
    "verify --no-replay": ["verify", "--no-replay"],
    "plan": ["plan", "--subject", "x"],
    "lineage": ["lineage", "--subject", "x"],
    "status": ["status"],
    "history": ["history"],
    "doctor": ["doctor"],
}


def filled(name: str, shop: Shop) -> list[str]:
    out = shop.folder.parent / "out.csv"
    return [w.format(rows=shop.folder / "rows.parquet", out=out) for w in COMMANDS[name]]


@pytest.mark.parametrize("name", COMMANDS)
def test_without_a_workspace_nothing_is_found_or_made(shop, tmp_path, name):
    for folder in (tmp_path / "nowhere", tmp_path):
        checked_text(shop.run(*filled(name, shop), folder=folder), 5)
        error = checked_json(shop.run(*filled(name, shop), "--output", "json", folder=folder), 5)
        assert "sisa.yaml" in error["message"] and "sisa init" in error["remedy"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shop"]


CHANGED_DATA = [
    "recipe.data.hash_buckets=65",
    "recipe.partition.shards=4",
    "recipe.data.features.a=float32",
]


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"history", "doctor"}))
def test_changed_data_is_refused_by_every_command(shop, name):
    for setting in CHANGED_DATA if name == "ingest" else CHANGED_DATA[:1]:
        message = shop.refused(3, *filled(name, shop), "--set", setting)
        assert "was changed" in message


@pytest.mark.slow
def test_changed_training_must_be_trained_before_forgetting(shop):
    changed = ["--set", "recipe.training.lr=0.01"]
    who = ["--subject", f"{MARK}-s3"]
    message = shop.refused(3, "forget", *who, "--yes", *changed)
    assert "was changed since the current generation was trained" in message
    assert shop.good("status", *changed)["requests"] == []
    shop.good("train", *changed)
    assert shop.good("forget", *who, "--yes", *changed)["status"] == "certified"


def test_forgetting_needs_a_yes(shop):
    message = shop.refused(2, "forget", "--subject", f"{MARK}-s3")
    assert "erases data for good" in message
    assert "No id is given" in shop.refused(2, "forget", "--yes")


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--no-such-option"],
        ["no-such-command"],
        ["evaluate"],
        ["verify", "--sample", "0"],
        ["verify", "--shard", "many"],
        ["train", "too many"],
    ],
)
def test_wrong_usage_exits_2_in_text_and_json(shop, words):
    before = shop.state()
    text = shop.run(*words)
    assert (text.code, text.out) == (2, "")
    assert "Traceback" not in text.err
    assert text.err.splitlines()[-1].startswith("Error: ")
    for output in (["--output", "json"], ["--output=json"]):
        error = checked_json(shop.run(*words, *output), 2)
        assert error["code"] == "usage"
    assert shop.state() == before


@pytest.mark.parametrize("name", ["ingest", "train", "work"])
def test_a_second_writer_is_asked_to_try_again(shop, name):
    ledger = Ledger("sqlite:///ledger.db", shop.folder)
    with ledger.writer():
        message = shop.refused(75, *filled(name, shop))
    ledger.close()
    assert f"Process {os.getpid()} on " in message


@pytest.mark.slow
def test_an_erasure_is_accepted_while_another_writes(shop):
    ledger = Ledger("sqlite:///ledger.db", shop.folder)
    with ledger.writer():
        done = shop.run("forget", "--subject", f"{MARK}-s3", "--yes", "--output", "json")
    ledger.close()
    assert (done.code, done.document["status"]) == (75, "blocked")
    assert shop.good("status")["requests"][0]["status"] == "accepted"
    shop.good("work")
    assert shop.good("status")["requests"][0]["status"] == "certified"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_wrong_secret_is_refused(shop, name, monkeypatch):
    monkeypatch.setenv("SISA_SECRET_KEY", "5" * 64)
    message = shop.refused(3, *filled(name, shop))
    assert "secret is not the one" in message
    assert "5" * 8 not in message


def test_a_secret_that_is_none_is_refused(shop, monkeypatch):
    monkeypatch.setenv("SISA_SECRET_KEY", "hunter2")
    assert "hunter2" not in shop.refused(3, "status")
    monkeypatch.delenv("SISA_SECRET_KEY")
    (shop.folder / "secret.key").write_text("hunter2")
    assert "secret.key is not 64 hex digits" in shop.refused(3, "status")
    (shop.folder / "secret.key").unlink()
    assert "no readable secret.key" in shop.refused(3, "status")


@pytest.mark.parametrize("text", ["recipe: [", "just words", "", "recipe: {}", "\x00"])
def test_a_damaged_configuration_is_refused(shop, text):
    (shop.folder / "sisa.yaml").write_text(text)
    assert "sisa.yaml" in shop.refused(3, "status") or "recipe" in shop.refused(3, "train")


def test_a_damaged_ledger_is_refused(shop):
    for extra in shop.folder.glob("ledger.db*"):
        extra.unlink()
    (shop.folder / "ledger.db").write_bytes(b"no database at all, but long enough" * 50)
    checked_text(shop.run("status"), 3)
    assert "not a database" in checked_json(shop.run("status", "--output", "json"), 3)["message"]


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("folder", ["datasets", "generations"])
def test_a_damaged_manifest_is_told(shop, folder):
    (path,) = (shop.folder / "store" / folder).iterdir()
    damage(path)
    assert "is damaged" in shop.refused(4, "status")
    path.unlink()
    assert "is missing from the store" in shop.refused(4, "status")


def test_a_damaged_partition_is_told_before_it_is_written_anew(shop):
    for path in (shop.folder / "store" / "partitions").rglob("*.parquet"):
        damage(path)
    before = shop.state()["ledger"]
    assert "is damaged" in shop.refused(4, "ingest", shop.write(MORE), state=False)
    assert shop.state()["ledger"] == before  # what it wrote is in no data set, and will be swept


def init(*more: str) -> list[str]:
    return ["init", "--record-id", "id", "--target", "y", *more]


def test_init_refuses_what_it_cannot_use_and_makes_nothing(shop, tmp_path):
    new = tmp_path / "new"

    def refused(code: int, table: pa.Table | Path, *more: str) -> str:
        path = table if isinstance(table, Path) else shop.write(table)
        words = [*init(*more), "--data", str(path)]
        checked_text(shop.run(*words, folder=new), code)
        error = checked_json(shop.run(*words, "--output", "json", folder=new), code)
        assert not new.exists()
        return str(error["message"])

    assert "lacks the column who" in refused(1, MORE.drop_columns(["who"]), "--subject-id", "who")
    assert "lacks the column y" in refused(1, MORE.drop_columns(["y"]))
    assert "does not exist" in refused(5, tmp_path / "no.parquet")
    assert "at least two classes" in refused(3, MORE.slice(0, 0))
    assert "distinct values" in refused(1, with_column(source(1100), "y", range(1100)))
    assert "fractions" in refused(1, with_column(MORE, "y", MORE["a"]), "--task", "classification")
    dates = with_column(MORE, "a", pa.array(range(20), pa.date32()))
    assert "'a' holds date32" in refused(3, dates)
    uneven = with_column(MORE, "v", [[1.0] * (n % 3) for n in range(20)])
    assert "lists of different lengths" in refused(3, uneven)
    assert "shards" in refused(3, MORE, "--shards", "0")
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    pq.write_table(MORE, mixed / "a.parquet")
    pq.write_table(with_column(MORE, "y", ["x"] * 20), mixed / "b.parquet")
    assert "not of one type in all files" in refused(1, mixed)


def test_init_leaves_a_workspace_alone(shop):
    message = shop.refused(3, *init("--data", str(shop.folder / "rows.parquet")))
    assert "is a workspace already" in message


def test_init_says_where_it_cannot_write(shop, tmp_path):
    (tmp_path / "file").write_text("a regular file")
    words = init("--data", str(shop.folder / "rows.parquet"))
    for folder in (tmp_path / "file" / "deep", tmp_path / "file", Path("/proc/nothing/here")):
        checked_text(shop.run(*words, folder=folder), 3)
        error = checked_json(shop.run(*words, "--output", "json", folder=folder), 3)
        assert "cannot be written" in error["message"]
    assert (tmp_path / "file").read_text() == "a regular file"


def test_a_store_below_a_regular_file_is_refused(shop):
    (shop.folder / "file").write_text("a regular file")
    for name in ("status", "ingest", "train"):
        message = shop.refused(3, *filled(name, shop), "--set", "runtime.store=file/store")
        assert "file/store" in message


@pytest.fixture(scope="module")
def read_only() -> Iterator[Callable[..., Done]]:
    """Runs the installed command with a folder mounted read-only, unseen by all others."""

    def run(folder: Path, *words: str) -> Done:
        mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" || exit 99; exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", mount, str(folder)]
        done = subprocess.run(
            [*command, *words], capture_output=True, text=True, env=os.environ | ENVIRONMENT
        )
        return Done(done.returncode, done.stdout, done.stderr)

    if shutil.which("unshare") is None or run(Path("/tmp"), "true").code != 0:
        pytest.skip("no private mounts here, and permission bits do not bind root")
    yield run


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ingest", "train", "forget", "status"])
def test_a_read_only_workspace_is_told(shop, read_only, name):
    before = shop.state()
    words = [str(SISA), "-C", str(shop.folder), *filled(name, shop)]
    checked_text(read_only(shop.folder, *words), 3)
    assert (
        "ledger" in checked_json(read_only(shop.folder, *words, "--output", "json"), 3)["message"]
    )
    assert shop.state() == before


@pytest.mark.slow
def test_a_read_only_store_is_told(shop, read_only):
    more = shop.write(MORE)
    before = shop.state()
    words = [str(SISA), "-C", str(shop.folder), "ingest", str(more)]
    done = read_only(shop.folder / "store", *words)
    assert "Read-only file system" in done.err
    checked_text(done, 1)
    checked_json(read_only(shop.folder / "store", *words, "--output", "json"), 1)
    assert shop.state() == before


@pytest.mark.slow
def test_the_installed_command_says_the_same(shop, tmp_path):
    """Above, commands run in this process; here a few by the program itself, which has no input."""

    def run(*words: str) -> Done:
        done = subprocess.run(
            [SISA, *words],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=os.environ | ENVIRONMENT,
            cwd=tmp_path,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    inside = ["-C", str(shop.folder)]
    wrong = str(shop.write(INPUTS["duplicate ids"][0]()))
    for code, words in [
        (1, [*inside, "ingest", wrong]),
        (2, [*inside, "forget", "--subject", f"{MARK}-s1"]),
        (3, [*inside, "status", "--set", "recipe.training.lr=fast"]),
        (5, ["status"]),
    ]:
        before = shop.state()
        checked_text(run(*words), code)
        checked_json(run(*words, "--output", "json"), code)
        assert shop.state() == before
    usage = run(*inside, "train", "--no-such-option", "--output", "json")
    assert checked_json(usage, 2)["code"] == "usage"
