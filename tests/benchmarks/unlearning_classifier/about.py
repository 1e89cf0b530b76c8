"""What stands at the head of the page: what was done, and what the columns mean."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

import common

from sisa.approximate.batches import Examples
from sisa.approximate.edits.updates import Log
from unlearning_classifier import grid
from unlearning_classifier.images import (
    COMMON,
    GONE,
    HELD_OUT,
    SHADOW,
    SHARE,
    TEST,
    TRAINED,
    UNSEEN,
)
from unlearning_classifier.page import FLOOR
from unlearning_classifier.shadows import FORGET_SHARE, MODELS, RESAMPLES
from unlearning_classifier.training import BATCH, EPOCHS, LR, WIDTH
from unlearning_classifier.trials import OTHER

COLUMNS: Mapping[str, str] = {
    "forget, retain, test": "accuracy on the forget set, the retain set, and test records (of the "
    "other classes where a class is forgotten)",
    "unseen": "accuracy on test records of the class that is forgotten",
    "TV forget, TV test": "total variation to the exact retrain (half the sum of absolute "
    "differences of probabilities), mean over the forget set and over the test records",
    "KL": "Kullback-Leibler divergence of the model from the retrain in nats, mean over the forget "
    "set",
    "same": "share of forget and test records of which model and retrain say the same class",
    "TPR": f"forget records told from at most {UNSEEN} test records of the same kind at 1 % false "
    "positives, by the best of the population attacks (loss, Min-K, Min-K++, gradient norm, and "
    "the difference to the exact retrain as a reference), in whichever direction tells more, and "
    "which attack that is; the best of several has some luck, as the lines of retrains show",
    "s": "processor time in the method (of a retrain, in training), one thread",
    "worst": "lowest test accuracy of all tries of the method",
    "chosen": "what the chosen try was set to",
    "AUC, interval": "of U-LiRA: records that a model unlearned against records that it never "
    f"learned, both scored by models after unlearning; 95 % by a bootstrap of {RESAMPLES} "
    "resamples of records, each with its scores under all models. What is peculiar to the few "
    "shadow models is in no interval: how far the line of retrains is from 0.5 tells how much that "
    "is",
    "TPR 1 %, TPR 0.1 %": "its true positive rates at those false positive rates",
    "AUC before": "the same where what was never learned is scored by models that have unlearned "
    "nothing: then what unlearning does to a model as a whole gives it away too",
}


def head() -> str:
    """The head of the page."""
    lines = [
        "# Approximate unlearning of a classifier, measured",
        "",
        *common.text(
            "What the methods of [approximate.md](approximate.md) that apply to classifiers do to",
            "a small network on [Fashion-MNIST](https://github.com/zalandoresearch/fashion-mnist),",
            "beside an exact retrain and beside doing nothing. Every section is written by the",
            "command under it; do not edit this page. `make bench-unlearning-classifier` runs all;",
            "`SISA_TEST_DATA` names a folder that holds `data/fashion_mnist_{train,test}.parquet`.",
            "One base, one forget set a scenario, seeds as named: a method that is ahead of",
            "another by little here may be behind elsewhere. The time under a section is processor",
            "time of all that it took but the training of the base.",
        ),
        *common.text(*_made()),
        *common.text(*_tried()),
        *common.text(*_attacked()),
        "| column | meaning |",
        "|:--|:--|",
        *(f"| {name} | {meaning} |" for name, meaning in COLUMNS.items()),
        "",
        *common.text(*_left_out()),
    ]
    return "\n".join(lines)


def costs(log: Path, forget: Examples) -> list[str]:
    """What the update log of the base takes on disk, and how much of it is taken back."""
    found = Log.open(log)
    numbers = sum(map(prod, found.shapes.values()))
    return [
        f"The update log that the amnesiac methods take back holds {len(found.steps):,} steps,",
        f"{found.size / 2**20:.0f} MiB, for a model of {numbers:,} parameters;",
        f"{len(found.holding(forget.ids)):,} of them held a record that is forgotten here.",
    ]


def _made() -> list[str]:
    return [
        f"**Models.** A perceptron with one hidden layer of {WIDTH} units learns the first",
        f"{TRAINED:,} training records in {EPOCHS} passes of Adam at a rate of {LR:g},",
        f"{BATCH} records a step. The exact retrain (`retrain`) has the same seed,",
        f"{common.SEED}, start and rule of order, without the records to forget;",
        f"`retrain, other seed` has seed {OTHER}: how far two retrains are apart is as near as a",
        "method can be expected to come. Doing nothing (`nothing`) is the base.",
        f"Two requests: all records of class {GONE}, and {SHARE:.0%} of the records drawn at",
        f"random. {TEST:,} test records are asked about; {HELD_OUT:,} more training records that",
        "no model learned are what rewinding compares with (of the class, where one is",
        "forgotten).",
    ]


def _tried() -> list[str]:
    name, rates = grid.RATES
    grids = "; ".join(
        f"`{method}`: {setting} {', '.join(f'{v:g}' for v in values)}"
        for method, (setting, values) in grid.GRIDS.items()
    )
    fixed = "; ".join(
        f"`{method}`: {', '.join(f'{n}={v}' for n, v in each.items())}"
        for method, each in grid.FIXED.items()
    )
    mixed, how = grid.MIXED
    return [
        f"**Budget.** Each training passes {grid.HOW.epochs} times over the forget set,",
        f"{grid.HOW.items_per_batch} records of each side a step (`scrub` and",
        "`partial-label-flip`, by their design, pass over the retain set too), and each method",
        f"has {len(rates)} tries: {name} of AdamW {', '.join(f'{v:g}' for v in rates)}; {grids};",
        f"{' and '.join(f'`{each}`' for each in grid.ONE)} has nothing to vary and one try. Of",
        "these the one counts that is nearest to the retrain on the forget set (TV) at",
        f"{FLOOR:.0%} of the base's test accuracy or more, and where none keeps as much, the one",
        "with the highest test accuracy. So it was chosen with the retrain at hand, which nobody",
        "has who needs a method. All other settings are the defaults of",
        f"[approximate.md](approximate.md), but for {fixed}.",
        f"`mix` mixes the base with the model of `{mixed}` at",
        f"{', '.join(f'{n} {v:g}' for n, v in how.items())}. Wrong labels are drawn by the seed.",
        "`code-ablation` gets a bottleneck behind the hidden layer, fitted to all records with",
        f"{', '.join(f'{n} {v:g}' for n, v in grid.BOTTLENECK.items())}; the seconds of the fit",
        "are counted.",
        "SSD refuses its authors' alpha of 10 where the forget set is a tenth of all data.",
    ]


def _attacked() -> list[str]:
    members, forget = SHADOW // 2, round(FORGET_SHARE * SHADOW)
    return [
        f"**U-LiRA.** {MODELS} shadow models each learn {COMMON:,} records that all learn and",
        f"{members} of {SHADOW} others, as many in all as the base, and unlearn {forget} of those",
        f"{members} by the method as it was chosen, as many as the base does. Each of the",
        f"{SHADOW} records is learned by {MODELS // 2} of the models, of which",
        f"{round(FORGET_SHARE * MODELS)} unlearn it. The models are trained once for all methods,",
        "and attacked leaving one out, with one variance shared by all records, as so few scores",
        "a record allow no more. `nothing` unlearns nothing: its line is how well such records",
        "are known. With few shadow models the attack is weaker than it could be: a method on",
        "which it fails may yet be broken. It is made for random records alone: a class is",
        "forgotten as a whole, and shadow models that keep half of it would ask something else.",
    ]


def _left_out() -> list[str]:
    found = dict(grid.LEFT_OUT)
    for scenario, each in grid.ALSO_LEFT_OUT.items():
        found |= {f"{name}` (in `{scenario}`)": f"{why}" for name, why in each.items()}
    named = "; ".join(
        f"`{name}: {why}" if "`" in name else f"`{name}`: {why}" for name, why in found.items()
    )
    lira = " and ".join(f"`{name}`" for name in grid.NO_LIRA)
    why = next(iter(grid.NO_LIRA.values()))
    return [f"Not in the tables: {named}. Left out of U-LiRA for its cost: {lira} {why}."]
