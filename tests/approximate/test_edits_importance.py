"""Importance against hand-derived gradients, and its file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sisa.approximate.edits import importance_files
from sisa.approximate.edits.importance import (
    Importance,
    batch_fisher,
    fisher,
    joined,
    sensitivity,
    without,
)
from sisa.errors import (
    ConfigurationError,
    DataError,
    ExactnessError,
    IncompleteError,
    NotFoundError,
)

X = [[1.0, -2.0], [0.5, 3.0], [-1.5, 0.25], [2.0, 1.0], [0.0, -1.0]]
Y = [0, 2, 1, 1, 0]
W = [[0.3, -0.2], [0.1, 0.4], [-0.5, 0.2]]
B = [0.05, -0.1, 0.2]


def logistic() -> nn.Linear:
    layer = nn.Linear(2, 3).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(W, dtype=torch.float64))
        layer.bias.copy_(torch.tensor(B, dtype=torch.float64))
    return layer


def data(size: int, upto: int = 5) -> Iterator[tuple[Tensor, Tensor]]:
    for begin in range(0, upto, size):
        end = min(begin + size, upto)
        yield torch.tensor(X[begin:end], dtype=torch.float64), torch.tensor(Y[begin:end])


def logits_by_hand(x: list[float]) -> list[float]:
    return [w[0] * x[0] + w[1] * x[1] + b for w, b in zip(W, B, strict=True)]


def gradient_by_hand(x: list[float], y: int) -> list[list[float]]:
    """Of softmax cross-entropy: (p_c - [c = y]) (x, 1) for each class c."""
    z = [math.exp(v) for v in logits_by_hand(x)]
    return [[(z[c] / sum(z) - (c == y)) * v for v in (*x, 1.0)] for c in range(3)]


def table(values: dict[str, Tensor]) -> list[list[float]]:
    return torch.cat([values["weight"], values["bias"][:, None]], 1).tolist()


def close(found: list[list[float]], wanted: list[list[float]]) -> None:
    for row, other in zip(found, wanted, strict=True):
        assert row == pytest.approx(other, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_fisher_of_logistic_regression_is_the_mean_of_squares_by_hand(
    size: int, chunk: int
) -> None:
    gradients = [gradient_by_hand(x, y) for x, y in zip(X, Y, strict=True)]
    wanted = [[sum(g[c][i] ** 2 for g in gradients) / 5 for i in range(3)] for c in range(3)]
    found = fisher(logistic(), data(size), chunk=chunk)
    close(table(found.values), wanted)
    assert (found.kind, found.count) == ("fisher", 5)
    assert found.values["weight"].dtype == torch.float64


def test_batch_fisher_squares_the_mean_of_a_batch_and_depends_on_its_size() -> None:
    gradients = [gradient_by_hand(x, y) for x, y in zip(X, Y, strict=True)]
    parts = [gradients[:2], gradients[2:4], gradients[4:]]
    wanted = [
        [sum((sum(g[c][i] for g in part) / len(part)) ** 2 for part in parts) / 3 for i in range(3)]
        for c in range(3)
    ]
    found = batch_fisher(logistic(), data(2))
    close(table(found.values), wanted)
    assert found.count == 3
    singly = batch_fisher(logistic(), data(1))
    torch.testing.assert_close(singly.values, fisher(logistic(), data(5)).values)
    assert (found.values["weight"] - singly.values["weight"]).abs().max() > 1e-3


def test_sensitivity_is_the_gradient_of_the_squared_norm_and_needs_no_labels() -> None:
    wanted = [
        [sum(abs(2 * logits_by_hand(x)[c] * (*x, 1.0)[i]) for x in X) / 5 for i in range(3)]
        for c in range(3)
    ]
    found = sensitivity(logistic(), (x for x, _ in data(2)))
    close(table(found.values), wanted)
    assert found.kind == "sensitivity"
    torch.testing.assert_close(sensitivity(logistic(), data(5)).values, found.values)


def test_what_all_data_give_without_a_part_is_what_the_rest_gives() -> None:
    whole, part = fisher(logistic(), data(5)), fisher(logistic(), data(2, upto=2))
    rest = [(torch.tensor(X[2:], dtype=torch.float64), torch.tensor(Y[2:]))]
    found = without(whole, part)
    assert found.count == 3
    torch.testing.assert_close(found.values, fisher(logistic(), rest).values)
    torch.testing.assert_close(joined(found, part).values, whole.values)
    with pytest.raises(ConfigurationError, match="leave nothing"):
        without(part, part)


class Recorded(nn.Module):
    """Tied weights, dropout, batch norm and a frozen layer: what a pass must not stumble over."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(2, 2)
        self.frozen.requires_grad_(False)
        self.norm = nn.BatchNorm1d(2)
        self.drop = nn.Dropout(0.5)
        self.first = nn.Linear(2, 2, bias=False)
        self.second = nn.Linear(2, 2, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.drop(self.first(self.norm(self.frozen(x)))))
        return out


def test_a_pass_leaves_the_module_as_it_was_and_counts_tied_weights_once() -> None:
    torch.manual_seed(0)
    module = Recorded().double()
    module.norm.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    batches = [(x, y % 2) for x, y in data(5)]
    found = [fisher(module, batches), batch_fisher(module, ((x[:1], y[:1]) for x, y in batches))]
    for importance in found:
        assert set(importance.values) == {"norm.weight", "norm.bias", "first.weight"}
    one = [(x[:1], y[:1]) for x, y in batches]
    torch.testing.assert_close(fisher(module, one).values, found[1].values)
    assert (module.training, module.norm.training, module.drop.training) == (True, False, True)
    assert all(torch.equal(before[name], v) for name, v in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())


class Language(nn.Module):
    """The shape of a causal language model: logits in a field, positions shifted by the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 3)
        self.head = nn.Linear(3, 7)

    def forward(self, tokens: Tensor) -> Any:
        class Output:
            logits = self.head(self.embed(tokens))

        return Output()


def shifted(output: Any, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def test_a_loss_of_sequences_can_be_given() -> None:
    torch.manual_seed(0)
    module = Language().double()
    tokens = torch.randint(0, 7, (4, 5))
    found = fisher(module, [(tokens, tokens)], shifted)
    wanted = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    for row in tokens:
        module.zero_grad()
        shifted(module(row[None]), row[None]).backward()
        for name, p in module.named_parameters():
            assert p.grad is not None
            wanted[name] += p.grad**2 / 4
    torch.testing.assert_close(found.values, wanted)


def test_a_causal_language_model_is_vectorised_too() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=23,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    module = transformers.LlamaForCausalLM(config).double()
    tokens = torch.randint(0, 23, (5, 6))
    found = fisher(module, [(tokens, tokens)], shifted, chunk=2)
    singly = batch_fisher(module, [(row[None], row[None]) for row in tokens], shifted)
    torch.testing.assert_close(found.values, singly.values)
    assert "lm_head.weight" not in found.values
    assert sensitivity(module, [tokens]).values.keys() == found.values.keys()


def test_half_precision_gradients_are_squared_in_float32() -> None:
    module = nn.Linear(1, 1, bias=False).half()
    with torch.no_grad():
        module.weight.fill_(1.0)

    def loss(output: Tensor, _: Tensor) -> Tensor:
        return output.sum() / 8192

    x, y = torch.ones(1, 1).half(), torch.zeros(1, dtype=torch.int64)
    for found in (fisher(module, [(x, y)], loss), batch_fisher(module, [(x, y)], loss)):
        assert found.values["weight"].dtype == torch.float32
        assert found.values["weight"].item() == 2.0**-26  # under the smallest half


@pytest.mark.parametrize("measure", [fisher, batch_fisher, sensitivity])
def test_an_empty_set_is_refused(measure: Any) -> None:
    empty = torch.zeros(0, 2, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    for batches in ([], [empty]):
        with pytest.raises(IncompleteError, match="is empty"):
            measure(logistic(), batches)
    more = [empty, *data(5)]
    torch.testing.assert_close(
        measure(logistic(), more).values, measure(logistic(), data(5)).values
    )


def test_what_is_not_finite_is_refused_by_name() -> None:
    bad = torch.tensor([[math.nan, 1.0]], dtype=torch.float64), torch.tensor([0])
    with pytest.raises(DataError, match="importance of weight"):
        fisher(logistic(), [*data(5), bad])


def test_a_file_gives_the_same_bits_and_equal_importance_equal_bytes(tmp_path: Path) -> None:
    found = fisher(logistic(), data(5))
    for name in ("a", "b"):
        importance_files.save(found, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = importance_files.load(tmp_path / "a")
    assert (loaded.kind, loaded.count) == (found.kind, found.count)
    assert loaded.values.keys() == found.values.keys()
    assert all(torch.equal(loaded.values[n], v) for n, v in found.values.items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_files_that_are_missing_or_something_else_are_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(NotFoundError, match="no file x"):
        importance_files.load(tmp_path / "x")
    (tmp_path / "text").write_text("no tensors")
    save_file({"weight": torch.zeros(1)}, tmp_path / "model")
    for name in ("text", "model"):
        with pytest.raises(ExactnessError, match=f"{name} holds no importance"):
            importance_files.load(tmp_path / name)


def test_different_kinds_are_not_compared() -> None:
    one = fisher(logistic(), data(5))
    with pytest.raises(ConfigurationError, match="cannot be compared"):
        one.comparable(batch_fisher(logistic(), data(5)))
    with pytest.raises(ConfigurationError, match="no tensor bias"):
        Importance({"weight": one.values["weight"]}, "fisher", 5).comparable(one)
