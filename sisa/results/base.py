"""What all documents share, and the document of an error."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1


class Result(BaseModel):
    """Base of all documents."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    either: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Groups of fields of which one is printed; those of the others are null, and left out."""

    def document(self) -> dict[str, Any]:
        """As it is printed."""
        found = {"schema_version": SCHEMA_VERSION, **self.model_dump(mode="json", by_alias=True)}
        absent = {name for group in self.either for name in group if found[name] is None}
        return {name: value for name, value in found.items() if name not in absent}

    def brief(self) -> dict[str, Any]:
        """What is printed of it as text."""
        return self.document()

    @property
    def exit_code(self) -> int:
        """What the command ends with."""
        return 0

    def text(self) -> str | None:
        """As it is printed without `--output json`; None for its fields in their order."""
        return None


class Fault(Result):
    """An error."""

    code: str
    """Kind of the error, such as `configuration` or `busy`; each kind has one exit code."""

    message: str
    """What is wrong, in one sentence."""

    remedy: str
    """What to do, or empty."""


class Failed(Result):
    """What every command prints with `--output json` in place of its document if it fails."""

    error: Fault
    """The error."""
