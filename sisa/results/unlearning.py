"""Documents of approximate unlearning."""

from __future__ import annotations

from typing import Any, Literal

from sisa.results.base import Result


class MethodShown(Result):
    """A method of approximate unlearning."""

    name: str
    """As `sisa unlearn` takes it."""

    kind: Literal["objective", "edit"]
    """Steps of an optimizer on an objective, or one edit of the parameters."""

    needs: tuple[str, ...]
    """What it needs besides the model and the forget items."""

    cost: str
    """What it costs beside one forward and backward of the forget items."""

    defaults: dict[str, bool | int | float | str | None]
    """Its own settings; docs/approximate.md says whose they are."""

    source: str
    """Where it is from."""


class MethodsListed(Result):
    """`sisa unlearn list`."""

    methods: tuple[MethodShown, ...]
    """All methods of approximate unlearning."""

    def text(self) -> str:
        """A paragraph a method."""
        return "\n".join(
            f"{m.name}\n"
            f"  needs     {'; '.join(m.needs) or 'nothing more'}\n"
            f"  costs     {m.cost}\n"
            f"  settings  {', '.join(f'{k}={v}' for k, v in m.defaults.items()) or '-'}\n"
            f"  from      {m.source}\n"
            for m in self.methods
        )


class Unlearned(Result):
    """`sisa unlearn`: approximate, whatever the method."""

    status: Literal["planned", "written"]
    """`planned` is a dry run."""

    exactness: Literal["approximate"]
    """Never anything else."""

    method: str
    """Name of the method."""

    settings: dict[str, bool | int | float | str | None]
    """All settings, defaults included."""

    forget_items: int
    """Count of items to forget."""

    forget_positions: int
    """Count of their labelled positions."""

    retain_items: int
    """Count of items to keep; 0 without a retain file."""

    retain_positions: int
    """Count of their labelled positions."""

    steps: int
    """Optimizer steps that were made, or would be at most."""

    stopped: str | None
    """Why it ended before its last epoch; null if it did not, or in a dry run."""

    seconds: float | None
    """Wall-clock seconds of the method; null in a dry run."""

    peak_bytes: int | None
    """Most memory in use; null in a dry run."""

    out: str
    """The model folder."""

    statement: str | None
    """File of the approximate statement; null in a dry run."""

    sha256: str | None
    """Its sha256, hex; null in a dry run."""

    key: str | None
    """Id of the key that signed it; null if it is not signed."""

    verdict: Literal["not evaluated", "evaluated"]
    """`not evaluated` unless membership, relearning and quantisation were all evaluated."""

    evidence: dict[str, Any]
    """What was measured, part by part, as in the statement; each is there whole, or is
    `not evaluated`."""

    run: str | None
    """Id of the run in MLflow; null if none was logged."""

    warnings: tuple[str, ...]
    """What to know, a sentence each."""


class AfterRequest(Result):
    """One request of a sequence, and what the model says after it."""

    unlearned: Unlearned
    """What was done."""

    forgotten: tuple[float, ...]
    """Mean probability, 0 to 1, of the items of each request so far, the first one first."""

    kept: float | None
    """Mean probability of the items to keep; null without a retain file."""


class UnlearnedInTurn(Result):
    """`sisa unlearn sequence`: requests one after the other; approximate, whatever the method."""

    status: Literal["planned", "written"]
    """`planned` is a dry run."""

    exactness: Literal["approximate"]
    """Never anything else."""

    out: str
    """The folder with a model folder for each request."""

    requests: tuple[AfterRequest, ...]
    """The requests in their order; empty in a dry run."""
