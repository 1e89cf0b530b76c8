"""The documents say what the code does: commands, options, settings, examples and links.

The code of every page is run. A page is one session: one bash, which starts in a folder that has
`rows.parquet`, `more.parquet`, `test.parquet` (see `write_rows`), `examples` and `.venv`. Blocks
run in their order; the first command that fails fails the page. The word after the fence decides:

    bash, sh         run in the shell; folder and variables last to the end of the page
    console          the same for the lines after `$ ` and what `\\` adds; the rest is output
    python           run as a script in the folder that the shell is in
    yaml, json       must be readable
    text, or none    nothing

Two words may follow it: `no-run` for what cannot be run here, an installation say (`NO_RUN` counts
them, page by page); `file=NAME` for a file that is written, not run. A comment `<!-- run`, lines,
`-->` is run like bash, for what the page takes for granted. Any other language is refused.

Shards are trained in a child process and there is no MLflow. A page that needs one of them says, in
such a comment, `export SISA__RUNTIME__TRACKING__URI=sqlite:///mlflow.db` or the like.
"""

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
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from data_index import errors
from sisa.cli import main
from sisa.config import Config

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = [ROOT / name for name in ("docs", "deploy", "examples")]
PAGES = [*ROOT.glob("*.md"), *sorted(page for folder in FOLDERS for page in folder.rglob("*.md"))]
NO_RUN = {"README.md": 2, "docs/several-gpus.md": 1}
"""How many blocks of a page are not run: raise it only for what cannot be run anywhere."""

BLOCK = re.compile(
    r"^```(?P<info>[^\n`]*)\n(?P<code>.*?)^```$|^<!-- run\n(?P<hidden>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)
SHELLS, READ, SHOWN = (
    ("bash", "sh", "console"),
    {"yaml": yaml.safe_load, "json": json.loads},
    ("text", ""),
)
QUIET = {
    "SISA__RUNTIME__EXECUTOR__KIND": "process",
    "SISA__RUNTIME__EXECUTOR__WORKERS": "1",  # every child spends two seconds importing torch
    "SISA__RUNTIME__TRACKING__URI": "null",
}

each_page = pytest.mark.parametrize(
    "page", [pytest.param(p, id=p.relative_to(ROOT).as_posix()) for p in PAGES]
)
each_command = pytest.mark.parametrize("name", sorted(main.commands))


def calls(text: str) -> Iterator[list[str]]:
    """The words after `sisa` wherever a text shows a command."""
    for found in re.findall(r"(?:^\s*\$ |`|Example: )sisa\s([^`]+?)(?=`|$)", text, re.MULTILINE):
        yield shlex.split(found)


def wrong(words: list[str]) -> str | None:
    """What is wrong with a call, if anything is."""
    if words[:1] == ["-C"]:
        words = words[2:]
    known: click.Command = main
    options = words
    while isinstance(known, click.Group) and options and not options[0].startswith("-"):
        found = known.get_command(click.Context(known), options[0])
        if found is None:
            return f"there is no command {options[0]}"
        known, options = found, options[1:]
    taken = known.get_params(click.Context(known))
    there = {name for p in taken for name in (*p.opts, *p.secondary_opts)}
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


def script(text: str) -> str:
    """What a page's blocks come to as one bash script; checks those that are not run."""
    lines = ["set -e -o pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for found in BLOCK.finditer(text):
        language, *words = (found["info"] or "").split() or [""]
        code = found["hidden"] or found["code"] or ""
        if "no-run" in words:
            continue
        named = [word.removeprefix("file=") for word in words if word.startswith("file=")]
        lines.append(f"echo '# line {text[: found.start()].count(chr(10)) + 1}' >&2")
        if named:
            lines.append(f"cat >{shlex.quote(named[0])} <<'END-OF-BLOCK'\n{code}END-OF-BLOCK")
        elif language == "python":
            lines.append(f"python - <<'END-OF-BLOCK'\n{code}END-OF-BLOCK")
        elif language == "console":
            lines += re.findall(r"^\$ ((?:.*\\\n)*.*)$", code, re.MULTILINE)
        elif language in SHELLS or found["hidden"]:
            lines.append(code)
        elif language in READ:
            READ[language](code)
        else:
            assert language in SHOWN, f"a block in {language}: see the top of {__file__}"
    return "\n".join(lines)


def session(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a page in a folder."""
    write_rows(folder / "rows.parquet", 0, 800)
    write_rows(folder / "more.parquet", 800, 200)
    write_rows(folder / "test.parquet", 1000, 200)
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()  # what it does is done below
    (folder / "page.sh").write_text(script(text), "utf-8")
    outer = {k: v for k, v in os.environ.items() if not k.startswith("SISA_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), outer["PATH"]])
    return subprocess.run(
        ["bash", "page.sh"],
        cwd=folder,
        env={**outer, **QUIET, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )


@pytest.mark.slow
@each_page
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    done = session(page.read_text("utf-8"), tmp_path)
    assert done.returncode == 0, f"{page.name}: {done.stderr[-3000:]}"


@each_page
def test_what_is_not_run_is_counted(page: Path) -> None:
    infos = [found["info"] or "" for found in BLOCK.finditer(page.read_text("utf-8"))]
    left_out = sum("no-run" in info.split() for info in infos)
    assert left_out == NO_RUN.get(page.relative_to(ROOT).as_posix(), 0)


def test_blocks_share_a_session(tmp_path: Path) -> None:
    page = """
<!-- run
mkdir inner; name=value
-->
```console
$ cd inner
this is output
$ test "$name" = value && \\
    echo again >again
```
```python file=given.py
WORD = "from a file"
```
```python
import given
open("told", "w").write(given.WORD)
```
```bash no-run
exit 1
```
```yaml
a: {b: 1}
```
"""
    done = session(page, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "inner" / "told").read_text() == "from a file"
    assert (tmp_path / "inner" / "again").read_text() == "again\n"


@pytest.mark.parametrize(
    "block",
    [
        "console\n$ false\n$ true\n",
        "bash\nfalse | true\n",
        "python\nassert False\n",
        "sh\nsisa status\n",
        "yaml\na: [\n",
        "json\n{a}\n",
        "fortran\nEND\n",
    ],
)
def test_a_block_that_does_not_hold_is_noticed(block: str, tmp_path: Path) -> None:
    try:
        done = session(f"text\n\n```{block}```\n", tmp_path)
    except (AssertionError, ValueError, yaml.YAMLError):
        return
    assert done.returncode != 0 and "# line 3" in done.stderr


@each_page
def test_commands_and_options_exist(page: Path) -> None:
    assert [w for words in calls(page.read_text("utf-8")) if (w := wrong(words))] == []


def test_the_readme_shows_commands() -> None:
    assert len(list(calls((ROOT / "README.md").read_text("utf-8")))) > 20


@pytest.mark.parametrize(
    "words",
    ["nothing", "train --nothing", "keys nothing", "keys rotate -x", "-C x verify --nothing=1"],
)
def test_a_wrong_call_is_noticed(words: str) -> None:
    (call,) = calls(f"see `sisa {words}`.")
    assert wrong(call)


@each_command
def test_commands_have_help_and_an_example(name: str) -> None:
    command = main.commands[name]
    assert command.help
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        assert inner.help and [wrong(words) for words in calls(inner.epilog or "")] == [None]
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


def test_every_check_of_the_doctor_is_documented() -> None:
    source = "".join(path.read_text("utf-8") for path in (ROOT / "sisa").glob("*.py"))
    findings = re.findall(r"\bFinding\([^)]*?\bcheck=\"(\w+)\"", source)
    raised = re.findall(r"_(?:checked|raised)\(\s*\"(\w+)\"", source)
    dry = re.findall(r"_finding\(\s*\"(\w+)\"", (ROOT / "sisa" / "rehearsal.py").read_text("utf-8"))
    documented = [r[0].strip("`") for r in rows(ROOT / "docs" / "doctor.md") if r[1] != "finds"]
    assert {*findings, *raised, *dry} <= set(documented)


@each_page
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    inside = [link.partition("#")[0] for link in links if "://" not in link]
    assert [link for link in inside if not (page.parent / link).exists()] == []
