"""The documents say what the code does: commands, options, settings, examples and links."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from data_index import errors
from sisa.cli import main
from sisa.config import Config

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
QUIET = {"SISA__RUNTIME__EXECUTOR__KIND": "process", "SISA__RUNTIME__TRACKING__URI": "null"}

each_page = pytest.mark.parametrize(
    "page", [pytest.param(p, id=p.relative_to(ROOT).as_posix()) for p in PAGES]
)
each_command = pytest.mark.parametrize("name", sorted(main.commands))


def blocks(page: Path, language: str) -> list[str]:
    """Fenced code blocks of one language."""
    text = page.read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def calls(text: str) -> Iterator[list[str]]:
    """The words after `sisa` wherever a text shows a command."""
    for found in re.findall(r"(?:^\s*\$ |`|Example: )sisa\s([^`]+?)(?=`|$)", text, re.MULTILINE):
        yield shlex.split(found)


def wrong(words: list[str]) -> str | None:
    """What is wrong with a call, if anything is."""
    if words[:1] == ["-C"]:
        words = words[2:]
    if not words or words[0].startswith("-"):
        known, options = main, words
    elif words[0] in main.commands:
        known, options = main.commands[words[0]], words[1:]
    else:
        return f"there is no command {words[0]}"
    there = {name for p in known.get_params(click.Context(known)) for name in p.opts}
    missing = {o.partition("=")[0] for o in options if o.startswith("-") and o != "-"} - there
    return f"{words} has no {', '.join(sorted(missing))}" if missing else None


def rows(page: Path) -> list[list[str]]:
    """Cells of all table rows."""
    lines = page.read_text("utf-8").splitlines()
    return [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:2] == "| "]


def settings(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    """Dotted name and default, as documents write it, of every setting."""
    for name, field in model.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings(kind, f"{prefix}{name}.")
        elif field.default is PydanticUndefined:
            yield f"{prefix}{name}", "*required*"
        else:
            default = field.default
            text = default if isinstance(default, str) else json.dumps(default)
            yield f"{prefix}{name}", f"`{text}`"


def write_rows(path: Path, first: int, count: int) -> None:
    """A table with the columns that the README names, 40 customers, alice among them."""
    rng = np.random.default_rng(first)
    age, spent = rng.integers(18, 90, count), rng.gamma(2.0, 50.0, count)
    who = [f"customer-{i % 40}" if i % 40 else "alice" for i in range(count)]
    table = {
        "id": [f"row-{first + i}" for i in range(count)],
        "customer": who,
        "age": age,
        "spent": spent,
        "bought": (spent + age > 140).astype(np.int64),
    }
    pq.write_table(pa.table(table), path)


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    (code,) = blocks(ROOT / "README.md", "python")
    write_rows(tmp_path / "rows.parquet", 0, 800)
    write_rows(tmp_path / "test.parquet", 800, 200)
    outer = {k: v for k, v in os.environ.items() if not k.startswith("SISA_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**outer, **QUIET},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    accuracy, erased = done.stdout.splitlines()
    assert float(accuracy) > 0.6
    assert erased.startswith("certified 20 ")


def test_the_learner_of_the_example_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sisa import Workspace

    page = ROOT / "docs" / "learners.md"
    (code,) = blocks(page, "python")
    (section,) = (b for b in blocks(page, "yaml") if "gated" in b)
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "path", [*sys.path])  # a workspace adds itself to it
    write_rows(tmp_path / "rows.parquet", 0, 400)
    root = tmp_path / "shop"
    columns = {"record_id": "id", "subject_id": "customer", "target": "bought"}
    Workspace.init(root, tmp_path / "rows.parquet", shards=2, slices=2, **columns)
    (root / "gated.py").write_text(code, "utf-8")
    learner = section.strip().removeprefix("learner: ")
    with Workspace.open(root, [f"recipe.learner={learner}"]) as workspace:
        workspace.ingest()
        assert workspace.train().voting == 2


@each_page
def test_commands_and_options_exist(page: Path) -> None:
    assert [w for words in calls(page.read_text("utf-8")) if (w := wrong(words))] == []


def test_the_readme_shows_commands() -> None:
    assert len(list(calls((ROOT / "README.md").read_text("utf-8")))) > 20


@pytest.mark.parametrize("words", ["nothing", "train --nothing", "-C x verify --nothing=1"])
def test_a_wrong_call_is_noticed(words: str) -> None:
    (call,) = calls(f"see `sisa {words}`.")
    assert wrong(call)


@each_command
def test_commands_have_help_and_an_example(name: str) -> None:
    command = main.commands[name]
    assert command.help
    examples = list(calls(command.epilog or ""))
    assert examples and all(words[0] == name for words in examples)
    assert [w for words in examples if (w := wrong(words))] == []


def test_the_readme_lists_every_command() -> None:
    listed = [r[0] for r in rows(ROOT / "README.md") if r[0].startswith("`sisa ")]
    assert sorted(listed) == sorted(f"`sisa {name}`" for name in main.commands)


def test_the_readme_lists_every_exit_code() -> None:
    kinds = [k for k in vars(errors).values() if isinstance(k, type)]
    codes = {k.exit_code for k in kinds if issubclass(k, errors.SisaError)}
    listed = {int(r[0]) for r in rows(ROOT / "README.md") if r[0].isdecimal()}
    assert listed == codes | {0, 130}


def test_every_setting_is_documented_with_its_default() -> None:
    documented = [r for r in rows(ROOT / "docs" / "recipe.md") if r[0].startswith("`")]
    assert all(r[2] for r in documented)
    assert [(r[0].strip("`"), r[1]) for r in documented] == list(settings(Config, ""))


@each_page
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    inside = [link.partition("#")[0] for link in links if "://" not in link]
    assert [link for link in inside if not (page.parent / link).is_file()] == []
