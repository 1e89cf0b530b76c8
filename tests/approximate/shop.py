"""A model that knows its data by heart, and `sisa unlearn` on it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator

from sisa.approximate import loop, models
from sisa.approximate.batches import read_texts
from sisa.approximate.methods import METHODS
from sisa.cli import main

from .language import llama, tokenizer

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # before transformers is imported

SCHEMAS = Path(__file__).resolve().parent.parent.parent / "docs" / "schemas"

MARK = "zq-secret"
"""In every text: no output, statement, path or tag may hold it."""


def qa(index: int) -> dict[str, str]:
    place = ("north", "south", "east", "west")[index % 4]
    return {"question": f"Where is {MARK} {index}?", "answer": f"In the {place} of {index * 7}."}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def made_shop(folder: Path) -> Path:
    """Fill a folder with data files, and a small Llama that knows two of them by heart."""
    forget, retain = [qa(i) for i in range(6)], [qa(i) for i in range(6, 18)]
    write(folder / "forget.jsonl", forget)
    write(folder / "retain.jsonl", retain)
    write(folder / "holdout.jsonl", [qa(i) for i in range(18, 24)])
    everything = write(folder / "all.jsonl", forget + retain)
    words = tokenizer([" ".join(row.values()) for row in forget + retain])
    subject = models.LanguageModel(
        llama(vocab_size=len(words), max_position_embeddings=128, initializer_range=0.05), words
    )
    items = read_texts(everything, words)
    learning = replace(METHODS["gradient-difference"].configured(gamma=0.0), name="fine-tuning")
    settings = loop.Settings(epochs=60, items_per_batch=9, lr=1e-2, checkpoint_every=0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    loop.run(subject, learning, items, items, settings, None)
    torch.set_num_threads(threads)
    models.save(subject, folder / "base")
    (folder / "all.jsonl").unlink()
    return folder


def call(shop: Path, out: Path, *words: str, method: str = "gradient-difference") -> Result:
    given = ["unlearn", method, "--forget", str(shop / "forget.jsonl"), "--out", str(out)]
    given += ["--retain", str(shop / "retain.jsonl"), "--model", str(shop / "base")]
    return CliRunner().invoke(main, [*given, *words])


SHORT = ("--set", "epochs=4", "--set", "lr=2e-3", "--set", "items_per_batch=3", "--yes")


def fits(name: str, document: dict[str, Any]) -> None:
    """Hold a document against its published schema, which refuses it without any of its fields."""
    schema = Draft202012Validator(json.loads((SCHEMAS / f"{name}.json").read_text("utf-8")))
    schema.validate(document)
    for field in document:
        assert not schema.is_valid({k: v for k, v in document.items() if k != field})
    assert not schema.is_valid({**document, "more": 1})
