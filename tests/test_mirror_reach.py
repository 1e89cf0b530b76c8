"""What MLflow holds is told by its place, and nothing waits for a server that is silent."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from sisa import mirror_reach
from sisa.config import Tracking
from sisa.results import Finding


def found(uri: str | None, folder: Path, experiment: str = "sisa") -> list[Finding]:
    section = Tracking(uri=uri, experiment=experiment)
    return list(mirror_reach.findings(section, folder))


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        (None, "none"),
        ("sqlite:///mlflow.db", "local"),
        ("mlruns", "folder"),
        ("file:///tmp/mlruns", "folder"),
        ("postgresql://user:secret-zq@db/mlflow", "database"),
        ("http://127.0.0.1:1", "server"),
        ("databricks://profile", "server"),
    ],
)
def test_the_kind_of_place_follows_from_the_uri(uri: str | None, kind: str) -> None:
    assert mirror_reach.kind(Tracking(uri=uri)) == kind


@pytest.mark.parametrize("uri", [None, "sqlite:///mlflow.db"])
def test_a_mirror_in_the_workspace_can_be_purged(uri: str | None, tmp_path: Path) -> None:
    assert found(uri, tmp_path) == []


def test_a_folder_keeps_what_it_marks_as_deleted(tmp_path: Path) -> None:
    (told,) = found("mlruns", tmp_path)
    assert told.severity == "warning" and "of retired generations stay there" in told.message


def test_rows_of_a_database_stay_in_its_backups(tmp_path: Path) -> None:
    (told,) = found("postgresql://user:secret-zq@db/mlflow", tmp_path)
    assert told.severity == "info" and "//db/mlflow" in told.message
    assert "secret-zq" not in told.model_dump_json()


@pytest.fixture(scope="module")
def real_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database that MLflow itself made: one experiment inside, two outside."""
    mlflow = pytest.importorskip("mlflow")
    folder = tmp_path_factory.mktemp("mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    client.create_experiment("inside", (folder / "mlartifacts").as_uri())
    client.create_experiment("outside", "file:///somewhere/else")
    client.create_experiment("bucket", "s3://bucket/artefacts")
    return folder


@pytest.mark.slow
def test_artefacts_outside_of_the_workspace_are_a_warning(real_database: Path) -> None:
    uri = "sqlite:///mlflow.db"
    assert found(uri, real_database, "inside") == []
    assert found(uri, real_database, "not there yet") == []
    (outside,) = found(uri, real_database, "outside")
    assert outside.severity == "warning" and "file:///somewhere/else" in outside.message
    (bucket,) = found(uri, real_database, "bucket")
    assert bucket.severity == "warning" and "delete markers" in bucket.message


@contextmanager
def server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """Something on a free port that answers as told."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            return

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}"
    finally:
        running.shutdown()
        running.server_close()


def test_a_server_cannot_drop_rows_and_says_where_artefacts_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_reach, "PATIENCE", 60.0)  # it answers at once, when it is let

    def answer(handler: BaseHTTPRequestHandler) -> None:
        at = urlsplit(handler.path)
        assert at.path == "/api/2.0/mlflow/experiments/get-by-name"
        name = parse_qs(at.query)["experiment_name"][0]
        body = json.dumps({"experiment": {"artifact_location": f"s3://bucket/{name}"}}).encode()
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(body)

    with server(answer) as uri:
        rows, artefacts = found(uri, tmp_path, "digits")
    assert rows.severity == "warning" and "no client can drop its rows" in rows.message
    assert artefacts.severity == "warning" and "s3://bucket/digits" in artefacts.message


def test_no_server_is_waited_for_longer_than_two_seconds(tmp_path: Path) -> None:
    with server(lambda handler: time.sleep(60)) as uri, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        for at in (uri, nobody, "http://no-such-host.invalid"):
            started = time.monotonic()
            rows, silent = found(at, tmp_path)
            assert time.monotonic() - started < 20  # the two, on a busy machine
            assert rows.severity == "warning" and silent.severity == "info"
            assert "did not say" in silent.message
