"""Language models with a bottleneck: whole in their folder, and refused by everything else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sisa.approximate import bottlenecked, loop, models, subjects
from sisa.approximate.attacks.quantise import quantised
from sisa.approximate.bottlenecked import CONFIG, WEIGHTS, About
from sisa.approximate.edits import statistics
from sisa.approximate.edits.mappings import of_module
from sisa.approximate.methods import METHODS
from sisa.approximate.metrics.generation import greedy
from sisa.approximate.models import LanguageModel
from sisa.errors import ConfigurationError, NotFoundError, UsageError

from .language import llama, made, narrow, tokenizer

ITEMS = made([9, 5, 7])


def narrowed(layer: int = 1, **settings: Any) -> LanguageModel:
    model = llama(**settings)
    narrow(model, layer)
    return LanguageModel(model, tokenizer(["a b c"] * 9))


def logits(subject: LanguageModel) -> torch.Tensor:
    rows = subject.rows(ITEMS)
    return rows.head(rows.hidden)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_gives_back_the_same_bits(
    tmp_path: Path, dtype: str, tied: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = LanguageModel(llama(tie_word_embeddings=tied), tokenizer(["a b c"] * 9))
    models.save(plain, tmp_path / "plain")
    subject = models.load(tmp_path / "plain", dtype)  # as transformers keeps its buffers
    before = logits(subject)
    narrow(subject.module)
    capfd.readouterr()
    subjects.save(subject, tmp_path / "new")
    again = subjects.load(tmp_path / "new", dtype)
    assert capfd.readouterr() == ("", "")
    assert isinstance(again, LanguageModel)
    assert torch.equal(logits(again), logits(subject))
    state = subject.module.state_dict()
    assert state.keys() == again.module.state_dict().keys()
    assert all(torch.equal(v, state[n]) for n, v in again.module.state_dict().items())
    assert not torch.equal(logits(again), before)
    told = bottlenecked.described(again.module)
    assert told == About(layer=1, codes=24, strongest=4)
    subjects.save(again, tmp_path / "twice")
    for name in (CONFIG, WEIGHTS):
        first, second = ((tmp_path / f / name).read_bytes() for f in ("new", "twice"))
        assert first == second and str(tmp_path).encode() not in first


def test_plain_transformers_refuses_the_folder(tmp_path: Path) -> None:
    subject = narrowed()
    subjects.save(subject, tmp_path / "new")
    for kind in (transformers.AutoModelForCausalLM, transformers.AutoModel):
        with pytest.raises(ValueError, match=bottlenecked.MODEL_TYPE):
            kind.from_pretrained(tmp_path / "new")
    config = subject.module.config
    for given in ({}, {"config": config}):  # by its own class, even with the right sizes
        with pytest.raises(OSError, match=r"no file named model\.safetensors"):
            transformers.LlamaForCausalLM.from_pretrained(tmp_path / "new", **given)
    # the negative control: what is saved without a bottleneck is read
    models.save(LanguageModel(llama(), subject.tokenizer), tmp_path / "plain")
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    with pytest.raises(UsageError, match="without a bottleneck, which could be read"):
        subjects.save(subject, tmp_path / "plain")


def test_the_way_past_saving_is_closed(tmp_path: Path) -> None:
    subject = narrowed()
    subjects.save(subject, tmp_path / "new")
    loaded = models.load(tmp_path / "new")
    merged = models.merged(models.with_lora(loaded, rank=2, alpha=4, seed=0))
    for module in (subject.module, copy.deepcopy(subject.module), loaded.module, merged.module):
        with pytest.raises(UsageError, match=r"Write it with sisa\.approximate\.models\.save"):
            module.save_pretrained(tmp_path / "past")
    assert not (tmp_path / "past").exists()


def test_a_damaged_folder_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    subjects.save(narrowed(), folder)
    told = json.loads((folder / CONFIG).read_text())
    changes = [
        {"bottleneck": {**told["bottleneck"], "layer": 3}},
        {"bottleneck": {**told["bottleneck"], "codes": 25}},
        {"bottleneck": {**told["bottleneck"], "kind": "other"}},
        {"inner": {**told["inner"], "model_type": "nothing"}},
        {"inner": {**told["inner"], "hidden_size": 64}},
        {"inner": 1},
    ]
    for change in changes:
        (folder / CONFIG).write_text(json.dumps({**told, **change}))
        with pytest.raises(ConfigurationError):
            subjects.load(folder)
    (folder / CONFIG).write_text(json.dumps(told))
    subjects.load(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(NotFoundError, match=WEIGHTS):
        subjects.load(folder)


def test_a_bottleneck_is_put_in_once_and_where_there_is_a_block() -> None:
    model = llama()
    for layer, words in ((3, "no layer 3"), (2, ""), (1, "has a bottleneck already")):
        about = About(layer=layer, codes=4, strongest=2)
        if not words:
            before = torch.random.get_rng_state()
            bottlenecked.put(model, about)
            assert torch.equal(torch.random.get_rng_state(), before)
            continue
        with pytest.raises(ConfigurationError, match=words):
            bottlenecked.put(model, about)
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=97)
    with pytest.raises(ConfigurationError, match="blocks of GPT2LMHeadModel are not known"):
        bottlenecked.put(transformers.GPT2LMHeadModel(config), about)


def test_packed_items_and_continuations_go_through_it() -> None:
    subject, plain = narrowed(dtype=torch.float64), LanguageModel(llama(dtype=torch.float64))
    alone = torch.cat([subject.module(input_ids=t[None]).logits[0, 1:-1] for t in ITEMS.tokens])
    torch.testing.assert_close(logits(subject), alone)
    before, after = (m.hidden(ITEMS, 1).hidden for m in (plain, subject))
    found = bottlenecked.of(subject.module)
    assert found is not None and found[0] == "model.layers.0.bottleneck"
    torch.testing.assert_close(after, found[1](before))
    assert (after - before).abs().max() > 0.1
    prompts = [t[:4] for t in ITEMS.tokens]
    made_with_cache = greedy(subject.module, prompts, 5)
    for prompt, text in zip(prompts, made_with_cache, strict=True):
        for at in range(5):  # with no cache, token by token
            so_far = torch.cat([prompt, text[:at]])
            assert int(subject.module(input_ids=so_far[None]).logits[0, -1].argmax()) == text[at]


def test_a_copy_has_a_bottleneck_of_its_own() -> None:
    subject = narrowed()
    before = logits(subject)
    twin = LanguageModel(copy.deepcopy(subject.module))
    found = bottlenecked.of(twin.module)
    assert found is not None
    found[1].kept.fill_(True)
    assert not torch.equal(logits(twin), before) and torch.equal(logits(subject), before)
    assert torch.equal(logits(twin), logits(LanguageModel(llama())))
    rounded = bottlenecked.of(quantised(subject.module, 4))
    assert rounded is not None
    weight = rounded[1].decoder.weight
    assert all(len(row.unique()) <= 15 for row in weight)


def test_training_moves_the_model_and_not_its_bottleneck() -> None:
    subject = narrowed()
    before = of_module(subject.module)
    own = {name for name in before if ".bottleneck." in name}
    assert len(own) == 4 and not own & subject.trainable().keys()
    how = loop.Settings(epochs=2, items_per_batch=3, lr=1e-2)
    loop.run(subject, METHODS["gradient-ascent"], ITEMS, None, how, None)
    after = of_module(subject.module)
    assert {n for n, v in after.items() if torch.equal(v, before[n])} == own


def test_an_adapter_goes_beside_it_and_off_again(tmp_path: Path) -> None:
    subjects.save(narrowed(), tmp_path / "base")
    base = models.load(tmp_path / "base")
    expected = logits(base)
    subject = models.with_lora(models.load(tmp_path / "base"), rank=2, alpha=4, seed=0)
    assert torch.equal(logits(subject), expected)
    assert not any(".bottleneck." in name for name in subject.trainable())
    assert len(subject.trainable()) == 2 * 7 * 2
    with torch.no_grad():
        for parameter in subject.trainable().values():
            parameter.add_(0.1)
    changed = logits(subject)
    assert not torch.equal(changed, expected)
    models.save(subject, tmp_path / "adapter")
    again = models.load(tmp_path / "adapter")
    assert torch.equal(logits(again), changed)
    with again.adapter_off():
        assert torch.equal(logits(again), expected)
    with statistics.with_adapter(base, tmp_path / "adapter") as inside:
        assert torch.equal(logits(inside), changed)
    assert torch.equal(logits(base), expected)
    again.drop_adapter()
    assert torch.equal(logits(again), expected)
    assert not any(".bottleneck." in name for name in again.trainable())
    one = models.merged(subject)
    models.save(one, tmp_path / "merged")
    assert torch.equal(logits(models.load(tmp_path / "merged")), logits(one))
    with pytest.raises(ValueError, match=bottlenecked.MODEL_TYPE):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")


def test_an_adapter_is_not_written_where_the_bottleneck_would_be_lost(tmp_path: Path) -> None:
    models.save(LanguageModel(llama(), tokenizer(["a b c"] * 9)), tmp_path / "plain")
    subjects.save(narrowed(), tmp_path / "other")
    for name in ("plain", "other", None):
        subject = narrowed() if name is None else models.load(tmp_path / name)
        if name == "plain":
            narrow(subject.module)
        if name == "other":
            found = bottlenecked.of(subject.module)
            assert found is not None
            found[1].kept.fill_(False)
        adapted = models.with_lora(subject, rank=2, alpha=4, seed=0)
        with pytest.raises(UsageError, match="adapter holds no bottleneck"):
            models.save(adapted, tmp_path / "adapter")
        assert not (tmp_path / "adapter").exists()
