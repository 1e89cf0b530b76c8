"""A bottleneck behind one block of a language model, in folders that nothing else reads.

What is taken away is taken from the bottleneck alone: the model around it still has it in its
weights, and whoever loads it without the bottleneck has it back. So such a folder has a
`model_type` that transformers does not know, and weights of a name that it does not look for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn

from sisa.approximate.edits.bottlenecks import ResidualBottleneck, narrow_by_child
from sisa.errors import ConfigurationError, NotFoundError, UsageError

NAME = "bottleneck"
"""Of the bottleneck, as a part of its block."""

MODEL_TYPE = "sisa-bottleneck"
CONFIG, WEIGHTS = "config.json", "bottlenecked.safetensors"

AROUND = "The weights around the bottleneck are as they were: whoever takes it out has all back."
"""What is to be known of every model with one."""

Count = Annotated[int, Field(ge=1)]


class About(BaseModel):
    """What a folder says of its bottleneck.

    Attributes:
        kind: Of the class of bottleneck.
        layer: The block that it stands behind, from 1.
        codes: Features.
        strongest: How many of them a position may use.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["residual"] = "residual"
    layer: Count
    codes: Count
    strongest: Count

    @model_validator(mode="after")
    def _fits(self) -> About:
        if self.strongest > self.codes:
            raise ValueError("a position cannot use more codes than there are")
        return self


def blocks(model: Any) -> nn.ModuleList:
    """The blocks of a causal language model.

    Args:
        model: Of transformers, without an adapter.

    Raises:
        ConfigurationError: It does not list them as `layers`.
    """
    found = getattr(model.get_decoder(), "layers", None)
    if not isinstance(found, nn.ModuleList):
        raise ConfigurationError(
            f"The blocks of {type(model).__name__} are not known.", "Choose another method."
        )
    return found


def put(model: Any, about: About) -> ResidualBottleneck:
    """Put a bottleneck of no particular values behind a block, as a part of it; see `freeze`.

    Args:
        model: Of transformers, without an adapter; changed in place.
        about: Which bottleneck, and where.

    Raises:
        ConfigurationError: There is no such block, or it has a bottleneck.
    """
    every = blocks(model)
    if not about.layer <= len(every):
        raise ConfigurationError(
            f"There is no layer {about.layer}.", f"The model has {len(every)}."
        )
    if of(model) is not None:
        raise ConfigurationError("The model has a bottleneck already.", "Use that one.")
    block = every[about.layer - 1]
    with torch.random.fork_rng():
        made = ResidualBottleneck(model.config.hidden_size, about.codes, about.strongest)
    narrow_by_child(block, NAME, made.to(next(block.parameters())).eval())
    freeze(model)
    model.save_pretrained = _refused
    return made


def _refused(*_: Any, **__: Any) -> None:
    """In the place of a model's own method, whose folder would be read without the bottleneck."""
    raise UsageError(
        "The folder that transformers writes would be read without the bottleneck.",
        "Write it with sisa.approximate.models.save.",
    )


def freeze(module: nn.Module) -> None:
    """Let no training reach a model's bottleneck, if it has one.

    What is kept cancels out in it, so that only what was removed has a gradient: a training could
    do nothing to it but undo the removal.
    """
    found = of(module)
    if found is not None:
        found[1].requires_grad_(False)


def of(module: nn.Module) -> tuple[str, ResidualBottleneck] | None:
    """A model's bottleneck with its name in it, or None; adapters do not matter."""
    found = ((n, m) for n, m in module.named_modules() if isinstance(m, ResidualBottleneck))
    return next(found, None)


def alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same bottleneck, what was removed included, or both none."""
    found = [of(model) for model in (one, other)]
    states = [{} if each is None else each[1].state_dict() for each in found]
    return states[0].keys() == states[1].keys() and all(
        torch.equal(value, states[1][name].to(value)) for name, value in states[0].items()
    )


def described(model: Any) -> About | None:
    """Which bottleneck a model without an adapter has, and where; None if none."""
    found = of(model)
    if found is None:
        return None
    layer = [hasattr(block, NAME) for block in blocks(model)].index(True) + 1
    return About(layer=layer, codes=len(found[1].kept), strongest=found[1].strongest)


def is_one(folder: Path) -> bool:
    """Whether a folder is that of a model with a bottleneck."""
    try:
        told = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and told.get("model_type") == MODEL_TYPE


def save(model: Any, about: About, folder: Path) -> None:
    """Write a model with its bottleneck.

    Args:
        model: Of transformers, without an adapter.
        about: See `described`.
        folder: Is made; files of the same names are replaced.

    Raises:
        UsageError: There are weights of a plain model in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("model*.safetensors*")) or any(folder.glob("pytorch_model*")):
        raise UsageError(
            f"{folder} holds a model without a bottleneck, which could be read in its place.",
            "Name an empty folder.",
        )
    inner = json.loads(model.config.to_json_string())
    inner["dtype"] = str(model.dtype).removeprefix("torch.")
    told = {"model_type": MODEL_TYPE, "bottleneck": about.model_dump(), "inner": inner}
    text = json.dumps(told, indent=1, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(text, "utf-8")  # first: the folder is refused from then on
    save_model(model, str(folder / WEIGHTS))


def load(folder: Path, dtype: str = "float32") -> Any:
    """The model of a folder that `save` wrote.

    Args:
        folder: With `config.json` and `bottlenecked.safetensors`.
        dtype: Of the parameters in memory.

    Raises:
        NotFoundError: The weights are not there.
        ConfigurationError: One of the files cannot be read, or they do not fit each other.
    """
    import transformers

    if not (folder / WEIGHTS).is_file():
        raise NotFoundError(f"There is no file {folder / WEIGHTS}.", "Save the model again.")
    try:
        told = json.loads((folder / CONFIG).read_bytes())
        about = About.model_validate(told["bottleneck"])
        config = transformers.AutoConfig.for_model(**told["inner"])
        with torch.random.fork_rng():
            model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=getattr(torch, dtype)
            )
        put(model, about)
        load_model(model, str(folder / WEIGHTS))
    except (KeyError, TypeError, ValueError, ValidationError, RuntimeError, SafetensorError) as e:
        why = (str(e).splitlines() or [""])[0].rstrip(".")
        raise ConfigurationError(
            f"{folder} holds no language model with a bottleneck: {why}.", "Save the model again."
        ) from None
    model.name_or_path = str(folder)  # what an adapter calls its base
    return model


def require_saved(model: nn.Module, base: Path) -> None:
    """Check that the folder of an adapter's base has the bottleneck, which the adapter's has not.

    Args:
        model: With an adapter.
        base: The folder that will be named as its base.

    Raises:
        UsageError: It has no bottleneck, or another one, where the model has one.
    """
    found = of(model)
    if found is not None and not (is_one(base) and _holds(base, found[1])):
        raise UsageError(
            "The folder of an adapter holds no bottleneck, and that of its base not this one.",
            "Save the model first, load it, and put the adapter on that.",
        )


def _holds(folder: Path, bottleneck: ResidualBottleneck) -> bool:
    """Whether the weights of a folder have a bottleneck of these values."""
    with safe_open(folder / WEIGHTS, "pt") as file:
        names = {n: n.rpartition(f".{NAME}.")[2] for n in file.keys() if f".{NAME}." in n}  # noqa: SIM118
        kept = {own: file.get_tensor(name) for name, own in names.items()}
    now = bottleneck.state_dict()
    return now.keys() == kept.keys() and all(
        torch.equal(value.cpu(), kept[name].to(value.dtype)) for name, value in now.items()
    )
