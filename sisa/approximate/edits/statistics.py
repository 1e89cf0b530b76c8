"""What enters the layers of an adapter, kept beside it: fusing needs it when the data are gone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sisa.approximate.batches import Items
from sisa.approximate.edits.adapters import Grams, gathering
from sisa.approximate.models import LanguageModel
from sisa.errors import ConfigurationError, ExactnessError, NotFoundError

FILE = "grams.safetensors"

NAME = "default"
"""Of the adapter, as peft calls the one it loads."""


def measure(subject: LanguageModel, items: Items, items_per_batch: int = 4) -> dict[str, Tensor]:
    """Gram matrices of what enters each adapted layer, see `adapters.grams`.

    Args:
        subject: A model with its adapter, which is on.
        items: Those that the adapter was trained to forget; all their positions count.
        items_per_batch: Items that go through the model at once.

    Returns:
        By name of the layer in the base, float64 on the CPU.

    Raises:
        ConfigurationError: The model has no adapter, or one of something else than linear maps.
    """
    inner, layers = base_of(subject), list(adapted(subject))
    names = [f"{name}.base_layer" for name in layers]
    with gathering(inner, names) as found, torch.no_grad():
        for at in range(0, len(items), items_per_batch):
            subject.rows(items.select(range(at, min(at + items_per_batch, len(items)))))
    return {layer: found[name] for layer, name in zip(layers, names, strict=True)}


def keep(folder: Path, found: Grams) -> None:
    """Write the statistics of an adapter into its folder, whole or not at all."""
    partial = folder / f"{FILE}.partial"
    save_file({name: value.contiguous() for name, value in found.items()}, partial)
    os.replace(partial, folder / FILE)


def kept(folder: Path) -> dict[str, Tensor] | None:
    """The inverse of `keep`; None where none were kept.

    Raises:
        ExactnessError: The file is damaged.
    """
    if not (folder / FILE).is_file():
        return None
    try:
        found: dict[str, Tensor] = load_file(folder / FILE)
    except SafetensorError:
        raise ExactnessError(f"{folder / FILE} is damaged.", "Measure it anew.") from None
    return found


@contextmanager
def with_adapter(subject: LanguageModel, folder: Path) -> Iterator[LanguageModel]:
    """The model with the LoRA adapter of a folder while it is open; then as it was, bit for bit.

    Args:
        subject: A model without an adapter.
        folder: That peft wrote.

    Raises:
        NotFoundError: There is no adapter in the folder.
        ConfigurationError: It is of another model, or of another kind than plain LoRA.
    """
    import peft

    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise NotFoundError(f"There is no adapter in {folder}: it has no {name}.")
    config = peft.PeftConfig.from_pretrained(str(folder))
    _check_plain(config, folder)
    trained = [p for p in subject.module.parameters() if p.requires_grad]
    try:
        with torch.random.fork_rng():
            model = peft.PeftModel(subject.module, config, NAME)
    except ValueError:  # it has none of the layers
        raise _foreign(folder) from None
    try:
        try:
            weights = load_file(folder / "adapter_model.safetensors")
            result = peft.set_peft_model_state_dict(model, weights, NAME)
        except (RuntimeError, SafetensorError):
            raise _foreign(folder) from None
        if result.unexpected_keys or any(".lora_" in key for key in result.missing_keys):
            raise _foreign(folder)
        yield LanguageModel(model.eval(), subject.tokenizer)
    finally:
        model.unload()
        for parameter in trained:
            parameter.requires_grad_(True)


def base_of(subject: LanguageModel) -> nn.Module:
    """The model that an adapter was put on, with the adapter's layers in it."""
    found: nn.Module = subject.module.get_base_model()
    return found


def adapted(subject: LanguageModel) -> dict[str, Any]:
    """The adapted layers by their names in the base.

    Raises:
        ConfigurationError: One is no linear map, or there is none.
    """
    found = {n: m for n, m in base_of(subject).named_modules() if hasattr(m, "get_delta_weight")}
    if not found or not all(isinstance(m.base_layer, nn.Linear) for m in found.values()):
        raise ConfigurationError(
            "The adapter is of other layers than linear maps.", "Train one with lora_rank."
        )
    return found


def deltas(subject: LanguageModel) -> dict[str, Tensor]:
    """What the adapter adds to each linear map: `weight` float32 [outputs, inputs], `bias` zero.

    The bias is there where the linear map has one, so that a fusion may use it.
    """
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, layer in adapted(subject).items():
            found[f"{name}.weight"] = layer.get_delta_weight(NAME).float()
            if layer.base_layer.bias is not None:
                found[f"{name}.bias"] = torch.zeros_like(layer.base_layer.bias.float())
    return found


def _check_plain(config: Any, folder: Path) -> None:
    odd: Sequence[str] = [
        name for name in ("modules_to_save", "use_dora", "lora_bias") if getattr(config, name, None)
    ]
    if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA" or odd:
        raise ConfigurationError(
            f"The adapter in {folder} is not plain LoRA.", "Only what adds to linear maps is fused."
        )


def _foreign(folder: Path) -> ConfigurationError:
    return ConfigurationError(
        f"The adapter in {folder} is damaged, or of another model.", "Give its own base."
    )
