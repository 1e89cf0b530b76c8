"""What is printed and documented of methods and settings is what the code has."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from click.testing import CliRunner

from sisa.approximate import catalogue
from sisa.approximate.loop import Settings
from sisa.approximate.methods import METHODS
from sisa.approximate.request import Choices
from sisa.cli import main

from .shop import fits

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "approximate.md"


def test_the_catalogue_is_the_registry() -> None:
    assert catalogue.FILE.read_text("utf-8") == catalogue.text(catalogue.registered()), (
        "run `make methods`"
    )
    assert [card.name for card in catalogue.cards()] == list(METHODS)


def test_the_page_has_the_table_of_the_registry() -> None:
    page = PAGE.read_text("utf-8")
    assert page.count(catalogue.BEGIN) == page.count(catalogue.END) == 1
    assert catalogue.with_table(page, catalogue.registered()) == page, "run `make methods`"
    assert catalogue.with_table(page, catalogue.registered()[1:]) != page


def plain(value: object) -> str:
    """A default as the page has it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(value).replace("\n", "\\n")


def test_the_page_has_every_setting_with_its_default() -> None:
    fields = [*dataclasses.fields(Settings), *dataclasses.fields(Choices)]
    expected = {f.name: plain(f.default) for f in fields}
    rows = [line.split(" | ") for line in PAGE.read_text("utf-8").splitlines()]
    cells = {r[0].removeprefix("| ").strip("`"): r[1].strip("`") for r in rows if len(r) == 3}
    assert {name: cells.get(name) for name in expected} == expected


def test_the_list_has_what_each_method_needs_and_costs() -> None:
    done = CliRunner().invoke(main, ["unlearn", "list", "--output", "json"])
    assert done.exit_code == 0
    fits("unlearn-list", json.loads(done.stdout))
    listed = {m["name"]: m for m in json.loads(done.stdout)["methods"]}
    assert list(listed) == list(METHODS)
    text = CliRunner().invoke(main, ["unlearn", "list"]).stdout
    for name, method in METHODS.items():
        assert listed[name]["cost"] == method.cost and method.cost in text
        assert listed[name]["defaults"] == dict(method.defaults)
        assert len(listed[name]["needs"]) == len(method.needs)
        assert f"\n{name}\n" in f"\n{text}" and method.source in text


def test_every_method_has_a_command_with_help() -> None:
    for name in METHODS:
        done = CliRunner().invoke(main, ["unlearn", name, "--help"])
        assert done.exit_code == 0 and f"sisa unlearn {name} --forget" in " ".join(
            done.stdout.split()
        )
