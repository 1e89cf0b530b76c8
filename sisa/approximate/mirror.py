"""An approximate run in MLflow, marked so that nobody takes it for an exact one."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sisa import tracking
from sisa.approximate.statement import Statement
from sisa.errors import SisaError

EXPERIMENT = "sisa-approximate"


def probe(uri: str) -> None:
    """See that something listens, before hours are spent.

    Raises:
        SisaError: Nothing does.
    """
    try:
        tracking.probe(uri)
    except OSError as error:
        raise SisaError(f"{tracking.why(uri, error)}.", "Start it, or name another one.") from None


def log(
    uri: str,
    experiment: str,
    stated: Statement,
    file: Path,
    digest: str,
    losses: Mapping[str, Sequence[float]],
) -> str:
    """Log a run: settings, losses step by step, evidence, and the statement itself.

    Args:
        uri: Where MLflow is; a relative SQLite file is in the current folder.
        experiment: Its name; it is made if needed.
        stated: What the statement says.
        file: The statement.
        digest: sha256 of the statement, hex.
        losses: By name, one value a step.

    Returns:
        Id of the run.
    """
    mlflow = importlib.import_module("mlflow")
    entities = mlflow.entities
    client = tracking.connect(mlflow, uri, Path.cwd())
    said, now = stated.predicate, int(time.time() * 1000)
    run = client.create_run(
        _experiment(client, experiment),
        tags={
            "sisa.exactness": said.exactness,
            "sisa.method": said.method,
            "sisa.verdict": said.verdict,
            "sisa.statement_sha256": digest,
        },
        run_name=said.method,
    ).info.run_id
    points = [
        entities.Metric(name, value, now, step)
        for name, values in losses.items()
        for step, value in enumerate(values, 1)
    ]
    single = {
        "seconds": said.work.seconds,
        "peak_bytes": float(said.work.peak_bytes),
        "steps": float(said.work.steps),
        "forget_items": float(said.forget.items),
        **dict(numbers("evidence", said.evidence.model_dump())),
    }
    points += [entities.Metric(name, value, now, 0) for name, value in single.items()]
    params = [entities.Param(name, str(value)) for name, value in said.settings.items()]
    client.log_batch(run, points, params)
    client.log_artifact(run, str(file))
    client.set_terminated(run)
    return str(run)


def numbers(prefix: str, value: Any) -> Iterator[tuple[str, float]]:
    """Numbers of nested parts by their dotted name; what was not evaluated has none."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from numbers(f"{prefix}.{name}", inner)
    elif isinstance(value, int | float):
        yield prefix, float(value)


def _experiment(client: Any, name: str) -> str:
    """Id of the experiment, whose artefacts are in the current folder unless a server decides."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    remote = client.tracking_uri.startswith(("http", "databricks"))
    own = None if remote else tracking.own_artefacts(Path.cwd())
    return str(client.create_experiment(name, own))
