"""Items: read from files, tokenised so that no label straddles a boundary, packed."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pyarrow import csv, parquet
from tokenizers import Tokenizer, models, trainers
from transformers import PreTrainedTokenizerFast

from sisa.approximate.batches import Examples, Items, packed, read_texts
from sisa.approximate.rows import IGNORED
from sisa.errors import DataError, NotFoundError

from .language import made, tokenizer

QUESTIONS = ["Who wrote it", "Where was it", "When was it"]
ANSWERS = ["Anna Bell did", "in Oslo", "in May 1931"]


@pytest.fixture(scope="module")
def bytes_tokenizer() -> object:
    return tokenizer([*QUESTIONS * 20, *ANSWERS * 20, ": Answer:in " * 40])


def table() -> pa.Table:
    return pa.table({"question": QUESTIONS, "answer": ANSWERS})


def write(folder: Path, suffix: str, rows: pa.Table) -> Path:
    path = folder / f"rows{suffix}"
    if suffix == ".parquet":
        parquet.write_table(rows, path)
    elif suffix == ".csv":
        csv.write_csv(rows, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows.to_pylist()))
    return path


def test_all_kinds_of_file_give_the_same_items(tmp_path: Path, bytes_tokenizer: object) -> None:
    found = [
        read_texts(write(tmp_path, suffix, table()), bytes_tokenizer)
        for suffix in (".parquet", ".csv", ".jsonl")
    ]
    assert len(found[0]) == 3
    assert found[0].ids == found[1].ids == found[2].ids
    assert [t.tolist() for t in found[0].tokens] == [t.tolist() for t in found[2].tokens]
    assert not any(word in name for name in found[0].ids for word in ("Anna", "Oslo"))


def test_exactly_the_answer_is_labelled(tmp_path: Path, bytes_tokenizer: object) -> None:
    items = read_texts(write(tmp_path, ".csv", table()), bytes_tokenizer)
    for tokens, labels, answer in zip(items.tokens, items.labels, ANSWERS, strict=True):
        learned = labels[labels != IGNORED]
        assert bytes_tokenizer.decode(learned.tolist()) == f" {answer}</s>"  # type: ignore[attr-defined]
        assert torch.equal(learned, tokens[-len(learned) :])


def test_prompt_and_answer_are_tokenised_apart(tmp_path: Path) -> None:
    # it merges across spaces, so that "it: in" is one token when they are tokenised together
    trained = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=40, show_progress=False)
    trained.train_from_iterator(["it: in"] * 50, trainer)
    merging = PreTrainedTokenizerFast(tokenizer_object=trained)
    assert len(merging.encode("it: in")) == 1, "the negative control: a token straddles"
    path = write(tmp_path, ".csv", pa.table({"question": ["it"], "answer": ["in"]}))
    items = read_texts(path, merging, prompt="{}:")
    learned = items.labels[0][items.labels[0] != IGNORED]
    before = items.tokens[0][: -len(learned)]
    assert "".join(merging.convert_ids_to_tokens(learned.tolist())) == " in"
    assert "".join(merging.convert_ids_to_tokens(before.tolist())) == "it:"


def test_a_long_passage_becomes_several_items(tmp_path: Path, bytes_tokenizer: object) -> None:
    path = write(tmp_path, ".jsonl", pa.table({"text": ["in Oslo in May 1931 " * 5]}))
    whole = read_texts(path, bytes_tokenizer)
    parts = read_texts(path, bytes_tokenizer, max_tokens=7)
    assert max(len(tokens) for tokens in parts.tokens) == 7
    assert torch.equal(torch.cat(parts.tokens), whole.tokens[0])
    assert len(set(parts.ids)) == len(parts)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (pa.table({"body": ["x"]}), "neither a column text nor question and answer"),
        (pa.table({"text": ["x", None]}), "Row 1 has no text in column text"),
        (pa.table({"question": ["x"], "answer": [" "]}), "Row 0 has no text in column answer"),
    ],
)
def test_bad_rows_are_refused(
    tmp_path: Path, bytes_tokenizer: object, rows: pa.Table, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        read_texts(write(tmp_path, ".parquet", rows), bytes_tokenizer)


def test_a_damaged_file_is_not_quoted(tmp_path: Path, bytes_tokenizer: object) -> None:
    (tmp_path / "rows.csv").write_text("text\nfine\nAnna,Bell\n")
    with pytest.raises(DataError) as found:
        read_texts(tmp_path / "rows.csv", bytes_tokenizer)
    assert "Anna" not in str(found.value)
    with pytest.raises(NotFoundError):
        read_texts(tmp_path / "none.csv", bytes_tokenizer)


def test_an_answer_that_is_too_long_is_refused(tmp_path: Path, bytes_tokenizer: object) -> None:
    with pytest.raises(DataError, match=r"Row 0 .* more than 4 tokens"):
        read_texts(write(tmp_path, ".csv", table()), bytes_tokenizer, max_tokens=4)


def test_packing_keeps_items_apart() -> None:
    items = made([4, 1, 3], prompt=0)
    pack = packed(items)
    assert pack.positions.tolist() == [0, 1, 2, 3, 0, 0, 1, 2]
    assert pack.item.tolist() == [0, 0, 0, 0, 1, 2, 2, 2]
    # the first token of an item is not predicted by the last of the item before
    assert pack.predicting().tolist() == [0, 1, 2, 5, 6]
    assert len(pack.predicting()) == sum(items.counts()) == 5
    assert items.counts() == [3, 0, 2]


def test_nothing_packs_to_nothing() -> None:
    pack = packed(Items((), (), ()))
    assert pack.items == 0 and not len(pack.predicting())


def test_digests_tell_tokens_and_labels() -> None:
    items = made([5, 5])
    other = Items(items.ids, items.tokens, (items.labels[0], items.tokens[1]))
    first, second = list(items.digests()), list(other.digests())
    assert first[0] == second[0] and first[1] != second[1]


def test_examples_select_in_order() -> None:
    examples = Examples(("a", "b", "c"), torch.eye(3), torch.tensor([0, IGNORED, 2]))
    chosen = examples.select([2, 0])
    assert chosen.ids == ("c", "a") and chosen.labels.tolist() == [2, 0]
    assert examples.counts() == [1, 0, 1] and len(set(examples.digests())) == 3
