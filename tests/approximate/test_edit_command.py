"""`sisa unlearn` with every edit: a model folder with its statement, or a refusal and nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from sisa.approximate import inputs, loop, models, statement, subjects, sweep, unlearn
from sisa.approximate.batches import PROMPT
from sisa.approximate.edits.mappings import of_module
from sisa.approximate.edits.recorder import Recorder
from sisa.approximate.methods import METHODS
from sisa.approximate.models import LanguageModel
from sisa.approximate.plan import look
from sisa.approximate.request import Request
from sisa.cli import main
from sisa.errors import ConfigurationError

from .clouds import made_clouds
from .language import llama

EDITS = [name for name, method in METHODS.items() if method.kind == "edit"]


@dataclass(frozen=True)
class Case:
    """How an edit is called: in which folder, with which settings and files."""

    on: str
    settings: tuple[str, ...] = ()
    files: Mapping[str, Any] = field(default_factory=dict)
    model: str = "base"


CASES = {
    "ssd": Case("shop", ("alpha=2.5",)),
    "ssd-label-free": Case("shop", ("alpha=1.5",)),
    "prune": Case("shop"),
    "reset": Case("shop", ("share=0.1",), {"original": "start"}),
    "relevance-path": Case("clouds"),
    "amnesiac": Case("shop", (), {"log": "log"}),
    "partial-amnesiac": Case("clouds", ("share=0.5",), {"log": "log"}),
    "partial-label-flip": Case("clouds", ("epochs=1",)),
    "partial-optimisation": Case("clouds", ("epochs=1",)),
    "task-vector": Case("shop", ("epochs=1", "lr=1e-3")),
    "mix": Case("shop", ("utility=0.5",), {"original": "base"}, "start"),
    "newton": Case("shop", ("limit=2", "share=0.1")),
    "fuse": Case("shop", (), {"adapters": ("one", "two")}),
    "drop-adapter": Case("shop", (), {}, "one"),
    "code-ablation": Case("clouds", (), {}, "narrow"),
}


@pytest.fixture(scope="module")
def folders(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The clouds; and the shop with a start, a log and two adapters beside it."""
    clouds = made_clouds(tmp_path_factory.mktemp("clouds"))
    beside = tmp_path_factory.mktemp("beside")
    subject = models.load(shop / "base")
    start = llama(vocab_size=subject.module.config.vocab_size, seed=5)
    models.save(LanguageModel(start, subject.tokenizer), beside / "start")
    forget = inputs.read(shop / "forget.jsonl", "forget", subject, PROMPT, None)
    weight = dict(subject.module.named_parameters())["model.norm.weight"]
    with (
        Recorder.start(beside / "log", {"model.norm.weight": weight}) as recorder,
        recorder.step(forget.ids),
        torch.no_grad(),
    ):
        weight += 0.5
    for seed, name in enumerate(("one", "two")):
        adapted = models.with_lora(models.load(shop / "base"), 2, 4, seed)
        how = loop.Settings(epochs=1, items_per_batch=6, lr=1e-2)
        loop.run(adapted, METHODS["gradient-ascent"], forget, None, how, None)
        models.save(adapted, beside / name)
    return {"shop": shop, "clouds": clouds, "beside": beside}


def asked(name: str, folders: Mapping[str, Path], out: Path) -> Request:
    case = CASES[name]
    root, kind = folders[case.on], "jsonl" if case.on == "shop" else "parquet"

    def path(part: str) -> Path:
        inside = root / part
        return inside if inside.exists() else folders["beside"] / part

    files: dict[str, Any] = {
        need: tuple(map(path, found)) if isinstance(found, tuple) else path(found)
        for need, found in case.files.items()
    }
    return Request(
        method=name,
        forget=root / f"forget.{kind}",
        retain=root / f"retain.{kind}",
        model=path(case.model),
        out=out,
        settings=("items_per_batch=6", *case.settings),
        evidence=False,
        **files,
    )


def test_every_edit_has_a_case() -> None:
    assert list(CASES) == EDITS


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_writes_a_model_with_its_statement(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    request = asked(name, folders, tmp_path / "new")
    given = [request.model, request.forget, *folders.values()]
    before = [statement.folder_digest(f) for f in given if f.is_dir()]
    done = unlearn.run(request)
    assert [statement.folder_digest(f) for f in given if f.is_dir()] == before
    said = statement.read((request.out / statement.FILE).read_bytes()).predicate
    assert (said.method, said.exactness, said.work.steps) == (name, "approximate", 0)
    assert done.steps == 0 and "No parameter was changed." not in done.warnings
    old, new = (of_module(subjects.load(f).module) for f in (request.model, request.out))
    if name == "code-ablation":
        assert subjects.load(request.out).module[2].kept.logical_not().any()
    assert old.keys() != new.keys() or any(not torch.equal(v, new[n]) for n, v in old.items())


def test_a_dry_run_finds_what_is_not_there_and_changes_nothing(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    clouds = folders["clouds"]
    words = ["--forget", "forget.parquet", "--retain", "retain.parquet", "--model", "base"]
    words = [str(clouds / w) if w[0] != "-" else w for w in words]
    nothing, out = str(tmp_path / "nothing"), ["--out", str(tmp_path / "new")]
    cases = [
        ("amnesiac", [], 3, "needs the update log"),
        ("amnesiac", ["--log", nothing], 5, "were not kept"),
        ("reset", [], 3, "needs the model as it was"),
        ("mix", ["--original", nothing], 5, "There is no"),
        ("ssd", ["--importance", nothing], 5, "There is no"),
        ("fuse", [], 3, "needs adapter folders"),
        ("drop-adapter", [], 3, "needs adapter layers"),
        ("ssd", ["--set", "measure=guess"], 3, "measure"),
        ("ssd", ["--set", "share=0.1"], 3, "no setting share"),
        ("ssd", ["--set", "floor=0.9"], 3, "ends at no floor"),
    ]
    for name, more, code, sentence in cases:
        done = CliRunner().invoke(main, ["unlearn", name, *words, *out, *more, "--dry-run"])
        assert done.exit_code == code and sentence in done.stderr, (name, done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1 and "secret" not in done.output
    done = CliRunner().invoke(main, ["unlearn", "prune", *words, *out, "--dry-run"])
    assert done.exit_code == 0 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["gradient-difference", "label-flip", "npo", "scrub"])
def test_methods_of_the_loop_run_on_a_classifier(
    method: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    clouds = folders["clouds"]
    request = Request(
        method=method,
        forget=clouds / "forget.parquet",
        retain=clouds / "retain.parquet",
        model=clouds / "base",
        out=tmp_path / "new",
        settings=("epochs=2", "items_per_batch=20", "lr=0.01"),
        evidence=False,
    )
    assert unlearn.run(request).steps >= 2
    subject = subjects.load(tmp_path / "new")
    assert subjects.kind(subject) == "classifier"


NOTHING_TO_SEARCH = ("amnesiac", "fuse", "drop-adapter")


@pytest.mark.parametrize("name", EDITS)
def test_a_search_varies_what_an_edit_has(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    plan = look(replace(asked(name, folders, tmp_path / "new"), settings=()))
    if name in NOTHING_TO_SEARCH:
        with pytest.raises(ConfigurationError, match="no setting left to search for"):
            sweep.space(plan)
        return
    found = sweep.space(plan)
    assert found.keys() <= plan.method.defaults.keys()
    assert ("alpha" in found) == ("alpha" in plan.method.defaults), "of an edit it is its own"
    assert not found.keys() & {"tolerance", "epsilon"}


def test_a_search_of_an_edit_writes_its_best(folders: dict[str, Path], tmp_path: Path) -> None:
    request = replace(asked("prune", folders, tmp_path / "new"), settings=("floor=0.1",), tries=3)
    request = replace(request, holdout=folders["shop"] / "holdout.jsonl")
    unlearn.run(request)
    said = statement.read((request.out / statement.FILE).read_bytes()).predicate
    tried = json.loads((request.out / sweep.FILE).read_text())
    assert said.settings["share"] in [each["settings"]["share"] for each in tried]
    assert len(tried) == 3 and said.settings["share"] != 0.02
