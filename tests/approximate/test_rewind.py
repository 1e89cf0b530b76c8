"""Going back to the epoch whose forget error is that of what was never seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sisa.approximate import loop, models, reference
from sisa.approximate.batches import Examples
from sisa.approximate.controllers import Measured, UtilityFloor
from sisa.approximate.floor import with_floor
from sisa.approximate.item_values import error
from sisa.approximate.methods import METHODS
from sisa.approximate.models import Classifier, LanguageModel
from sisa.approximate.rewind import Epochs, Rewound, closest, rewind
from sisa.errors import ConfigurationError, DataError, IncompleteError

from .language import llama, made

CLASSES, WIDTH, EACH = 3, 8, 40
SETTINGS = loop.Settings(epochs=8, items_per_batch=10, lr=1e-2, checkpoint_every=1)


def drawn(seed: int, name: str) -> Examples:
    """Three Gaussians that overlap: about a third of what was never seen is wrong."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat(EACH)
    centres = 1.5 * torch.eye(CLASSES, WIDTH, dtype=torch.float64)[labels]
    inputs = centres + torch.randn(len(labels), WIDTH, generator=generator, dtype=torch.float64)
    return Examples(tuple(f"{name}{i}" for i in range(len(labels))), inputs, labels)


FORGET, RETAIN, HOLDOUT = drawn(1, "forget"), drawn(2, "retain"), drawn(3, "holdout")


def learned() -> Classifier:
    """A classifier that knows what it was trained on by heart."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, CLASSES)).double()
    data = FORGET + RETAIN
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(400):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(data.inputs), data.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Classifier(module)


def wrong(subject: Classifier, data: Examples) -> float:
    return float((subject.module(data.inputs).argmax(1) != data.labels).double().mean())


def scrubbed(folder: Path, run: str = "run", **more: Any) -> tuple[Classifier, Epochs]:
    """SCRUB to the end, with every epoch kept."""
    subject, teacher = learned(), learned()
    epochs = Epochs(subject, folder / "epochs", run)
    given: dict[str, Any] = {"after_epoch": epochs.keep, **more}
    method = METHODS["scrub"].configured(msteps=5)
    as_it_was = reference.Live(teacher)
    loop.run(subject, method, FORGET, RETAIN, SETTINGS, folder, as_it_was, **given)
    return subject, epochs


def parameters(subject: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in subject.trainable().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def test_scrub_goes_back_to_the_epoch_that_is_closest(tmp_path: Path) -> None:
    seen = list[tuple[float, float, dict[str, Tensor]]]()
    subject, epochs = learned(), Epochs(learned(), tmp_path, "")
    assert wrong(subject, FORGET) == 0 and wrong(subject, HOLDOUT) > 0.2

    def watch(epoch: int) -> None:
        epochs.keep(epoch)
        now = epochs.subject
        assert isinstance(now, Classifier) and epoch == len(seen)
        seen.append((wrong(now, FORGET), wrong(now, HOLDOUT), parameters(now)))

    method, as_it_was = METHODS["scrub"].configured(msteps=5), reference.Live(subject)
    loop.run(epochs.subject, method, FORGET, RETAIN, SETTINGS, None, as_it_was, after_epoch=watch)
    found = rewind(epochs, FORGET, HOLDOUT, items_per_batch=7, chunk=3)
    forget, holdout, kept = zip(*seen, strict=True)
    assert found.forget_errors == pytest.approx(forget)
    assert found.holdout_error == pytest.approx(holdout[-1])  # of the last epoch, not of each
    assert forget[0] < holdout[-1] < max(forget)  # it went too far, and came back
    distances = [round(abs(f - holdout[-1]), 9) for f in forget]
    best = max(k for k, d in enumerate(distances) if d == min(distances))
    assert found.epoch == best
    assert same(parameters(epochs.subject), kept[best])
    assert 0 < best < len(seen) - 1 and distances[best] < distances[-1]
    assert not same(parameters(epochs.subject), kept[-1])


def test_a_run_that_was_killed_goes_back_to_the_same_epoch(tmp_path: Path) -> None:
    subject, epochs = scrubbed(tmp_path / "through")
    expected = rewind(epochs, FORGET, HOLDOUT)

    def die(metrics: Any, step: int) -> None:
        if step == 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scrubbed(tmp_path / "killed", report=die)
    again, kept = scrubbed(tmp_path / "killed")
    assert rewind(kept, FORGET, HOLDOUT) == expected
    assert same(parameters(again), parameters(subject))
    once_more, done = scrubbed(tmp_path / "killed")  # killed before the model was written
    assert rewind(done, FORGET, HOLDOUT) == expected
    assert same(parameters(once_more), parameters(subject))


def test_closest_takes_the_later_of_two() -> None:
    assert closest([0.0, 0.5, 0.9], 0.4) == 1
    assert closest([0.1, 0.3, 0.9], 0.2) == 1  # 0.2 - 0.1 and 0.3 - 0.2 differ as floats
    assert closest([0.3, 0.1, 0.9], 0.2) == 1
    assert closest([0.5, 0.5, 0.5], 0.9) == 2


def test_the_note_tells_numbers_alone() -> None:
    note = Rewound(1, (0.0, 0.25, 0.75), 1 / 3).note
    assert note.startswith("Went back to epoch 2 of 3:")
    assert "0.25" in note and "0.3333" in note


def test_an_adapter_alone_is_kept(tmp_path: Path) -> None:
    base = LanguageModel(llama())
    subject = models.with_lora(base, rank=2, alpha=4, seed=0)
    forget, holdout = made([9, 8], seed=1), made([7, 9], seed=2)
    epochs = Epochs(subject, tmp_path, "run")
    states = []
    for epoch in range(3):
        with torch.no_grad():
            for parameter in subject.trainable().values():
                parameter.add_(0.1)
        epochs.keep(epoch)
        states.append((parameters(subject), error(subject, forget)))
    assert all("lora" in name for name in states[0][0])
    found = rewind(epochs, forget, holdout)
    assert found.forget_errors == tuple(e for _, e in states)
    assert same(parameters(subject), states[found.epoch][0])


def test_an_epoch_below_the_floor_is_none_to_go_back_to(tmp_path: Path) -> None:
    subject, utilities = learned(), iter([0.9, 0.8, 0.1])
    epochs = Epochs(subject, tmp_path, "run")
    method = with_floor(METHODS["gradient-ascent"], 0.5, before=1.0)
    assert UtilityFloor(0.5) in method.controller.parts  # type: ignore[attr-defined]
    loop.run(
        subject,
        method,
        FORGET,
        None,
        SETTINGS,
        None,
        measure=lambda wants, active: Measured(next(utilities)),
        after_epoch=epochs.keep,
    )
    assert epochs.count() == 2
    assert len(rewind(epochs, FORGET, HOLDOUT).forget_errors) == 2


def test_what_cannot_be_gone_back_to_is_refused(tmp_path: Path) -> None:
    subject = learned()
    epochs = Epochs(subject, tmp_path, "run")
    with pytest.raises(IncompleteError, match="no epoch"):
        rewind(epochs, FORGET, HOLDOUT)
    epochs.keep(0)
    epochs.keep(1)
    for holdout, told in ((FORGET.select([0]) + HOLDOUT, "held out too"), (unlabelled(), "no err")):
        with pytest.raises(DataError, match=told):
            rewind(epochs, FORGET, holdout)
    with pytest.raises(ConfigurationError, match="another run"):
        rewind(Epochs(subject, tmp_path, "other"), FORGET, HOLDOUT)
    with torch.no_grad():
        next(iter(subject.trainable().values())).add_(1)
    with pytest.raises(IncompleteError, match="not as the last epoch"):
        rewind(epochs, FORGET, HOLDOUT)


def unlabelled() -> Examples:
    return Examples(HOLDOUT.ids, HOLDOUT.inputs, torch.full_like(HOLDOUT.labels, -100))
