"""A model under attack of which every worker holds a part of each copy."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cluster.parted import PartedModel, Processes, answers
from sisa.approximate.answers import mean_probability
from sisa.approximate.attacks import quantise
from sisa.approximate.attacks.membership import Array
from sisa.approximate.attacks.quantise import Quantised
from sisa.approximate.attacks.relearn import Relearned
from sisa.approximate.batches import Batch
from sisa.approximate.chunks import row_values
from sisa.approximate.evidence import tried
from sisa.approximate.models import LanguageModel, merged
from sisa.approximate.objectives.rows import nll
from sisa.approximate.targets import Attacks, relearned
from sisa.approximate.team import own
from sisa.errors import DataError, SisaError, WorkerError


class PartedTarget:
    """A language model, attacked by all processes of the group together: see `targets.Target`.

    Every process must make the same calls, about items that each have a labelled position.

    Args:
        fresh: Gives the model, whole and on the processor; called for every copy.
        team: Those who share the work out.
        device: Where this process's parts shall be.
        how: Sizes of batches, steps and seed.
    """

    def __init__(
        self,
        fresh: Callable[[], LanguageModel],
        team: Processes,
        device: torch.device,
        how: Attacks,
    ) -> None:
        self._fresh, self._team, self._device, self._how = fresh, team, device, how

    def gradients(self, items: Batch) -> Array:
        """See `Target.gradients`: all processes do the same item, each its share of the loss."""
        model = self._open()
        parameters, found = list(model.module.parameters()), []
        for index in range(len(items)):
            loss = self._values(model, items, [index]).mean() / self._team.size
            loss.backward()  # type: ignore[no-untyped-call]
            there = [p.grad for p in parameters if p.grad is not None]
            if not there:
                raise DataError("A loss depends on none of the parameters.")
            squares = torch.stack([own(grad).double().square().sum() for grad in there])
            found.append(float(self._team.sum(squares).sqrt().mean()))
            model.module.zero_grad()
        return np.array(found, dtype=np.float64)

    def relearned(self, learned: Batch, kept: Batch, original: float, rate: float) -> Relearned:
        """See `Target.relearned`: the items of a step are shared out."""
        model = self._open()
        return relearned(
            model,
            learned,
            lambda batch: self._loss(model, batch),
            lambda: self._probability(model, kept),
            original,
            rate,
            self._how,
        )

    def quantised(self, items: Batch, original: float) -> tuple[Quantised, ...]:
        """See `Target.quantised`: each process rounds the whole, and then keeps its part."""
        whole = self._made(lambda: merged(self._fresh())).module

        def metric(module: nn.Module) -> float:
            mine = copy.deepcopy(module) if module is whole else module
            parted = PartedModel(self._made(lambda: LanguageModel(mine)), self._device)
            return self._probability(parted, items)

        return quantise.evaluate(whole, metric, original)

    def _open(self) -> PartedModel:
        """A copy in parts, of which every parameter is trained."""
        whole = self._made(self._fresh)
        for parameter in whole.module.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return PartedModel(whole, self._device)

    def _made(self, make: Callable[[], LanguageModel]) -> LanguageModel:
        """A whole model that every process makes; those before are let go.

        Raises:
            WorkerError: A process cannot: all hear of it, and none is left waiting for this one.
        """
        gc.collect()  # parts refer to each other in circles
        made = tried(make)
        for error in self._team.all([made if isinstance(made, SisaError) else None]):
            if error is not None:
                raise WorkerError(f"A copy to attack could not be made: {error.message}")
        assert not isinstance(made, SisaError)
        return made

    def _values(self, model: PartedModel, batch: Any, indices: Sequence[int]) -> Tensor:
        """Nll of each row of some items of a batch."""
        return row_values(model.rows(batch.select(indices)), [nll], None, self._how.chunk)

    def _loss(self, model: PartedModel, batch: Batch) -> Tensor:
        """Mean nll over the rows of a batch; its gradient is this process's share of the whole."""
        shares = np.array_split(np.arange(len(batch)), self._team.size)
        pieces, total = [s.tolist() for s in shares if len(s)], sum(batch.counts())
        share = torch.zeros((), device=self._device)
        for indices, counts in self._team.share(pieces):
            share = share + counts * self._values(model, batch, indices).sum() / total
        return share + (self._team.sum(share.detach()) - share.detach())

    def _probability(self, model: PartedModel, items: Batch) -> float:
        """Mean probability that a model gives to items."""
        return mean_probability(answers(self._team, model, items, self._how.items, self._how.chunk))
