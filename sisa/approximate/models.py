"""What is trained: causal language models of transformers, with LoRA or whole, and any classifier.

A forward stops before the head, and gives the hidden states of the labelled positions alone: the
head is applied to a few rows at a time by whoever needs logits, so that logits of a whole batch
never exist. Dropout is off and statistics of batch normalisation stay as they are: what a model
says of an item must be a function of that item, or no score of it could be kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from sisa.approximate import bottlenecked
from sisa.approximate.batches import Examples, Items, Packed, packed
from sisa.approximate.rows import IGNORED
from sisa.errors import ConfigurationError, NotFoundError, UsageError

ALIGNMENT = 64
"""Bytes at whose multiples torch's own tensors begin, on a processor."""


@dataclass(frozen=True)
class HiddenRows:
    """The labelled positions of a batch, before the head.

    Attributes:
        hidden: [N, d].
        labels: int64 [N].
        item: Index of the item of each row in its batch, ascending, int64 [N].
        items: Items of the batch B, those without a row included.
        head: Makes logits [n, V] of hidden [n, d].
        matrix: [V, d], of the dtype of `hidden`, where the head is a product with it and no more.
    """

    hidden: Tensor
    labels: Tensor
    item: Tensor
    items: int
    head: Callable[[Tensor], Tensor]
    matrix: Tensor | None = None


@dataclass(frozen=True)
class HiddenPositions:
    """All positions of a batch after one layer.

    Attributes:
        hidden: [M, d].
        item: Index of the item of each position in its batch, ascending, int64 [M].
        items: Items of the batch B.
    """

    hidden: Tensor
    item: Tensor
    items: int


class Subject(Protocol):
    """What the loop trains."""

    @property
    def module(self) -> nn.Module:
        """The whole model."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        ...

    def rows(self, batch: Any) -> HiddenRows:
        """One forward up to the head."""
        ...

    def hidden(self, batch: Any, layer: Any) -> HiddenPositions:
        """One forward that stops after a layer."""
        ...

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        ...

    def adapter_off(self) -> AbstractContextManager[None]:
        """While it is open, the model is the one that the adapter was put on, bit for bit."""
        ...


class LanguageModel:
    """A causal language model of transformers, whole or with an adapter of peft.

    Args:
        model: The model; it is put into evaluation mode, in place.
        tokenizer: Its tokenizer, where texts are read or it is saved.

    Raises:
        ConfigurationError: Items that stand together in a batch would see each other in this
            architecture, or its logits are more than its head makes of the last hidden state.
    """

    def __init__(self, model: Any, tokenizer: Any = None) -> None:
        self._module, self.tokenizer = model.eval(), tokenizer
        self.adapted = hasattr(model, "peft_config")
        inner = model.get_base_model() if self.adapted else model
        self._decoder, self._head = inner.get_decoder(), inner.get_output_embeddings()
        self._check(inner)

    @property
    def module(self) -> Any:
        """The whole model."""
        return self._module

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        found: torch.device = self._head.weight.device
        return found

    @property
    def speaker(self) -> Any:
        """What continues texts, called as a model of transformers is: see `generation.greedy`."""
        return self._module

    def rows(self, batch: Items) -> HiddenRows:
        """One forward up to the head; none if nothing of the batch is labelled."""
        pack = packed(batch, self.device)
        at = pack.predicting()
        if not len(at):
            width = self._head.weight.shape[1]
            hidden = torch.zeros(0, width, dtype=self._head.weight.dtype, device=self.device)
        else:
            hidden = self._last(pack).index_select(0, at)
        labels, item, matrix = pack.labels[at + 1], pack.item[at], self._matrix(hidden.dtype)
        return HiddenRows(hidden, labels, item, pack.items, self._head, matrix)

    def hidden(self, batch: Items, layer: int) -> HiddenPositions:
        """Hidden states of all positions after a block, which is the last that is computed.

        Args:
            batch: Items, each with at least one token.
            layer: Number of the block, from 1.
        """
        blocks = self._decoder.layers
        if not 1 <= layer <= len(blocks):
            raise UsageError(f"There is no layer {layer}.", f"The model has {len(blocks)}.")
        pack = packed(batch, self.device)
        with _stopped(blocks[layer - 1]) as found:
            self._last(pack)
        return HiddenPositions(found[0][0], pack.item, pack.items)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained: the adapter's where there is one, else all."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """While it is open, the model is the one that the adapter was put on, bit for bit.

        Raises:
            ConfigurationError: There is no adapter.
        """
        if not self.adapted:
            raise _no_adapter()
        with self.module.disable_adapter():
            yield

    def drop_adapter(self) -> None:
        """Take the adapter out, in place: what is left has the bits it was put on.

        Raises:
            ConfigurationError: There is no adapter.
        """
        if not self.adapted:
            raise _no_adapter()
        self._module, self.adapted = self.module.unload().requires_grad_(True), False
        bottlenecked.freeze(self._module)

    def _matrix(self, dtype: torch.dtype) -> Tensor | None:
        """What the head multiplies with, if that is all it does and nobody watches."""
        head, weight = self._head, self._head.weight
        plain = type(head) is nn.Linear and type(weight) is nn.Parameter and head.bias is None
        watched = head._forward_hooks or head._forward_pre_hooks
        cast = dtype != weight.dtype or torch.is_autocast_enabled(weight.device.type)
        exact = dtype in (torch.float32, torch.float64)
        return weight if plain and exact and not (watched or cast) else None

    def _last(self, pack: Packed) -> Tensor:
        """The last hidden states, [T, d].

        No mask and no cache: only then does transformers read from the positions where an item
        begins, and keeps attention within it (`masking_utils.find_packed_sequence_indices`).
        """
        found: Tensor = self._decoder(
            input_ids=pack.tokens[None], position_ids=pack.positions[None], use_cache=False
        ).last_hidden_state[0]
        return found

    @torch.no_grad()
    def _check(self, inner: Any) -> None:
        """Compare two items packed with each alone, and the head with the model's own logits."""
        vocabulary = self._head.weight.shape[0]
        tokens = [torch.arange(at, at + 4) % vocabulary for at in (1, 3)]
        alone = [inner(input_ids=t[None].to(self.device), use_cache=False).logits for t in tokens]
        expected = torch.cat(alone, dim=1)[0].double()
        last = self._last(packed(Items(("", ""), tuple(tokens), tuple(tokens)), self.device))
        error = (self._head(last).double() - expected).abs().max()
        exact = self._head.weight.dtype in (torch.float32, torch.float64)
        if not error <= (1e-4 if exact else 5e-2) * expected.abs().max():
            raise ConfigurationError(
                f"{type(inner).__name__} cannot be trained without padding.",
                "Its items would see each other, or its head is more than a linear map.",
            )


class Classifier:
    """Any module that makes logits [B, C] of inputs [B, ...].

    Args:
        module: The module; it is put into evaluation mode, in place.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module.eval()

    @property
    def module(self) -> nn.Module:
        """The whole model."""
        return self._module

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(p.device for p in self.module.parameters())

    def rows(self, batch: Examples) -> HiddenRows:
        """One forward; logits are the hidden states, and the head leaves them as they are."""
        at = (batch.labels != IGNORED).nonzero().squeeze(1)
        logits = self.module(batch.inputs[at].to(self.device))
        return HiddenRows(
            logits,
            batch.labels[at].to(self.device),
            at.to(self.device),
            len(batch),
            head=lambda hidden: hidden,
        )

    def hidden(self, batch: Examples, layer: str) -> HiddenPositions:
        """Outputs of a submodule, flattened to one position per example.

        Args:
            batch: Examples.
            layer: The submodule's name, as `named_modules` gives it.
        """
        modules = dict(self.module.named_modules())
        if layer not in modules:
            raise UsageError(f"There is no layer {layer}.", f"Layers: {', '.join(modules)}.")
        with _stopped(modules[layer]) as found:
            self.module(batch.inputs.to(self.device))
        item = torch.arange(len(batch), device=self.device)
        return HiddenPositions(found[0].flatten(1), item, len(batch))

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def adapter_off(self) -> AbstractContextManager[None]:
        """Refuses: a classifier has no adapter.

        Raises:
            ConfigurationError: Always.
        """
        raise _no_adapter()


def load(folder: Path, dtype: str = "float32", device: str = "cpu") -> LanguageModel:
    """Load a model folder that transformers, peft or `save` wrote, from this machine alone.

    Args:
        folder: With `config.json`, or with `adapter_config.json` that names its base's folder.
        dtype: Of the parameters in memory.
        device: Where they shall be.

    Raises:
        NotFoundError: There is no such folder.
        ConfigurationError: It holds no causal language model, or no tokenizer that is known.
    """
    base, adapter = folder, folder / "adapter_config.json"
    if adapter.is_file():
        import peft

        base = Path(str(peft.PeftConfig.from_pretrained(str(folder)).base_model_name_or_path))
    if not base.is_dir():
        raise NotFoundError(f"There is no model folder {base}.")
    narrowed = bottlenecked.is_one(base)
    model = bottlenecked.load(base, dtype) if narrowed else _plain(base, dtype)
    config = model.config if narrowed else None  # transformers cannot read it there
    if adapter.is_file():
        model = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=True)
    return LanguageModel(model.to(device), _tokenizer(folder, config))


def save(subject: LanguageModel, folder: Path) -> None:
    """Write a model folder: the adapter alone where there is one, and the tokenizer.

    Transformers does not read the folder of a model with a bottleneck: see `bottlenecked`.

    Args:
        subject: The model.
        folder: Is made; files of the same names are replaced.

    Raises:
        UsageError: It has a bottleneck that the folder would not keep.
    """
    about = None
    if subject.adapted:
        base = subject.module.peft_config["default"].base_model_name_or_path
        bottlenecked.require_saved(subject.module, Path(str(base)))
    else:
        about = bottlenecked.described(subject.module)
    if about is None:
        subject.module.save_pretrained(folder)
    else:
        bottlenecked.save(subject.module, about, folder)
    if subject.tokenizer is not None:
        subject.tokenizer.save_pretrained(folder)


def with_lora(subject: LanguageModel, rank: int, alpha: float, seed: int) -> LanguageModel:
    """Put a LoRA adapter on all linear maps but the head; only it is trained from then on.

    Its second factor starts at zero, so that the model says what it said before (Hu et al.,
    "LoRA", ICLR 2022, section 4.1). A bottleneck gets none, which could bring back what it lost.

    Args:
        subject: A model without an adapter; its module is changed in place.
        rank: Of the factors.
        alpha: What they add is scaled by alpha / rank.
        seed: Of the first factor; the global generator is left as it is.
    """
    import peft

    inside = bottlenecked.of(subject.module)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        exclude_modules=None if inside is None else rf"{re.escape(inside[0])}\..*",
        task_type=peft.TaskType.CAUSAL_LM,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = peft.get_peft_model(subject.module, config)
    return LanguageModel(model, subject.tokenizer)


def merged(subject: LanguageModel) -> LanguageModel:
    """The model with its adapter added to the weights, which are changed in place."""
    model = subject.module.merge_and_unload() if subject.adapted else subject.module
    return LanguageModel(model, subject.tokenizer)


def _plain(folder: Path, dtype: str) -> Any:
    """A causal language model as transformers reads it."""
    import transformers

    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), local_files_only=True
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        why = (str(error).splitlines() or [""])[0].rstrip(".")
        raise ConfigurationError(f"{folder} holds no causal language model: {why}.") from None
    return _aligned(model)


def _aligned(model: nn.Module) -> nn.Module:
    """Give every tensor memory of torch's own, in place.

    Those of a mapped file begin where the file has them, and the bits of a matrix product depend on
    whether its operands begin at a multiple of 16 bytes: what becomes of a model would depend on
    how long the header of its file is.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
    return model


def _tokenizer(folder: Path, config: Any) -> Any:
    """A tokenizer, whose class may depend on the model's configuration; None to look for that."""
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, config=config, local_files_only=True
        )
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigurationError(
            f"{folder} holds no tokenizer that is known: {type(error).__name__}.",
            "Save the model's tokenizer beside it with save_pretrained.",
        ) from None


class _StopError(Exception):
    """Ends a forward where a hook has what was asked for."""


@contextmanager
def _stopped(module: nn.Module) -> Iterator[list[Tensor]]:
    """Keep what a submodule gives and end the forward there; the list is filled on leaving."""
    found: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)
        raise _StopError

    handle = module.register_forward_hook(keep)
    try:
        yield found
    except _StopError:
        pass
    finally:
        handle.remove()


def _no_adapter() -> ConfigurationError:
    return ConfigurationError(
        "The model has no adapter that could be switched off.", "Train with LoRA."
    )
