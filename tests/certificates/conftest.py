"""A workspace with three certificates, and copies of it to change."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sisa.workspace import Workspace

from .helpers import Issued, made, opened


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Issued:
    folder = tmp_path_factory.mktemp("issued") / "ws"
    with made(folder) as workspace:
        for number in (1, 2, 3):
            assert workspace.forget(subjects=[f"person-{number}"]).status == "certified"
        assert workspace.verify(replay=False).exact is None
        return Issued(folder, workspace.context.signing.signer())


@pytest.fixture
def copy(issued: Issued, tmp_path: Path) -> Iterator[Workspace]:
    """A copy of it to change."""
    shutil.copytree(issued.folder, tmp_path / "ws")
    with opened(tmp_path / "ws") as workspace:
        yield workspace
