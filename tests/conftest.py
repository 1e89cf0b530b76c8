"""What several test modules share: one Ray and one MLflow server for the whole session.

Under `-n 2 --dist loadfile`, as `make test` runs them, each of two processes has its own, and the
tests of a file stay together.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sisa import outbox

SECRET = "5ec2e7" * 10 + "0000"
"""A workspace secret that no worker may get to see."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first, so that neither of two processes is left alone with it at the end."""
    items.sort(key=lambda item: "torture" not in item.nodeid)


@pytest.fixture(scope="session", autouse=True)
def patient() -> Iterator[None]:
    """On a busy machine MLflow takes longer to be loaded than a user is to wait for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outbox, "BUDGET", 400.0)
        yield


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


@pytest.fixture(scope="session")
def mlflow_starting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server on its way up."""
    folder = tmp_path_factory.mktemp("server")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(port), "--backend-store-uri", "sqlite:///server.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | quiet,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the group that it leads: itself and its worker
        process.wait()


@pytest.fixture
def mlflow_server(mlflow_starting: str) -> str:
    """Its address, once it answers."""
    for _ in range(1800):
        try:
            with urllib.request.urlopen(f"{mlflow_starting}/health", timeout=5):
                return mlflow_starting
        except OSError:
            time.sleep(0.2)
    raise TimeoutError("the server does not come up")
