"""Folders of artefacts in MLflow, and what users attach to runs: deleted, and listed again."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from sisa.tracked import SHARD


@dataclass(frozen=True)
class Beside:
    """Ids of logged models and traces that belong to runs, none of which a delivery makes.

    MLflow makes them where somebody evaluates a mirrored model, or traces it.
    """

    models: tuple[str, ...]
    traces: tuple[str, ...]
    experiment: str | None

    @classmethod
    def of(cls, client: Any, experiment: Any, runs: Iterable[Any]) -> Beside:
        """Find them; nested runs have none."""
        if experiment is None:
            return cls((), (), None)
        place = [experiment.experiment_id]
        models = partial(client.search_logged_models, place)
        traces = partial(client.search_traces, None, locations=place, include_spans=False)
        own = [run.info.run_id for run in runs if SHARD not in run.data.tags]
        return cls(
            tuple(m.model_id for run in own for m in pages(models, f"source_run_id = '{run}'")),
            tuple(
                t.info.trace_id for run in own for t in pages(traces, f"attribute.run_id = '{run}'")
            ),
            place[0],
        )

    def delete_traces(self, client: Any) -> None:
        """Their rows; a server does it."""
        if self.traces:
            client.delete_traces(self.experiment, trace_ids=list(self.traces))


@dataclass(frozen=True)
class Artefacts:
    """One folder of artefacts, and the names of what is to go from it.

    A run has a folder there that is named as itself; what is beside runs is in `models/` and
    `traces/`.
    """

    root: str
    names: frozenset[str]
    tracking: str | None

    def delete(self) -> int:
        """Delete all that lies below the names. Returns how many there were."""
        found = list(self.there())
        for name in found:
            self._repository(name).delete_artifacts()
        return len(found)

    def there(self) -> Iterator[str]:
        """List the names that are there."""
        for folder in sorted({name.rpartition("/")[0] for name in self.names}):
            yield from sorted(self._list(folder) & self.names)

    def _list(self, folder: str) -> set[str]:
        return {info.path for info in self._repository().list_artifacts(folder or None)}

    def _repository(self, name: str = "") -> Any:
        registry = importlib.import_module("mlflow.store.artifact.artifact_repository_registry")
        uris = importlib.import_module("mlflow.utils.uri")
        uri = uris.append_to_uri_path(self.root, name) if name else self.root
        return registry.get_artifact_repository(uri, tracking_uri=self.tracking)


def pages(search: Callable[..., Any], what: str) -> Iterator[Any]:
    """All that a search of MLflow's client finds."""
    token: str | None = ""
    while token is not None:
        page = search(what, page_token=token or None)
        yield from page
        token = page.token or None
