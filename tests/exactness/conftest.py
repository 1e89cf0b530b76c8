"""A laboratory: workspaces under one secret, and the oracle that never saw the forgotten."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sklearn import datasets

from sisa import replay
from sisa.context import Reporter
from sisa.executor import attempt, raise_error
from sisa.shard import ShardJob
from sisa.workspace import Workspace

ENVIRONMENT = {"SISA_SECRET_KEY": "5a" * 32}
QUIET = ("runtime.tracking.uri=null", "runtime.executor.kind=process")


@dataclass
class Inline:
    """Trains in this process, one shard after the other: what a stage leaves behind would show."""

    between: Callable[[int], None] = lambda shard: None
    done: list[ShardJob] = field(default_factory=list)

    def run(self, jobs: Sequence[ShardJob], tick: Callable[[], None]) -> Iterator[int]:
        for job in jobs:
            error = attempt(job)
            if error:
                raise_error(error)
            self.done.append(job)
            tick()
            self.between(job.shard)
            yield job.shard

    def close(self) -> None:
        pass


@dataclass
class Lab:
    """Makes workspaces below one folder, all with the same secret."""

    folder: Path
    opened: list[Workspace] = field(default_factory=list)

    def workspace(
        self,
        name: str,
        table: pa.Table,
        *settings: str,
        inline: bool = True,
        **choices: object,
    ) -> Workspace:
        """An ingested workspace over a table with record_id, label and perhaps subject_id."""
        found = self.empty(name, table, *settings, inline=inline, **choices)
        found.ingest()
        return found

    def empty(
        self,
        name: str,
        table: pa.Table,
        *settings: str,
        inline: bool = True,
        **choices: object,
    ) -> Workspace:
        """A workspace made for a table, which is its source and not ingested yet."""
        source = self.folder / f"{name}.parquet"
        pq.write_table(table, source)
        has_subject = "subject_id" in table.column_names
        patch = pytest.MonkeyPatch()
        patch.setenv("SISA_SECRET_KEY", ENVIRONMENT["SISA_SECRET_KEY"])
        with patch.context():
            Workspace.init(
                self.folder / name,
                source,
                record_id="record_id",
                target="label",
                subject_id="subject_id" if has_subject else None,
                **choices,
            )
        patch.undo()
        return self.open(name, *settings, inline=inline)

    def open(
        self,
        name: str,
        *settings: str,
        inline: bool = True,
        restored: bool = False,
        warn: Callable[[str], None] = lambda text: None,
    ) -> Workspace:
        found = Workspace.open(
            self.folder / name,
            [*QUIET, *settings],
            Reporter(warn=warn),
            exact=True,
            environment=ENVIRONMENT,
            restored=restored,
        )
        if inline:
            executor = Inline()
            found.context = dataclasses.replace(found.context, make_executor=lambda: executor)
        self.opened.append(found)
        return found

    def copied(self, other: Lab) -> None:
        """Take over all workspaces of a lab, which may hold none of them open."""
        shutil.copytree(other.folder, self.folder, dirs_exist_ok=True)

    def oracle(
        self, name: str, table: pa.Table, gone: dict[str, list[object]], *settings: str, **choices
    ) -> Workspace:
        """A workspace that never ingested some subjects or records, trained."""
        made = self.workspace(name, without(table, gone), *settings, **choices)
        made.train()
        return made

    def close(self) -> None:
        for found in self.opened:
            found.close()
        self.opened.clear()


def without(table: pa.Table, gone: dict[str, list[object]]) -> pa.Table:
    for column, values in gone.items():
        hit = pc.is_in(table[column], pa.array(values, table[column].type))
        table = table.filter(pc.invert(hit))
    return table


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.close()


@dataclass
class Stock:
    """Workspaces that many tests start from, each trained once and copied for every test."""

    folder: Path
    labs: dict[str, Lab] = field(default_factory=dict)

    def lab(self, name: str, fill: Callable[[Lab], object]) -> Lab:
        """The lab that `fill` made workspaces in, when it was first asked for; none is open."""
        if name not in self.labs:
            made = Lab(self.folder / name)
            made.folder.mkdir()
            fill(made)
            made.close()
            self.labs[name] = made
        return self.labs[name]


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    made = Stock(tmp_path_factory.mktemp("stock"))
    yield made
    for found in made.labs.values():
        found.close()


@pytest.fixture(autouse=True)
def replay_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` trains again in this process, which is as good where the store is what is in doubt.

    A test that is marked `clean_process` gets the real thing, as do all tests of other folders.
    """
    if request.node.get_closest_marker("clean_process") is None:
        monkeypatch.setattr(replay, "ProcessExecutor", lambda workers: Inline())


@pytest.fixture
def same() -> Callable[[Workspace, Workspace], None]:
    """Asserts that two workspaces hold the same model, partitions and lineage, byte for byte."""

    def check(found: Workspace, oracle: Workspace) -> None:
        mine, its = found.context.dataset(), oracle.context.dataset()
        assert mine.partitions == its.partitions
        assert (mine.by_record, mine.by_subject) == (its.by_record, its.by_subject)
        for file in (*(p.file for p in mine.partitions), mine.by_record, mine.by_subject):
            assert found.context.store.read(file) == oracle.context.store.read(file)
        assert found.status().digest == oracle.status().digest
        current, other = found.context.served()[1], oracle.context.served()[1]
        assert current.constituents == other.constituents

    return check


def real(name: str) -> pa.Table:
    folder = Path(os.environ.get("SISA_TEST_DATA", "../shared")) / "data"
    path = folder / f"{name}_train.parquet"
    if not path.exists():
        pytest.skip(f"{path} is not there; set SISA_TEST_DATA")
    return pq.read_table(path)


@pytest.fixture
def data() -> Callable[..., pa.Table]:
    """Tables by name: real ones where they are, scikit-learn's everywhere."""

    def load(name: str, rows: int | None = None) -> pa.Table:
        table = {"digits": digits, "patients": patients, "diabetes": diabetes}.get(
            name, lambda: real(name)
        )()
        return table if rows is None else table.slice(0, rows)

    return load


def digits() -> pa.Table:
    """1,797 images, each its own subject."""
    found = datasets.load_digits()
    return image_table(found.data, found.target)


def patients() -> pa.Table:
    """The same images as rows of 60 subjects of very different sizes."""
    table = digits()
    owner = np.floor(60 * np.linspace(0, 1, table.num_rows, endpoint=False) ** 2).astype(int)
    return table.append_column("subject_id", pa.array([f"patient-{i}" for i in owner]))


def diabetes() -> pa.Table:
    """442 rows of a regression."""
    found = datasets.load_diabetes()
    columns = {name: found.data[:, i] for i, name in enumerate(found.feature_names)}
    ids = [f"row-{i}" for i in range(len(found.target))]
    return pa.table({"record_id": ids, "label": found.target, **columns})


def image_table(values: np.ndarray, target: np.ndarray) -> pa.Table:
    size = values.shape[1]
    flat = pa.array(values.astype(np.float32).ravel())
    return pa.table(
        {
            "record_id": [f"record-{i}" for i in range(len(target))],
            "image": pa.FixedSizeListArray.from_arrays(flat, size),
            "label": target,
        }
    )
