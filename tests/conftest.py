"""What several test modules share: one Ray for the whole session."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

SECRET = "5ec2e7" * 10 + "0000"
"""A workspace secret that no worker may get to see."""


@pytest.fixture(scope="session")
def local_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Ray with two processors, started while a secret was in the environment.

    Yields:
        Its temporary folder.
    """
    from sisa.config import ExecutorSection

    ray = pytest.importorskip("ray")
    connect = importlib.import_module("cluster.connect").connect
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:  # for the start alone, not for other tests
            patch.setenv("SISA_SECRET_KEY", SECRET)
            section, folder = ExecutorSection(workers=2), tmp_path_factory.mktemp("ray")
            connection = stack.enter_context(connect(section, folder))
        assert connection.own
        node = ray._private.worker._global_node
        yield Path(node.get_session_dir_path())
