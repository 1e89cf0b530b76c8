"""Trains any torch module.

A factory is called as `factory(inputs, outputs, **params)` and returns a `torch.nn.Module` that
maps float32 [B, inputs] to logits [B, outputs], or to values [B, 1] for a regression. The columns
of its input, in their order, are those of `sisa.learners.design`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sisa.config import Recipe, Training
from sisa.determinism import StagePlan, mix, pin_threads
from sisa.errors import ConfigurationError, SisaError
from sisa.learners import design, gradients, torch_optim
from sisa.learners.design import Floats, Scales
from sisa.learners.protocol import Advanced, Predict, State
from sisa.learners.records import Encoding, Records
from sisa.learners.torch_parts import (
    finite,
    isolated,
    loss_function,
    seed_all,
    to_arrays,
    unfilled,
)
from sisa.learners.user_code import reason

MODULE = "module."
SEED = "init.seed"

Factory = Callable[..., nn.Module]
Matrix = tuple[tuple[Tensor, tuple[float, float] | None], ...]
"""Blocks of the design matrix with their scales, as in `design.Block`."""


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
    direct: bool = False
    uses_torch: bool = True

    @classmethod
    def of(cls, recipe: Recipe, factory: Factory, direct: bool = False) -> TorchLearner:
        """The learner of a recipe; its optimizer and loss are checked, the factory not yet called.

        Args:
            recipe: The recipe.
            factory: Makes a module.
            direct: Whether a plain perceptron may be trained without autograd; to the same bits,
                but for a module whose hooks somebody waits for.

        Raises:
            ConfigurationError: Torch has no such optimizer or loss.
        """
        torch_optim.check(recipe.training)
        section = recipe.learner
        encoding = Encoding.of(recipe.data)
        learner = cls(encoding, recipe.training, factory, section.params, section.factory, direct)
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
        own = mix(plan.training.seed, plan.shard, plan.slice) >> 1
        with isolated(own):
            module = self._load(state, own)
            parameters = _trained(module)
            optimizer = torch_optim.make(self.training, parameters, state)
            loss = self._train(module, optimizer, list(parameters.values()), matrix, target, plan)
            found = self._state(module, seed, scales)
            if self.training.optimizer_state == "carry":
                found |= to_arrays(torch_optim.arrays(optimizer, parameters), self.name)
        if not (math.isfinite(loss) and finite(found, state)):
            return Advanced(state, math.nan, "loss is not finite")
        return Advanced(found, loss)

    def predict(self, state: State, records: Records) -> Floats:
        """Class probabilities float64 [n, classes], or values float64 [n]."""
        return self.prepare(state)(records)

    def prepare(self, state: State) -> Predict:
        """Build the module; what it draws at random when predicting is the same in every call."""
        scales, seed = Scales.of(state), int(state[SEED])
        with isolated(seed):
            module = self._load(state, seed).eval()

        def predict(records: Records) -> Floats:
            with isolated(seed), torch.no_grad():
                values = design.predicted(
                    self.encoding, records, lambda r: self._output(module, scales, r)
                )
            return scales.restored(values)

        return predict

    def _output(self, module: nn.Module, scales: Scales, records: Records) -> Floats:
        output = module(_batch(self._matrix(records, scales), None)).to(torch.float64)
        found = torch.softmax(output, dim=1) if self.encoding.classes else output[:, 0]
        values: Floats = found.numpy()
        return values

    @torch.no_grad()
    def _train(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        parameters: list[nn.Parameter],
        matrix: Matrix,
        target: Tensor,
        plan: StagePlan,
    ) -> float:
        """Take the steps in place; the mean loss over samples, NaN as soon as it is not finite."""
        module.train()
        training, classes = self.training, self.encoding.classes
        direct = self.direct and gradients.is_perceptron(module, training, classes)
        if direct:
            gradients_of = gradients.of_perceptron(module, training)
        else:
            gradients_of = gradients.by_autograd(module, loss_function(training, classes))
        step_along, generator = torch_optim.stepper(optimizer, direct), torch.default_generator
        ends = set(itertools.accumulate(len(rows) for rows in plan.epochs))
        losses: list[Tensor] = []
        sizes: list[int] = []
        total, done = 0.0, 0
        batch_of = _Buffered(matrix) if direct else partial(_batch, matrix)
        with unfilled() if direct else nullcontext():
            for step in plan:
                if not direct:  # it draws nothing
                    generator.manual_seed(step.seed)
                rows = torch.from_numpy(step.rows)
                loss = gradients_of(batch_of(rows), target.index_select(0, rows))
                self._clip(parameters)
                step_along(step.lr)
                losses.append(loss)
                sizes.append(len(step.rows))
                done += len(step.rows)
                if done in ends:  # reading a loss at every step would take as long as a small one
                    total += (torch.stack(losses).double() @ torch.tensor(sizes).double()).item()
                    losses, sizes = [], []
                    if not math.isfinite(total):
                        return math.nan
        return total / done

    def _clip(self, parameters: Iterable[nn.Parameter]) -> None:
        """Scale all gradients down so that their joint norm is at most `clip_norm`."""
        if self.training.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, self.training.clip_norm, foreach=True)

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
        parameters = _trained(module)
        self._clip(parameters.values())
        torch_optim.make(self.training, parameters, {}).step()

    def _build(self, seed: int) -> nn.Module:
        """A fresh module, built under a seed.

        Raises:
            ConfigurationError: The factory raises or returns something else.
        """
        inputs, outputs = design.inputs(self.encoding), self.encoding.outputs
        seed_all(seed)
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

    def _load(self, state: State, seed: int) -> nn.Module:
        """A fresh module with the parameters and buffers of a state; leaves a seed in force."""
        module = self._build(int(state[SEED]))
        named = {
            name.removeprefix(MODULE): torch.from_numpy(np.array(array))
            for name, array in state.items()
            if name.startswith(MODULE)
        }
        module.load_state_dict(named)
        seed_all(seed)
        return module

    def _state(self, module: nn.Module, seed: int, scales: Scales) -> dict[str, npt.NDArray[Any]]:
        tensors = {MODULE + name: value for name, value in module.state_dict().items()}
        own = {SEED: np.array(seed, dtype=np.int64)}
        return {**to_arrays(tensors, self.name), **scales.arrays(), **own}

    def _matrix(self, records: Records, scales: Scales) -> Matrix:
        blocks = design.blocks(self.encoding, records, scales, np.float32)
        return tuple((torch.from_numpy(block.values), block.scale) for block in blocks)


def _batch(matrix: Matrix, rows: Tensor | None) -> Tensor:
    """Rows of the design matrix, or all, float32 [b, inputs]."""
    parts = [
        _final(values if rows is None else values.index_select(0, rows), scale)
        for values, scale in matrix
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class _Buffered:
    """The same as `_batch` for one block that is cast, into memory that is used again.

    Asking for it at every step may cost more than filling it. Only for what keeps no batch.
    """

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix
        self._raw = self._cast = torch.empty(0)

    def __call__(self, rows: Tensor) -> Tensor:
        values, scale = self._matrix[0]
        if scale is None or len(self._matrix) > 1:
            return _batch(self._matrix, rows)
        if len(self._cast) != len(rows):
            self._raw = values.new_empty(len(rows), values.shape[1])
            self._cast = torch.empty(len(rows), values.shape[1])
        torch.index_select(values, 0, rows, out=self._raw)
        return _scaled_(self._cast.copy_(self._raw), scale)


def _final(values: Tensor, scale: tuple[float, float] | None) -> Tensor:
    return values if scale is None else _scaled_(values.to(torch.float32), scale)


def _scaled_(values: Tensor, scale: tuple[float, float]) -> Tensor:
    """Scale in place."""
    mean, factor = scale
    return (values.sub_(mean) if mean else values).mul_(factor)


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are trained, by name; a shared one once."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
