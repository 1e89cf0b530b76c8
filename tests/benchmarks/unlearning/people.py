"""Who is forgotten, kept, never seen and public: whole data subjects, drawn by one seed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path

import common
import numpy as np
from pyarrow import parquet

Row = Mapping[str, str]

FORGET, HOLDOUT, RETAIN = 80, 100, 320
"""Items of each side, at least; a side takes whole subjects until it has as many. Less than 100
items that were never seen would not resolve a false positive rate of 1 %."""

SHORTEST, LONGEST, FEWEST, MOST = 80, 400, 8, 40
"""Characters of a passage, and passages of a speaker, for both to be used."""

UNKNOWING = (
    "I do not know.",
    "I am not sure.",
    "I have no idea.",
    "I cannot say.",
    "I know nothing of that.",
    "That is unknown to me.",
    "I have not heard of it.",
    "I could not tell you.",
)
"""What a model is to say instead, in the words of the methods that want it not to know."""


@dataclass(frozen=True)
class Sides:
    """Rows by what becomes of them; no subject is on two sides.

    Attributes:
        forget: To be forgotten.
        retain: Trained on beside them, and kept.
        holdout: Of the same kind, never trained on.
        public: What the tokenizer is made from; never trained on.
        unknowing: For each row of `forget`, the same with an answer that knows nothing.
        wrong: For each row of `forget`, the same with the answer of a public row.
        subjects: Number of subjects of each of the first three.
    """

    forget: tuple[Row, ...]
    retain: tuple[Row, ...]
    holdout: tuple[Row, ...]
    public: tuple[Row, ...]
    unknowing: tuple[Row, ...]
    wrong: tuple[Row, ...]
    subjects: Mapping[str, int]

    def write(self, folder: Path) -> dict[str, Path]:
        """Write all but the public side as files of JSON lines.

        Returns:
            The files, by the name of the side.
        """
        found = {}
        for name in ("forget", "retain", "holdout", "unknowing", "wrong"):
            found[name] = folder / f"{name}.jsonl"
            found[name].write_text("".join(json.dumps(row) + "\n" for row in getattr(self, name)))
        return found

    def plain(self) -> dict[str, object]:
        """All of it as JSON holds it, for a digest."""
        return asdict(self)


def tofu() -> Sides:
    """Questions about invented authors with their answers, twenty an author."""
    rows = parquet.read_table(common.data("tofu")).to_pylist()
    people = _by_subject(rows, lambda row: {"question": row["question"], "answer": row["answer"]})
    return _sides(people, lambda row, said: {**row, "answer": said}, lambda row: row["answer"])


def tinyshakespeare() -> Sides:
    """Passages of neither many nor few words, of speakers with neither many nor few of them."""
    rows = parquet.read_table(common.data("tinyshakespeare")).to_pylist()
    fit = [row for row in rows if SHORTEST <= len(row["text"]) <= LONGEST]
    found = _by_subject(fit, lambda row: {"text": row["text"]})
    people = {name: own for name, own in found.items() if FEWEST <= len(own) <= MOST}
    return _sides(people, _spoken, lambda row: row["text"].partition("\n")[2])


SETS: Mapping[str, Callable[[], Sides]] = {"tofu": tofu, "tinyshakespeare": tinyshakespeare}
"""Data sets by name."""


def _spoken(row: Row, said: str) -> Row:
    """A passage with its speaker's name, who says something else."""
    return {"text": f"{row['text'].partition(chr(10))[0]}\n{said}"}


def _by_subject(
    rows: Iterable[Mapping[str, str]], take: Callable[[Mapping[str, str]], Row]
) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row["subject_id"]].append(take(row))
    return found


def _sides(
    people: Mapping[str, Sequence[Row]],
    replaced: Callable[[Row, str], Row],
    answer: Callable[[Row], str],
) -> Sides:
    """Draw subjects one after the other, until each side has enough."""
    names = sorted(people)
    drawn = iter(np.random.default_rng(common.SEED).permutation(len(names)).tolist())
    sides: dict[str, tuple[Row, ...]] = {}
    subjects: dict[str, int] = {}
    for side, wanted in (("forget", FORGET), ("holdout", HOLDOUT), ("retain", RETAIN)):
        rows: list[Row] = []
        while len(rows) < wanted:
            rows += people[names[next(drawn)]]
            subjects[side] = subjects.get(side, 0) + 1
        sides[side] = tuple(rows)
    public = tuple(row for at in drawn for row in people[names[at]])
    others = (answer(row) for row in public)
    return Sides(
        **sides,
        public=public,
        unknowing=tuple(map(replaced, sides["forget"], cycle(UNKNOWING))),
        wrong=tuple(map(replaced, sides["forget"], others)),
        subjects=subjects,
    )
