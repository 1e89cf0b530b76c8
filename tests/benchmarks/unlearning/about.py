"""What stands at the head of the page: what was done, and what the columns mean."""

from __future__ import annotations

import common

from sisa.approximate.attacked import RATES as TIMES
from sisa.approximate.methods import METHODS
from unlearning.brought import RANK, REQUESTS
from unlearning.grid import EPOCHS, FIXED, GRIDS, ITEMS, MIXED, RATES, WARMUP, lacking
from unlearning.lines import FLOOR
from unlearning.table import COLUMNS
from unlearning.training import HOW, SHAPE
from unlearning.trials import ATTACKS


def head() -> str:
    """The head of the page."""
    lines = [
        "# Approximate unlearning, measured",
        "",
        *common.text(
            "What each method of [approximate.md](approximate.md) does to a small language model,",
            "beside an exact retrain and beside doing nothing. Every section is written by the",
            "command under it; do not edit this page. `make bench-unlearning` runs all;",
            "`SISA_TEST_DATA` names a folder that holds",
            "`data/{tofu,tinyshakespeare}_train.parquet`. One model, one seed, one draw of",
            "subjects: a method that is ahead of another by little here may be behind elsewhere.",
        ),
        *common.text(*_made()),
        *common.text(*_tried()),
        *common.text(*_brought()),
        *common.text(*_attacked()),
        "| column | meaning |",
        "|:--|:--|",
        *(f"| {name} | {meaning} |" for name, meaning in COLUMNS.items()),
        "",
        *common.text(*_left_out()),
    ]
    return "\n".join(lines)


def _made() -> list[str]:
    return [
        f"**Models.** A Llama of {SHAPE['num_hidden_layers']} blocks of width",
        f"{SHAPE['hidden_size']} and a vocabulary of {SHAPE['vocab_size']:,} starts at random and",
        f"is trained with AdamW at a rate of {HOW.lr:g}, {HOW.items_per_batch} items a step, until",
        "it knows its items by heart. Whole subjects (authors of tofu, speakers of",
        "tinyshakespeare) are drawn for each side. The tokenizer is made from subjects on no side.",
        "The exact retrain (`retrain`) is made as the base was, by the same seed and the same rule",
        "of order, without the items to forget. Doing nothing (`nothing`) is the base.",
    ]


def _tried() -> list[str]:
    fixed = "; ".join(f"`{name}`: {', '.join(each)}" for name, each in FIXED.items())
    grids = "; ".join(f"`{name}`: {', '.join(each)}" for name, each in GRIDS.items())
    return [
        f"**Budget.** Each training passes {EPOCHS} times over the forget set, {ITEMS} items of",
        f"each side a step, with a warm-up of {WARMUP} steps (`scrub` and `eul`, by their design,",
        "pass over the retain set too), and each method has",
        f"{len(RATES)} trials: {', '.join(RATES)}; of edits without a learning rate {grids}. Of",
        "these the one counts that is nearest to the retrain (by KS; where that is equal, by the",
        f"mean log probability of the forget items) at {FLOOR:.0%} of the base's utility or more,",
        "and where none keeps as much, the one with the most utility. So it was",
        "chosen with the retrain at hand, which nobody has who needs a method. All other settings",
        f"are the defaults of [approximate.md](approximate.md), but for {fixed}. `mix` mixes the",
        f"base with the model of the first trial of `{MIXED}`.",
    ]


def _brought() -> list[str]:
    return [
        "**What an earlier training leaves.** `amnesiac` and `partial-amnesiac` take back an",
        "update log: the training of the base is repeated with a recorder, to the same bits.",
        f"`fuse` puts together the adapters of `eul` for {REQUESTS} requests, each with a part of",
        "the items; its seconds and steps count theirs. `drop-adapter` is the only one with",
        f"another start: the exact retrain, with an adapter of rank {RANK} that alone learned what",
        "is to be forgotten. Its line shows what comes of such a layout, not of the base.",
    ]


def _attacked() -> list[str]:
    rates = ", ".join(f"{ATTACKS.lr * each:g}" for each in TIMES)
    return [
        f"**Attacks** are the same for all: relearning takes {ATTACKS.steps} steps of AdamW, at",
        f"rates of {rates}, and its best counts; membership attacks are loss, zlib, Min-K,",
        "Min-K++, gradient norm, and the difference to the exact retrain as a reference, a",
        "knowledge that makes it the strongest where an attacker has it.",
    ]


def _left_out() -> list[str]:
    found = {name: lacking(method) for name, method in METHODS.items()}
    named = "; ".join(f"`{name}`: {why}" for name, why in found.items() if why)
    return [f"Not in the tables, for want of what they need: {named}."] if named else []
