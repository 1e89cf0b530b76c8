"""The layout keeps its promises: imports point left, and what is heavy stays out until needed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("data_index", "sisa", "cluster")
HEAVY = ("torch", "ray", "mlflow")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LOADS_CLUSTER = ("sisa/opening.py", "sisa/cli.py")
IMPORTS_MLFLOW = (
    "sisa/tracking.py",
    "sisa/mirror_artefacts.py",
    "sisa/mirror_rows.py",
    "sisa/mlflow_model.py",
    "sisa/pyfunc.py",
    "sisa/approximate/mirror.py",
)

each_file = pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for path in FILES]
)


class Import(NamedTuple):
    """One import: the full dotted name, and whether importlib does it inside a function."""

    module: str
    by_name: bool
    in_function: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


def imports(source: str, package: str) -> Iterator[Import]:
    """Every import of a module of `package`, by statement or by `import_module("...")`.

    An f-string counts by its leading text.
    """

    def walk(node: ast.AST, in_function: bool) -> Iterator[Import]:
        match node:
            case ast.Import(names):
                for alias in names:
                    yield Import(alias.name, False, in_function)
            case ast.ImportFrom(module, names, level):
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) + 1 - level], *filter(None, [module])])
                for alias in names:
                    yield Import(f"{base if level else module}.{alias.name}", False, in_function)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(str(name)) | ast.JoinedStr([ast.Constant(str(name)), *_]), *_],
            ):
                yield Import(name, True, in_function)
            case _:
                pass
        inside = in_function or isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        )
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    return walk(ast.parse(source), False)


def imports_of(path: Path) -> list[Import]:
    return list(imports(path.read_text("utf-8"), ".".join(path.relative_to(ROOT).parent.parts)))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def loaded_by(code: str) -> set[str]:
    """Top-level names in `sys.modules` after a fresh interpreter has run `code`."""
    script = f"{code}\nimport json, sys\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run(  # the folder is neutral: nothing is imported from where tests run
        [sys.executable, "-c", script], capture_output=True, text=True, cwd="/", check=False
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_the_walk_sees_every_way_to_import() -> None:
    source = """
import a.b
from c import d
from . import e
from ..f import g
def run():
    import h
    importlib.import_module("i.j")
    import_module(f"k.{name}")
"""
    assert list(imports(source, "p.q")) == [
        Import("a.b", False, False),
        Import("c.d", False, False),
        Import("p.q.e", False, False),
        Import("p.f.g", False, False),
        Import("h", False, True),
        Import("i.j", True, True),
        Import("k.", True, True),
    ]


def test_every_package_has_files() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(PACKAGES)


def test_every_folder_with_modules_is_shipped() -> None:
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    assert {".".join(path.relative_to(ROOT).parent.parts) for path in FILES} == set(
        shipped["packages"]
    )


@each_file
def test_imports_point_left(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    right = PACKAGES[PACKAGES.index(package) + 1 :]
    wrong = [found for found in imports_of(path) if found.top in right]
    if name_of(path) in LOADS_CLUSTER:
        wrong = [
            found
            for found in wrong
            if not (found.top == "cluster" and found.by_name and found.in_function)
        ]
    assert not wrong


@each_file
def test_cluster_is_named_only_where_it_is_loaded(path: Path) -> None:
    if path.is_relative_to(ROOT / "cluster") or name_of(path) in LOADS_CLUSTER:
        return
    modules = {
        f"cluster.{module.stem}"
        for module in (ROOT / "cluster").glob("*.py")
        if module.stem[0] != "_"
    }
    named = [
        node.value
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.partition(":")[0] in modules
    ]
    assert not named


@each_file
def test_heavy_libraries_stay_in_their_place(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    refused = {"data_index": {"torch", "ray"}, "sisa": {"ray"}, "cluster": set()}[package]
    if name_of(path) not in IMPORTS_MLFLOW:
        refused = refused | {"mlflow"}
    assert not [found for found in imports_of(path) if found.top in refused]


@pytest.mark.parametrize("module", ["sisa", "sisa.stage", "sisa.build", "sisa.residue"])
def test_torch_waits_until_a_stage_is_trained(module: str) -> None:
    assert "torch" not in loaded_by(f"import {module}")


def test_the_data_index_loads_nothing_heavy() -> None:
    modules = [
        f"data_index.{path.stem}"
        for path in FILES
        if path.parent == ROOT / "data_index" and path.stem != "__init__"
    ]
    assert not loaded_by(f"import {', '.join(modules)}") & {*HEAVY, "sisa", "cluster"}


@pytest.mark.parametrize(
    "words", ["--help", "unlearn --help", "unlearn npo --help", "unlearn list"]
)
def test_help_loads_nothing_heavy(words: str) -> None:
    code = f"""
import sys
from sisa.cli import main
sys.argv = ["sisa", *{words.split()}]
try:
    code = main()
except SystemExit as stop:
    code = stop.code
assert not code, code
"""
    assert not loaded_by(code) & set(HEAVY)
