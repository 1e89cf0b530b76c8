"""Documents of approximate unlearning."""

from __future__ import annotations

from typing import Any, Literal

from sisa.results.base import Result
from sisa.results.columns import columns
from sisa.results.unlearned_text import MIB, evidence, settings


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

    def text(self) -> str:
        """What was done, what was measured, and what to know."""
        made = {
            "exactness": "approximate; this is no erasure",
            "method": f"{self.method}, {self.steps} steps" if self.steps else self.method,
            "settings": settings(self.settings),
            "to forget": f"{self.forget_items} items, {self.forget_positions} positions",
            "to keep": f"{self.retain_items} items, {self.retain_positions} positions",
            "model": self.out if self.status == "written" else f"{self.out}, once it is made",
        }
        if self.status == "written":
            signed = f"signed by {self.key}" if self.key else "unsigned"
            made |= {
                "took": f"{self.seconds:.1f} s, {(self.peak_bytes or 0) / MIB:,.0f} MiB",
                "stopped": self.stopped or "",
                "statement": f"{self.statement}, {signed}",
                "sha256": self.sha256 or "",
                "run": self.run or "",
            }
        lines = [f"{self.status}", *(f"{n:>10}  {v}" for n, v in made.items() if v)]
        if self.status == "written":
            lines += [f"evidence: {self.verdict}", *(f"  {e}" for e in evidence(self.evidence))]
        return "\n".join([*lines, *self.warnings]) + "\n"


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

    def text(self) -> str:
        """A line a request: what is still known of it, of those before it, and of what is kept."""
        head = f"{self.status}  {self.out}: approximate; this is no erasure\n"
        if not self.requests:
            return head
        numbers = [f"forget {n}" for n in range(1, len(self.requests) + 1)]
        rows = [["model", "steps", "seconds", "evidence", "keep", *numbers]]
        for each in self.requests:
            known = [f"{value:.3f}" for value in each.forgotten]
            done = each.unlearned
            kept = "-" if each.kept is None else f"{each.kept:.3f}"
            row = [done.out, str(done.steps), f"{done.seconds:.1f}", done.verdict, kept, *known]
            rows.append([*row, *[""] * (len(rows[0]) - len(row))])
        warned = dict.fromkeys(text for each in self.requests for text in each.unlearned.warnings)
        said = "Columns keep and forget are mean probabilities of items, after each request."
        return head + "\n".join([*columns(rows), said, *warned]) + "\n"
