"""Subjects: packing changes nothing that a model says, and an adapter comes off bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sisa.approximate import models
from sisa.approximate.batches import Examples, Items
from sisa.approximate.models import Classifier, LanguageModel
from sisa.approximate.rows import IGNORED
from sisa.errors import ConfigurationError, NotFoundError, UsageError

from .language import llama, made, tokenizer


def other(kind: str) -> Any:
    """Models of other families: learned positions, a sliding window, tied weights."""
    import transformers

    small: dict[str, Any] = {"vocab_size": 97, "bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(0)
    if kind == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **small)
        )
    small |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    if kind == "mistral":
        config = transformers.MistralConfig(sliding_window=4, **small)
        return transformers.MistralForCausalLM(config)
    return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(tie_word_embeddings=True, **small)
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "qwen2"])
def test_packed_items_are_what_each_is_alone(kind: str) -> None:
    model = (llama() if kind == "llama" else other(kind)).double().eval()
    items = made([9, 1, 5, 3])
    rows = LanguageModel(model).rows(items)
    logits = rows.head(rows.hidden)
    expected = []
    for i, (tokens, labels) in enumerate(zip(items.tokens, items.labels, strict=True)):
        alone = model(input_ids=tokens[None]).logits[0]
        expected += [
            (i, int(labels[t + 1]), alone[t])
            for t in range(len(tokens) - 1)
            if labels[t + 1] != IGNORED
        ]
    assert rows.item.tolist() == [i for i, _, _ in expected]
    assert rows.labels.tolist() == [label for _, label, _ in expected]
    assert (logits - torch.stack([row for _, _, row in expected])).abs().max() < 1e-9


def test_with_a_cache_items_would_see_each_other() -> None:
    # the negative control: the same tokens and positions, and another answer
    model, items = llama().double().eval(), made([6, 6])
    pack = models.packed(items)
    kept = model(input_ids=pack.tokens[None], position_ids=pack.positions[None], use_cache=True)
    rows = LanguageModel(model).rows(items)
    apart = rows.head(rows.hidden)[4:]
    assert (kept.logits[0][pack.predicting()][4:] - apart).abs().max() > 1e-3


def test_a_model_whose_items_would_see_each_other_is_refused() -> None:
    model = llama()
    decoder = model.get_decoder()
    forward = decoder.forward
    decoder.forward = lambda position_ids=None, **rest: forward(**rest)
    with pytest.raises(ConfigurationError, match="cannot be trained without padding"):
        LanguageModel(model)


def test_a_head_that_is_more_than_linear_is_refused() -> None:
    model = llama()
    model.register_forward_hook(lambda _, __, out: out.__class__(logits=out.logits.tanh()))
    with pytest.raises(ConfigurationError, match="more than a linear map"):
        LanguageModel(model)


def test_nothing_labelled_gives_no_row() -> None:
    items = made([5, 4], prompt=5)
    rows = LanguageModel(llama()).rows(items)
    assert rows.hidden.shape == (0, 32) and rows.items == 2


def test_a_forward_stops_at_a_layer() -> None:
    model, items = llama(), made([5, 3])
    subject = LanguageModel(model)
    reached: list[int] = []
    for number, block in enumerate(model.model.layers):
        block.register_forward_pre_hook(lambda *_, number=number: reached.append(number))
    expected = model(input_ids=items.tokens[0][None], output_hidden_states=True).hidden_states
    reached.clear()
    found = subject.hidden(items, 1)
    assert reached == [0]
    assert found.item.tolist() == [0] * 5 + [1] * 3
    assert torch.allclose(found.hidden[:5], expected[1][0], atol=1e-5)
    found.hidden.sum().backward()
    assert model.model.layers[0].mlp.down_proj.weight.grad is not None
    assert model.model.layers[1].mlp.down_proj.weight.grad is None
    assert len(subject.rows(items).labels) == 4, "the model is whole again"
    with pytest.raises(UsageError):
        subject.hidden(items, 3)


def test_an_adapter_comes_off_to_the_same_bits() -> None:
    items = made([7, 5])
    plain = LanguageModel(llama()).rows(items).hidden
    subject = models.with_lora(LanguageModel(llama()), rank=4, alpha=8, seed=1)
    assert all("lora" in name for name in subject.trainable())
    with torch.no_grad():
        for parameter in subject.trainable().values():
            parameter.add_(0.1)
    assert not torch.equal(subject.rows(items).hidden, plain)
    with subject.adapter_off():
        assert torch.equal(subject.rows(items).hidden, plain)
    assert not torch.equal(subject.rows(items).hidden, plain)
    assert all(p.requires_grad for p in subject.trainable().values())
    assert len(subject.trainable()) == 2 * 7 * 2


def test_an_adapter_is_a_function_of_its_seed() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second, third = (
        models.with_lora(LanguageModel(llama()), rank=2, alpha=4, seed=seed).trainable()
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)


def test_a_model_without_an_adapter_says_so() -> None:
    with pytest.raises(ConfigurationError, match="no adapter"):
        LanguageModel(llama()).adapter_off().__enter__()
    with pytest.raises(ConfigurationError, match="no adapter"):
        Classifier(nn.Linear(2, 2)).adapter_off()


def test_a_folder_gives_back_what_was_saved(tmp_path: Path) -> None:
    items, known = made([7, 5]), tokenizer(["a b c"] * 9)
    subject = LanguageModel(llama(), known)
    models.save(subject, tmp_path / "base")
    again = models.load(tmp_path / "base")
    assert torch.equal(again.rows(items).hidden, subject.rows(items).hidden)
    assert again.tokenizer.encode("a b c") == known.encode("a b c")

    adapted = models.with_lora(again, rank=2, alpha=4, seed=0)
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter.add_(0.1)
    models.save(adapted, tmp_path / "adapter")
    back = models.load(tmp_path / "adapter")
    assert torch.equal(back.rows(items).hidden, adapted.rows(items).hidden)
    assert back.trainable().keys() == adapted.trainable().keys()
    one = models.merged(back)
    assert torch.allclose(one.rows(items).hidden, adapted.rows(items).hidden, atol=1e-4)


def test_what_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        models.load(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="no causal language model"):
        models.load(tmp_path / "empty")
    models.save(LanguageModel(llama()), tmp_path / "bare")
    with pytest.raises(ConfigurationError, match="no tokenizer that is known"):
        models.load(tmp_path / "bare")


def test_any_module_is_a_classifier() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    examples = Examples(("a", "b", "c"), torch.rand(3, 2, 2), torch.tensor([2, IGNORED, 1]))
    subject = Classifier(module)
    rows = subject.rows(examples)
    assert rows.item.tolist() == [0, 2] and rows.labels.tolist() == [2, 1] and rows.items == 3
    assert torch.equal(rows.head(rows.hidden), module(examples.inputs[[0, 2]]))
    assert subject.hidden(examples, "1").hidden.shape == (3, 6)
    assert isinstance(made([3]), Items)
    with pytest.raises(UsageError, match="no layer 9"):
        subject.hidden(examples, "9")


def test_bits_do_not_depend_on_the_layout_of_a_file(tmp_path: Path) -> None:
    """A product of operands that begin anywhere has other bits than one of torch's own memory."""
    model = llama(vocab_size=300)
    words = tokenizer(["one two three"])
    models.save(LanguageModel(model, words), tmp_path / "0")
    found = []
    for padding in range(3):
        folder = tmp_path / str(padding)
        if padding:
            shutil.copytree(tmp_path / "0", folder)
            told = {"format": "pt", "padding": "x" * 8 * padding}
            save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", told)
        subject = models.load(folder)
        tensors = [*subject.module.parameters(), *subject.module.buffers()]
        assert all(t.data_ptr() % models.ALIGNMENT == 0 for t in tensors)
        found.append(subject.rows(made([9, 1, 5, 3])).hidden)
    assert all(torch.equal(each, found[0]) for each in found)
    mapped = load_file(tmp_path / "1" / "model.safetensors").values()
    assert any(t.data_ptr() % 16 for t in mapped), "else there was nothing to mend"
