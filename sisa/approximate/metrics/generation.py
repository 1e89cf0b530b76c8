"""Greedy generation for the metrics that read what a model says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from sisa.errors import UsageError


def greedy(
    model: Any,
    prompts: Sequence[Tensor],
    new_tokens: int | Sequence[int],
    stop: Collection[int] = (),
    together: int = 16,
) -> list[Tensor]:
    """Continue prompts with the most probable token each time.

    A forward reads the prompt, and each further one a single token beside the model's own cache.
    Prompts of equal length run together, so that nothing is padded. Settings of generation in the
    model's folder, such as a penalty on repetition, do not count: they would hide what it knows.

    Args:
        model: A causal language model of transformers, or one with an adapter, in evaluation mode.
        prompts: Tokens int64 [T], at least one each.
        new_tokens: How many tokens follow at most, for all prompts or for each.
        stop: Tokens that end a text; they are not part of it.
        together: Prompts at a time.

    Returns:
        The new tokens of each prompt, int64 [g] on the CPU, g at most `new_tokens`.

    Raises:
        ValueError: The model is in training mode, a prompt is empty, or limits are not as many.
        UsageError: A text would be longer than the model's positions.
    """
    limits = [new_tokens] * len(prompts) if isinstance(new_tokens, int) else list(new_tokens)
    if model.training:
        raise ValueError("what a model says is only defined in evaluation mode")
    if len(limits) != len(prompts) or any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("each prompt needs a token to start from, and a limit")
    _require_positions(model, prompts, limits)
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_length[len(prompt)].append(index)
    texts = [torch.zeros(0, dtype=torch.int64)] * len(prompts)
    for of_equal in by_length.values():
        for start in range(0, len(of_equal), together):
            batch = of_equal[start : start + together]
            made = _continue(
                model,
                torch.stack([prompts[i] for i in batch]),
                torch.tensor([limits[i] for i in batch]),
                torch.tensor(sorted(stop), dtype=torch.int64),
            )
            for i, tokens in zip(batch, made, strict=True):
                texts[i] = tokens
    return texts


def continuations(
    model: Any,
    texts: Sequence[Tensor],
    n: int = 10,
    every: int = 1,
    stop: Collection[int] = (),
    together: int = 16,
) -> list[list[tuple[Tensor, Tensor]]]:
    """What a model says after each prefix of each text, for the extraction likelihood.

    Args:
        model: As in `greedy`.
        texts: Tokens int64 [T].
        n: Length of the n-grams: a prefix leaves at least n tokens.
        every: Only every so many prefixes; 1 is the definition, more is cheaper.
        stop: As in `greedy`.
        together: As in `greedy`.

    Returns:
        For each text, and for each prefix of 1, 1 + every, ... tokens, what is generated up to the
        length of the text, and what follows in truth.
    """
    cuts = [(i, t) for i, text in enumerate(texts) for t in range(1, len(text) - n + 1, every)]
    prompts = [texts[i][:t] for i, t in cuts]
    made = greedy(model, prompts, [len(texts[i]) - t for i, t in cuts], stop, together)
    pairs: list[list[tuple[Tensor, Tensor]]] = [[] for _ in texts]
    for (i, t), tokens in zip(cuts, made, strict=True):
        pairs[i].append((tokens, texts[i][t:].cpu()))
    return pairs


@torch.no_grad()
def _continue(model: Any, tokens: Tensor, limits: Tensor, stop: Tensor) -> list[Tensor]:
    """Continue prompts of equal length [B, T] by at most `limits` [B] tokens each."""
    inputs = tokens.to(next(model.parameters()).device)
    cache = None
    open_ = torch.ones(len(tokens), dtype=torch.bool)
    made: list[Tensor] = []
    while (open_ := open_ & (limits > len(made))).any():
        out = model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        following, cache = out.logits[:, -1].argmax(-1), out.past_key_values
        made.append(following.cpu())
        open_ &= ~torch.isin(made[-1], stop)
        inputs = following[:, None]
    rows = torch.stack(made, dim=1) if made else tokens.new_zeros(len(tokens), 0)
    return [_cut(row[:limit], stop) for row, limit in zip(rows, limits.tolist(), strict=True)]


def _cut(tokens: Tensor, stop: Tensor) -> Tensor:
    """The tokens before the first that ends a text."""
    ends = torch.isin(tokens, stop).nonzero().flatten()
    return tokens[: int(ends[0])] if len(ends) else tokens


def _require_positions(model: Any, prompts: Sequence[Tensor], limits: Sequence[int]) -> None:
    most = getattr(model.config, "max_position_embeddings", None)
    longest = max((len(p) + k for p, k in zip(prompts, limits, strict=True)), default=0)
    if most is not None and longest - 1 > most:  # the last token is never read
        raise UsageError(
            f"A text of {longest} tokens is longer than the model reads, which is {most}.",
            "Generate fewer tokens, or cut the prompts.",
        )
