"""A child process that does jobs: one JSON line in, one out; it ends when its parent does."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading

from sisa.executor import attempt
from sisa.shard import ShardJob


def main() -> None:
    """Do jobs from standard input until it closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what user code prints must not reach the answers
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    while True:
        job = ShardJob.from_json(json.loads(jobs.get()))
        answers.write(json.dumps({"error": attempt(job)}) + "\n")
        answers.flush()


def _listen(jobs: queue.SimpleQueue[str]) -> None:
    """Queue jobs; the end of input means that the parent is gone, so nothing is worth finishing."""
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
