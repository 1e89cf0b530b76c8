"""Gradients of one optimizer step, over as many micro-batches as memory asks for.

A loss of the whole step is what one large batch would have: the values of a micro-batch take their
places among those of the others, which enter as constants, and the reduction sees them all. So a
mean divides by the rows of the whole step, whatever its micro-batches. A reduction must not compare
the rows of one item with those of another: none of ours does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from sisa.approximate.batches import Batch
from sisa.approximate.chunks import Loss, add_gradients
from sisa.approximate.controllers import Side
from sisa.approximate.declaration import Data, HiddenTerm, Term
from sisa.approximate.models import Subject
from sisa.approximate.reference import Reference
from sisa.approximate.team import Alone, Team
from sisa.errors import ConfigurationError, UsageError

Micro = Sequence[Sequence[int]]
"""Indices of the items of each micro-batch."""


@dataclass(frozen=True)
class Sources:
    """All items that terms look at.

    Attributes:
        forget: What is to be forgotten.
        retain: What is retained.
        alternatives: Items of `forget`, in its order, with other labels or answers.
        neighbours: For each item of `forget`, in its order, the nearest retained one.
    """

    forget: Any
    retain: Any = None
    alternatives: Any = None
    neighbours: Any = None

    def require(self, terms: Sequence[Term | HiddenTerm]) -> None:
        """Check that there is what terms look at.

        Raises:
            UsageError: Something is missing, empty, or not one for each item to be forgotten.
        """
        for kind in sorted({term.data for term in terms} - {"forget"}):
            name = "alternatives" if kind == "pairs" else kind
            found = getattr(self, name)
            if found is None or not len(found):
                raise UsageError(f"The method needs {name}, and there are none.")
            if name != "retain" and len(found) != len(self.forget):
                raise UsageError(f"The method needs as many {name} as there are items to forget.")

    def batch(self, kind: Data, indices: Sequence[int]) -> Any:
        """A batch of what a term looks at, by indices into its side."""
        if kind == "pairs":
            return self.alternatives.select(indices) + self.forget.select(indices)
        return getattr(self, kind).select(indices)


@dataclass(frozen=True)
class Pass:
    """How forward and backward are done.

    Attributes:
        subject: What is trained.
        sources: All items.
        reference: What terms ask of the reference, if they do.
        chunk: Rows whose logits exist at once.
        bf16: Compute in bfloat16 where it is safe; parameters and losses stay as they are.
        layer: Of hidden terms.
        control: Vector [d] of hidden terms, if one has such a target.
        team: Those who share the micro-batches out among them.
    """

    subject: Subject
    sources: Sources
    reference: Reference | None
    chunk: int
    bf16: bool = False
    layer: Any = None
    control: Tensor | None = None
    team: Team = field(default_factory=Alone)

    def side(
        self, terms: Sequence[Term | HiddenTerm], micro: Mapping[Side, Micro], factor: float
    ) -> float | None:
        """Add the gradients of one side to the parameters.

        Args:
            terms: Of the side.
            micro: Of each side; alternatives and neighbours go with what is to be forgotten.
            factor: Of the side's loss in the whole loss.

        Returns:
            The side's loss without the factor; None if nothing in it is labelled, and then no
            forward was done.
        """
        losses = []
        for kind, found in groupby(sorted(terms, key=lambda t: t.data), key=lambda t: t.data):
            own, parts = list(found), micro.get("retain" if kind == "retain" else "forget", ())
            rowed = [term for term in own if isinstance(term, Term)]
            hidden = [term for term in own if isinstance(term, HiddenTerm)]
            losses += [self._rows(kind, rowed, parts, factor)] if rowed else []
            losses += [self._hidden(kind, hidden, parts, factor)] if hidden else []
        there = [loss for loss in losses if loss is not None]
        return sum(there) if there else None

    def _rows(self, kind: Data, terms: Sequence[Term], micro: Micro, factor: float) -> float | None:
        whole = _Whole(self.sources, kind, micro, self.subject.device) if micro else None
        if whole is None or not whole.rows:
            return None
        scores = self._scores(whole) if any(t.reference == "scores" for t in terms) else None
        # sums over an item are of thousands of nats, and what counts is how they differ
        known = torch.zeros(whole.rows, len(terms), dtype=torch.float64, device=self.subject.device)

        def loss(values: Tensor) -> Tensor:
            columns = values.unbind(1)
            reduced = (
                term.weight * term.reduce(column, whole.item, whole.items, scores)
                for term, column in zip(terms, columns, strict=True)
            )
            return torch.stack(list(reduced)).sum()

        def among(at: Tensor, share: float, rows: slice, values: Tensor) -> Tensor:
            return share * loss(known.index_copy(0, at[rows], values.double()))

        parts = [(batch, at) for batch, _, at in whole if len(at)]
        for (batch, at), counts in self.team.share(parts):
            values = self._add_gradients(terms, batch, partial(among, at, counts * factor))
            if counts:
                known.index_copy_(0, at, values.double())
        return float(loss(self.team.sum(known)))

    def _add_gradients(self, terms: Sequence[Term], batch: Batch, loss: Loss) -> Tensor:
        """Add the gradients of a micro-batch; its values [N, F]."""
        distribution = None
        if any(term.reference == "distribution" for term in terms):
            distribution = self._asked().rows(batch)
        with self._precision():
            rows = self.subject.rows(batch)
        return add_gradients(
            rows,
            [term.row for term in terms],
            distribution,
            self.chunk,
            loss,
            together=any(term.data == "pairs" for term in terms),
            precision=self._precision,
        )

    def _scores(self, whole: _Whole) -> Tensor:
        """The reference's scores of all items of the step, [B]."""
        found = torch.zeros(whole.items, dtype=torch.float64, device=self.subject.device)
        for (batch, places, _), counts in self.team.share(list(whole)):
            with self._precision():
                scores = self._asked().scores(batch)
            if counts:
                found.index_copy_(0, places, scores.double())
        return self.team.sum(found)

    def _hidden(
        self, kind: Data, terms: Sequence[HiddenTerm], micro: Micro, factor: float
    ) -> float | None:
        total, items = torch.zeros((), dtype=torch.float64), sum(map(len, micro))
        if not items:
            return None
        for indices, counts in self.team.share(micro):
            batch, share = self.sources.batch(kind, indices), len(indices) / items
            was = None
            if any(term.target == "reference" for term in terms):
                was = self._asked().hidden(batch, self.layer)
            with self._precision():
                now = self.subject.hidden(batch, self.layer)
            targets = {"control": self.control, "reference": was}
            parts = []
            for term in terms:
                target = targets[term.target]
                assert target is not None
                parts.append(term.loss(now.hidden, now.item, now.items, target))
            loss = counts * share * torch.stack(parts).sum()
            if loss.requires_grad:
                (factor * loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach().cpu()
        return float(self.team.sum(total))

    def _asked(self) -> Reference:
        if self.reference is None:
            raise ConfigurationError(
                "The method compares with the model as it was, and no reference is given.",
                "Keep its values before training, or train with LoRA.",
            )
        return self.reference

    def _precision(self) -> AbstractContextManager[Any]:
        if not self.bf16:
            return nullcontext()
        return torch.autocast(self.subject.device.type, torch.bfloat16)


class _Whole:
    """The rows of a whole step, and where those of each micro-batch stand among them.

    Attributes:
        rows: Of all micro-batches N.
        items: Of all micro-batches B.
        item: Item of each row, int64 [N].
    """

    def __init__(self, sources: Sources, kind: Data, micro: Micro, device: torch.device) -> None:
        whole = sources.batch(kind, [index for indices in micro for index in indices])
        counts = torch.tensor(whole.counts(), dtype=torch.int64)
        starts = counts.cumsum(0) - counts
        self.rows, self.items = int(counts.sum()), len(counts)
        self.item = torch.arange(self.items).repeat_interleave(counts).to(device)
        self._parts: list[tuple[Any, Tensor, Tensor]] = []
        sides, before = (2 if kind == "pairs" else 1), 0
        for indices in micro:
            own = torch.arange(before, before + len(indices))
            before += len(indices)
            places = torch.cat([own + side * (self.items // sides) for side in range(sides)])
            spans = [torch.arange(int(starts[p]), int(starts[p] + counts[p])) for p in places]
            at = torch.cat([torch.empty(0, dtype=torch.int64), *spans])
            batch = sources.batch(kind, indices)
            self._parts.append((batch, places.to(device), at.to(device)))

    def __iter__(self) -> Iterator[tuple[Any, Tensor, Tensor]]:
        """Batch, places of its items among B, places of its rows among N."""
        return iter(self._parts)
