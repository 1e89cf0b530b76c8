"""Sharded, sliced training with guaranteed-exact deletion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sisa.errors import SisaError

if TYPE_CHECKING:
    from sisa.workspace import Workspace

__version__ = "0.1.0"
__all__ = ["SisaError", "Workspace"]


def __getattr__(name: str) -> Any:
    """Load the Workspace when it is first asked for: `sisa --help` should not wait for it."""
    if name == "Workspace":
        from sisa.workspace import Workspace

        return Workspace
    raise AttributeError(f"module 'sisa' has no attribute {name!r}")
