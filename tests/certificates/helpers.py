"""Workspaces with certificates, and their parts."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from data_index.envelope import Signer
from sisa import certificate
from sisa.executor import attempt, raise_error
from sisa.shard import ShardJob
from sisa.workspace import Workspace

ENVIRONMENT = {"SISA_SECRET_KEY": "5a" * 32}
SETTINGS = ("runtime.tracking.uri=null", "runtime.executor.kind=process")
COLUMNS = {"record_id": "id", "subject_id": "who", "target": "y"}
CHOICES = {"shards": 2, "slices": 2, "epochs": 1, "learner": "logistic"}

Body = dict[str, Any]
OTHER = Signer(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
"""A key that nobody trusts."""


class Inline:
    """Trains in this process."""

    def run(self, jobs: Sequence[ShardJob], tick: Callable[[], None]) -> Iterator[int]:
        for job in jobs:
            error = attempt(job)
            if error:
                raise_error(error)
            tick()
            yield job.shard

    def close(self) -> None:
        pass


def table(rows: int = 240) -> pa.Table:
    rng = np.random.default_rng(0)
    age = rng.normal(50, 9, rows)
    who = [f"person-{i % 30}" for i in range(rows)]
    label = (age > 50).astype(np.int64)
    return pa.table(
        {"id": [f"record-{i}" for i in range(rows)], "who": who, "age": age, "y": label}
    )


def made(folder: Path, **choices: Any) -> Workspace:
    """A trained workspace."""
    source = folder.with_suffix(".parquet")
    pq.write_table(table(), source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SISA_SECRET_KEY", ENVIRONMENT["SISA_SECRET_KEY"])
        Workspace.init(folder, source, **COLUMNS, **(CHOICES | choices))
    workspace = opened(folder)
    workspace.ingest()
    workspace.train()
    return workspace


def opened(folder: Path, *settings: str, **environment: str) -> Workspace:
    found = ENVIRONMENT | environment
    workspace = Workspace.open(folder, [*SETTINGS, *settings], exact=True, environment=found)
    workspace.context = replace(workspace.context, make_executor=Inline)
    return workspace


@dataclass(frozen=True)
class Issued:
    """A workspace with three certificates; nothing in it is changed."""

    folder: Path
    signer: Signer

    def path(self, place: int) -> Path:
        return self.folder / "store" / certificate.path_of(place)

    def data(self, place: int = 2) -> bytes:
        return self.path(place).read_bytes()

    @property
    def trusted(self) -> dict[str, Any]:
        return {self.signer.key_id: self.signer.public}


def parts(data: bytes) -> tuple[Body, bytes, bytes]:
    """Envelope, payload and signature."""
    body = json.loads(data)
    return body, base64.b64decode(body["payload"]), base64.b64decode(body["signatures"][0]["sig"])


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def file(workspace: Workspace, place: int) -> Path:
    return workspace.context.store.path(certificate.path_of(place))


def check_of(workspace: Workspace) -> bool | None:
    """What `sisa verify` says of the certificates."""
    (found,) = (c for c in workspace.verify(replay=False).checks if c.name == "certificates")
    return found.passed
