"""Trains the digits in a process of its own, and prints what became of it as JSON.

    python driver.py SHARDS FOLDER OUTPUTS SECTION

SHARDS is the path of tests/shards.py: the folder `tests` must not be on the import path, where its
folder `cluster` would be taken for the package.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def main(shards_file: str, folder: str, outputs: str, section: str) -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("shards", shards_file)
    assert spec is not None and spec.loader is not None
    shards = importlib.util.module_from_spec(spec)
    sys.modules["shards"] = shards
    spec.loader.exec_module(shards)

    import ray

    from cluster.executor import RayExecutor
    from sisa.config import ExecutorSection
    from sisa.errors import SisaError

    sessions: set[str] = set()
    executor = shards.Counted(
        RayExecutor(ExecutorSection(**json.loads(section)), Path(folder)),
        lambda: sessions.add(ray._private.worker._global_node.get_session_dir_path()),
    )
    before, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    bench = shards.Bench(Path(folder), Path(outputs))
    slow = shards.recipe("acting:Model", {"act": "sleep"})
    answer: dict[str, Any] = {"error": None, "digests": []}
    started = time.monotonic()
    try:
        answer["digests"] = sorted(bench.train(executor, slow).values())
    except SisaError as error:
        answer["error"] = [error.exit_code, str(error)]
    return answer | {
        "seconds": time.monotonic() - started,
        "sessions": sorted(sessions),
        "environment_kept": dict(os.environ) == before,
        "handler_kept": signal.getsignal(signal.SIGTERM) == handler,
        "connected": ray.is_initialized(),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
