"""The nll without autograd: the same values and gradients, from one buffer of logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from sisa.approximate import loop, models, reference
from sisa.approximate.chunks import add_gradients, groups
from sisa.approximate.likelihood import Likelihood
from sisa.approximate.loop import Settings
from sisa.approximate.methods import METHODS
from sisa.approximate.models import LanguageModel
from sisa.approximate.objectives.rows import nll

from .language import VOCABULARY, llama, made

ROWS, WIDTH, TOKENS = 11, 6, 17


def given(dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, a head and labels."""
    generator = torch.Generator().manual_seed(3)
    hidden = scale * torch.randn(ROWS, WIDTH, generator=generator, dtype=dtype)
    matrix = torch.randn(TOKENS, WIDTH, generator=generator, dtype=dtype)
    return hidden, matrix, torch.randint(TOKENS, (ROWS,), generator=generator)


def bent(values: Tensor) -> Tensor:
    """A loss whose derivative by a value depends on all of them."""
    return torch.logsumexp(values, 0) - (values[::2] ** 2).sum() / 7


def slopes(values: Tensor) -> Tensor:
    """Its derivative."""
    own = values.clone().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(bent(own), own)[0]


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the rows of every tensor as wide as the vocabulary that is computed."""

    def __init__(self, width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: list[int] = []
        self.made = 0
        self._width = width

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        tensor = isinstance(found, Tensor) and found.dim() > 1 and found.shape[-1] == self._width
        if tensor and not func.is_view:
            self.rows.append(found[..., 0].numel())
            if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
                self.made += self.rows[-1]
        return found


@pytest.mark.parametrize("chunk", [1, 4, ROWS - 1, ROWS, 100])
def test_values_and_gradients_are_those_of_the_formula(chunk: int) -> None:
    hidden, matrix, labels = given()
    leaf, head = hidden.clone().requires_grad_(), matrix.clone().requires_grad_()
    logits = leaf @ head.T
    expected = torch.logsumexp(logits, 1) - logits[torch.arange(ROWS), labels]
    bent(expected).backward()  # type: ignore[no-untyped-call]
    own = matrix.clone().requires_grad_()
    values, gradients = Likelihood(own, chunk).add_gradients(hidden, labels, slopes)
    assert leaf.grad is not None and head.grad is not None and own.grad is not None
    assert (values - expected).abs().max() < 1e-12
    assert (gradients - leaf.grad).abs().max() < 1e-12 < leaf.grad.abs().max()
    assert (own.grad - head.grad).abs().max() < 1e-12 < head.grad.abs().max()


def test_gradients_are_what_small_differences_say() -> None:
    hidden, matrix, labels = given()

    def total(hidden: Tensor, matrix: Tensor) -> Tensor:
        return bent(functional.cross_entropy(hidden @ matrix.T, labels, reduction="none"))

    own = matrix.clone().requires_grad_()
    _, gradients = Likelihood(own, 4).add_gradients(hidden, labels, slopes)
    assert own.grad is not None
    generator, step = torch.Generator().manual_seed(5), 1e-6
    for found, at in ((gradients, 0), (own.grad, 1)):
        for _ in range(3):
            way = torch.randn(found.shape, generator=generator, dtype=torch.float64) * step
            ends = [[hidden, matrix], [hidden, matrix]]
            ends[0][at], ends[1][at] = ends[0][at] + way, ends[1][at] - way
            measured = (total(*ends[0]) - total(*ends[1])) / 2
            assert float((found * way).sum()) == pytest.approx(float(measured), rel=1e-6)


def test_gradients_of_the_head_are_added_to_those_it_has() -> None:
    hidden, matrix, labels = given()
    once, twice = (matrix.clone().requires_grad_() for _ in range(2))
    Likelihood(once, 4).add_gradients(hidden, labels, slopes)
    both = Likelihood(twice, 4)
    for _ in range(2):
        both.add_gradients(hidden, labels, slopes)
    assert once.grad is not None and twice.grad is not None
    assert torch.allclose(twice.grad, 2 * once.grad, rtol=1e-12)


def test_a_head_that_is_not_trained_gets_no_gradient() -> None:
    hidden, matrix, labels = given()
    _, gradients = Likelihood(matrix, 4).add_gradients(hidden, labels, slopes)
    _, trained = Likelihood(matrix.clone().requires_grad_(), 4).add_gradients(
        hidden, labels, slopes
    )
    assert matrix.grad is None and torch.equal(gradients, trained)


def test_the_least_likely_label_has_a_finite_value() -> None:
    # its probability is no float32 that is not zero
    hidden, matrix, labels = given(torch.float32, scale=100.0)
    values, gradients = Likelihood(matrix, 4).add_gradients(hidden, labels, torch.ones_like)
    expected = functional.cross_entropy(hidden @ matrix.T, labels, reduction="none")
    assert expected.max() > 200 and torch.allclose(values, expected, rtol=1e-6)
    assert torch.isfinite(gradients).all()


def test_logits_exist_in_one_buffer_and_those_of_the_last_chunk_are_made_once() -> None:
    hidden, matrix, labels = given()
    with Products(TOKENS) as seen:
        Likelihood(matrix, ROWS).add_gradients(hidden, labels, slopes)
    assert seen.made == ROWS == max(seen.rows)
    with Products(TOKENS) as seen:
        Likelihood(matrix, 4).add_gradients(hidden, labels, slopes)
    assert seen.made == ROWS + 8 and max(seen.rows) == 4


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("name", ["npo", "gradient-difference", "undial"])
def test_logits_of_a_step_are_never_more_than_a_chunk(name: str, watched: bool) -> None:
    forget, retain = made([9, 6, 12], seed=1), made([8, 11, 6], seed=2)
    subject = LanguageModel(llama())
    kept = reference.keep(subject, [forget], top=5 if name == "undial" else None)
    if watched:
        subject.module.lm_head.register_forward_hook(lambda *_: None)
    settings = Settings(epochs=1, items_per_batch=3, chunk_rows=5)
    with Products(VOCABULARY) as seen:
        loop.run(subject, METHODS[name], forget, retain, settings, None, kept)
    assert max(seen.rows) == 5
    with Products(VOCABULARY) as seen:
        subject.module(input_ids=forget.tokens[0][None])
    assert max(seen.rows) == 9, "the negative control"


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["npo", "dpo", "simnpo", "wga", "loss-selection"])
def test_it_changes_nothing_that_a_method_does(name: str, tied: bool, adapter: bool) -> None:
    forget, retain = made([9, 6, 12, 7], seed=1), made([8, 11, 6, 9], seed=2)
    others = made([7, 10, 5, 8], seed=4)

    def after(watched: bool) -> tuple[tuple[float, ...], dict[str, Tensor]]:
        subject = LanguageModel(llama(dtype=torch.float64, tie_word_embeddings=tied))
        if adapter:
            subject = models.with_lora(subject, rank=2, alpha=4, seed=0)
            subject.module.double()
        kept = reference.keep(subject, [forget, others])
        if watched:  # then the head is called, and autograd does the rest
            subject.module.get_output_embeddings().register_forward_hook(lambda *_: None)
        assert (subject.rows(forget).matrix is None) == watched
        settings = Settings(epochs=2, items_per_batch=2, accumulate=2, lr=1e-3, chunk_rows=9)
        outcome = loop.run(
            subject, METHODS[name], forget, retain, settings, None, kept, alternatives=others
        )
        return outcome.losses, {n: p.detach() for n, p in subject.trainable().items()}

    (one, found), (other, expected) = after(watched=False), after(watched=True)
    assert one == pytest.approx(other, rel=1e-10)
    assert max(float((found[n] - expected[n]).abs().max()) for n in expected) < 1e-9


@pytest.mark.parametrize("name", ["dpo", "npo", "loss-selection", "ce-u", "undial", "pdu"])
def test_chunks_change_nothing_that_a_method_does(name: str) -> None:
    # of DPO, whose loss compares items, a group is never less than all of them
    forget, retain = made([9, 6, 12, 7], seed=1), made([8, 11, 6, 9], seed=2)
    others = made([7, 10, 5, 8], seed=4)

    def after(chunk: int) -> tuple[tuple[float, ...], dict[str, Tensor]]:
        subject = LanguageModel(llama(dtype=torch.float64))
        kept = reference.keep(
            subject, [forget, others], top=VOCABULARY if name == "undial" else None
        )
        settings = Settings(epochs=2, items_per_batch=4, lr=1e-3, chunk_rows=chunk)
        outcome = loop.run(
            subject, METHODS[name], forget, retain, settings, None, kept, alternatives=others
        )
        return outcome.losses, {n: p.detach() for n, p in subject.trainable().items()}

    (one, found), (other, expected) = after(3), after(1000)
    assert one == pytest.approx(other, rel=1e-10)
    assert max(float((found[n] - expected[n]).abs().max()) for n in expected) < 1e-8


def test_a_loss_that_compares_items_sees_them_all() -> None:
    items = made([9, 6, 12, 7], seed=1)

    def gradient(together: bool, chunk: int) -> Tensor:
        subject = LanguageModel(llama(dtype=torch.float64))

        def loss(at: slice, values: Tensor) -> Tensor:
            return values.sum() ** 2

        add_gradients(subject.rows(items), [nll], None, chunk, loss, together=together)
        found: Tensor = subject.module.lm_head.weight.grad
        return found

    assert torch.allclose(gradient(True, 3), gradient(True, 100), atol=1e-9)
    assert not torch.allclose(gradient(False, 3), gradient(True, 3), atol=1e-3), "the control"


def test_a_head_that_does_more_is_left_to_autograd() -> None:
    items, subject = made([5, 4]), LanguageModel(llama())
    assert subject.rows(items).matrix is subject.module.lm_head.weight
    with torch.autocast("cpu", torch.bfloat16):
        assert subject.rows(items).matrix is None
    assert LanguageModel(llama(dtype=torch.bfloat16)).rows(items).matrix is None
    biased = llama()
    biased.lm_head = nn.Linear(32, VOCABULARY)
    assert LanguageModel(biased).rows(items).matrix is None


@pytest.mark.parametrize(
    ("counts", "most", "expected"),
    [
        ([2, 2, 3], 4, [(0, 4), (4, 7)]),
        ([9, 1, 1], 4, [(0, 9), (9, 11)]),
        ([1, 9, 1], 4, [(0, 1), (1, 10), (10, 11)]),
        ([3], 100, [(0, 3)]),
        ([], 4, []),
    ],
)
def test_groups_are_of_whole_items(
    counts: list[int], most: int, expected: list[tuple[int, int]]
) -> None:
    item = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    assert [(at.start, at.stop) for at in groups(2 * item, most)] == expected
