"""Greedy generation, against a forward of the whole text for each token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sisa.approximate.metrics import generation, statistics
from sisa.approximate.metrics.memory import extraction_likelihood, extraction_strength
from sisa.errors import UsageError

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 17, "bos_token_id": 1, "eos_token_id": 2}


def llama() -> Any:
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.5,
        **SIZES,
    )
    return transformers.LlamaForCausalLM(config)


def gpt2() -> Any:
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, n_positions=32, initializer_range=0.5, **SIZES
    )
    return transformers.GPT2LMHeadModel(config)


@pytest.fixture(params=[llama, gpt2])
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield request.param().double().eval()


def by_whole_forwards(model: Any, prompt: Tensor, new_tokens: int) -> Tensor:
    text = prompt
    for _ in range(new_tokens):
        with torch.no_grad():
            logits = model(input_ids=text[None], use_cache=False).logits
        text = torch.cat([text, logits[0, -1:].argmax(-1)])
    return text[len(prompt) :]


PROMPTS = [torch.tensor(p) for p in ([3, 4, 5], [6], [7, 8, 9], [10, 11, 12], [13, 14])]


def test_generation_is_that_of_whole_forwards(model: Any) -> None:
    found = generation.greedy(model, PROMPTS, 8, together=2)
    wanted = [by_whole_forwards(model, p, 8) for p in PROMPTS]
    assert [f.tolist() for f in found] == [w.tolist() for w in wanted]
    assert len({tuple(f.tolist()) for f in found}) > 1
    assert any(len(set(f.tolist())) > 2 for f in found)  # more than one token said again


def test_each_token_is_one_forward_of_one_token(model: Any) -> None:
    """Each forward beside the cache; none after the last token."""
    read: list[tuple[int, ...]] = []
    hook = model.register_forward_pre_hook(
        lambda _m, _args, named: read.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    generation.greedy(model, PROMPTS[:1] + PROMPTS[2:4], 4)
    hook.remove()
    assert read == [(3, 3), (3, 1), (3, 1), (3, 1)]


def test_a_text_ends_before_its_stop_token(model: Any) -> None:
    whole = by_whole_forwards(model, PROMPTS[0], 8).tolist()
    stop = whole[4]
    found = generation.greedy(model, PROMPTS, 8, stop=[stop])
    assert found[0].tolist() == whole[: whole.index(stop)]
    for text, prompt in zip(found, PROMPTS, strict=True):
        full = by_whole_forwards(model, prompt, 8).tolist()
        assert text.tolist() == (full[: full.index(stop)] if stop in full else full)


def test_each_prompt_has_its_own_limit(model: Any) -> None:
    limits = [0, 1, 5, 2, 8]
    found = generation.greedy(model, PROMPTS, limits)
    wanted = [by_whole_forwards(model, p, k).tolist() for p, k in zip(PROMPTS, limits, strict=True)]
    assert [f.tolist() for f in found] == wanted


def test_settings_in_the_models_folder_do_not_count(model: Any) -> None:
    wanted = generation.greedy(model, PROMPTS, 6)
    model.generation_config.repetition_penalty = 50.0
    model.generation_config.do_sample = True
    found = generation.greedy(model, PROMPTS, 6)
    assert [f.tolist() for f in found] == [w.tolist() for w in wanted]


def test_continuations_are_of_every_prefix(model: Any) -> None:
    texts = [torch.tensor([3, 4, 5, 6, 7, 8]), torch.tensor([9, 10]), torch.tensor([11, 12, 13])]
    found = generation.continuations(model, texts, n=2)
    assert [len(pairs) for pairs in found] == [4, 0, 1]
    for text, pairs in zip(texts, found, strict=True):
        for t, (made, true) in enumerate(pairs, start=1):
            assert true.tolist() == text[t:].tolist()
            assert made.tolist() == by_whole_forwards(model, text[:t], len(text) - t).tolist()
    assert len(generation.continuations(model, texts, n=2, every=3)[0]) == 2
    assert extraction_likelihood(found, n=2).item.tolist() == [0, 2]


def test_extraction_strength_is_what_greedy_decoding_gives_back(model: Any) -> None:
    """From hits of one forward, and by generating after each prefix."""
    own = torch.cat([PROMPTS[0], by_whole_forwards(model, PROMPTS[0], 6)])
    broken = own.clone()
    broken[5] = (broken[5] + 1) % 17
    for text in (own, broken):
        n = len(text) - 1
        with torch.no_grad():
            logits = model(input_ids=text[None]).logits[0, :-1]
        rows = statistics.of_rows(logits, text[1:], torch.zeros(n, dtype=torch.int64), 1)
        needed = next(
            k
            for k in range(n + 1)
            if k == n or torch.equal(by_whole_forwards(model, text[: k + 1], n - k), text[k + 1 :])
        )
        assert extraction_strength(rows).values.tolist() == pytest.approx([1 - needed / n])


def test_what_cannot_be_generated_is_refused(model: Any) -> None:
    assert generation.greedy(model, [], 5) == []
    assert len(generation.greedy(model, PROMPTS[1:2], 32)[0]) == 32
    with pytest.raises(UsageError, match="34 tokens"):
        generation.greedy(model, PROMPTS[1:2], 33)
    with pytest.raises(ValueError, match="a token to start"):
        generation.greedy(model, [torch.zeros(0, dtype=torch.int64)], 1)
    with pytest.raises(ValueError, match="evaluation mode"):
        generation.greedy(model.train(), PROMPTS, 1)
