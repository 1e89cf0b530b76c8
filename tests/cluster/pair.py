"""One of two processes that make runs together, over gloo: `python pair.py LANGUAGE FOLDER RANK`.

LANGUAGE is the path of tests/approximate/language.py: the folder `tests` must not be on the import
path, where its folder `cluster` would be taken for the package. The first process leaves what came
out of each run as `CASE.pt` in FOLDER.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from sisa.approximate import loop, models, reference
from sisa.approximate.answers import statistics
from sisa.approximate.asked import Asked
from sisa.approximate.attacked import attack
from sisa.approximate.batches import Items
from sisa.approximate.chunks import row_values
from sisa.approximate.methods import METHODS
from sisa.approximate.models import LanguageModel
from sisa.approximate.neighbours import nearest
from sisa.approximate.objectives.rows import nll
from sisa.approximate.reference import Reference
from sisa.approximate.similarity import Examiner, continued
from sisa.approximate.step import Sources
from sisa.approximate.targets import Attacks, Target
from sisa.errors import ConfigurationError, SisaError, WorkerError

SETTINGS = loop.Settings(epochs=2, items_per_batch=2, accumulate=2, lr=1e-3, checkpoint_every=1)
ALL = 97
"""Words that the models know."""


@dataclass(frozen=True)
class Case:
    """A run; the last step of a pass has one batch, so that one process does it for nothing."""

    method: str
    lora: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    taken_up: bool = False
    narrowed: bool = False
    fitted: bool = False
    steps: int = 4

    def made(self, language: Any) -> LanguageModel:
        """Its model, always the same."""
        subject = LanguageModel(language.llama(**self.model))
        if self.narrowed:
            language.narrow(subject.module)
        if self.fitted:
            fit(subject, items(language)[0].select([0, 1, 4]))
        return models.with_lora(subject, 4, 8.0, 0) if self.lora else subject

    @property
    def configured(self) -> Any:
        """Its method."""
        return METHODS[self.method].configured(**self.settings)


CASES = {
    "gradient-difference": Case("gradient-difference"),
    "npo": Case("npo"),  # scores of each item, kept
    "npo-lora": Case("npo", lora=True),  # scores with the adapter off
    "undial-tied": Case("undial", model={"tie_word_embeddings": True}),  # distributions, kept
    "difference-kl": Case("gradient-difference", settings={"retain": "kl"}),
    "pdu": Case("pdu", settings={"first": 1.0, "warmup_epochs": 0}),  # a multiplier that moves
    "scrub": Case("scrub", steps=10),  # two passes an epoch, one over all that is retained
    "rmu": Case("rmu", settings={"layer": 1}),  # hidden states of a second model
    "npo-narrowed": Case("npo", narrowed=True),  # with a bottleneck that has lost codes
    "rmu-narrowed": Case("rmu", settings={"layer": 1}, narrowed=True),  # hidden states behind it
    "icu": Case("icu", settings={"below": 0.5}, fitted=True, steps=3),  # items that are left alone
    "taken-up": Case("npo", taken_up=True),  # from the checkpoint of one process
}


ATTACKED = {
    "whole": (Case("npo"), 4),
    "lora": (Case("npo", lora=True), 4),
    "tied": (Case("npo", model={"tie_word_embeddings": True}), 3),  # shares of 2 items and of 1
    "narrowed": (Case("npo", narrowed=True), 1),  # one of the two has nothing to do
    "dropout": (Case("npo", model={"attention_dropout": 0.5}), 4),  # it must be off
}
"""Models that are attacked, and how many items of a step there are."""


@dataclass(frozen=True)
class Found:
    """What came out of a run."""

    losses: tuple[float, ...]
    norms: tuple[float, ...]
    parameters: dict[str, Tensor]
    before: Tensor
    after: Tensor


def items(language: Any) -> tuple[Items, Items]:
    """What is to be forgotten, an item without a label among it, and what is retained."""
    forget = language.made([9, 7, 12, 5, 8, 10], seed=1, name="forget")
    retain = language.made([6, 11, 9, 8, 7, 12, 5, 10, 9], seed=2, name="retain")
    labels = [torch.full_like(x, -100) if i == 3 else x for i, x in enumerate(forget.labels)]
    return Items(forget.ids, forget.tokens, tuple(labels)), retain


def fit(subject: LanguageModel, known: Items) -> None:
    """Let a model learn items by heart."""
    optimizer = torch.optim.Adam(subject.trainable().values(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        row_values(subject.rows(known), [nll], None, 128).mean().backward()
        optimizer.step()


def alone(case: Case, language: Any, folder: Path | None = None, stop_after: int = 0) -> Found:
    """What one process makes of it; with `stop_after` it raises after so many steps."""
    subject, norms = case.made(language), list[float]()
    forget, retain = items(language)
    before = statistics(subject, forget, 2).nll
    compared = _compared(case, language, subject, [forget, retain])

    def report(metrics: Any, step: int) -> None:
        norms.append(metrics["gradient_norm"])
        if step == stop_after:
            raise InterruptedError

    outcome = run(case, subject, (forget, retain), folder, compared, report)
    after = statistics(subject, forget, 2).nll
    return Found(outcome.losses, tuple(norms), subject.trainable(), before, after)


def run(
    case: Case,
    subject: LanguageModel,
    sides: tuple[Items, Items],
    folder: Path | None,
    compared: Reference | None,
    report: loop.Report,
    **together: Any,
) -> loop.Outcome:
    """The run of a case, by whomever."""
    return loop.run(
        subject,
        case.configured,
        *sides,
        SETTINGS,
        folder,
        compared,
        report,
        neighbours=near(case, subject, *sides),
        measure=Examiner(subject, *sides),
        **together,
    )


def near(case: Case, subject: LanguageModel, forget: Items, retain: Items) -> Items | None:
    """The nearest item to keep of each item to forget, where the method looks at it."""
    if case.method != "icu":
        return None
    return retain.select(nearest(subject, forget, retain, items_per_batch=2).indices)


def _compared(case: Case, language: Any, subject: Any, batches: list[Any]) -> Reference | None:
    needed = case.configured.references
    if not needed:
        return None
    if case.lora:
        return reference.AdapterOff(subject)
    if "hidden" in needed:
        return reference.Live(case.made(language))
    return reference.keep(subject, batches, top=None if needed == {"scores"} else ALL)


def together(case: Case, language: Any, folder: Path) -> Found:
    """What two processes make of it, each of them with this call."""
    from cluster.parted import PartedModel, Processes, answers, kept

    device, norms = torch.device("cpu"), list[float]()
    team, made = Processes(device), case.made(language)
    forget, retain = items(language)
    identity = loop.identity_of(made, Sources(forget, retain), case.configured, SETTINGS)
    subject = PartedModel(made, device)
    before = answers(team, subject, forget, 2).nll
    needed, compared = case.configured.references, None
    if case.lora:
        compared = reference.AdapterOff(subject)
    elif "hidden" in needed:
        compared = reference.Live(PartedModel(case.made(language), device))
    elif needed:
        top = None if needed == {"scores"} else ALL
        compared = kept(team, subject, [forget, retain], top, 128)
    outcome = run(
        case,
        subject,
        (forget, retain),
        folder,
        compared,
        lambda metrics, step: norms.append(metrics["gradient_norm"]),
        team=team,
        identity=identity,
    )
    parameters = team.gather(subject.trainable())
    after = answers(team, subject, forget, 2).nll
    return Found(outcome.losses, tuple(norms), parameters, before, after)


@torch.no_grad()
def halve(parameters: dict[str, Any]) -> None:
    for parameter in parameters.values():
        parameter.mul_(0.5)


def nll_of_halved(language: Any) -> Tensor:
    """What is said of what is to be forgotten once parameters were changed between two forwards."""
    from cluster.parted import PartedModel, Processes, answers

    device, (forget, _) = torch.device("cpu"), items(language)
    team, subject = Processes(device), PartedModel(LanguageModel(language.llama()), device)
    parameters = subject.trainable()
    answers(team, subject, forget, 2)
    halve(parameters)
    return answers(team, subject, forget, 2).nll


def said(language: Any, subject: LanguageModel) -> list[list[Tensor]]:
    """How a model goes on with what is to be forgotten, and so once all of it is halved."""
    forget, parameters, found = items(language)[0], subject.trainable(), []
    for _ in range(2):
        found.append([made for made, _ in continued(subject, forget)])
        halve(parameters)
    return found


def hears_of_a_collapse(language: Any) -> bool:
    """Whether this process hears that the model collapsed on an item of the first process."""
    from cluster.parted import PartedModel, Processes, answers

    device, (forget, _) = torch.device("cpu"), items(language)
    try:
        answers(Processes(device), PartedModel(collapsed(language), device), forget, 2)
    except SisaError:
        return True
    return False


def unlearned(case: Case, language: Any) -> LanguageModel:
    """A model that is attacked, with an adapter that does something, always the same."""
    made = case.made(language)
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.trainable().values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=draws))
    return made


def attacks_of(language: Any, target: Target, how: Attacks) -> dict[str, Any]:
    """What attacks on a model come to, as plain values."""
    forget, never = items(language)
    asked = Asked(forget.select([0, 1, 2, 4, 5]), None, never.select(range(3)))
    before = statistics(LanguageModel(language.llama(seed=5)), asked.forget, 2)
    found = attack(target, asked, before, how)
    assert not isinstance(found.gradients, SisaError)
    parts = {"relearning": found.relearning, "quantisation": found.quantisation}
    return {
        "gradients": [norms.tolist() for norms in found.gradients],
        **{n: str(p) if isinstance(p, SisaError) else p.model_dump() for n, p in parts.items()},
    }


class Fresh:
    """Gives models, and sees that there is one at a time."""

    def __init__(self, made: Callable[[], LanguageModel]) -> None:
        self._made, self._before = made, list[weakref.ref[Any]]()

    def __call__(self) -> LanguageModel:
        assert all(before() is None for before in self._before)
        found = self._made()
        self._before = [weakref.ref(found.module)]
        return found


def attacks_of_two(language: Any) -> dict[str, Any]:
    """What attacks come to that two processes make together, by the model's name."""
    found = {}
    for name, (case, size) in ATTACKED.items():
        how = attacks_with(size)
        target = parted_target(functools.partial(unlearned, case, language), how)
        found[name] = attacks_of(language, target, how)
    how = attacks_with(4)
    broken = parted_target(functools.partial(collapsed, language), how)
    return {**found, "collapsed": attacks_of(language, broken, how)}


def parted_target(made: Callable[[], LanguageModel], how: Attacks) -> Target:
    """A model that two processes attack together."""
    from cluster.parted import Processes
    from cluster.targets import PartedTarget

    device = torch.device("cpu")
    return PartedTarget(Fresh(made), Processes(device), device, how)


def hears_of_what_cannot_be_read(language: Any, rank: str) -> bool:
    """Whether this process hears that the second one could not read its third copy."""
    copies = itertools.count(1)

    def made() -> LanguageModel:
        if next(copies) == 3 and rank == "1":
            raise ConfigurationError("It cannot be read.")
        return LanguageModel(language.llama())

    how = attacks_with(4)
    try:
        attacks_of(language, parted_target(made, how), how)
    except WorkerError as error:
        return "could not be made: It cannot be read." in error.message
    return False


def hears_of_another_checkpoint(language: Any, folder: Path, rank: str) -> bool:
    """Whether this process hears that the second one does not see the checkpoint of the first."""
    from cluster.parted import PartedModel, Processes

    case, (forget, retain) = CASES["gradient-difference"], items(language)
    model, device = PartedModel(case.made(language), torch.device("cpu")), torch.device("cpu")
    seen = folder / ("gradient-difference" if rank == "0" else "empty")
    made = case.made(language)
    identity = loop.identity_of(made, Sources(forget, retain), case.configured, SETTINGS)
    try:
        loop.run(
            model,
            case.configured,
            forget,
            retain,
            SETTINGS,
            seen,
            team=Processes(device),
            identity=identity,
        )
    except ConfigurationError as error:
        return "different checkpoints" in error.message
    return False


class Negated(torch.nn.Module):
    """A head that says the opposite."""

    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: Tensor) -> Tensor:
        return -self.head(hidden)


def attacks_with(size: int) -> Attacks:
    """How models are attacked, with so many items at once."""
    return Attacks(lr=1e-4, steps=6, seed=1, items=size, chunk=5)


def collapsed(language: Any) -> LanguageModel:
    """A model that has no number to say about the first item, and some about the others."""
    made, (forget, _) = LanguageModel(language.llama()), items(language)
    others = {int(token) for tokens in forget.tokens[1:] for token in tokens}
    only = next(int(token) for token in forget.tokens[0] if int(token) not in others)
    made.module.get_input_embeddings().weight.data[only] = torch.nan
    return made


def main(language_file: str, folder: str, rank: str) -> None:
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("language", language_file)
    assert spec is not None and spec.loader is not None
    language = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(language)
    store = f"file://{Path(folder, 'store')}"
    distributed.init_process_group("gloo", init_method=store, rank=int(rank), world_size=2)
    for name, case in CASES.items():
        found = together(case, language, Path(folder, name))
        if rank == "0":
            torch.save(vars(found), Path(folder, f"{name}.pt"))
    torch.save(nll_of_halved(language), Path(folder, f"halved-{rank}.pt"))
    torch.save(hears_of_a_collapse(language), Path(folder, f"heard-{rank}.pt"))
    from cluster.parted import PartedModel

    parted = PartedModel(CASES["icu"].made(language), torch.device("cpu"))
    if rank == "1":  # what the first says counts
        parted._head = Negated(parted._head)
    torch.save(said(language, parted), Path(folder, f"said-{rank}.pt"))
    torch.save(attacks_of_two(language), Path(folder, f"attacks-{rank}.pt"))
    elsewhere = hears_of_another_checkpoint(language, Path(folder), rank)
    torch.save(elsewhere, Path(folder, f"elsewhere-{rank}.pt"))
    torch.save(hears_of_what_cannot_be_read(language, rank), Path(folder, f"unread-{rank}.pt"))
    distributed.barrier()
    distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # threads of gloo may end an interpreter that shuts down with SIGABRT


if __name__ == "__main__":
    main(*sys.argv[1:])
