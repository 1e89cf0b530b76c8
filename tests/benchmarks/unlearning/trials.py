"""One model: made by a method, asked, attacked. Each task runs in a process of its own.

So the largest memory of one is not that of another. What a task found is kept as JSON under the
digest of what was asked for: an interrupted benchmark goes on with what is missing.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch

from data_index.storage import canonical_json, sha256
from sisa.approximate import models, unlearn
from sisa.approximate.answers import mean_probability, statistics
from sisa.approximate.asked import Asked, known
from sisa.approximate.batches import Items, read_texts
from sisa.approximate.examine import Examination
from sisa.approximate.memory import Peak
from sisa.approximate.methods import METHODS
from sisa.approximate.metrics.memory import extraction_strength
from sisa.approximate.metrics.probability import probability
from sisa.approximate.metrics.quality import forget_quality
from sisa.approximate.metrics.scores import Scores
from sisa.approximate.models import LanguageModel
from sisa.approximate.targets import Attacks
from sisa.errors import DivergedError, IncompleteError, SisaError
from unlearning import brought, grid
from unlearning.training import COST, Trained

TOGETHER = 4
"""Items that go through a model at once: attention of a pack grows with its square."""

MOST = 160
"""Retained items that utility is measured on, those of the smallest digests."""

ATTACKS = Attacks(lr=3e-5, steps=20, seed=common.SEED, items=8)
"""The same for every model; relearning tries 1, 10 and 100 times the rate."""

PRELOADED = ["torch", "transformers.models.llama.modeling_llama", "sisa.approximate.unlearn"]
"""What a process starts with, so that it need not import it again."""


@dataclass(frozen=True)
class Asking:
    """What a model says.

    Attributes:
        each: Probability of each item to forget.
        forget: Their mean.
        utility: Mean probability of retained items.
        extraction: Mean extraction strength of the items to forget.
        p_value: Forget quality, by the probabilities of the items to forget.
        distance: Kolmogorov-Smirnov distance of them to those of the exact retrain.
    """

    each: tuple[float, ...]
    forget: float
    utility: float
    extraction: float
    p_value: float
    distance: float


@dataclass(frozen=True)
class Trial:
    """A method with settings.

    Attributes:
        method: Its name.
        settings: As `sisa unlearn --set` takes them; the first is what differs between trials.
        folder: Of the model that came of it.
        seconds: In the method.
        peak_bytes: Largest memory of the process in the method.
        steps: Optimizer steps.
        said: What the model says; None if there is none, or it has collapsed to no number.
        failed: Why there is no number.
    """

    method: str
    settings: tuple[str, ...]
    folder: str
    seconds: float = 0.0
    peak_bytes: int = 0
    steps: int = 0
    said: Asking | None = None
    failed: str = ""


def alone(task: Callable[..., Any], *given: Any) -> Any:
    """What a task gives, run in a new process with one thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(1, context, _quietly, max_tasks_per_child=1) as pool:
        return pool.submit(task, *given).result()


def trial(made: Trained, method: str, settings: tuple[str, ...]) -> dict[str, Any]:
    """Let a method change the base, and ask what came of it."""
    out = _folder(made, method, settings)
    never = baseline(made, "retrain", made.retrain)["said"]["each"]
    task = partial(alone, _trial, made, method, settings, out, never)
    return common.kept(out.with_suffix(".json"), task)


def _folder(made: Trained, method: str, settings: tuple[str, ...]) -> Path:
    named = sha256(canonical_json([method, settings]))[:16]
    return made.folder / "trials" / f"{method}-{named}"


def attacked(made: Trained, folder: Path) -> dict[str, Any]:
    """The evidence of a model, with the same attacks for every one."""
    file = made.folder / "evidence" / f"{folder.name}.json"
    return common.kept(file, partial(alone, _attacked, made, folder))


def baseline(made: Trained, name: str, folder: Path) -> dict[str, Any]:
    """A trial that is none: the base as it is, or the exact retrain."""
    file = made.folder / "trials" / f"{name}.json"
    return common.kept(file, partial(alone, _baseline, made, name, folder))


def seconds(made: Trained) -> float:
    """All that was spent on a data set, whenever: training, trials and attacks."""
    done = [*made.folder.glob("trials/*.json"), *made.folder.glob("evidence/*.json")]
    took = sum(json.loads(file.read_text())["took"] for file in done)
    costs = (json.loads((folder / COST).read_text()) for folder in (made.base, made.retrain))
    return float(took + sum(cost["seconds"] for cost in costs))


def _quietly() -> None:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)


def _trial(
    made: Trained, method: str, settings: tuple[str, ...], out: Path, never: Sequence[float]
) -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)
    try:
        request, before = _request(made, method, settings, out)
        done = unlearn.run(request)
    except (DivergedError, IncompleteError) as error:
        return asdict(Trial(method, settings, str(out), failed=error.message))
    seconds = before.seconds + (done.seconds or 0.0)
    cost = (seconds, done.peak_bytes or 0, before.steps + done.steps)
    try:
        said = asking(made, models.load(out), never)
    except SisaError as error:
        return asdict(Trial(method, settings, str(out), *cost, failed=error.message))
    return asdict(Trial(method, settings, str(out), *cost, said=said))


def _request(
    made: Trained, method: str, settings: tuple[str, ...], out: Path
) -> tuple[unlearn.Request, brought.Adapters]:
    """What is asked for, and the adapters that were made for it first."""
    needs, model, original = METHODS[method].needs, made.base, made.start
    adapters, own = brought.Adapters(), settings
    if method == "mix":
        model, original = _folder(made, grid.MIXED, grid.tried()[grid.MIXED][0]), made.base
    elif method == "drop-adapter":
        model = brought.apart(made)
    elif method == "fuse":
        adapters, own = brought.adapters(made, grid.adapters(settings)), settings[1:]
    alternatives = made.files["wrong" if method == "label-flip" else "unknowing"]
    keeps = {"retain", "statistics", "similarity"} & {*needs}
    request = unlearn.Request(
        method,
        made.files["forget"],
        model,
        out,
        retain=made.files["retain"] if keeps else None,
        alternatives=alternatives if "alternatives" in needs else None,
        log=brought.log(made) if "log" in needs else None,
        original=original if "original" in needs else None,
        adapters=adapters.folders,
        evidence=False,
        settings=own,
    )
    return request, adapters


def _baseline(made: Trained, name: str, folder: Path) -> dict[str, Any]:
    peak, retrained = Peak(torch.device("cpu")), models.load(made.retrain)
    never = probability(statistics(retrained, _items(made, "forget", retrained), TOGETHER))
    seconds, most = 0.0, peak.bytes()
    if name == "retrain":
        cost = json.loads((folder / COST).read_text())
        seconds, most = cost["seconds"], cost["peak_bytes"]
    said = asking(made, models.load(folder), never.values.tolist())
    return asdict(Trial(name, (), str(folder), seconds, most, 0, said))


def _attacked(made: Trained, folder: Path) -> dict[str, Any]:
    base, retrained = models.load(made.base), models.load(made.retrain)
    forget = _items(made, "forget", base)
    wrong = (_items(made, "wrong", base),)
    asked = Asked(forget, None, _items(made, "holdout", base), wrong=wrong, continued=forget)
    begun = Examination.begin(base, asked, ATTACKS, retrained)
    evidence, lacking = begun.end(models.load(folder))
    return {"evidence": evidence.model_dump(mode="json"), "lacking": lacking}


def asking(made: Trained, subject: LanguageModel, never: Sequence[float]) -> Asking:
    """Ask a model, and compare it with the exact retrain.

    Args:
        made: With the data.
        subject: The model.
        never: Probability of each item to forget under the exact retrain.

    Raises:
        SisaError: It has collapsed: a label has no finite log probability.
    """
    forgotten, retained = (_items(made, side, subject) for side in ("forget", "retain"))
    asked = Asked.of(forgotten, retained, None, MOST)
    found = known(subject, asked, TOGETHER)
    assert found.retain is not None
    forget = probability(found.forget)
    retrained = Scores(torch.tensor(never, dtype=torch.float64), forget.item, forget.items)
    quality = forget_quality(forget, retrained)
    extraction = extraction_strength(found.forget).mean().value
    assert quality.p_value is not None and quality.distance is not None and extraction is not None
    return Asking(
        tuple(forget.values.tolist()),
        mean_probability(found.forget),
        mean_probability(found.retain),
        extraction,
        quality.p_value,
        quality.distance,
    )


def _items(made: Trained, side: str, subject: LanguageModel) -> Items:
    """The items of a side."""
    return read_texts(made.files[side], subject.tokenizer)
