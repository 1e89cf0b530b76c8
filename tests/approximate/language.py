"""A language model small enough for a test, its tokenizer, and items for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sisa.approximate import bottlenecked
from sisa.approximate.batches import Items
from sisa.approximate.bottlenecked import About
from sisa.approximate.rows import IGNORED

VOCABULARY = 97


def llama(seed: int = 0, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """A LlamaForCausalLM of two layers from a random start."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "bos_token_id": None,
            "eos_token_id": None,
            "initializer_range": 0.3,
            **settings,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).to(dtype)


def narrow(model: Any, layer: int = 1, every: int = 2) -> None:
    """Put a bottleneck behind a block, of random codes of which one in so many is gone."""
    found = bottlenecked.put(model, About(layer=layer, codes=24, strongest=4))
    draws = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in found.parameters():
            drawn = torch.randn(parameter.shape, generator=draws, dtype=torch.float64)
            parameter.copy_(drawn / 4)
        found.kept[::every] = False


def tokenizer(texts: list[str]) -> Any:
    """A byte-level tokenizer trained on these texts."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        texts, vocab_size=300, special_tokens=["<s>", "</s>"], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token="<s>", eos_token="</s>"
    )


def made(lengths: list[int], seed: int = 0, prompt: int = 2, name: str = "item") -> Items:
    """Items of random tokens; the first of each are a prompt, which is not learned."""
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(VOCABULARY, (n,), generator=generator) for n in lengths]
    labels = [torch.cat([torch.full((len(t[:prompt]),), IGNORED), t[prompt:]]) for t in tokens]
    return Items(tuple(f"{name}{i:04d}" for i in range(len(lengths))), tuple(tokens), tuple(labels))


def padded(items: Items) -> tuple[Tensor, Tensor, Tensor]:
    """The common layout: tokens, labels and attention mask [B, T], padded on the right."""
    longest = max(len(tokens) for tokens in items.tokens)
    shape = (len(items), longest)
    tokens, labels = torch.zeros(shape, dtype=torch.int64), torch.full(shape, IGNORED)
    mask = torch.zeros(shape, dtype=torch.int64)
    for i, (own, learned) in enumerate(zip(items.tokens, items.labels, strict=True)):
        tokens[i, : len(own)], labels[i, : len(own)], mask[i, : len(own)] = own, learned, 1
    return tokens, labels, mask
