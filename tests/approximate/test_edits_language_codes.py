"""Code ablation of language models: a bottleneck is fitted, counted with, and stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from sisa.approximate import (
    answers,
    bottlenecked,
    editing,
    loop,
    models,
    statement,
    subjects,
)
from sisa.approximate.batches import Items, read_texts
from sisa.approximate.edits.bottlenecks import ResidualBottleneck
from sisa.approximate.edits.codes import Usage, tied
from sisa.approximate.edits.fitted import Fit, fit, unexplained
from sisa.approximate.edits.given import Given
from sisa.approximate.edits.language_codes import Wanted, of_language
from sisa.approximate.edits.mappings import of_module
from sisa.approximate.examine import Asked, Examination
from sisa.approximate.item_values import mean_probability
from sisa.approximate.methods import METHODS
from sisa.approximate.models import LanguageModel
from sisa.approximate.targets import Attacks
from sisa.cli import main
from sisa.errors import ConfigurationError, DivergedError, IncompleteError, SisaError

from .language import llama, made, narrow
from .shop import MARK, SHORT, call

HOW = loop.Settings(items_per_batch=6, seed=0)
SMALL = {"codes": 64, "strongest": 3, "fit_epochs": 20}


def read(shop: Path, subject: LanguageModel, name: str) -> Items:
    return read_texts(shop / f"{name}.jsonl", subject.tokenizer)


def go(shop: Path, subject: LanguageModel, **settings: Any) -> loop.Outcome:
    forget, retain = (read(shop, subject, name) for name in ("forget", "retain"))
    method = METHODS["code-ablation"].configured(**settings)
    return editing.run(subject, method, forget, retain, {}, HOW)


def inside(subject: LanguageModel) -> ResidualBottleneck:
    found = bottlenecked.of(subject.module)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def written(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The folder of a whole call, with all of its evidence, and what it printed."""
    out = tmp_path_factory.mktemp("codes") / "new"
    words = ["--holdout", str(shop / "holdout.jsonl"), "--retrained", str(shop / "base")]
    words += ["--set", "items_per_batch=6", "--set", "relearn_steps=4", "--output", "json"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # no fixture of a function has done it yet
    done = call(shop, out, *words, "--yes", method="code-ablation")
    torch.set_num_threads(threads)
    return out, done


def states(seed: int = 0, count: int = 400) -> torch.Tensor:
    """Hidden states of a few directions each, far from zero and of no unit length."""
    draws = torch.Generator().manual_seed(seed)
    along = torch.randn(12, 8, generator=draws, dtype=torch.float64)
    weights = torch.rand(count, 12, generator=draws, dtype=torch.float64)
    return 5 * (weights * (weights > 0.8)) @ along + 30


def test_a_fit_reconstructs_and_is_the_same_for_states_of_another_scale() -> None:
    how, hidden = Fit(codes=32, strongest=4, epochs=60, lr=1e-2, seed=3), states()
    told: list[float] = []
    found = fit(hidden, how, lambda metrics, step: told.append(metrics["unexplained"]))
    assert len(told) == 60 and told[-1] < 0.1 * told[0]
    share = unexplained(found, hidden)
    error = (found.reconstructed(hidden).detach() - hidden).square().sum()
    assert share == pytest.approx(float(error / (hidden - hidden.mean(0)).square().sum()))
    assert share < 0.1
    moved = fit(7 * hidden - 100, how)
    expected = 7 * found.reconstructed(hidden) - 100
    torch.testing.assert_close(moved.reconstructed(7 * hidden - 100), expected, rtol=1e-6, atol=0)
    assert torch.equal(found(hidden), hidden), "nothing is removed yet"


def test_a_fit_is_the_same_bits_for_the_same_seed() -> None:
    how, before = Fit(16, 2, 5, 1e-2, seed=1), torch.random.get_rng_state()
    first, again, other = (fit(states(), h) for h in (how, how, Fit(16, 2, 5, 1e-2, seed=2)))
    assert torch.equal(torch.random.get_rng_state(), before)
    named = first.state_dict()
    assert all(torch.equal(v, named[n]) for n, v in again.state_dict().items())
    assert not torch.equal(first.encoder.weight, other.encoder.weight)


def test_a_fit_that_cannot_be_is_refused() -> None:
    for codes, strongest, epochs, lr in ((4, 5, 1, 1), (4, 0, 1, 1), (4, 2, 0, 1), (4, 2, 1, 0)):
        with pytest.raises(ConfigurationError, match="Set "):
            Fit(codes, strongest, epochs, lr)
    with pytest.raises(DivergedError, match="Lower fit_lr"):
        fit(torch.full((9, 4), torch.inf), Fit(4, 2, 1, 1e-3))
    constant = torch.ones(5, 3)
    assert unexplained(fit(constant, Fit(4, 2, 2, 1e-3)), constant) == 0


@pytest.mark.parametrize("size", [1, 4])
def test_codes_are_counted_at_every_position_of_each_item_alone(size: int) -> None:
    model = llama(dtype=torch.float64)
    narrow(model)
    subject = LanguageModel(model)
    forget, retain = made([9, 4, 6, 1], seed=1), made([7, 5], seed=2)
    given = Given(subject, forget, retain, items_per_batch=size)
    counted = of_language(given, subject, Wanted())
    bottleneck = inside(subject)
    assert counted.prefix == "model.layers.0.bottleneck." and counted.added is None
    plain = llama(dtype=torch.float64)
    for items, found in ((forget, counted.topic), (retain, counted.control)):
        used, positions = torch.zeros(24, dtype=torch.int64), 0
        for tokens in items.tokens:
            hidden = plain(input_ids=tokens[None], output_hidden_states=True).hidden_states[1][0]
            features = torch.relu(bottleneck.encoder(hidden - bottleneck.decoder.bias))
            for row in features:
                strongest = row.topk(4).indices
                used[strongest[row[strongest] > 0]] += 1
            positions += len(tokens)
        used[::2] = 0  # gone before
        assert found.used.tolist() == used.tolist() and found.positions == positions
    assert torch.equal(counted.topic.rate, (counted.topic.used.double() + 1) / 22)


def test_it_forgets_more_than_it_loses_and_says_what_it_did(shop: Path) -> None:
    subject = models.load(shop / "base")
    before = of_module(subject.module)
    sides = [read(shop, subject, name) for name in ("forget", "retain")]
    old = [mean_probability(subject, items) for items in sides]
    outcome = go(shop, subject)
    new = [mean_probability(subject, items) for items in sides]
    assert min(old) > 0.99 and new[0] < 0.85 and new[1] > 0.93
    own = of_module(subject.module)
    assert all(torch.equal(own[name], value) for name, value in before.items())
    assert own.keys() - before.keys() == {
        f"model.layers.0.bottleneck.{part}"
        for part in ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
    }
    gone = int((~inside(subject).kept).sum())
    fitted, ablated = outcome.notes
    assert fitted.startswith("A bottleneck was fitted behind block 1, to 588 positions in ")
    assert "of 256 codes are in use" in fitted and "of the variance" in fitted
    assert ablated == f"{gone} of 256 codes were taken away."
    inside(subject).kept.fill_(True)  # the negative control: the rest of it changes nothing
    base = models.load(shop / "base")
    assert torch.equal(subject.rows(sides[0]).hidden, base.rows(sides[0]).hidden)


def test_the_same_call_gives_the_same_bits(shop: Path) -> None:
    first, again = (models.load(shop / "base") for _ in range(2))
    torch.manual_seed(1)
    go(shop, first, **SMALL, ratio=1.5)
    torch.manual_seed(2)
    go(shop, again, **SMALL, ratio=1.5)
    named = first.module.state_dict()
    assert all(torch.equal(v, named[n]) for n, v in again.module.state_dict().items())


def test_a_further_request_takes_more_from_the_same_bottleneck(shop: Path) -> None:
    subject = models.load(shop / "base")
    forget, retain = (read(shop, subject, name) for name in ("forget", "retain"))
    method = METHODS["code-ablation"].configured(**SMALL, ratio=1.5)
    editing.run(subject, method, forget, retain, {}, HOW)
    gone, weights = ~inside(subject).kept, inside(subject).encoder.weight.clone()
    other = retain.select([0, 1]), retain.select(range(2, 12))
    usages = [Usage(c.used, c.positions) for c in _counted(subject, *other)]
    outcome = editing.run(subject, method, *other, {}, HOW)
    now = ~inside(subject).kept
    assert now[gone].all() and torch.equal(inside(subject).encoder.weight, weights)
    assert (now & ~gone).nonzero().flatten().tolist() == tied(*usages, 1.5).tolist() != []
    assert "none was fitted" in outcome.notes[0] and len(outcome.notes) == 2
    for wrong in ({"layer": 2}, {"codes": 7}, {"strongest": 1}):
        with pytest.raises(ConfigurationError, match="has a bottleneck behind block 1 already"):
            editing.run(subject, method.configured(**wrong), *other, {}, HOW)
    editing.run(subject, method.configured(layer=1), forget, retain.select([3]), {}, HOW)


def _counted(subject: LanguageModel, forget: Items, retain: Items) -> tuple[Usage, Usage]:
    found = of_language(Given(subject, forget, retain), subject, Wanted())
    return found.topic, found.control


def test_what_it_cannot_do_is_refused_and_changes_nothing(shop: Path) -> None:
    subject = models.load(shop / "base")
    before = of_module(subject.module)
    cases: list[tuple[dict[str, Any], type[SisaError], str]] = [
        ({"ratio": 500.0}, IncompleteError, "No code is used on the forget set"),
        ({"least": 10_000}, IncompleteError, "No code is used on the forget set"),
        ({"layer": 3}, ConfigurationError, "no layer 3"),
        ({"layer": 0}, ConfigurationError, "no layer 0"),
        ({"codes": 2}, ConfigurationError, "cannot use 3 of 2 codes"),
        ({"bottleneck": "narrow"}, ConfigurationError, "needs no name"),
        ({"fit_lr": 1e30}, DivergedError, "Lower fit_lr"),
    ]
    for settings, kind, words in cases:
        with pytest.raises(kind, match=words):
            go(shop, subject, **{**SMALL, **settings})
        assert bottlenecked.of(subject.module) is None
        own = of_module(subject.module)
        assert own.keys() == before.keys()
        assert all(torch.equal(own[name], value) for name, value in before.items())
        assert not any(m._forward_hooks for m in subject.module.modules())
    adapted = models.with_lora(subject, rank=2, alpha=4, seed=0)
    with pytest.raises(ConfigurationError, match="has an adapter"):
        go(shop, adapted, **SMALL)


def test_other_edits_leave_the_bottleneck_or_refuse(
    shop: Path, written: tuple[Path, Result], tmp_path: Path
) -> None:
    out, adapters = written[0], (tmp_path / "0", tmp_path / "1")
    for seed, folder in enumerate(adapters):
        adapted = models.with_lora(models.load(out), rank=2, alpha=4, seed=seed)
        with torch.no_grad():
            for parameter in adapted.trainable().values():
                parameter.add_(0.01)
        models.save(adapted, folder)
    cases: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "ssd": ({"alpha": 2.5}, {}),
        "prune": ({}, {}),
        "reset": ({"share": 0.1}, {"original": out}),
        "task-vector": ({"lr": 1e-3}, {}),
        "newton": ({"damping": 0.1, "limit": 2}, {}),
        "fuse": ({}, {"adapters": adapters}),
        "mix": ({}, {"original": out}),
    }
    for name, (settings, files) in cases.items():
        subject = models.load(out)
        before = subject.module.state_dict()
        before = {n: v.clone() for n, v in before.items()}
        sides = (read(shop, subject, side) for side in ("forget", "retain"))
        editing.run(subject, METHODS[name].configured(**settings), *sides, files, HOW)
        after = subject.module.state_dict()
        moved = {n for n, v in after.items() if not torch.equal(v, before[n])}
        assert not any(".bottleneck." in n for n in moved) and (moved or "original" in files), name
    more = models.load(out)
    inside(more).kept[0] = ~inside(more).kept[0]
    models.save(more, tmp_path / "more")
    for model, original in ((out, shop / "base"), (shop / "base", out), (tmp_path / "more", out)):
        subject = models.load(model)
        sides = (read(shop, subject, side) for side in ("forget", "retain"))
        with pytest.raises(ConfigurationError, match="different bottlenecks"):
            editing.run(subject, METHODS["mix"], *sides, {"original": original}, HOW)


def test_a_classifier_takes_no_setting_of_a_fit(tmp_path: Path) -> None:
    from .clouds import made_clouds

    clouds = made_clouds(tmp_path)
    words = ["--forget", "forget.parquet", "--retain", "retain.parquet", "--model", "narrow"]
    words = [str(clouds / w) if w[0] != "-" else w for w in words]
    words += ["--out", str(tmp_path / "new"), "--set", "codes=9", "--no-evidence", "--yes"]
    done = CliRunner().invoke(main, ["unlearn", "code-ablation", *words])
    assert done.exit_code == 3 and "fitted to language models alone" in done.stderr
    assert not (tmp_path / "new").exists()


def test_the_command_writes_a_folder_whose_statement_holds(
    shop: Path, written: tuple[Path, Result]
) -> None:
    out, done = written
    assert done.exit_code == 0, done.output
    document, data = json.loads(done.stdout), (out / statement.FILE).read_bytes()
    stated = statement.read(data)
    assert statement.differences(stated, out) == []
    said = stated.predicate
    assert (said.method, said.exactness, said.verdict) == (
        "code-ablation",
        "approximate",
        "evaluated",
    )
    assert said.evidence.model_dump(mode="json") == document["evidence"]
    assert said.settings["fit_epochs"] == 100 and said.settings["layer"] is None
    assert bottlenecked.AROUND in document["warnings"]
    assert len(document["warnings"]) == 3 and MARK not in done.stdout + data.decode()
    for name in (bottlenecked.CONFIG, bottlenecked.WEIGHTS):
        assert name in {subject.name for subject in stated.subject}
    file = out / bottlenecked.WEIGHTS
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert statement.differences(stated, out) != []
    finally:
        file.write_bytes(whole)


def test_the_folder_says_what_its_evidence_says(shop: Path, written: tuple[Path, Result]) -> None:
    out, _ = written
    subject, base = subjects.load(out), subjects.load(shop / "base")
    assert isinstance(subject, LanguageModel)
    sides = (read(shop, subject, name) for name in ("forget", "retain", "holdout"))
    asked = Asked.of(*sides, 1000, continued=100)
    attacks = Attacks(lr=1e-5, steps=4, seed=0, items=6, chunk=256)
    begun = Examination.begin(base, asked, attacks, base)
    evidence, lacking = begun.end(subject)
    said = statement.read((out / statement.FILE).read_bytes()).predicate.evidence
    assert lacking == () and evidence == said
    assert said.memorisation != "not evaluated"
    told = said.memorisation.probability
    assert told.after < 0.85 < 0.99 < told.before
    mean = answers.mean_probability(answers.statistics(subject, asked.forget, 6, 256))
    assert told.after == pytest.approx(mean)


def test_no_tied_code_leaves_no_folder(shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "new"
    done = call(shop, out, "--set", "ratio=500", "--no-evidence", "--yes", method="code-ablation")
    assert done.exit_code != 0 and "No code is used on the forget set" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_whoever_trains_on_is_told_of_the_bottleneck(
    shop: Path, written: tuple[Path, Result], tmp_path: Path
) -> None:
    words = ["--no-evidence", "--output", "json", "--model", str(written[0])]
    done = call(shop, tmp_path / "new", *SHORT, *words)
    assert done.exit_code == 0 and bottlenecked.AROUND in json.loads(done.stdout)["warnings"]
    again = call(shop, tmp_path / "two", *SHORT, "--no-evidence", "--output", "json")
    assert json.loads(again.stdout)["warnings"] == []
