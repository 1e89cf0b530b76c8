"""A classifier goes into a folder and comes back; what does not fit is said in one sentence."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sisa.approximate import classifier_folder, loop, models, statement, subjects
from sisa.approximate.classifier_folder import About, FolderClassifier
from sisa.approximate.methods import METHODS
from sisa.errors import ConfigurationError, NotFoundError, SisaError, UsageError
from sisa.learners.cnn import factory

from .clouds import SOURCE, about, made_clouds, points


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_clouds(tmp_path_factory.mktemp("clouds"))


def copied(clouds: Path, folder: Path, **changes: Any) -> Path:
    """A copy of the base whose `classifier.json` is changed."""
    subject = subjects.load(clouds / "base")
    subjects.save(subject, folder)
    told = json.loads((folder / classifier_folder.FILE).read_text())
    (folder / classifier_folder.FILE).write_text(json.dumps({**told, **changes}))
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_saved_is_loaded(dtype: str, clouds: Path, tmp_path: Path) -> None:
    subject = subjects.load(clouds / "base", dtype)
    assert isinstance(subject, FolderClassifier) and subjects.kind(subject) == "classifier"
    subjects.save(subject, tmp_path / "new")
    again = subjects.load(tmp_path / "new", dtype)
    assert isinstance(again, FolderClassifier)
    assert again.about == subject.about == about()
    for name, value in subject.module.state_dict().items():
        assert value.dtype == getattr(torch, dtype)
        assert torch.equal(again.module.state_dict()[name], value)
    if dtype == "float32":
        folders = (clouds / "base", tmp_path / "new")
        assert statement.folder_digest(folders[0]) == statement.folder_digest(folders[1])


def test_loading_leaves_neither_bytecode_nor_paths(
    clouds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "pycache_prefix", None)
    folder = copied(clouds, tmp_path / "new")
    before, path = statement.folder_digest(folder), list(sys.path)
    subjects.load(folder)
    assert statement.folder_digest(folder) == before
    assert sys.path == path and sys.dont_write_bytecode is False


def test_the_module_of_the_folder_goes_before_that_of_the_current_one(
    clouds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clouds_net.py").write_text("def make(**params):\n    raise ValueError('other')\n")
    monkeypatch.chdir(tmp_path)
    subjects.load(clouds / "base")
    bare = copied(clouds, tmp_path / "bare")
    (bare / "clouds_net.py").unlink()
    with pytest.raises(ConfigurationError, match="fails: ValueError: other"):
        subjects.load(bare)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "clouds_net.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path / "here")
    subject = subjects.load(bare)
    subjects.save(subject, tmp_path / "new")
    assert not (tmp_path / "new" / "clouds_net.py").exists()  # it was not the folder's own


def test_a_package_goes_with_its_folder(clouds: Path, tmp_path: Path) -> None:
    folder = copied(clouds, tmp_path / "one", factory="cloud_nets.deep:make")
    (folder / "cloud_nets").mkdir()
    (folder / "cloud_nets" / "__init__.py").touch()
    (folder / "cloud_nets" / "deep.py").write_text(SOURCE)
    subject = subjects.load(folder)
    subjects.save(subject, tmp_path / "two")
    assert (tmp_path / "two" / "cloud_nets" / "deep.py").read_text() == SOURCE
    subjects.load(tmp_path / "two")


def test_modules_of_torch_need_no_code(tmp_path: Path) -> None:
    told = {
        "factory": "torch.nn:Linear",
        "params": {"in_features": 6, "out_features": 3},
        "columns": {"input": ["a", "b"]},
        "classes": 3,
    }
    subject = FolderClassifier(nn.Linear(6, 3), About.model_validate(told))
    subjects.save(subject, tmp_path)
    again = subjects.load(tmp_path)
    assert torch.equal(again.module.weight, subject.module.weight)


def test_learners_of_ours_need_no_code_wherever_they_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = {
        "factory": "sisa.learners.cnn:factory",
        "params": {"inputs": 16, "outputs": 3, "widths": [2]},
        "columns": {"input": "image"},
        "classes": 3,
    }
    about = About.model_validate(told)
    subject = FolderClassifier(factory(**about.params), about)
    subjects.save(subject, tmp_path / "new")
    found, own = (s.module.state_dict() for s in (subjects.load(tmp_path / "new"), subject))
    assert found.keys() == own.keys() and all(torch.equal(v, own[n]) for n, v in found.items())


def test_tied_weights_are_saved_and_stay_tied(tmp_path: Path) -> None:
    (tmp_path / "tied_net.py").write_text(
        "from torch import nn\n\n\ndef make():\n    one, two = nn.Linear(4, 4), nn.Linear(4, 4)\n"
        "    two.weight = one.weight\n    return nn.Sequential(one, two)\n"
    )
    scope: dict[str, Any] = {}
    exec((tmp_path / "tied_net.py").read_text(), scope)
    told = {"factory": "tied_net:make", "columns": {"input": "x"}, "classes": 4}
    subject = FolderClassifier(scope["make"](), About.model_validate(told))
    subjects.save(subject, tmp_path)
    module = subjects.load(tmp_path).module
    assert module[0].weight is module[1].weight
    assert torch.equal(module[0].weight, subject.module[0].weight)


def test_a_method_of_the_loop_runs_on_a_folder(clouds: Path) -> None:
    subject = subjects.load(clouds / "base")
    x, y = points()
    found = models.Examples(tuple(map(str, range(len(x)))), x / 2, y)
    forget, retain = found.select(range(20)), found.select(range(20, 60))
    how = loop.Settings(epochs=5, items_per_batch=20, lr=0.05, checkpoint_every=0)
    outcome = loop.run(subject, METHODS["gradient-difference"], forget, retain, how, None)
    assert outcome.steps == 5 and outcome.losses[-1] < outcome.losses[0]


def test_a_classifier_of_no_folder_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not known"):
        subjects.save(models.Classifier(nn.Linear(2, 2)), tmp_path)


Break = Callable[[Path], object]


def json_of(**changes: Any) -> Break:
    def change(folder: Path) -> None:
        file = folder / classifier_folder.FILE
        told = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({n: v for n, v in told.items() if v is not ...}))

    return change


def torn(folder: Path) -> None:
    file = folder / classifier_folder.WEIGHTS
    file.write_bytes(file.read_bytes()[:-40])


def net(source: str) -> Break:
    return lambda folder: (folder / "clouds_net.py").write_text(source)


WRONG: Mapping[str, tuple[Break, type[SisaError], str]] = {
    "no weights": (
        lambda f: (f / classifier_folder.WEIGHTS).unlink(),
        NotFoundError,
        "no file .*model.safetensors",
    ),
    "torn weights": (torn, ConfigurationError, "does not hold the weights"),
    "weights of another shape": (
        json_of(params={"width": 6, "hidden": 9, "classes": 3}),
        ConfigurationError,
        "does not hold the weights of what clouds_net:make makes",
    ),
    "no JSON": (
        lambda f: (f / classifier_folder.FILE).write_text("{"),
        ConfigurationError,
        "classifier.json is wrong",
    ),
    "no factory": (json_of(factory="clouds_net"), ConfigurationError, "factory: String should"),
    "no classes": (json_of(classes=...), ConfigurationError, "classes: Field required"),
    "an unknown field": (json_of(colour=1), ConfigurationError, "colour: Extra inputs"),
    "a scale of zero": (json_of(scale=0), ConfigurationError, "scale: Input should be greater"),
    "no such module": (json_of(factory="nowhere_net:make"), ConfigurationError, "cannot be found"),
    "no such function": (json_of(factory="clouds_net:mk"), ConfigurationError, "no function mk"),
    "wrong parameters": (json_of(params={"w": 1}), ConfigurationError, "fails: TypeError"),
    "broken code": (net("import nothing_here\n"), ConfigurationError, "cannot be imported"),
    "no module made": (
        net("def make(**params):\n    return params\n"),
        ConfigurationError,
        "makes no module with parameters",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_folder_is_said_in_one_sentence(
    case: str, clouds: Path, tmp_path: Path
) -> None:
    spoil, kind, words = WRONG[case]
    folder = copied(clouds, tmp_path / "spoilt")
    spoil(folder)
    with pytest.raises(kind, match=words) as caught:
        subjects.load(folder)
    assert caught.value.remedy and "\n" not in str(caught.value)
    assert "learner.factory" not in str(caught.value)
    (folder / "clouds_net.py").write_text(SOURCE)
