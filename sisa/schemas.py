"""JSON schemas of what commands print: `python -m sisa.schemas FOLDER` writes a file each."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from sisa import report_results, results, statement
from sisa.results import SCHEMA_VERSION, Failed, Result, Round

MODULES = (results, report_results)
"""What names the documents."""

ERROR = "error"
"""Name of the schema of an error, which any command may print."""

ROUND = "work-round"
"""Name of the schema of the lines that `sisa work --every` prints before its document."""

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def documents() -> dict[str, type[Result]]:
    """The document of each command, by the command's words joined with hyphens."""
    found: dict[str, type[Result]] = {ERROR: Failed, ROUND: Round}
    for kind in _kinds():
        named = re.match(r"`sisa ([a-z -]+)`", kind.__doc__ or "")
        if named:
            found[named[1].replace(" ", "-")] = kind
    return found


def _kinds() -> Iterator[type[Result]]:
    """The classes of all documents and of their parts."""
    for kind in (kind for module in MODULES for kind in vars(module).values()):
        if isinstance(kind, type) and issubclass(kind, Result):
            yield kind


def schema(kind: type[Result]) -> dict[str, Any]:
    """The schema of one document, every field described."""
    found = kind.model_json_schema(mode="serialization")
    described = descriptions()
    for body in (found, *found.get("$defs", {}).values()):
        _describe(body, described[body["title"]])
    version = {"const": SCHEMA_VERSION, "description": "Version of the form of all documents."}
    found["properties"] = {"schema_version": version, **found["properties"]}
    found["required"] = list(found["properties"])
    if kind.either:
        _choose(found, kind.either)
    return {"$schema": DIALECT, **found}


def _describe(body: dict[str, Any], fields: Mapping[str, str]) -> None:
    body["required"] = list(body["properties"])
    for name, field in body["properties"].items():
        field.pop("title", None)
        field.pop("default", None)
        if name in fields:
            field["description"] = fields[name]


def _choose(body: dict[str, Any], either: tuple[tuple[str, ...], ...]) -> None:
    """Fields of one group are there and are not null, those of the others are not there."""
    for name in (name for group in either for name in group):
        field = body["properties"][name]
        (kind,) = (option for option in field.pop("anyOf") if option != {"type": "null"})
        field |= kind
        body["required"].remove(name)
    body["oneOf"] = [{"required": list(group)} for group in either]


def descriptions() -> dict[str, dict[str, str]]:
    """The text below each field of each class of documents and statements, by class and field."""
    # Read from the source here: pydantic's own way takes every command a tenth of a second.
    files = sorted({kind.__module__ for kind in _kinds()} | {statement.__name__})
    sources = (inspect.getsource(sys.modules[name]) for name in files)
    classes = (node for source in sources for node in ast.parse(source).body)
    return {
        node.name: {
            field.target.id: " ".join(str(text.value.value).split())
            for field, text in pairwise(node.body)
            if isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        }
        for node in classes
        if isinstance(node, ast.ClassDef)
    }


def text(kind: type[Result]) -> str:
    """The text of a schema file."""
    return json.dumps(schema(kind), indent=2, ensure_ascii=False) + "\n"


def main(folder: Path) -> None:
    """Write all schemas, and remove those of commands that are gone."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.json"):
        old.unlink()
    for name, kind in documents().items():
        (folder / f"{name}.json").write_text(text(kind), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
