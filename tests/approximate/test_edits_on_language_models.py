"""Every edit of a language model: on packed items, as on each alone; adapters fused and dropped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sisa.approximate import editing, inputs, loop, models, subjects
from sisa.approximate.batches import PROMPT, Items
from sisa.approximate.declaration import Method
from sisa.approximate.edits import statistics
from sisa.approximate.edits.given import Given
from sisa.approximate.edits.mappings import of_module
from sisa.approximate.edits.measured import importance
from sisa.approximate.edits.recorder import Recorder
from sisa.approximate.item_values import mean_probability
from sisa.approximate.methods import METHODS
from sisa.approximate.models import LanguageModel
from sisa.errors import ConfigurationError, IncompleteError, NotFoundError, SisaError

from .language import llama, made

HOW = loop.Settings(items_per_batch=6, seed=3)

FORGETS: Mapping[str, tuple[dict[str, Any], float]] = {
    "ssd": ({"alpha": 2.5, "strength": 0.5}, 0.9),
    "ssd-label-free": ({"alpha": 1.5}, 0.95),
    "prune": ({"share": 0.02}, 0.5),
    "task-vector": ({"lr": 6e-3}, 0.8),
    "newton": ({"damping": 0.01, "limit": 10}, 0.8),
}
"""Settings, and the most of the mean probability that is left of what is to be forgotten."""


def loaded(folder: Path) -> LanguageModel:
    subject = subjects.load(folder)
    assert isinstance(subject, LanguageModel)
    return subject


def read(shop: Path, subject: LanguageModel) -> tuple[Items, Items]:
    forget, retain = (
        inputs.read(shop / f"{name}.jsonl", name, subject, PROMPT, None)
        for name in ("forget", "retain")
    )
    assert isinstance(forget, Items) and isinstance(retain, Items)
    return forget, retain


def go(
    shop: Path, name: str, subject: LanguageModel, given: Any = None, **settings: Any
) -> loop.Outcome:
    forget, retain = read(shop, subject)
    method: Method = METHODS[name].configured(**settings)
    return editing.run(subject, method, forget, retain, given or {}, HOW)


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[n]) for n, v in one.items())


def nll(subject: LanguageModel, tokens: Tensor, labels: Tensor) -> Tensor:
    """Mean over the labelled positions of one item, alone and not packed."""
    logits = subject.module(input_ids=tokens[None]).logits[0, :-1]
    return cross_entropy(logits, labels[1:])


@pytest.mark.parametrize("name", FORGETS)
def test_an_edit_forgets_more_than_it_loses(name: str, shop: Path) -> None:
    settings, most = FORGETS[name]
    subject = loaded(shop / "base")
    forget, retain = read(shop, subject)
    before = mean_probability(subject, forget), mean_probability(subject, retain)
    outcome = go(shop, name, subject, **settings)
    after = mean_probability(subject, forget), mean_probability(subject, retain)
    assert after[0] <= most * before[0]
    assert before[0] - after[0] > 1.2 * (before[1] - after[1])
    assert outcome.steps == 0 and outcome.seconds > 0 and outcome.notes


@pytest.mark.parametrize("size", [1, 3])
def test_importance_is_of_each_item_alone_whatever_the_batch(size: int) -> None:
    subject, twin = (LanguageModel(llama(dtype=torch.float64)) for _ in range(2))
    items = made([9, 6, 12, 7, 2], seed=1)  # the last has a prompt alone
    given = Given(subject, items, items_per_batch=size, chunk_rows=3)
    found = importance(given, items, "fisher", "forget set")
    wanted = {n: torch.zeros_like(p) for n, p in twin.module.named_parameters()}
    for tokens, labels in list(zip(items.tokens, items.labels, strict=True))[:4]:
        twin.module.zero_grad()
        nll(twin, tokens, labels).backward()
        for n, p in twin.module.named_parameters():
            wanted[n] += p.grad**2 / 4
    assert (found.kind, found.count) == ("fisher", 4)
    torch.testing.assert_close(found.values, wanted)


def test_importance_of_batches_squares_their_means() -> None:
    subject, twin = (LanguageModel(llama(dtype=torch.float64)) for _ in range(2))
    items = made([9, 6, 12, 7], seed=1)
    given = Given(subject, items, items_per_batch=2)
    found = importance(given, items, "batch_fisher", "forget set")
    wanted = {n: torch.zeros_like(p) for n, p in twin.module.named_parameters()}
    for pair in (items.select([0, 1]), items.select([2, 3])):
        twin.module.zero_grad()
        for tokens, labels in zip(pair.tokens, pair.labels, strict=True):
            (nll(twin, tokens, labels) / 2).backward()
        for n, p in twin.module.named_parameters():
            wanted[n] += p.grad**2 / 2
    torch.testing.assert_close(found.values, wanted)
    assert found.count == 2


def test_the_measure_without_labels_looks_at_learned_positions_alone() -> None:
    subject, twin = (LanguageModel(llama(dtype=torch.float64)) for _ in range(2))
    items = made([9, 6], seed=1)
    found = importance(Given(subject, items), items, "sensitivity", "forget set")
    wanted = {n: torch.zeros_like(p) for n, p in twin.module.named_parameters()}
    for tokens, labels in zip(items.tokens, items.labels, strict=True):
        twin.module.zero_grad()
        logits = twin.module(input_ids=tokens[None]).logits[0, :-1][labels[1:] != -100]
        logits.square().sum(-1).mean().backward()
        for n, p in twin.module.named_parameters():
            wanted[n] += p.grad.abs() / 2
    torch.testing.assert_close(found.values, wanted)


def test_a_newton_step_on_one_parameter_solves_its_system(shop: Path) -> None:
    """The Gauss-Newton matrix of a norm's weight, built from Jacobians of single items."""
    subject = LanguageModel(llama(dtype=torch.float64, initializer_range=0.5))
    forget, retain = made([6, 5], seed=1), made([7, 6, 5], seed=2)
    name, damping = "model.norm.weight", 0.3
    module, weight = subject.module, subject.module.get_parameter(name)
    before = of_module(module)

    def logits(items: Items, at: int) -> tuple[Any, Tensor]:
        tokens, labels = items.tokens[at], items.labels[at]
        learned = labels[1:] != -100

        def of(value: Tensor) -> Tensor:
            given = {name: value}
            out = torch.func.functional_call(module, given, (tokens[None],), {"use_cache": False})
            return out.logits[0, :-1][learned]

        return of, labels[1:][learned]

    start = weight.detach().clone()
    gradient, matrix = torch.zeros(32).double(), torch.zeros(32, 32).double()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for at in range(2):
            of, labels = logits(forget, at)
            own = torch.func.grad(lambda v, of=of, y=labels: cross_entropy(of(v), y))
            gradient += own(start) / 3
        for at in range(3):
            of, labels = logits(retain, at)
            jacobian, p = torch.func.jacrev(of)(start), of(start).softmax(-1).detach()
            for rows, q in zip(jacobian, p, strict=True):
                inner = torch.diag(q) - torch.outer(q, q)
                matrix += rows.T @ inner @ rows / len(labels) / 3
    matrix += damping * torch.eye(32).double()
    wanted = start + torch.linalg.solve(matrix, gradient)
    settings = {"damping": damping, "layers": name, "tolerance": 1e-10, "limit": 200}
    editing.run(subject, METHODS["newton"].configured(**settings), forget, retain, {}, HOW)
    after = of_module(module)
    torch.testing.assert_close(after[name], wanted, rtol=1e-7, atol=1e-9)
    assert not torch.equal(after[name], start)
    assert all(torch.equal(v, before[n]) for n, v in after.items() if n != name)


def test_the_last_step_of_a_logged_training_is_taken_back(shop: Path, tmp_path: Path) -> None:
    subject = loaded(shop / "base")
    forget, retain = read(shop, subject)
    optimizer = torch.optim.SGD(subject.module.parameters(), lr=0.01)
    seen = []
    with Recorder.start(tmp_path, dict(subject.module.named_parameters())) as recorder:
        for batch in (retain, forget):
            seen.append(of_module(subject.module))
            tokens, labels = batch.tokens[0][None], batch.labels[0][None]
            optimizer.zero_grad()
            subject.module(input_ids=tokens, labels=labels).loss.backward()
            with recorder.step(batch.ids):
                optimizer.step()
    go(shop, "amnesiac", subject, {"log": tmp_path})
    found = of_module(subject.module)
    for name, value in seen[1].items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8)
    assert not same(found, seen[0])


def test_resetting_goes_back_to_the_original(shop: Path, tmp_path: Path) -> None:
    base = loaded(shop / "base")
    start = LanguageModel(llama(vocab_size=base.module.config.vocab_size), base.tokenizer)
    models.save(start, tmp_path / "start")
    outcome = go(shop, "reset", base, {"original": tmp_path / "start"}, share=0.05)
    new, old, first = (of_module(m.module) for m in (base, loaded(shop / "base"), start))
    moved = 0
    for name, value in new.items():
        back = (value == first[name]) & (value != old[name])
        assert (back | (value == old[name])).all()
        moved += int(back.sum())
    assert 0 < moved <= int(outcome.notes[0].split()[0])


def test_mixing_reaches_the_utility(shop: Path) -> None:
    subject, original = loaded(shop / "base"), loaded(shop / "base")
    _, retain = read(shop, subject)
    with torch.no_grad():
        for p in subject.module.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    whole = mean_probability(original, retain)
    assert mean_probability(subject, retain) < 0.9 * whole
    go(shop, "mix", subject, {"original": shop / "base"}, utility=0.95)
    assert 0.95 * whole <= mean_probability(subject, retain) < 0.97 * whole


@pytest.fixture(scope="module")
def adapters(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two adapters on the base, each trained to forget half of the forget set."""
    folder, made = tmp_path_factory.mktemp("adapters"), []
    forget, _ = read(shop, loaded(shop / "base"))
    for at in range(2):
        subject = models.with_lora(loaded(shop / "base"), rank=2, alpha=4, seed=at)
        own = forget.select(range(3 * at, 3 * at + 3))
        how = loop.Settings(epochs=8, items_per_batch=3, lr=5e-3)
        loop.run(subject, METHODS["gradient-ascent"], own, None, how, None)
        made.append(folder / str(at))
        models.save(subject, made[-1])
        if at == 0:
            statistics.keep(made[-1], statistics.measure(subject, own, 2))
    return made[0], made[1]


def test_adapters_are_fused_as_their_inputs_ask_for(
    shop: Path, adapters: tuple[Path, Path]
) -> None:
    subject, layer = loaded(shop / "base"), "model.layers.1.mlp.down_proj"
    base = of_module(subject.module)
    forget, _ = read(shop, subject)
    outcome = go(shop, "fuse", subject, {"adapters": adapters})
    assert "measured on the forget set" in outcome.notes[1] and " 1 of them" in outcome.notes[1]
    grams, deltas = [], []
    for folder, own in zip(adapters, (forget.select([0, 1, 2]), forget), strict=True):
        model, rows = loaded(folder), []
        linear = model.module.get_base_model().get_submodule(layer)
        linear.base_layer.register_forward_pre_hook(lambda _, x, rows=rows: rows.append(x[0]))
        with torch.no_grad():
            for tokens in own.tokens:  # one by one: no packing
                model.module(input_ids=tokens[None])
        x = torch.cat([r[0] for r in rows]).double()
        grams.append(x.T @ x)
        deltas.append(linear.get_delta_weight("default").double().T)
    mean = (deltas[0] + deltas[1]) / 2
    right = sum(g @ (d - mean) for g, d in zip(grams, deltas, strict=True))
    wanted = mean + torch.linalg.pinv(grams[0] + grams[1], rtol=1e-10, hermitian=True) @ right
    found = of_module(subject.module)
    added = (found[f"{layer}.weight"] - base[f"{layer}.weight"]).T.double()
    torch.testing.assert_close(added, wanted.detach(), rtol=1e-3, atol=2e-6)
    assert (added - mean).abs().max() > 1e-4
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        assert torch.equal(found[name], base[name])
    assert all(p.requires_grad for p in subject.module.parameters())
    alone = [mean_probability(loaded(folder), forget) for folder in adapters]
    assert mean_probability(subject, forget) < min(alone) + 0.1
    assert mean_probability(loaded(shop / "base"), forget) > 0.9


def test_a_dropped_adapter_leaves_the_bits_of_its_base(
    shop: Path, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    subject = loaded(adapters[0])
    forget, _ = read(shop, subject)
    assert subject.adapted and mean_probability(subject, forget) < 0.95
    outcome = go(shop, "drop-adapter", subject)
    assert outcome.notes == ("28 tensors were dropped.",)
    assert not subject.adapted and len(subject.trainable()) > 0
    base = loaded(shop / "base")
    assert same(of_module(subject.module), of_module(base.module))
    assert torch.equal(subject.rows(forget).hidden, base.rows(forget).hidden)
    subjects.save(subject, tmp_path / "new")
    assert not (tmp_path / "new" / "adapter_config.json").exists()
    assert same(of_module(loaded(tmp_path / "new").module), of_module(base.module))


def test_adapters_that_cannot_be_fused_are_refused(
    shop: Path, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    subject = loaded(shop / "base")
    before = of_module(subject.module)
    other = models.with_lora(LanguageModel(llama(hidden_size=16)), rank=2, alpha=4, seed=0)
    models.save(other, tmp_path / "other")
    cases: list[tuple[dict[str, Any], type[SisaError], str]] = [
        ({}, ConfigurationError, "needs adapter folders"),
        ({"adapters": adapters[:1]}, ConfigurationError, "two adapters or more"),
        ({"adapters": (adapters[0], tmp_path)}, NotFoundError, "no adapter in"),
        ({"adapters": (adapters[0], tmp_path / "other")}, ConfigurationError, "of another model"),
    ]
    for given, kind, words in cases:
        with pytest.raises(kind, match=words):
            go(shop, "fuse", subject, given)
        assert same(of_module(subject.module), before)
        assert all(p.requires_grad for p in subject.module.parameters())
        assert not hasattr(subject.module, "peft_config")
    with pytest.raises(ConfigurationError, match="an adapter already"):
        go(shop, "fuse", loaded(adapters[0]), {"adapters": adapters})
    with pytest.raises(NotFoundError, match="no adapter second"):
        go(shop, "drop-adapter", loaded(adapters[0]), adapter="second")


def test_edits_of_classifiers_refuse_a_language_model(shop: Path) -> None:
    subject = loaded(shop / "base")
    names = [m.name for m in METHODS.values() if m.kind == "edit" and "classifier" in m.needs]
    assert "partial-label-flip" in names and "code-ablation" not in names
    for name in names:
        with pytest.raises(ConfigurationError, match="for a classifier, and this is a language"):
            go(shop, name, subject)


def test_nothing_labelled_is_refused_and_one_item_is_enough(shop: Path) -> None:
    subject = loaded(shop / "base")
    forget, retain = read(shop, subject)
    none = tuple(torch.full_like(labels, -100) for labels in forget.labels)
    bare = Items(forget.ids, forget.tokens, none)
    for name, (settings, _) in FORGETS.items():
        method = METHODS[name].configured(**settings)
        with pytest.raises(IncompleteError, match="labelled position"):
            editing.run(subject, method, bare, retain, {}, HOW)
    one = forget.select([0])
    editing.run(subject, METHODS["ssd"].configured(alpha=2.0), one, retain, {}, HOW)
    assert all(v.isfinite().all() for v in of_module(subject.module).values())
