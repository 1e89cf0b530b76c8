"""Everything that would break the guarantee, all findings at once, each with its remedy."""

from __future__ import annotations

from sisa.context import Context
from sisa.results import Diagnosis


def diagnose(context: Context) -> Diagnosis:
    """To come."""
    return Diagnosis(findings=())
