"""Steps are heard while they are taken, each once, and whole."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cluster import steps


def until(true: Callable[[], bool]) -> None:
    """Wait for what another thread does; the test's own limit ends a wait in vain."""
    while not true():
        time.sleep(0.01)


def test_a_step_is_heard_before_the_next_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "PAUSE", 0.01)
    file, heard = tmp_path / "new" / "steps.jsonl", list[tuple[Mapping[str, float], int]]()
    with steps.followed(file, lambda metrics, step: heard.append((metrics, step))):
        for step in (1, 2, 3):
            steps.tell(file, {"loss": step / 8}, step)
            until(lambda: len(heard) == step)  # noqa: B023 - it is called at once
    assert heard == [({"loss": step / 8}, step) for step in (1, 2, 3)]


def test_all_are_heard_by_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "PAUSE", 600)
    file, heard = tmp_path / "steps.jsonl", list[int]()
    with steps.followed(file, lambda _, step: heard.append(step)):
        for step in range(200):
            steps.tell(file, {}, step)
    assert heard == list(range(200))


def test_half_a_line_is_none_yet(tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    reader, line = steps._Reader(file), json.dumps([{"loss": 0.5}, 1]).encode() + b"\n"
    assert list(reader.new()) == []
    file.write_bytes(line + line[:5])
    assert list(reader.new()) == [({"loss": 0.5}, 1)]
    file.write_bytes(line + line)
    assert list(reader.new()) == [({"loss": 0.5}, 1)]


def test_a_writer_that_died_within_a_line_leaves_the_next_whole(tmp_path: Path) -> None:
    file, heard = tmp_path / "steps.jsonl", list[int]()
    with steps.followed(file, lambda _, step: heard.append(step)):
        steps.tell(file, {}, 1)
        with file.open("a") as lines:
            lines.write('\n[{"loss": 0.')
        steps.tell(file, {}, 2)
        assert file.stat().st_mode & 0o777 == 0o600
    assert heard == [1, 2]
    assert not file.exists()


def test_what_an_earlier_run_told_is_not_heard(tmp_path: Path) -> None:
    file, heard = tmp_path / "steps.jsonl", list[int]()
    steps.tell(file, {}, 7)
    with steps.followed(file, lambda _, step: heard.append(step)):
        steps.tell(file, {}, 8)
    assert heard == [8]


def test_what_the_report_raises_is_raised_at_the_end(tmp_path: Path) -> None:
    def report(metrics: Mapping[str, float], step: int) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError), steps.followed(tmp_path / "steps.jsonl", report):
        steps.tell(tmp_path / "steps.jsonl", {}, 1)


def test_the_error_of_the_run_comes_first(tmp_path: Path) -> None:
    def report(metrics: Mapping[str, float], step: int) -> None:
        raise BrokenPipeError

    with pytest.raises(ZeroDivisionError), steps.followed(tmp_path / "steps.jsonl", report):
        steps.tell(tmp_path / "steps.jsonl", {}, 1)
        raise ZeroDivisionError
