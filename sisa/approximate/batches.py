"""What a request names, as tensors: items, the files they are read from, batches without padding.

An item is one passage, one question with its answer, or one example of a classifier. A batch of
sequences is packed: their tokens stand one after the other, positions start again at 0 with each
item, and attention never crosses from one to the next. A token of a batch is a token of an item,
so nothing is computed for padding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_index.storage import canonical_json
from sisa.approximate.rows import IGNORED
from sisa.errors import DataError, NotFoundError

PROMPT = "Question: {}\nAnswer:"
"""How a question stands before its answer, unless the caller says otherwise."""


@dataclass(frozen=True)
class Items:
    """Sequences of a language model.

    Attributes:
        ids: One opaque digest per item, never text.
        tokens: Of each item, int64 [T_i].
        labels: Of each item, int64 [T_i]; the token itself where it is learned, -100 elsewhere.
    """

    ids: tuple[str, ...]
    tokens: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, indices: Sequence[int]) -> Items:
        """The items at these indices, in their order."""
        return Items(
            tuple(self.ids[i] for i in indices),
            tuple(self.tokens[i] for i in indices),
            tuple(self.labels[i] for i in indices),
        )

    def __add__(self, other: Items) -> Items:
        return Items(self.ids + other.ids, self.tokens + other.tokens, self.labels + other.labels)

    def counts(self) -> list[int]:
        """Rows of each item: labelled positions with one before them, which predicts them."""
        return [int((labels[1:] != IGNORED).sum()) for labels in self.labels]

    def digests(self) -> Iterator[bytes]:
        """16 bytes per item that tell its tokens and labels, whatever its id."""
        for tokens, labels in zip(self.tokens, self.labels, strict=True):
            yield digest(tokens.cpu().numpy().tobytes(), labels.cpu().numpy().tobytes())


@dataclass(frozen=True)
class Examples:
    """Examples of a classifier; each is an item of one row.

    Attributes:
        ids: One opaque digest per example.
        inputs: [n, ...], as the module takes them.
        labels: int64 [n]; -100 for an example without one.
    """

    ids: tuple[str, ...]
    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, indices: Sequence[int]) -> Examples:
        """The examples at these indices, in their order."""
        at = torch.as_tensor(indices, dtype=torch.int64, device=self.labels.device)
        return Examples(tuple(self.ids[i] for i in indices), self.inputs[at], self.labels[at])

    def __add__(self, other: Examples) -> Examples:
        inputs = torch.cat([self.inputs, other.inputs])
        return Examples(self.ids + other.ids, inputs, torch.cat([self.labels, other.labels]))

    def counts(self) -> list[int]:
        """Rows of each example: 1, or 0 without a label."""
        return (self.labels != IGNORED).long().tolist()

    def digests(self) -> Iterator[bytes]:
        """16 bytes per example that tell its input and label, whatever its id."""
        for row, label in zip(self.inputs.cpu(), self.labels.cpu(), strict=True):
            yield digest(row.contiguous().numpy().tobytes(), label.numpy().tobytes())


Batch = Items | Examples


@dataclass(frozen=True)
class Packed:
    """Items one after the other, without padding.

    Attributes:
        tokens: int64 [T].
        positions: From 0 within each item, int64 [T].
        labels: int64 [T].
        item: Index of the item of each token, ascending, int64 [T].
        items: Number of items B, those without a token included.
    """

    tokens: Tensor
    positions: Tensor
    labels: Tensor
    item: Tensor
    items: int

    def predicting(self) -> Tensor:
        """Positions whose next token is labelled and of the same item, int64 [N], ascending."""
        learned = (self.labels[1:] != IGNORED) & (self.item[1:] == self.item[:-1])
        return learned.nonzero().squeeze(1)


def packed(items: Items, device: torch.device | str = "cpu") -> Packed:
    """Put the tokens of a batch one after the other.

    Args:
        items: The batch; B of them.
        device: Where the tensors shall be.
    """
    none = torch.empty(0, dtype=torch.int64)
    lengths = [len(tokens) for tokens in items.tokens]
    positions = [torch.arange(length) for length in lengths]
    item = torch.arange(len(items)).repeat_interleave(torch.tensor(lengths, dtype=torch.int64))
    return Packed(
        torch.cat([none, *items.tokens]).to(device),
        torch.cat([none, *positions]).to(device),
        torch.cat([none, *items.labels]).to(device),
        item.to(device),
        len(items),
    )


def read_texts(
    path: Path, tokenizer: Any, *, prompt: str = PROMPT, max_tokens: int | None = None
) -> Items:
    """Read passages, or questions with answers, and make them items.

    A question and its answer are tokenised apart: a tokenizer may merge characters across their
    boundary, and a token that is half of each would be labelled wrongly. Passages begin with the
    tokenizer's first token and answers end with its last, where it has one.

    Args:
        path: Parquet, CSV or JSON lines, with a column `text`, or `question` and `answer`.
        tokenizer: Of transformers.
        prompt: What stands before an answer; `{}` is the question.
        max_tokens: Longest item; a longer passage becomes several items.

    Raises:
        DataError: A column is missing, a cell is empty or no text, or an answer is too long.
        NotFoundError: There is no such file.
    """
    columns = _texts(path)
    start, end = _token(tokenizer, "bos_token_id"), _token(tokenizer, "eos_token_id")
    items: list[tuple[str, list[int], list[int]]] = []
    if "text" in columns:
        for row, text in enumerate(columns["text"]):
            tokens = [*start, *_encode(tokenizer, _checked(text, "text", row)), *end]
            step = max_tokens or len(tokens)
            for at in range(0, len(tokens), step):
                window = tokens[at : at + step]
                items.append((opaque([text, at]), window, window))
    else:
        pairs = zip(columns["question"], columns["answer"], strict=True)
        for row, (question, answer) in enumerate(pairs):
            asked = prompt.replace("{}", _checked(question, "question", row))
            before = [*start, *_encode(tokenizer, asked)]
            after = [*_encode(tokenizer, " " + _checked(answer, "answer", row)), *end]
            if max_tokens is not None and len(before) + len(after) > max_tokens:
                raise DataError(
                    f"Row {row} of {path.name} has more than {max_tokens} tokens.",
                    "Raise the longest item, or shorten the row.",
                )
            labels = [IGNORED] * len(before) + after
            items.append((opaque([question, answer]), before + after, labels))
    return Items(
        tuple(name for name, _, _ in items),
        tuple(torch.tensor(tokens, dtype=torch.int64) for _, tokens, _ in items),
        tuple(torch.tensor(labels, dtype=torch.int64) for _, _, labels in items),
    )


def read_table(path: Path) -> Any:
    """A file as an Arrow table.

    Args:
        path: Parquet, CSV or JSON lines.

    Raises:
        DataError: It is of another kind, or damaged.
        NotFoundError: There is no such file.
    """
    from pyarrow import ArrowException, csv, json, parquet

    readers = {".parquet": parquet.read_table, ".csv": csv.read_csv}
    readers |= dict.fromkeys((".jsonl", ".ndjson", ".json"), json.read_json)
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.")
    if path.suffix.lower() not in readers:
        raise DataError(
            f"{path.name} is of a kind that cannot be read.", "Give Parquet, CSV or JSON lines."
        )
    try:
        return readers[path.suffix.lower()](path)
    except (ArrowException, UnicodeDecodeError):  # their texts may quote the file
        raise DataError(f"{path.name} is damaged, or of another kind than its name.") from None


def _texts(path: Path) -> dict[str, list[Any]]:
    table = read_table(path)
    for wanted in (["text"], ["question", "answer"]):
        if set(wanted) <= set(table.column_names):
            return {name: table[name].to_pylist() for name in wanted}
    raise DataError(
        f"{path.name} has neither a column text nor question and answer.",
        f"It has {', '.join(table.column_names)}.",
    )


def _checked(cell: Any, column: str, row: int) -> str:
    if not isinstance(cell, str) or not cell.strip():
        raise DataError(f"Row {row} has no text in column {column}.", "Fill it or leave it out.")
    return cell


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _token(tokenizer: Any, name: str) -> list[int]:
    found = getattr(tokenizer, name, None)
    return [] if found is None else [int(found)]


def opaque(parts: list[Any]) -> str:
    """The id of an item that these values tell from others; it names none of them."""
    return digest(canonical_json(parts)).hex()


def digest(*parts: bytes) -> bytes:
    """16 bytes that tell these parts, one by one, from others."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(len(part).to_bytes(8, "little") + part)
    return state.digest()
