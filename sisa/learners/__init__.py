"""One file per learner, each behind the protocol; `load` finds them by name."""

from __future__ import annotations

from sisa.learners.registry import code_digest, code_place, find_in, load

__all__ = ["code_digest", "code_place", "find_in", "load"]
