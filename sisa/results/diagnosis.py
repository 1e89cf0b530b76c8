"""The document of `sisa doctor`."""

from __future__ import annotations

from typing import Literal

from sisa.results.base import Result

Severity = Literal["error", "warning", "info"]


class Finding(Result):
    """One thing that `sisa doctor` found."""

    severity: Severity
    """`error` breaks the guarantee, `warning` weakens it or costs accuracy, `info` is good to
    know."""

    check: str
    """Name of the check that found it."""

    message: str
    """What is wrong, without any id."""

    remedy: str
    """What to do."""


class Diagnosis(Result):
    """`sisa doctor`."""

    findings: tuple[Finding, ...]
    """All findings, the worst first; empty if nothing is wrong."""

    mirror: Literal["none", "local", "database", "folder", "server"]
    """Where MLflow's rows are: nowhere, in a local file, in a database where they can be dropped,
    or behind a server that drops none."""

    @property
    def exit_code(self) -> int:
        """3 if anything would break the guarantee."""
        return 3 if any(f.severity == "error" for f in self.findings) else 0
