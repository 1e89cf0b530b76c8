"""The approximate half neither imports nor makes anything of an exact certificate."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = sorted((ROOT / "sisa" / "approximate").rglob("*.py"))

NEUTRAL = {
    "PAYLOAD_TYPE",
    "TYPE",
    "Count",
    "Digest",
    "InToto",
    "Number",
    "Part",
    "Subject",
    "Time",
}
"""What in-toto statements have in common, and may be taken from the exact one's module."""

REFUSED = ("certificate", "workspace", "forget", "build", "accept", "closing", "publish")
"""Parts of the exact half, by the beginning of their module's name."""


def imported(source: str) -> Iterator[str]:
    """Dotted names of all imports, those inside functions and by name included."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module, names, _):
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.Constant(str(text)) if text.startswith(("sisa.", "data_index.")):
                yield text
            case _:
                pass


def wrong(source: str) -> list[str]:
    """Imports of the exact half."""
    return [name for name in imported(source) if is_wrong(*f"{name}..".split(".")[:3])]


def is_wrong(package: str, module: str, item: str) -> bool:
    """Whether a part of a package is of the exact half."""
    if package == "data_index":
        return module == "ledger"
    refused = module.startswith(REFUSED) or (module == "statement" and item not in NEUTRAL)
    return package == "sisa" and refused


def test_there_are_files() -> None:
    assert {"statement.py", "unlearn.py"} <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nothing_of_the_exact_half_is_imported(path: Path) -> None:
    assert wrong(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "from sisa import certificate",
        "from sisa.certificate import issue",
        "import sisa.certificate_chain",
        "from sisa import statement",
        "from sisa.statement import Erasure",
        "from sisa.statement import Part, Statement",
        "def late():\n    from sisa.workspace import Workspace",
        "importlib.import_module('sisa.certificate')",
        "from data_index.ledger import Ledger",
    ],
)
def test_an_import_of_it_is_noticed(source: str) -> None:
    assert wrong(source)


def test_nothing_of_the_exact_half_is_loaded() -> None:
    code = "import json, sys, sisa.approximate.unlearn; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True
    )
    loaded = {name.removeprefix("sisa.") for name in json.loads(done.stdout) if "sisa." in name}
    assert "approximate.unlearn" in loaded
    assert not {name for name in loaded if name.startswith(REFUSED)}
