"""A model whose parameters are held in parts: by FSDP2, over all processes of a group.

A block's parameters are put together when it is computed and let go at once (Zhao et al., "PyTorch
FSDP", VLDB 2023); what is outside the blocks, the embedding and the head, stays together until the
backward is over, so that a head can be applied to a few rows at a time without a word to others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from sisa.approximate.answers import CHUNK, ITEMS, statistics
from sisa.approximate.batches import Batch, Items, packed
from sisa.approximate.metrics.statistics import RowStatistics, joined
from sisa.approximate.models import HiddenPositions, HiddenRows, LanguageModel
from sisa.approximate.reference import Kept, keep
from sisa.approximate.team import Piece, whole
from sisa.errors import SisaError, UsageError


class Processes:
    """All processes of the default group, as a team.

    Args:
        device: Where the tensors of this one are.

    Attributes:
        size: How many they are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._rank, self.size = distributed.get_rank(), distributed.get_world_size()

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self._rank == 0

    def share(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, bool]]:
        """Every so many-th piece; who would have one less does the first one again, for nothing."""
        for start in range(0, len(pieces), self.size):
            at = start + self._rank
            yield (pieces[at], True) if at < len(pieces) else (pieces[0], False)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over all processes; of numbers of which only one is not 0, exact."""
        found = tensor.to(self._device, copy=True)
        distributed.all_reduce(found)
        return found.to(tensor.device)

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors as wholes, one at a time, for the first process alone."""
        found = {}
        for name, tensor in tensors.items():
            complete = whole(tensor.detach())
            if self.first:
                found[name] = complete.cpu()
        return found

    def agreed(self, value: Piece) -> Piece:
        """The value of the first process, for what each finds for itself and all must go by."""
        found: list[Piece] = [value]
        distributed.broadcast_object_list(found, 0)
        return found[0]

    def all(self, own: Sequence[Piece]) -> list[Piece]:
        """What was found of all pieces, in their order, from what was found of those that count."""
        found: list[list[Piece]] = [[] for _ in range(self.size)]
        distributed.all_gather_object(found, list(own))
        longest = max(map(len, found))
        return [part[at] for at in range(longest) for part in found if at < len(part)]


class PartedModel(LanguageModel):
    """A language model of which each process holds a part.

    Every process must ask it the same number of times, of whatever items.

    Args:
        model: The whole model, on the processor; the same in every process. Changed in place.
        device: Where this process's part shall be.
    """

    def __init__(self, model: LanguageModel, device: torch.device) -> None:
        self.__dict__.update(model.__dict__)
        inner = model.module.get_base_model() if model.adapted else model.module
        mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
        names = set(inner._no_split_modules or ())
        for block in [m for m in inner.modules() if type(m).__name__ in names]:
            fully_shard(block, mesh=mesh)
        root = _Root(model.module, self._decoder)
        fully_shard(root, mesh=mesh)
        for part in root.modules():
            if isinstance(part, FSDPModule):
                # gradients are of shares of one loss: their sum is wanted, not their mean
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)
        self._root = cast(Any, root)  # FSDP2 has given it a class of its own
        self._where, self._decoder = device, root
        with torch.no_grad():  # FSDP2 looks for its parts in the first forward
            self._last(packed(_TOKEN, device))
        self._root.reshard()  # the module's parameters are parts until the next forward

    @property
    def device(self) -> torch.device:
        """Where this process's part is."""
        return self._where

    @property
    def speaker(self) -> Speaker:
        """What continues texts; all processes must continue the same."""
        self._root.reshard()
        return Speaker(self._root, self._head, self.module.config)

    def rows(self, batch: Items) -> HiddenRows:
        """One forward up to the head, even if nothing of the batch is labelled."""
        self._root.reshard()
        found = super().rows(batch)
        if not len(found.labels):
            self._last(packed(_TOKEN, self.device))
        return found

    def hidden(self, batch: Items, layer: int) -> HiddenPositions:
        """Hidden states of all positions after a block, which is the last that is computed.

        Args:
            batch: Items, each with at least one token.
            layer: Number of the block, from 1.
        """
        self._root.reshard()
        pack, found = packed(batch, self.device), list[Any]()
        with self._root.cut_after(layer, found):  # FSDP2 wants a forward to come to its end
            self._last(pack)
        return HiddenPositions(found[0][0], pack.item, pack.items)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, in parts, by name."""
        self._root.reshard()
        return super().trainable()


class Speaker:
    """A model in parts, called as `generation.greedy` calls one of transformers.

    The logits of the first process are those of all, so that all see the same text end.

    Args:
        root: Gives hidden states.
        head: Makes logits of them.
        config: Of the model.
    """

    training = False

    def __init__(self, root: Any, head: nn.Module, config: Any) -> None:
        self.config, self.parameters = config, head.parameters
        self._root, self._head = root, head

    def __call__(self, *, logits_to_keep: int, **inputs: Any) -> Any:
        """Logits [B, 1, V] of the last positions, and the cache."""
        found = self._root(**inputs)
        logits = self._head(found.last_hidden_state[:, -logits_to_keep:])
        distributed.broadcast(logits, 0)
        return SimpleNamespace(logits=logits, past_key_values=found.past_key_values)


class _Root(nn.Module):
    """What FSDP2 takes for the whole: all parameters, and a forward that stops before the head."""

    def __init__(self, model: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._forward: tuple[Any] = (decoder,)  # in a tuple, it is no second child

    @contextmanager
    def cut_after(self, layer: int, found: list[Any]) -> Iterator[None]:
        """Leave out the blocks after one, and keep what it gives."""
        (decoder,), blocks = self._forward, self._forward[0].layers
        if not 1 <= layer <= len(blocks):
            raise UsageError(f"There is no layer {layer}.", f"The model has {len(blocks)}.")

        def keep(_: nn.Module, __: Any, output: Any) -> None:
            found.append(output[0] if isinstance(output, tuple) else output)

        handle = blocks[layer - 1].register_forward_hook(keep)
        decoder.layers = blocks[:layer]
        try:
            yield
        finally:
            decoder.layers = blocks
            handle.remove()

    def forward(self, **inputs: Any) -> Any:
        return self._forward[0](**inputs)


_TOKEN = Items(("",), (torch.zeros(1, dtype=torch.int64),), (torch.zeros(1, dtype=torch.int64),))


def answers(
    team: Processes, model: PartedModel, items: Batch, together: int = ITEMS, chunk: int = CHUNK
) -> RowStatistics:
    """What a model says of each labelled position of some items; the same as one process finds.

    Args:
        team: Those who share the batches out.
        model: The model, not changed.
        items: What it is asked about.
        together: Items that go through the model at once.
        chunk: Rows whose logits exist at once.

    Raises:
        SisaError: A label has no finite log probability: the model collapsed.
    """
    found = list[RowStatistics | SisaError]()
    for indices, counts in team.share(_batches(len(items), together)):
        part: RowStatistics | SisaError
        try:
            part = statistics(model, items.select(indices), together, chunk)
        except SisaError as error:  # all must hear of it, and none be left waiting for this one
            part = error
        found += [part] if counts else []
    every = team.all(found)
    for broken in (part for part in every if isinstance(part, SisaError)):
        raise broken
    return joined(part for part in every if isinstance(part, RowStatistics))


def kept(
    team: Processes, model: PartedModel, batches: Sequence[Batch], top: int | None, chunk: int
) -> Kept:
    """Ask a model before it is trained for all that a method will need of it as its reference.

    Args:
        team: Those who share the items out; every process gets all that was found.
        model: The model as it is now.
        batches: All items that may be asked for.
        top: Keep the largest so many log-probabilities per row; None keeps scores alone.
        chunk: Rows whose logits exist at once.
    """
    found = []
    for batch in batches:
        for indices, counts in team.share(_batches(len(batch), ITEMS)):
            part = keep(model, [batch.select(indices)], top=top, chunk=chunk)
            found += [part._values] if counts else []
    return Kept(model.device, dict(chain.from_iterable(part.items() for part in team.all(found))))


def _batches(count: int, size: int) -> list[range]:
    return [range(at, min(at + size, count)) for at in range(0, count, size)]
