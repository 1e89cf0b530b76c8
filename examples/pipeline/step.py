"""The training step in Python: the first result that is not sound gives the exit code.

python step.py WORKSPACE
"""

from __future__ import annotations

import sys

from sisa import Workspace
from sisa.errors import SisaError


def step(folder: str) -> int:
    """Take in what is new, look, train and verify; 0 if the generation can be promoted."""
    with Workspace.open(folder) as ws:
        ws.ingest()
        codes = (run().exit_code for run in (ws.doctor, ws.train, ws.verify))
        return next((code for code in codes if code), 0)


if __name__ == "__main__":
    try:
        sys.exit(step(sys.argv[1]))
    except SisaError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
