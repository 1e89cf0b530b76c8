"""The models that a method starts from and is compared with, trained here from a random start.

The exact retrain is trained as the base is, by the same loop, seed and order, without the items to
forget: the order of an epoch is a hash of ids, so that leaving some out moves no other.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import common
import torch

from data_index.storage import canonical_json, sha256
from sisa.approximate import loop, models
from sisa.approximate.batches import Items, read_texts
from sisa.approximate.declaration import Parts, Term, objective
from sisa.approximate.model_folder import written
from sisa.approximate.models import LanguageModel
from sisa.approximate.objectives.rows import nll
from sisa.approximate.objectives.sequences import token_mean
from unlearning.people import Sides

SHAPE = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
"""Of a Llama of about a million parameters."""

HOW = loop.Settings(
    items_per_batch=8, lr=1e-3, warmup=50, seed=common.SEED, chunk_rows=128, checkpoint_every=500
)
"""How both models are trained; epochs are those of the data set."""

EPOCHS = {"tofu": 20, "tinyshakespeare": 30}
"""Enough that the base knows its answers by heart, and no more."""

PARTS: Mapping[str, tuple[str, ...]] = {
    "start": (),
    "base": ("forget", "retain"),
    "retrain": ("retain",),
}
"""What each model learns."""

COST = "cost.json"

LEARNING = objective(
    "learning", lambda: Parts((Term(nll, token_mean()),)), cost="", source="plain next-token loss"
)
"""What a model is made by: the loop's own, with the labels learned instead of forgotten."""


@dataclass(frozen=True)
class Trained:
    """The two models of a data set.

    Attributes:
        folder: Of everything that was made of this data set in this way.
        start: Folder of the model before any training.
        base: Folder of the model that has learned all.
        retrain: Folder of the exact retrain.
        epochs: Of both trainings.
        files: The data, by the name of the side.
    """

    folder: Path
    start: Path
    base: Path
    retrain: Path
    epochs: int
    files: dict[str, Path]


def trained(name: str, sides: Sides, build: Path, files: dict[str, Path]) -> Trained:
    """Train both models, or find them where an earlier call left them.

    Args:
        name: Of the data set.
        sides: Its rows.
        build: Folder of what is made.
        files: The data, by the name of the side.
    """
    how = replace(HOW, epochs=EPOCHS[name])
    said = {"sides": sides.plain(), "shape": SHAPE, "how": asdict(how), "torch": torch.__version__}
    folder = build / f"{name}-{sha256(canonical_json(said))[:16]}"
    tokenizer = _tokenizer(sides)
    for kind, parts in PARTS.items():
        if not (folder / kind).exists():
            print(f"{name}: training {kind}", flush=True)
            items = [read_texts(files[part], tokenizer) for part in parts]
            _train(folder / kind, tokenizer, items, how)
    start, base, retrain = (folder / kind for kind in PARTS)
    return Trained(folder, start, base, retrain, how.epochs, files)


def _train(out: Path, tokenizer: Any, sides: Sequence[Items], how: loop.Settings) -> None:
    """Train one model; interrupted, it goes on where it was."""
    subject, working = LanguageModel(_fresh(tokenizer), tokenizer), out.with_name(f".{out.name}")
    cost = {}
    if sides:
        items = sum(sides[1:], sides[0])
        outcome = loop.run(subject, LEARNING, items, None, how, working, report=_tell)
        cost = {"seconds": outcome.seconds, "peak_bytes": outcome.peak_bytes}
    with written(out, working / "model") as folder:
        models.save(subject, folder)
        (folder / COST).write_text(json.dumps(cost))
    shutil.rmtree(working)  # or a model that was removed would be back, with its former seconds


def _tell(metrics: Any, step: int) -> None:
    if step % 250 == 0:
        print(f"  step {step}, loss {metrics['loss']:.3f}", flush=True)


def _fresh(tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(common.SEED)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, **ends))


def _tokenizer(sides: Sides) -> Any:
    """Byte-level pairs of the public side."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    texts = [" ".join(row.values()) for row in sides.public]
    made = ByteLevelBPETokenizer()
    special = ["<s>", "</s>"]
    made.train_from_iterator(
        texts, SHAPE["vocab_size"], special_tokens=special, show_progress=False
    )
    fast = PreTrainedTokenizerFast
    return fast(tokenizer_object=made._tokenizer, bos_token="<s>", eos_token="</s>")
