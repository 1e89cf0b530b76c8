"""A small share of every campaign, and that each of them can fail. In full: `make torture`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from .controls import CONTROLS
from .points import POINTS, uncovered
from .rules import RULES, unnoticed

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="forks, and looks into /proc"),
    pytest.mark.slow,
    pytest.mark.timeout(1800),  # all campaigns are one fixture, and long on a busy machine
]


@pytest.fixture(scope="module")
def done() -> dict[str, Any]:
    """Figures of all campaigns; the forks have a process of their own, which has no thread."""
    call = [sys.executable, "-m", "tests.torture", "--small", "--controls"]
    ended = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    figures: dict[str, Any] = {}
    for line in ended.stdout.splitlines():
        figures |= json.loads(line)
    return figures


def test_a_share_of_every_campaign_breaks_nothing(done: dict[str, Any]) -> None:
    assert done["kills"]["kills"] >= 10
    assert done["faults"]["injections"] >= 10
    assert done["mutations"]["mutations"] > 150
    assert done["rules"]["cuts of the code as it is"] >= 5
    assert done["crowd"]["requests"] == 20 and done["crowd"]["distinct"] == 14
    assert done["histories"]["compared"] >= 20
    assert {name: done[name]["broken"] for name in CONTROLS} == dict.fromkeys(CONTROLS, 0)


@pytest.mark.parametrize("name", CONTROLS)
def test_every_campaign_reports_broken_code(name: str, done: dict[str, Any]) -> None:
    assert done[f"control of {name}"]


def test_there_are_more_than_forty_named_points() -> None:
    assert len({p.name for p in POINTS}) == len(POINTS) > 40


def test_a_step_without_a_line_is_told() -> None:
    assert uncovered(Counter({("rename", "elsewhere"): 1, ("commit", "publish"): 3})) == {
        ("rename", "elsewhere")
    }


def test_a_rule_that_nobody_misses_is_told() -> None:
    rule = next(r for r in RULES if not r.hint)
    line = {"rule": rule.name, "noticed": [], "broken": []}
    assert unnoticed([line]) == [rule.name]
    assert unnoticed([line, line | {"noticed": ["verify_passes"]}]) == []
