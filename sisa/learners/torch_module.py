"""Trains any torch module.

A factory is called as `factory(inputs, outputs, **params)` and returns a `torch.nn.Module` that
maps float32 [B, inputs] to logits [B, outputs], or to values [B, 1] for a regression. The columns
of its input, in their order, are those of `sisa.learners.design`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sisa.config import Recipe, Training
from sisa.determinism import StagePlan, mix, pin_threads
from sisa.errors import ConfigurationError, SisaError
from sisa.learners import design, torch_optim
from sisa.learners.design import Floats, Scales
from sisa.learners.protocol import Advanced, State
from sisa.learners.records import Encoding, Records
from sisa.learners.torch_parts import finite, isolated, loss_function, to_arrays
from sisa.learners.user_code import reason

MODULE = "module."
SEED = "init.seed"

Factory = Callable[..., nn.Module]


@dataclass(frozen=True)
class TorchLearner:
    """State: `module.<name>` of every parameter and buffer, the standardiser, `optimizer.<...>`
    where the recipe carries it, and `init.seed`, under which every fresh module is built: what a
    factory draws at random and keeps out of its state is then the same in every stage."""

    encoding: Encoding
    training: Training
    factory: Factory
    params: Mapping[str, Any]
    name: str
    uses_torch: bool = True

    @classmethod
    def of(cls, recipe: Recipe, factory: Factory) -> TorchLearner:
        """The learner of a recipe; its optimizer and loss are checked, the factory not yet called.

        Raises:
            ConfigurationError: Torch has no such optimizer or loss.
        """
        torch_optim.check(recipe.training)
        section = recipe.learner
        encoding = Encoding.of(recipe.data)
        learner = cls(encoding, recipe.training, factory, section.params, section.factory)
        loss_function(learner.training, encoding.classes)
        return learner

    def init(self, seed: int) -> State:
        """The state of a fresh module, once a trial step has shown that it can be trained.

        Raises:
            ConfigurationError: The factory fails, or what it makes cannot be trained.
        """
        with isolated(seed):
            module = self._build(seed)
            state = self._state(module, seed, Scales.unit(self.encoding))
            try:
                self._trial(module)
            except SisaError:
                raise
            except Exception as error:
                raise ConfigurationError(
                    f"A trial step of the learner {self.name} failed: {reason(error)}.",
                    f"Its module must map float32 [B, {design.inputs(self.encoding)}] to "
                    f"[B, {self.encoding.outputs}] for the loss to take.",
                ) from error
        return state

    def advance(self, state: State, records: Records, plan: StagePlan) -> Advanced:
        """Train one stage; without a step the parent's state is the outcome."""
        if plan.steps == 0 or records.target is None:
            return Advanced(dict(state), math.nan)
        pin_threads(plan.training.threads)
        scales = Scales.fit(self.encoding, records)
        matrix = self._matrix(records, scales)
        kind = np.int64 if self.encoding.classes else np.float32
        target = torch.from_numpy(scales.learned(records.target).astype(kind))
        seed = int(state[SEED])
        with isolated(mix(plan.training.seed, plan.shard, plan.slice) >> 1):
            module = self._load(state)
            parameters = _trained(module)
            optimizer = torch_optim.make(self.training, parameters, state)
            loss = self._train(module, optimizer, matrix, target, plan)
            found = self._state(module, seed, scales)
            if self.training.optimizer_state == "carry":
                found |= to_arrays(torch_optim.arrays(optimizer, parameters), self.name)
        if not (math.isfinite(loss) and finite(found, state)):
            return Advanced(state, math.nan, "loss is not finite")
        return Advanced(found, loss)

    def predict(self, state: State, records: Records) -> Floats:
        """Class probabilities float64 [n, classes], or values float64 [n]."""
        scales = Scales.of(state)
        with isolated(int(state[SEED])), torch.no_grad():
            module = self._load(state).eval()
            values = design.predicted(
                self.encoding, records, lambda r: self._output(module, scales, r)
            )
        return scales.restored(values)

    def _output(self, module: nn.Module, scales: Scales, records: Records) -> Floats:
        output = module(_batch(self._matrix(records, scales), None)).to(torch.float64)
        found = torch.softmax(output, dim=1) if self.encoding.classes else output[:, 0]
        values: Floats = found.numpy()
        return values

    def _train(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        matrix: tuple[Tensor, ...],
        target: Tensor,
        plan: StagePlan,
    ) -> float:
        """Take the steps in place; the mean loss over samples, NaN as soon as it is not finite."""
        loss_of = loss_function(self.training, self.encoding.classes)
        ends = set(itertools.accumulate(len(rows) for rows in plan.epochs))
        total, done = torch.zeros((), dtype=torch.float64), 0
        module.train()
        for step in plan:
            torch.default_generator.manual_seed(step.seed)
            rows = torch.from_numpy(step.rows)
            loss = loss_of(module(_batch(matrix, rows)), target.index_select(0, rows))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            for group in optimizer.param_groups:
                group["lr"] = step.lr
            optimizer.step()
            total.add_(loss.detach(), alpha=len(step.rows))
            done += len(step.rows)
            if done in ends and not math.isfinite(total.item()):
                return math.nan
        return total.item() / plan.samples

    def _trial(self, module: nn.Module) -> None:
        """One step of the smallest batch on zeros; the module is of no use afterwards."""
        rows, outputs = self.training.min_batch, self.encoding.outputs
        output = module.train()(torch.zeros(rows, design.inputs(self.encoding)))
        if not isinstance(output, Tensor) or output.shape != (rows, outputs):
            shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise TypeError(f"the module returned {shape} instead of [{rows}, {outputs}]")
        kind = torch.int64 if self.encoding.classes else torch.float32
        loss = loss_function(self.training, self.encoding.classes)(
            output, torch.zeros(rows, dtype=kind)
        )
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            raise TypeError(f"the loss {self.training.loss} returned no single number")
        loss.backward()  # type: ignore[no-untyped-call]
        torch_optim.make(self.training, _trained(module), {}).step()

    def _build(self, seed: int) -> nn.Module:
        """A fresh module, built under a seed.

        Raises:
            ConfigurationError: The factory raises or returns something else.
        """
        inputs, outputs = design.inputs(self.encoding), self.encoding.outputs
        with isolated(seed):
            try:
                module = self.factory(inputs, outputs, **self.params)
            except SisaError:
                raise
            except Exception as error:
                raise ConfigurationError(
                    f"The factory {self.name} failed: {reason(error)}.",
                    "Correct learner.factory or learner.params.",
                ) from error
        if not isinstance(module, nn.Module):
            raise ConfigurationError(
                f"The factory {self.name} returned {type(module).__name__}, not a torch module.",
                "Return a torch.nn.Module.",
            )
        return module

    def _load(self, state: State) -> nn.Module:
        """A fresh module with the parameters and buffers of a state."""
        module = self._build(int(state[SEED]))
        named = {
            name.removeprefix(MODULE): torch.from_numpy(np.array(array))
            for name, array in state.items()
            if name.startswith(MODULE)
        }
        module.load_state_dict(named)
        return module

    def _state(self, module: nn.Module, seed: int, scales: Scales) -> dict[str, npt.NDArray[Any]]:
        tensors = {MODULE + name: value for name, value in module.state_dict().items()}
        own = {SEED: np.array(seed, dtype=np.int64)}
        return {**to_arrays(tensors, self.name), **scales.arrays(), **own}

    def _matrix(self, records: Records, scales: Scales) -> tuple[Tensor, ...]:
        blocks = design.blocks(self.encoding, records, scales, np.float32)
        return tuple(torch.from_numpy(block) for block in blocks)


def _batch(matrix: tuple[Tensor, ...], rows: Tensor | None) -> Tensor:
    """Rows of the design matrix, or all, float32 [b, inputs]."""
    parts = [block if rows is None else block.index_select(0, rows) for block in matrix]
    parts = [
        part.to(torch.float32).mul_(design.UINT8_SCALE) if part.dtype == torch.uint8 else part
        for part in parts
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are trained, by name; a shared one once."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
