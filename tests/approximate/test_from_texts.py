"""From files of questions to a model folder that has forgotten some of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sisa.approximate import loop, models, reference
from sisa.approximate.batches import read_texts
from sisa.approximate.loop import Settings
from sisa.approximate.methods import METHODS
from sisa.approximate.models import LanguageModel

from .language import llama, tokenizer

ASKED = [{"question": f"Who wrote book {i}", "answer": f"author {i * 7 % 10}"} for i in range(8)]


@pytest.mark.parametrize("name", ["gradient-difference", "npo"])
def test_questions_are_forgotten_in_a_model_folder(name: str, tmp_path: Path) -> None:
    for kind, rows in {"forget": ASKED[:3], "retain": ASKED[3:]}.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{kind}.jsonl").write_text(text)
    known = tokenizer([f"Question: {row['question']}\nAnswer: {row['answer']}" for row in ASKED])
    models.save(LanguageModel(llama(vocab_size=len(known)), known), tmp_path / "before")

    subject = models.load(tmp_path / "before")
    forget, retain = (
        read_texts(tmp_path / f"{kind}.jsonl", subject.tokenizer) for kind in ("forget", "retain")
    )
    work = tmp_path / "work"
    kept = reference.keep(subject, [forget], folder=work)
    settings = Settings(epochs=4, items_per_batch=3, lr=3e-3)
    outcome = loop.run(subject, METHODS[name], forget, retain, settings, work, kept)
    models.save(subject, tmp_path / "after")

    after = reference.Live(models.load(tmp_path / "after"))
    before = reference.Live(models.load(tmp_path / "before"))
    assert outcome.steps == 4
    assert (after.scores(forget) > before.scores(forget)).all()
    assert after.scores(retain).sum() < before.scores(retain).sum()
