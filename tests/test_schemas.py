"""The published JSON schemas are those of the code, and describe what commands really print."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator, ValidationError

from sisa import results, schemas
from sisa.cli import main

PUBLISHED = Path(__file__).resolve().parent.parent / "docs" / "schemas"
SETTINGS = (
    "runtime.executor.kind=process",
    "runtime.executor.workers=1",
    "runtime.tracking.uri=null",
)


def names(group: click.Group, before: str = "") -> Iterator[str]:
    """Every command by its words joined with hyphens, those of groups included."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from names(command, f"{before}{name}-")
        else:
            yield f"{before}{name}"


APART = ("unlearn", "unlearn-list", "unlearn-sequence")
"""Commands without a workspace, whose documents tests/approximate holds against their schemas."""

COMMANDS = sorted({*names(main), *APART})


def published(name: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads((PUBLISHED / f"{name}.json").read_text("utf-8")))


def test_published_files_are_what_the_code_gives() -> None:
    expected = {f"{name}.json": schemas.text(kind) for name, kind in schemas.documents().items()}
    found = {path.name: path.read_text("utf-8") for path in PUBLISHED.iterdir()}
    assert found == expected, "run `make schemas`"


def test_the_package_names_every_class_of_its_files() -> None:
    """A document that it does not name would get no schema."""
    files = Path(results.__file__).parent.glob("*.py")
    bodies = (ast.parse(file.read_text("utf-8")).body for file in files)
    classes = {node.name for body in bodies for node in body if isinstance(node, ast.ClassDef)}
    assert classes == {n for n in results.__all__ if isinstance(getattr(results, n), type)}


def test_every_command_has_a_schema() -> None:
    assert sorted(schemas.documents()) == sorted([*COMMANDS, schemas.ERROR, schemas.ROUND])


@pytest.mark.parametrize("name", sorted(schemas.documents()))
def test_a_schema_is_valid_and_describes_every_field(name: str) -> None:
    body = schemas.schema(schemas.documents()[name])
    Draft202012Validator.check_schema(body)
    for part in (body, *body.get("$defs", {}).values()):
        assert part["additionalProperties"] is False
        bare = [n for n, field in part["properties"].items() if not field.get("description")]
        assert bare == [], f"{part['title']}: write a text below these fields in sisa/results/"


class Shop:
    """Runs commands in one folder, and keeps what each printed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.printed: list[tuple[str, dict[str, Any]]] = []

    def run(self, *words: str, code: int | None = 0) -> dict[str, Any]:
        sets = [word for setting in SETTINGS for word in ("--set", setting)]
        at = [] if words[0] == "init" else ["-C", str(self.folder / "ws")]
        with pytest.MonkeyPatch.context() as patch:
            arguments = [*at, *words, *sets, "--output", "json"]
            patch.setattr(sys, "argv", ["sisa", *arguments])
            patch.chdir(self.folder)
            done = CliRunner().invoke(main, arguments)
        assert code in (None, done.exit_code), done.output
        *lines, document = map(json.loads, done.stdout.splitlines())
        self.printed += [(schemas.ROUND, line) for line in lines]
        group = isinstance(main.commands[words[0]], click.Group)
        name = "-".join(words[: 2 if group else 1])
        self.printed.append((schemas.ERROR if "error" in document else name, document))
        return document


def write(folder: Path, task: str) -> None:
    rng = np.random.default_rng(0)
    age = rng.integers(18, 90, 400)
    label = (age > 50).astype(np.int64) if task == "classification" else age / 7 + rng.random(400)
    table = {"id": [f"r{i}" for i in range(400)], "who": [f"p{i % 20}" for i in range(400)]}
    pq.write_table(pa.table({**table, "age": age, "y": label}), folder / "rows.parquet")


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, dict[str, Any]]]:
    """Documents of all commands, in all their forms that can be had without a second process."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SISA_SECRET_KEY", raising=False)
        for task in ("classification", "regression"):
            shop = Shop(tmp_path_factory.mktemp(task))
            write(shop.folder, task)
            columns = ("--record-id", "id", "--subject-id", "who", "--target", "y")
            waiting = ("--set", "runtime.erasure.rollback=batch")
            size = ("--shards", "2", "--slices", "2", "--learner", "logistic")
            shop.run("init", "ws", "--data", "rows.parquet", *columns, *size, "--task", task)
            shop.run("status")
            shop.run("report")
            shop.run("evaluate", "rows.parquet", code=6)
            shop.run("doctor", code=None)
            shop.run("ingest")
            shop.run("train")
            shop.run("doctor", "--held-out", "rows.parquet", code=None)
            shop.run("evaluate", "rows.parquet")
            shop.run("predict", "rows.parquet", "--out", "out.csv")
            shop.run("plan", "--subject", "p1", "--subject", "nobody")
            shop.run("lineage", "--subject", "p1")
            shop.run("forget", "--subject", "p1", "--dry-run")
            shop.run("forget", "--subject", "p1", "--no-wait", "--yes", *waiting)
            shop.run("plan", "--subject", "p2")
            shop.run("plan", "--rate", "20/day")
            shop.run("work", "--every", "1h", "--times", "1", *waiting)
            shop.run("status")
            shop.run("verify", "--no-replay", code=6)
            shop.run("work", "--every", "1h", "--times", "1")
            shop.run("work")
            shop.run("forget", "--subject", "p2", "--record", "r3", "--yes")
            shop.run("forget", "--subject", "p2", "--subject", "nobody", "--yes")
            for who, name in (("p3", "T-1"), ("p4", "T-2"), ("nobody", "T-3")):
                shop.run("request", "submit", "--subject", who, "--external-id", name, "--yes")
            shop.run("request", "submit", "--subject", "p3", "--dry-run")
            shop.run("request", "hold", "T-1", "--reason", "court order")
            shop.run("request", "show", "T-1")
            shop.run("work")
            shop.run("request", "list")
            shop.run("request", "release", "T-1")
            shop.run("request", "cancel", "T-1", "--reason", "withdrawn")
            shop.run("request", "readmit", "--subject", "p4")
            shop.run("lineage", "--record", "r3")
            shop.run("verify")
            done = shop.run("certificate", "list")["certificates"][-1]
            shop.run("certificate", "show", done["request"])
            shop.run("certificate", "verify", done["file"])
            shop.run("certificate", "verify", "rows.parquet", code=4)
            shop.run("keys", "list")
            shop.run("keys", "rotate", "--yes")
            shop.run("keys", "rotate", "--signing")
            shop.run("report", "--out", "report.html")
            shop.run("status")
            shop.run("history")
            shop.run("status", "--set", "recipe.training.lr=-1", code=3)
            shop.run("verify", "--nothing", code=2)
            found += shop.printed
    return found


def test_what_commands_print_fits_their_schema(printed: list[tuple[str, dict[str, Any]]]) -> None:
    assert {name for name, _ in printed} == {*COMMANDS, schemas.ERROR, schemas.ROUND} - {*APART}
    for name, document in printed:
        published(name).validate(document)


def test_another_document_does_not_fit(printed: list[tuple[str, dict[str, Any]]]) -> None:
    """Every schema refuses what lacks a field, has one more, or has one of another type."""
    for name, document in printed:
        field = list(document)[-1]
        less = {k: v for k, v in document.items() if k != field}
        for wrong in (less, {**document, "more": 1}, {**document, field: object()}):
            with pytest.raises(ValidationError):
                published(name).validate(wrong)
