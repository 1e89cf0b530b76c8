"""The largest memory that a run held: of the GPU where it uses one, else of the process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Measures from its making.

    Args:
        device: Of the model.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            try:
                _RESET.write_text("5")
            except OSError:  # not Linux, or not allowed: then it is that of the whole process
                return

    def bytes(self) -> int:
        """Bytes so far: allocated tensors on a GPU, resident memory of the process otherwise."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        try:
            lines = _STATUS.read_text().splitlines()
        except OSError:
            found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return found if sys.platform == "darwin" else found * 1024
        return next(int(x.split()[1]) for x in lines if x.startswith("VmHWM")) * 1024
