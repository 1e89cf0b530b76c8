"""What is kept of the reference equals what the model said, and belongs to it alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from sisa.approximate import models, reference
from sisa.approximate.batches import Examples
from sisa.approximate.models import Classifier, LanguageModel
from sisa.errors import IncompleteError

from .language import llama, made

ITEMS = made([9, 6, 12, 7, 8, 5, 4, 9, 10, 3], seed=1)


def test_kept_scores_are_sums_of_nll() -> None:
    model = llama(dtype=torch.float64).eval()
    kept = reference.keep(LanguageModel(model), [ITEMS], chunk=3)
    expected = []
    for tokens, labels in zip(ITEMS.tokens, ITEMS.labels, strict=True):
        log_p = model(input_ids=tokens[None]).logits[0].log_softmax(-1)
        rows = range(len(tokens) - 1)
        expected.append(-sum(log_p[t, labels[t + 1]] for t in rows if labels[t + 1] != -100))
    assert torch.allclose(kept.scores(ITEMS), torch.stack(expected).detach(), atol=1e-9)
    turned = [3, 1]
    assert torch.equal(kept.scores(ITEMS.select(turned)), kept.scores(ITEMS)[turned])


def test_the_largest_are_kept_with_the_mass_of_the_rest() -> None:
    subject = LanguageModel(llama(dtype=torch.float64))
    kept = reference.keep(subject, [ITEMS], top=7, chunk=4)
    live = reference.Live(subject)
    part = ITEMS.select([4, 0, 9])
    some, every = kept.rows(part)(slice(1, 9)), live.rows(part)(slice(1, 9))
    assert some.log_probs.shape == (8, 7) and every.tokens is None
    assert some.tokens is not None and some.log_tail is not None
    assert torch.allclose(some.log_probs, every.log_probs.gather(1, some.tokens), atol=1e-9)
    total = some.log_probs.exp().sum(1) + some.log_tail.exp()
    assert torch.allclose(total, torch.ones(8, dtype=torch.float64), atol=1e-9)


def test_the_whole_vocabulary_may_be_kept() -> None:
    subject = LanguageModel(llama(dtype=torch.float64))
    kept = reference.keep(subject, [ITEMS], top=1000).rows(ITEMS)(slice(None))
    live = reference.Live(subject).rows(ITEMS)(slice(None))
    assert kept.tokens is None
    assert torch.allclose(kept.log_probs, live.log_probs, atol=1e-9)


def test_what_a_folder_holds_is_not_computed_again(tmp_path: Path) -> None:
    subject = LanguageModel(llama())
    first = reference.keep(subject, [ITEMS], folder=tmp_path).scores(ITEMS)
    calls: list[int] = []
    handle = subject.module.lm_head.register_forward_hook(lambda *_: calls.append(1))
    again = reference.keep(subject, [ITEMS], folder=tmp_path).scores(ITEMS)
    assert torch.equal(first, again) and not calls
    reference.keep(subject, [made([5], seed=9)], folder=tmp_path)
    assert calls, "an item that is new is computed"
    handle.remove()


def test_another_model_or_other_labels_are_other_values(tmp_path: Path) -> None:
    one, other = LanguageModel(llama()), LanguageModel(llama(seed=1))
    first = reference.keep(one, [ITEMS], folder=tmp_path)
    second = reference.keep(other, [ITEMS], folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert not torch.allclose(first.scores(ITEMS), second.scores(ITEMS))
    relabelled = type(ITEMS)(ITEMS.ids, ITEMS.tokens, ITEMS.tokens)
    with pytest.raises(IncompleteError, match="not kept"):
        first.scores(relabelled)
    with pytest.raises(IncompleteError, match="distributions"):
        first.rows(ITEMS)
    with pytest.raises(IncompleteError, match="hidden states"):
        first.hidden(ITEMS, 1)


def test_an_adapter_that_is_off_is_the_model_before_it() -> None:
    before = reference.Live(LanguageModel(llama()))
    subject = models.with_lora(LanguageModel(llama()), rank=2, alpha=4, seed=0)
    with torch.no_grad():
        for parameter in subject.trainable().values():
            parameter.add_(0.1)
    off = reference.AdapterOff(subject)
    assert torch.equal(off.scores(ITEMS), before.scores(ITEMS))
    at = slice(2, 9)
    assert torch.equal(off.rows(ITEMS)(at).log_probs, before.rows(ITEMS)(at).log_probs)
    assert torch.equal(off.hidden(ITEMS, 1), before.hidden(ITEMS, 1))
    assert not torch.equal(reference.Live(subject).scores(ITEMS), before.scores(ITEMS))


def test_the_scores_of_a_classifier_are_kept_too() -> None:
    examples = Examples(("a", "b"), torch.rand(2, 4), torch.tensor([1, -100]))
    module = nn.Linear(4, 3)
    kept = reference.keep(Classifier(module), [examples], top=2)
    rows = kept.rows(examples)(slice(None))
    assert rows.log_probs.shape == (1, 2)
    scores = reference.keep(Classifier(module), [examples]).scores(examples)
    expected = -module(examples.inputs).log_softmax(-1)[0, 1].double()
    assert torch.allclose(scores, torch.stack([expected, expected * 0]))
