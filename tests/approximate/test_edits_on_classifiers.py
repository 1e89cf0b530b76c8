"""Every edit of a classifier, from a model folder: it forgets the cloud, or it says why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sisa.approximate import editing, inputs, loop, subjects
from sisa.approximate.batches import Examples
from sisa.approximate.classifier_folder import FolderClassifier
from sisa.approximate.declaration import edit
from sisa.approximate.edits import importance_files
from sisa.approximate.edits.bottlenecks import QuantisedBottleneck
from sisa.approximate.edits.dampen import dampen
from sisa.approximate.edits.given import Edited
from sisa.approximate.edits.importance import Importance
from sisa.approximate.edits.mappings import of_module
from sisa.approximate.edits.mix import mix
from sisa.approximate.edits.newton import of_classifier, step
from sisa.approximate.edits.recorder import Recorder
from sisa.approximate.edits.updates import Log
from sisa.approximate.item_values import mean_probability
from sisa.approximate.methods import METHODS, NEEDS
from sisa.errors import (
    ConfigurationError,
    DivergedError,
    IncompleteError,
    NotFoundError,
    SisaError,
    UsageError,
)

from .clouds import CLASSES, accuracy, made_clouds, points

HOW = loop.Settings(items_per_batch=8, seed=3)
EDITS = [method for method in METHODS.values() if method.kind == "edit"]

FORGETS: Mapping[str, tuple[dict[str, Any], float, float]] = {
    "ssd": ({"alpha": 1.5, "strength": 0.3}, 0.7, 0.95),
    "ssd-label-free": ({"alpha": 1.1, "strength": 0.3}, 0.8, 0.95),
    "prune": ({"share": 0.3}, 0.5, 0.95),
    "reset": ({"share": 0.4}, 0.6, 0.9),
    "relevance-path": ({"top": 0.3, "share": 0.3}, 0.6, 0.95),
    "amnesiac": ({}, 0.1, 0.95),
    "partial-amnesiac": ({"share": 0.2}, 0.1, 0.95),
    "partial-label-flip": ({"lr": 0.3, "epochs": 20}, 0.1, 0.95),
    "partial-optimisation": ({"lr": 0.1, "epochs": 20}, 0.1, 0.95),
    "task-vector": ({"lr": 0.02, "epochs": 10}, 0.1, 0.95),
    "newton": ({"damping": 0.2}, 0.5, 0.9),
}
"""Settings, the most that is still known of the cloud, and the least of the others."""


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = made_clouds(tmp_path_factory.mktemp("clouds"))
    torch.set_num_threads(threads)
    return made


def loaded(folder: Path) -> FolderClassifier:
    subject = subjects.load(folder)
    assert isinstance(subject, FolderClassifier)
    return subject


def read(clouds: Path, subject: FolderClassifier) -> tuple[Examples, Examples]:
    forget, retain = (
        inputs.read(clouds / f"{name}.parquet", name, subject, "", None)
        for name in ("forget", "retain")
    )
    assert isinstance(forget, Examples) and isinstance(retain, Examples)
    return forget, retain


def files(clouds: Path) -> dict[str, Path]:
    return {"log": clouds / "log", "original": clouds / "start"}


def go(
    clouds: Path, name: str, subject: FolderClassifier, given: Any = None, **settings: Any
) -> loop.Outcome:
    forget, retain = read(clouds, subject)
    method = METHODS[name].configured(**settings)
    return editing.run(subject, method, forget, retain, given or files(clouds), HOW)


@pytest.mark.parametrize("name", FORGETS)
def test_an_edit_forgets_the_cloud_and_keeps_the_others(name: str, clouds: Path) -> None:
    settings, most, least = FORGETS[name]
    subject, again = loaded(clouds / "base"), loaded(clouds / "base")
    forget, retain = read(clouds, subject)
    assert accuracy(subject, forget) == accuracy(subject, retain) == 1
    outcome = go(clouds, name, subject, **settings)
    assert accuracy(subject, forget) <= most and accuracy(subject, retain) >= least
    assert outcome.steps == 0 and outcome.losses == () and outcome.stopped is None
    assert outcome.seconds > 0 and outcome.peak_bytes > 1 << 20
    assert "No parameter was changed." not in outcome.notes

    go(clouds, name, again, **settings)
    first, second = of_module(subject.module), of_module(again.module)
    assert all(torch.equal(value, second[n]) for n, value in first.items())


def test_all_edits_are_met_here_or_refuse_a_classifier(clouds: Path) -> None:
    elsewhere = {"mix", "code-ablation"}
    for method in EDITS:
        if method.name in FORGETS or method.name in elsewhere:
            continue
        assert "language" in method.needs
        with pytest.raises(ConfigurationError) as caught:
            go(clouds, method.name, loaded(clouds / "base"), {"adapters": (clouds, clouds)})
        assert "classifier" in caught.value.message or "adapter" in caught.value.message


def test_dampening_is_that_of_squared_gradients_of_single_examples(clouds: Path) -> None:
    subject, twin = loaded(clouds / "base"), loaded(clouds / "base")
    forget, retain = read(clouds, subject)

    def measured(found: Examples) -> Importance:
        total = {n: torch.zeros_like(p) for n, p in twin.module.named_parameters()}
        for x, y in zip(found.inputs, found.labels, strict=True):
            twin.module.zero_grad()
            cross_entropy(twin.module(x[None]), y[None]).backward()
            for n, p in twin.module.named_parameters():
                assert p.grad is not None
                total[n] += p.grad**2
        return Importance({n: t / len(found) for n, t in total.items()}, "fisher", len(found))

    wanted = dampen(of_module(twin.module), measured(forget), measured(forget + retain), 2.0)
    go(clouds, "ssd", subject, alpha=2.0)
    torch.testing.assert_close(of_module(subject.module), wanted)
    other = loaded(clouds / "base")
    go(clouds, "ssd", other, alpha=2.0, measure="batch_fisher")
    weights = [of_module(m.module)["0.weight"] for m in (subject, other)]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("name", ["ssd", "prune"])
def test_a_kept_importance_stands_in_for_the_retained_data(name: str, clouds: Path) -> None:
    settings = {"alpha": 2.0} if name == "ssd" else {"share": 0.3}
    kept = {"importance": clouds / "importance.safetensors"}
    one, other = loaded(clouds / "base"), loaded(clouds / "base")
    go(clouds, name, one, **settings)
    forget, _ = read(clouds, other)
    editing.run(other, METHODS[name].configured(**settings), forget, None, kept, HOW)
    torch.testing.assert_close(of_module(one.module), of_module(other.module))


def test_only_layers_of_the_pattern_are_edited(clouds: Path) -> None:
    subject, base = loaded(clouds / "base"), loaded(clouds / "base")
    go(clouds, "ssd", subject, alpha=1.5, layers="2.*")
    new, old = of_module(subject.module), of_module(base.module)
    moved = {name for name in old if not torch.equal(new[name], old[name])}
    assert moved and moved <= {"2.weight", "2.bias"}
    with pytest.raises(ConfigurationError, match="a name like 9"):
        go(clouds, "ssd", base, layers="9.*")


def silenced(
    clouds: Path, first: int, last: int, seed: int = 3, layer: str = "2", **settings: Any
) -> tuple[set[int], str]:
    """Which inputs of a layer reach nothing behind it after some items, and what is noted."""
    subject, base = loaded(clouds / "base"), loaded(clouds / "base")
    items = Examples.__add__(*read(clouds, subject)).select(range(first, last))
    method = METHODS["relevance-path"].configured(**settings)
    if layer != "2":
        method = method.configured(layer=layer)
    how = replace(HOW, seed=seed)
    note = editing.run(subject, method, items, None, {}, how).notes[0]
    new, old = of_module(subject.module), of_module(base.module)
    assert all(torch.equal(new[n], old[n]) for n in old if n != f"{layer}.weight")
    gone = (new[f"{layer}.weight"] != old[f"{layer}.weight"]).any(0)
    assert (new[f"{layer}.weight"][:, gone] == 0).all()
    return set(gone.nonzero().flatten().tolist()), note


def test_the_paths_of_all_classes_of_the_forget_set_are_silenced(clouds: Path) -> None:
    (one, _), (two, _), (both, note) = (
        silenced(clouds, *part, top=0.2, share=0.2) for part in ((0, 20), (20, 40), (0, 40))
    )
    assert one and two and one != two and both == one | two
    assert note == f"{len(both)} neurons carry 2 classes."


def test_the_path_is_of_the_inputs_of_the_last_layer_or_of_another_by_name(clouds: Path) -> None:
    net = of_module(loaded(clouds / "base").module)
    w, b, v, c = (net[n].double() for n in ("0.weight", "0.bias", "2.weight", "2.bias"))
    x = read(clouds, loaded(clouds / "base"))[0].inputs.double()
    z = x @ w.T + b
    hidden = z.clamp(min=0)
    logits = hidden @ v.T + c
    top, of_top = logits.max(1)
    outer = hidden * v[of_top] * (top / (top + 0.1 * top.sign()))[:, None]
    inner = x * ((outer / (z + 0.1 * z.sign())) @ w)
    for layer, values in (("2", outer), ("0", inner)):
        count = [0] * values.shape[1]
        for probe in values.tolist():
            count[probe.index(max(probe))] += 1
        assert sorted(count)[-1] > sorted(count)[-2]
        found, _ = silenced(clouds, 0, 20, layer=layer, top=0.01, share=0.01)
        assert found == {count.index(max(count))}
    with pytest.raises(ConfigurationError, match="no Linear layer 7"):
        go(clouds, "relevance-path", loaded(clouds / "base"), layer="7")


def test_of_more_items_than_probes_as_many_are_drawn_by_the_seed(clouds: Path) -> None:
    def drawn(probes: int, seed: int = 3) -> set[int]:
        return silenced(clouds, 0, 20, seed, probes=probes, top=0.2, share=1.0)[0]

    one = {seed: drawn(1, seed) for seed in range(6)}
    assert {len(found) for found in one.values()} == {3}
    assert len(set(map(frozenset, one.values()))) > 1
    whole = drawn(36)
    assert set().union(*one.values()) <= whole and len(whole) > 3
    assert drawn(20) == whole and drawn(1, 4) == one[4]
    with pytest.raises(ConfigurationError, match="probes"):
        drawn(0)


def test_resetting_everything_that_matters_gives_the_start(clouds: Path) -> None:
    subject = loaded(clouds / "base")
    base, start = (of_module(loaded(clouds / f).module) for f in ("base", "start"))
    go(clouds, "reset", subject, share=1.0, unit="parameter")
    for name, value in of_module(subject.module).items():
        assert ((value == start[name]) | (value == base[name])).all()
        assert (value == start[name]).double().mean() > 0.5


def test_amnesiac_gives_the_sum_of_the_other_updates(clouds: Path) -> None:
    subject = loaded(clouds / "base")
    outcome = go(clouds, "amnesiac", subject)
    assert outcome.notes[0] == "8 of 24 steps were taken back."
    assert "Log.remove" in outcome.notes[1]
    log, total = Log.open(clouds / "log"), of_module(loaded(clouds / "start").module)
    forget, _ = read(clouds, subject)
    for at in log.steps:
        if not set(at.items) & set(forget.ids):
            for name, change in log.read(at).items():
                total[name] += change.values.view(total[name].shape)
    torch.testing.assert_close(of_module(subject.module), total, rtol=1e-5, atol=1e-6)


def test_partial_amnesiac_takes_back_the_largest_changes_alone(clouds: Path) -> None:
    subject, base = loaded(clouds / "base"), loaded(clouds / "base")
    go(clouds, "partial-amnesiac", subject, share=0.2)
    forget, _ = read(clouds, subject)
    log, wanted = Log.open(clouds / "log"), of_module(base.module)
    for at in log.holding(forget.ids):
        for name, change in log.read(at).items():
            count = max(1, round(0.2 * len(change.values)))
            for place in change.values.abs().argsort(descending=True)[:count].tolist():
                wanted[name].view(-1)[place] -= change.values[place]
    torch.testing.assert_close(of_module(subject.module), wanted, rtol=1e-5, atol=1e-6)


def test_mixing_puts_back_no_more_than_is_asked_for(clouds: Path) -> None:
    subject, original = loaded(clouds / "start"), loaded(clouds / "base")
    _, retain = read(clouds, subject)
    unlearned = of_module(subject.module)
    outcome = go(clouds, "mix", subject, {"original": clouds / "base"}, utility=0.9)
    reached = mean_probability(subject, retain) / mean_probability(original, retain)
    assert 0.9 <= reached < 0.95
    share = float(outcome.notes[0].split()[4].rstrip(","))
    wanted = mix(of_module(original.module), unlearned, share)
    torch.testing.assert_close(of_module(subject.module), wanted, rtol=1e-3, atol=1e-3)
    whole = loaded(clouds / "start")
    go(clouds, "mix", whole, {"original": clouds / "base"}, utility=1.0)
    assert all(
        torch.equal(v, of_module(original.module)[n]) for n, v in of_module(whole.module).items()
    )


def test_a_newton_step_is_that_of_the_module_and_can_be_of_a_block(clouds: Path) -> None:
    base, whole, block = (loaded(clouds / "base") for _ in range(3))
    forget, retain = read(clouds, base)
    pairs = [[(found.inputs, found.labels)] for found in (forget, retain)]
    wanted = step(
        of_module(base.module),
        of_classifier(base.module),
        *pairs,
        curvature="gauss_newton",
        damping=1.0,
        tolerance=1e-4,
    )
    go(clouds, "newton", whole, damping=1.0)
    torch.testing.assert_close(of_module(whole.module), wanted.params, rtol=1e-3, atol=1e-4)
    go(clouds, "newton", block, damping=1.0, share=0.25, layers="0.*")
    before, after = of_module(base.module), of_module(block.module)
    moved = {n: int((after[n] != before[n]).sum()) for n in before}
    assert moved == {"0.weight": 24, "0.bias": 4, "2.weight": 0, "2.bias": 0}


def test_negative_curvature_moves_nothing_and_says_so(clouds: Path) -> None:
    subject = loaded(clouds / "start")
    before = of_module(subject.module)
    with pytest.raises(IncompleteError, match="curvature is negative"):
        go(clouds, "newton", subject, curvature="hessian", damping=0.0)
    assert all(torch.equal(v, before[n]) for n, v in of_module(subject.module).items())


def narrowed() -> tuple[FolderClassifier, Examples, Examples]:
    """A classifier whose bottleneck has a code for each cloud."""
    from .clouds import about

    x, y = points()
    codes = torch.stack([x[y == cloud].mean(0) for cloud in range(CLASSES)])
    torch.manual_seed(0)
    module = nn.Sequential(nn.Identity(), QuantisedBottleneck(codes), nn.Linear(6, CLASSES))
    optimizer = torch.optim.Adam(module[2].parameters(), 0.1)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(module(x), y).backward()
        optimizer.step()
    found = Examples(tuple(map(str, range(len(x)))), x, y)
    return FolderClassifier(module, about()), found.select(range(20)), found.select(range(20, 60))


def test_the_code_of_a_cloud_is_taken_away() -> None:
    subject, forget, retain = narrowed()
    assert accuracy(subject, forget) == accuracy(subject, retain) == 1
    outcome = editing.run(subject, METHODS["code-ablation"], forget, retain, {}, HOW)
    assert accuracy(subject, forget) == 0 and accuracy(subject, retain) == 1
    assert outcome.notes == ("1 of 3 codes were taken away.",)
    assert subject.module[1].kept.tolist().count(False) == 1
    with pytest.raises(IncompleteError, match="No code is used"):
        editing.run(
            subject, METHODS["code-ablation"].configured(ratio=50.0), forget, retain, {}, HOW
        )
    with pytest.raises(ConfigurationError, match="0 bottlenecks of that name"):
        configured = METHODS["code-ablation"].configured(bottleneck="9")
        editing.run(subject, configured, forget, retain, {}, HOW)


def test_a_model_without_a_bottleneck_has_no_codes(clouds: Path) -> None:
    with pytest.raises(ConfigurationError, match="The model has 0 bottlenecks"):
        go(clouds, "code-ablation", loaded(clouds / "base"))
    subject = loaded(clouds / "narrow")
    forget, retain = read(clouds, subject)
    assert accuracy(subject, forget) > 0.9 and accuracy(subject, retain) > 0.9
    go(clouds, "code-ablation", subject)
    assert accuracy(subject, forget) < 0.5 and accuracy(subject, retain) > 0.9


def test_a_failed_edit_leaves_the_model_as_it_was(clouds: Path) -> None:
    subject = loaded(clouds / "base")
    before = of_module(subject.module)

    def lost(given: Any) -> Edited:
        return Edited({"0.bias": torch.full((16,), torch.nan)})

    forget, retain = read(clouds, subject)
    with pytest.raises(DivergedError, match="no longer a number"):
        editing.run(subject, edit("lost", lost, cost="", source=""), forget, retain, {}, HOW)
    for name, settings in {
        "task-vector": {"lr": 1e30},
        "partial-optimisation": {"lr": 1e38, "epochs": 30},
    }.items():
        with pytest.raises(DivergedError):
            go(clouds, name, subject, **settings)
    assert all(torch.equal(v, before[n]) for n, v in of_module(subject.module).items())


def another(folder: Path, clouds: Path) -> dict[str, Path]:
    """A log, an importance and a model folder of another model."""
    p = torch.zeros(3)
    with Recorder.start(folder / "log", {"p": p}) as recorder, recorder.step(["a"]):
        p += 1
    values: dict[str, Tensor] = {"p": torch.ones(3)}
    importance_files.save(Importance(values, "fisher", 9), folder / "importance.safetensors")
    (folder / "model").mkdir()
    subject = narrowed()[0]
    told = subject.about.model_copy(update={"params": {**subject.about.params, "hidden": 5}})
    scope: dict[str, Any] = {}
    exec((clouds / "clouds_net.py").read_text(), scope)
    other = FolderClassifier(scope["make"](**told.params), told, clouds / "clouds_net.py")
    subjects.save(other, folder / "model")
    return {
        "log": folder / "log",
        "importance": folder / "importance.safetensors",
        "original": folder / "model",
    }


REFUSED: Mapping[str, tuple[str, dict[str, Any], int, str]] = {
    "no log": ("amnesiac", {"log": None}, 3, "needs the update log"),
    "a log that was not kept": ("amnesiac", {"log": "nothing"}, 5, "were not kept"),
    "a log of another model": ("amnesiac", {"log": "another"}, 3, "no tensor p"),
    "an importance of another model": ("ssd", {"importance": "another"}, 3, "no tensor p"),
    "no importance": ("ssd", {"importance": "nothing"}, 5, "There is no"),
    "an original of another model": ("mix", {"original": "another"}, 3, "no tensor 0.weight"),
    "no original": ("reset", {"original": None}, 3, "needs the model as it was"),
    "an original that is not there": ("mix", {"original": "nothing"}, 5, "There is no"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_an_edit_lacks_is_said_in_one_sentence(
    case: str, clouds: Path, tmp_path: Path
) -> None:
    name, given, code, words = REFUSED[case]
    own = another(tmp_path, clouds)
    told: dict[str, Any] = {**files(clouds)}
    for need, kind in given.items():
        told[need] = {"another": own[need], "nothing": tmp_path / "nothing", None: None}[kind]
    subject = loaded(clouds / "base")
    before = of_module(subject.module)
    with pytest.raises(SisaError) as caught:
        go(clouds, name, subject, {n: path for n, path in told.items() if path})
    assert caught.value.exit_code == code and words in caught.value.message
    assert caught.value.remedy and "secret" not in str(caught.value)
    assert all(torch.equal(v, before[n]) for n, v in of_module(subject.module).items())


WRONG: Mapping[str, tuple[str, dict[str, Any], type[SisaError], str]] = {
    "too large an alpha": ("ssd", {}, ConfigurationError, "more than 3 times as important"),
    "a share of none": ("prune", {"share": 0.01}, ConfigurationError, "less than one of"),
    "a share above 1": ("partial-amnesiac", {"share": 1.5}, ConfigurationError, "not in"),
    "a utility of 0": ("mix", {"utility": 0.0}, ConfigurationError, "not in"),
    "a block of none": ("newton", {"share": 0.0}, ConfigurationError, "not in"),
    "another kind": ("ssd-label-free", {"importance": True}, ConfigurationError, "of the kind"),
}


@pytest.mark.parametrize("case", WRONG)
def test_settings_out_of_range_are_refused(case: str, clouds: Path) -> None:
    name, settings, kind, words = WRONG[case]
    given: dict[str, Path] = files(clouds)
    if settings.pop("importance", False):
        given = {"importance": clouds / "importance.safetensors"}
    with pytest.raises(kind, match=words):
        go(clouds, name, loaded(clouds / "base"), given, **settings)


def test_no_item_no_label_and_one_item(clouds: Path) -> None:
    subject = loaded(clouds / "base")
    forget, retain = read(clouds, subject)
    bare = Examples(forget.ids, forget.inputs, torch.full_like(forget.labels, -100))
    for name, (settings, _, _) in FORGETS.items():
        method = METHODS[name].configured(**settings)
        with pytest.raises(UsageError, match="forget set is empty"):
            editing.run(subject, method, forget.select([]), retain, files(clouds), HOW)
        if name in ("ssd-label-free", "amnesiac", "partial-amnesiac"):
            continue  # they look at no label
        with pytest.raises(IncompleteError, match="labelled position"):
            editing.run(subject, method, bare, retain, files(clouds), HOW)
        one = loaded(clouds / "base")
        editing.run(one, method, forget.select([0]), retain, files(clouds), HOW)
        assert all(value.isfinite().all() for value in of_module(one.module).values())


def test_nothing_is_missing_without_a_retain_set(clouds: Path) -> None:
    subject = loaded(clouds / "base")
    forget, _ = read(clouds, subject)
    for method in EDITS:
        if {"retain", "statistics"} & {*method.needs} and "language" not in method.needs:
            with pytest.raises(ConfigurationError, match=r"needs (data that stays|the model)"):
                editing.run(subject, method, forget, None, {}, HOW)
    assert {need for method in EDITS for need in method.needs} <= NEEDS.keys()


def test_a_folder_that_is_none_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        subjects.load(tmp_path / "nothing")
