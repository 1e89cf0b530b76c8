"""Requests one after the other on one model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sisa.approximate import sequence, statement
from sisa.approximate.request import Request
from sisa.cli import main
from sisa.errors import DataError, UsageError

from .shop import fits, qa, write

SETTINGS = ("epochs=4", "lr=1e-3", "items_per_batch=3")


@pytest.fixture
def parts(shop: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The items to forget, in two requests."""
    rows = [qa(i) for i in range(6)]
    return write(tmp_path / "a.jsonl", rows[:3]), write(tmp_path / "b.jsonl", rows[3:])


def asked(shop: Path, tmp_path: Path, **changes: Any) -> Request:
    plain = Request(
        "npo",
        shop / "forget.jsonl",
        shop / "base",
        tmp_path / "all",
        shop / "retain.jsonl",
        evidence=False,
        settings=SETTINGS,
    )
    return replace(plain, **changes)


def call(
    shop: Path, tmp_path: Path, parts: Sequence[Path], *words: str, output: str = "json"
) -> Result:
    given = ["unlearn", "sequence", "npo", "--model", str(shop / "base")]
    given += ["--retain", str(shop / "retain.jsonl"), "--out", str(tmp_path / "all")]
    given += [word for part in parts for word in ("--forget", str(part))]
    given += [word for text in SETTINGS for word in ("--set", text)]
    return CliRunner().invoke(main, [*given, "--no-evidence", "--output", output, *words])


def test_each_request_starts_where_the_one_before_ended(
    shop: Path, tmp_path: Path, parts: tuple[Path, Path]
) -> None:
    done = call(shop, tmp_path, parts, "--yes")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    fits("unlearn-sequence", document)
    first, second = document["requests"]
    assert len(first["forgotten"]) == 1 and len(second["forgotten"]) == 2
    assert max(first["forgotten"] + second["forgotten"]) < second["kept"] <= 1
    out = tmp_path / "all"
    said = [statement.read((out / n / statement.FILE).read_bytes()) for n in ("01", "02")]
    assert said[0].predicate.base == statement.base(shop / "base")
    assert said[1].predicate.base == statement.base(out / "01")
    table = json.loads((out / sequence.FILE).read_text())
    assert [row["forgotten"] for row in table] == [first["forgotten"], second["forgotten"]]


def test_what_is_done_is_not_done_again(
    shop: Path, tmp_path: Path, parts: tuple[Path, Path]
) -> None:
    request = asked(shop, tmp_path)
    whole = sequence.run(request, parts)
    steps: list[int] = []
    again = sequence.run(request, parts, report=lambda metrics, step: steps.append(step))
    assert steps == []
    assert [r.forgotten for r in again.requests] == [r.forgotten for r in whole.requests]
    (tmp_path / "all" / "02").rename(tmp_path / "second")
    sequence.run(request, parts, report=lambda metrics, step: steps.append(step))
    assert len(steps) == 4
    folders = (tmp_path / "second", tmp_path / "all" / "02")
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]


def test_another_sequence_is_not_taken_for_it(
    shop: Path, tmp_path: Path, parts: tuple[Path, Path]
) -> None:
    sequence.run(asked(shop, tmp_path), parts[:1])
    other = asked(shop, tmp_path, settings=("epochs=1",))
    with pytest.raises(UsageError, match="another sequence"):
        sequence.run(other, parts[:1])
    with pytest.raises(UsageError, match="another sequence"):
        sequence.run(asked(shop, tmp_path), parts[1:])
    kept = tmp_path / "kept.jsonl"
    kept.write_text((shop / "retain.jsonl").read_text().partition("\n")[2])
    with pytest.raises(UsageError, match="another sequence"):
        sequence.run(asked(shop, tmp_path, retain=kept), parts[:1])
    assert len(sequence.run(asked(shop, tmp_path), parts[:1]).requests) == 1


def test_an_adapter_is_trained_on(shop: Path, tmp_path: Path, parts: tuple[Path, Path]) -> None:
    request = asked(shop, tmp_path, settings=(*SETTINGS, "lora_rank=2"))
    sequence.run(request, parts)
    assert (tmp_path / "all" / "02" / "adapter_model.safetensors").is_file()
    again = sequence.run(request, parts)
    assert len(again.requests) == 2


def test_an_item_of_two_requests_is_refused(
    shop: Path, tmp_path: Path, parts: tuple[Path, Path]
) -> None:
    with pytest.raises(DataError, match="3 of the items of request 2"):
        sequence.run(asked(shop, tmp_path), (parts[0], parts[0]))
    assert not (tmp_path / "all").exists()


def test_a_dry_run_changes_nothing(shop: Path, tmp_path: Path, parts: tuple[Path, Path]) -> None:
    before = sorted(tmp_path.iterdir())
    done = call(shop, tmp_path, parts, "--dry-run")
    document = json.loads(done.stdout)
    fits("unlearn-sequence", document)
    assert done.exit_code == 0 and document["status"] == "planned" and document["requests"] == []
    assert sorted(tmp_path.iterdir()) == before


def test_a_step_of_two_requests_is_not_taken_back_twice(
    shop: Path, tmp_path: Path, parts: tuple[Path, Path]
) -> None:
    request = asked(shop, tmp_path, method="amnesiac", log=tmp_path / "log", settings=())
    with pytest.raises(UsageError, match="taken back twice"):
        sequence.run(request, parts)
    assert not (tmp_path / "all").exists()


def test_what_stands_beside_each_item_is_of_one_request(
    shop: Path, tmp_path: Path, parts: tuple[Path, Path]
) -> None:
    with pytest.raises(UsageError, match="of one request alone"):
        sequence.run(asked(shop, tmp_path, wrong=(parts[1],)), parts)
    assert not (tmp_path / "all").exists()


def test_a_person_reads_what_is_still_known(
    shop: Path, tmp_path: Path, parts: tuple[Path, Path]
) -> None:
    done = call(shop, tmp_path, parts, "--yes", output="text")
    table = json.loads((tmp_path / "all" / "sequence.json").read_text())
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[1][-4:] == ["forget", "1", "forget", "2"]
    assert rows[2][-1] == f"{table[0]['forgotten'][0]:.3f}"
    assert rows[3][-2:] == [f"{value:.3f}" for value in table[1]["forgotten"]]
    assert rows[3][-3] == f"{table[1]['kept']:.3f}"
