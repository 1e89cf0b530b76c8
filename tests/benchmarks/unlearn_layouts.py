"""Steps of NPO with an NLL retain term in one layout, in a process of its own.

    unlearn_layouts.py LAYOUT VOCABULARY STEPS

`ours` is the package's own loop. `common` is what the trainer of open-unlearning does
(github.com/locuslab/open-unlearning, `utils.py`, `unlearn/npo.py` and `unlearn/grad_diff.py` in
`src/trainer`): a deep copy of the model as the reference, batches padded to their longest item,
logits of every position, and, because labels are among the inputs, a loss of the model's own that
is thrown away.
`lean` is the same without that loss, without a copy of the logits, and with the cross-entropy on
[B T, V] instead of [B, V, T], which is slower. All take the same items in the same order, with the
same clipping and optimizer. It prints a line of JSON: seconds and memory in bytes.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM

from sisa.approximate import loop, reference
from sisa.approximate.batches import Items
from sisa.approximate.methods import METHODS
from sisa.approximate.models import LanguageModel
from sisa.approximate.order import FORGET, RETAIN, Order
from sisa.approximate.rows import IGNORED

LENGTHS = (256, 120, 80, 46)
"""Tokens of the items of each batch, all of them learned: 49% of what the padded batch holds."""

BATCH, SEED, THREADS = len(LENGTHS), 0, 1
LR, DECAY, CLIP, BETA = 1e-5, 0.01, 1.0, 0.1
Batch = dict[str, Tensor]


@dataclass
class Clock:
    """When steps ended: wall clock and processor seconds, the loss, and the peak until then."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak: int = 0

    def tick(self, loss: float = 0.0) -> None:
        """Note the end of a step; the loop measures a peak of its own, which begins anew."""
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())
        self.losses.append(loss)
        self.peak = max(self.peak, memory("VmHWM"))


def model(vocabulary: int) -> Any:
    """A Llama of 12.4 million parameters with 32,000 tokens, from a random start."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def order(ids: tuple[str, ...], stream: Any) -> list[int]:
    """The order in which the loop takes items in its first epoch."""
    drawn = Order(ids, SEED, stream)
    return list(drawn.epoch(0) if stream is FORGET else drawn.stream(0, len(ids)))


def items(name: str, stream: Any, vocabulary: int, steps: int) -> Items:
    """Random tokens, such that each batch has one item of each length."""
    ids = tuple(f"{name}{i:04d}" for i in range(BATCH * steps))
    lengths = {place: LENGTHS[at % BATCH] for at, place in enumerate(order(ids, stream))}
    generator = torch.Generator().manual_seed(len(name))
    tokens = tuple(
        torch.randint(vocabulary, (lengths[place],), generator=generator)
        for place in range(len(ids))
    )
    return Items(ids, tokens, tokens)


def ours(module: Any, forget: Items, retain: Items, clock: Clock) -> None:
    """The package's loop with its defaults; the reference's scores are kept before."""
    subject = LanguageModel(module)
    kept = reference.keep(subject, [forget])
    clock.tick()
    settings = loop.Settings(
        epochs=1,
        items_per_batch=BATCH,
        lr=LR,
        weight_decay=DECAY,
        max_grad_norm=CLIP,
        seed=SEED,
        checkpoint_every=0,
    )
    method = METHODS["npo"].configured(beta=BETA)
    loop.run(
        subject, method, forget, retain, settings, None, kept, lambda m, _: clock.tick(m["loss"])
    )


def padded(items: Items, stream: Any) -> Iterator[Batch]:
    """Batches as a collator makes them."""
    places = order(items.ids, stream)
    for start in range(0, len(places), BATCH):
        own = items.select(places[start : start + BATCH])
        mask = [torch.ones_like(tokens) for tokens in own.tokens]
        yield {
            "input_ids": pad_sequence(list(own.tokens), batch_first=True),
            "attention_mask": pad_sequence(mask, batch_first=True),
            "labels": pad_sequence(list(own.labels), batch_first=True, padding_value=IGNORED),
        }


def common_nll(of: Any, batch: Batch) -> tuple[Tensor, Any]:
    """Summed nll of each sequence, [B], and the outputs, as `compute_batch_nll` gives them."""
    outputs = of(**batch)
    labels = batch["labels"][..., 1:].contiguous()
    logits = outputs.logits[..., :-1, :].contiguous()
    each = nn.CrossEntropyLoss(ignore_index=IGNORED, reduction="none")
    return each(logits.transpose(-1, -2), labels).sum(dim=-1), outputs


def lean_nll(of: Any, batch: Batch) -> tuple[Tensor, Any]:
    """The same, without what is thrown away."""
    logits = of(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = functional.pad(batch["labels"], (0, 1), value=IGNORED)[:, 1:]
    losses = functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view(labels.shape).sum(dim=-1), None


def plain(
    module: Any,
    forget: Items,
    retain: Items,
    clock: Clock,
    batch_nll: Callable[[Any, Batch], tuple[Tensor, Any]],
) -> None:
    """The common layout."""
    was = copy.deepcopy(module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=LR, weight_decay=DECAY)
    clock.tick()

    def loss(forgotten: Batch, retained: Batch) -> Tensor:
        nll, _outputs = batch_nll(module, forgotten)  # these live until the loss is there
        with torch.no_grad():
            before, _ = batch_nll(was, forgotten)
        found: Tensor = -2 / BETA * functional.logsigmoid(BETA * (nll - before)).mean()
        found += module(**retained).loss
        return found

    for pair in zip(padded(forget, FORGET), padded(retain, RETAIN), strict=True):
        optimizer.zero_grad()
        found = loss(*pair)
        found.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), CLIP)
        optimizer.step()
        clock.tick(float(found.detach()))


def memory(field: str) -> int:
    """Bytes of this process: resident now (`VmRSS`), or the most so far (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def main() -> None:
    """Measure one layout; the first step, which makes the optimizer's state, is not timed."""
    layout, vocabulary, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(THREADS)
    before, clock = memory("VmRSS"), Clock()
    module = model(vocabulary)
    forget, retain = (
        items(name, stream, vocabulary, steps + 1)
        for name, stream in (("forget", FORGET), ("retain", RETAIN))
    )
    clock.tick()
    if layout == "ours":
        ours(module, forget, retain, clock)
    else:
        plain(module, forget, retain, clock, common_nll if layout == "common" else lean_nll)
    found = {
        "parameters": sum(p.numel() for p in module.parameters()),
        "once": clock.cpu[1] - clock.cpu[0],
        "wall": (clock.wall[-1] - clock.wall[2]) / steps,
        "cpu": (clock.cpu[-1] - clock.cpu[2]) / steps,
        "loss": clock.losses[2],
        "peak": clock.peak,
        "before": before,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
