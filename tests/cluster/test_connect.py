"""Connecting to Ray: one of our own that leaves nothing behind, and others that must fit."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import connect
from sisa.config import ExecutorSection
from sisa.errors import BusyError, ConfigurationError, WorkerError
from sisa.executor import ProcessExecutor

from .. import shards
from ..conftest import SECRET

pytestmark = pytest.mark.ray

WAIT = "RAY_gcs_server_port_wait_time_s"
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def clean() -> dict[str, str]:
    """This process's environment without what its own Ray and the tests have set."""
    return {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "SISA_", "PYTHON"))}


def drive(
    folder: Path, outputs: Path, address: str | None = None, **environment: str
) -> dict[str, Any]:
    """Train in a process of its own."""
    outputs.mkdir(exist_ok=True)
    section = json.dumps({"address": address, "workers": 2})
    done = subprocess.run(
        [
            *(sys.executable, str(Path(__file__).with_name("driver.py"))),
            *(shards.__file__, str(folder), str(outputs), section),
        ],
        env=clean() | {"SISA_SECRET_KEY": SECRET} | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def with_decoy(folder: Path) -> Path:
    """A folder with a package that is called as one of ours."""
    (folder / "cluster").mkdir(parents=True)
    (folder / "cluster" / "__init__.py").write_text("raise ImportError('not ours')")
    return folder


def expected(folder: Path, outputs: Path) -> list[str]:
    """The digests of the driver's recipe, from a child process."""
    outputs.mkdir()
    slow = shards.recipe("acting:Model", {"act": "sleep"})
    return sorted(shards.Bench(folder, outputs).train(ProcessExecutor(2), slow).values())


def test_a_ray_of_our_own_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = with_decoy(tmp_path / "workspace")
    long = tmp_path / ("long" * 20)
    long.mkdir()
    home = tmp_path / "home"
    answer = drive(folder, tmp_path / "outputs", TMPDIR=str(long), HOME=str(home))
    assert answer["error"] is None
    assert answer["digests"] == expected(folder, tmp_path / "more")
    (session,) = answer["sessions"]
    assert not Path(session).parent.exists()
    assert not list(long.glob("sisa-*"))
    assert not home.exists()
    assert answer["environment_kept"]
    assert answer["handler_kept"]
    assert not answer["connected"]


def free_port() -> int:
    """A port outside the range that Ray gives to its workers."""
    for port in range(23000 + os.getpid() % 1000, 26000):
        with socket.socket() as taken, contextlib.suppress(OSError):
            taken.bind(("", port))
            return port
    raise AssertionError("there is no free port")


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A running Ray whose processes see an empty folder where a store is.

    Yields:
        Its address and the folder.
    """
    folder = tmp_path_factory.mktemp("blind")
    store, _, _ = shards.ingested(folder)
    hide = 'mount -t tmpfs none "$0" && exec "$@"'
    alone = ["unshare", "--mount", "sh", "-c", hide, str(store.root)]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mount namespaces are not permitted here")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ray-") as temporary:
        head = subprocess.Popen(
            [
                *alone,
                *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"),
                *(f"--port={port}", f"--temp-dir={temporary}", "--num-cpus=2"),
                *("--include-dashboard=false", "--disable-usage-stats"),
            ],
            env={n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "SISA_"))}
            | TOKEN,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            log = Path(temporary, "session_latest", "logs", "raylet.out")
            for _ in range(600):
                if head.poll() is not None:
                    pytest.skip("no second Ray can be started here")
                if log.exists() and b"Raylet of id" in log.read_bytes():  # its node is registered
                    break
                time.sleep(0.2)
            yield f"127.0.0.1:{port}", folder
        finally:
            head.terminate()  # with --block it ends what it has started
            head.wait(30)


def test_a_store_that_the_nodes_do_not_see_is_refused(
    blind: tuple[str, Path], tmp_path: Path
) -> None:
    address, folder = blind
    answer = drive(folder, tmp_path / "outputs", address, **TOKEN)
    code, message = answer["error"]
    assert code == ConfigurationError.exit_code
    assert "1 of 1 nodes of Ray cannot see the store folder" in message
    assert not list((tmp_path / "outputs").rglob("*.mark"))
    assert not list(folder.rglob("*.mark"))


SURVEY = """
import sys
from pathlib import Path
from cluster.executor import RayExecutor
from data_index.storage import Store
from sisa.config import ExecutorSection
folder = Path(sys.argv[1])
found = RayExecutor(ExecutorSection(address=sys.argv[2]), folder).survey(Store(sys.argv[3]))
print([node.sees for node in found], {"numpy", "torch"} <= set(found[0].environment))
"""


def test_a_survey_tells_which_nodes_see_the_store(blind: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = blind
    for store, seen in ((folder / "store", False), (tmp_path / "seen", True)):
        done = subprocess.run(
            [sys.executable, "-c", SURVEY, str(folder), address, str(store)],
            env=clean() | TOKEN | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.splitlines()[-1:] == [f"[{seen}] True"], done.stderr
        assert not list(store.rglob("*.mark"))


def test_a_ray_that_was_running_trains_and_goes_on_running(
    blind: tuple[str, Path], tmp_path: Path
) -> None:
    address, _ = blind
    folder = with_decoy(tmp_path / "workspace")
    answer = drive(folder, tmp_path / "outputs", address, **TOKEN)
    assert answer["error"] is None
    assert answer["digests"] == expected(folder, tmp_path / "more")
    assert answer["environment_kept"]
    assert answer["handler_kept"]
    socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=5).close()


@pytest.mark.parametrize("token", [{}, TOKEN | {"RAY_AUTH_TOKEN": "f" * 64}], ids=["none", "wrong"])
def test_a_ray_that_does_not_know_us_is_named_as_the_reason(
    blind: tuple[str, Path], tmp_path: Path, token: dict[str, str]
) -> None:
    address, folder = blind
    answer = drive(folder, tmp_path / "outputs", address, HOME=str(tmp_path), **token)
    code, message = answer["error"]
    assert code == ConfigurationError.exit_code
    assert "does not accept our token" in message
    assert answer["seconds"] < 150  # Ray's client would try for minutes


@contextlib.contextmanager
def silent() -> Iterator[str]:
    """The address of something that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def knock(address: str) -> None:
    connect._knock(address, "")


def test_where_nothing_listens_the_caller_is_told_at_once() -> None:
    with silent() as address:
        pass
    started = time.monotonic()
    with pytest.raises(BusyError, match=f"No Ray answers at {address}"):
        knock(address)
    assert time.monotonic() - started < connect.PATIENCE


def test_where_something_else_listens_the_caller_is_told_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connect, "PATIENCE", 1.0)
    with silent() as address, pytest.raises(BusyError, match=f"No Ray answers at {address}"):
        knock(address)


@pytest.mark.parametrize(
    ("failures", "tries"),
    [
        pytest.param(["The current node timed out during startup."], 2, id="slow once"),
        pytest.param(["Timed out."] * 9, 2, id="always slow"),
        pytest.param(["No space is left."], 1, id="broken"),
    ],
)
def test_a_busy_machine_may_start_ray_at_the_next_try(
    failures: list[str], tries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[str] = []

    def init(**_: object) -> None:
        waits.append(os.environ[WAIT])
        if failures:
            raise RuntimeError(failures.pop(0))

    monkeypatch.setattr(connect.ray, "init", init)
    monkeypatch.setattr(connect.ray, "shutdown", lambda: None)
    monkeypatch.delenv(WAIT, raising=False)
    with connect._settings_kept():
        refused = len(failures) != 1 or tries == 1
        with pytest.raises(WorkerError) if refused else contextlib.nullcontext():
            connect._start(ExecutorSection(workers=1), tmp_path)
    assert waits == ["120"] * tries


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "http://head"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="is no address of Ray"):
        knock(address)


def test_a_shard_too_large_for_any_node_is_refused(local_ray: Path, tmp_path: Path) -> None:
    from cluster.executor import RayExecutor

    executor = RayExecutor(ExecutorSection(workers=1, cpus_per_shard=1000), tmp_path)
    (tmp_path / "outputs").mkdir()
    with pytest.raises(ConfigurationError, match="No node of Ray has the 1000 CPUs"):
        shards.Bench(tmp_path, tmp_path / "outputs").train(executor, shards.recipe())


def test_what_a_killed_process_left_behind_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "_base", lambda name: tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    workspace = tmp_path / "workspace"
    with connect._temporary(workspace) as used, connect._temporary(workspace) as other:
        left = tmp_path / f"{used.name}-left"
        left.mkdir()
        (left / "lock").touch()
        with connect._temporary(tmp_path / "another"):
            assert left.exists()
        with connect._temporary(workspace):
            assert not left.exists()
            assert used.exists()
            assert other.exists()
    assert not list(tmp_path.iterdir())
