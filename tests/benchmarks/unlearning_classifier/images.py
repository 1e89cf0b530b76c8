"""The records: who learns which, and what is to be forgotten, by scenario."""

from __future__ import annotations

from dataclasses import dataclass

import common
import numpy as np
import pyarrow.parquet as pq
import torch

from sisa.approximate.batches import Examples, opaque

CLASSES, INPUTS = 10, 784

TRAINED = 4000
"""Records that the base learns: the first of the training file."""

HELD_OUT = 2000
"""Records of the training file that no model learns; rewinding compares with them."""

TEST = 5000
"""Records of the test file."""

UNSEEN = 500
"""Test records, at most, that membership attacks set beside the forget set."""

GONE = 3
"""The class that is forgotten."""

SHARE = 0.05
"""Of the records, drawn at random, that are forgotten."""

SHADOW = 800
"""Records that U-LiRA is about; each shadow model learns half of them."""

COMMON = TRAINED - SHADOW // 2
"""Records that every shadow model learns besides, so that it learns as many as the base."""

READ = COMMON + SHADOW + HELD_OUT
"""Rows of the training file that are used."""


@dataclass(frozen=True)
class Sides:
    """What a method is given.

    Attributes:
        forget: What is to be forgotten.
        retain: All else that the model learned.
        holdout: What no model learned, of the kind that is forgotten.
    """

    forget: Examples
    retain: Examples
    holdout: Examples


@dataclass(frozen=True)
class Scenario:
    """A request, and what models are asked about afterwards.

    Attributes:
        name: Of the scenario.
        sides: What a method is given.
        test: Test records of the kinds that are kept.
        unseen: Test records of the kind that is forgotten, for membership attacks.
    """

    name: str
    sides: Sides
    test: Examples
    unseen: Examples


def rows(name: str, count: int) -> Examples:
    """The first rows of a file of Fashion-MNIST, pixels from 0 to 1."""
    file = common.data("fashion_mnist")
    path = file.with_name(file.name.replace("_train", f"_{name}"))
    batch = next(pq.ParquetFile(path).iter_batches(count, columns=["image", "label"]))
    pixels = np.stack(batch["image"].to_numpy(zero_copy_only=False)).astype(np.float32)
    labels = torch.from_numpy(batch["label"].to_numpy().astype(np.int64))
    ids = tuple(opaque([name, place]) for place in range(len(labels)))
    return Examples(ids, torch.from_numpy(pixels / 255), labels)


def shadow_rows() -> tuple[Examples, Examples, Examples]:
    """What every shadow model learns, what half of them do, and what none does."""
    found = rows("train", READ)
    ends = (0, COMMON, COMMON + SHADOW, READ)
    every, some, none = (found.select(range(*ends[at : at + 2])) for at in range(len(ends) - 1))
    return every, some, none


def of_a_class() -> Scenario:
    """All records of one class are forgotten."""
    (forget, retain), (holdout, _), (unseen, test) = (
        (_where(each, each.labels == GONE), _where(each, each.labels != GONE)) for each in _files()
    )
    sides = Sides(forget, retain, holdout)
    return Scenario("class", sides, test, _first(unseen, UNSEEN))


def of_random_records() -> Scenario:
    """A share of the records is forgotten, drawn whatever their class."""
    learned, held_out, test = _files()
    drawn = np.random.default_rng(common.SEED).permutation(TRAINED)[: round(SHARE * TRAINED)]
    gone = torch.zeros(TRAINED, dtype=torch.bool)
    gone[torch.from_numpy(drawn)] = True
    sides = Sides(_where(learned, gone), _where(learned, ~gone), held_out)
    return Scenario("random", sides, test, _first(test, UNSEEN))


SCENARIOS = {"class": of_a_class, "random": of_random_records}


def _files() -> tuple[Examples, Examples, Examples]:
    found = rows("train", READ)
    held_out = found.select(range(READ - HELD_OUT, READ))
    return found.select(range(TRAINED)), held_out, rows("test", TEST)


def _where(examples: Examples, wanted: torch.Tensor) -> Examples:
    return examples.select(wanted.nonzero().flatten().tolist())


def _first(examples: Examples, count: int) -> Examples:
    return examples.select(range(min(count, len(examples))))
