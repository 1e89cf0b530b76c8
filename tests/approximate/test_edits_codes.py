"""Bottlenecks of codes, their counting on topic and control, and their ablation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sisa.approximate.edits.bottlenecks import (
    QuantisedBottleneck,
    ResidualBottleneck,
    SparseBottleneck,
    codebook_of,
    insert,
)
from sisa.approximate.edits.codes import Usage, ablate, count, tied
from sisa.determinism import pin_threads
from sisa.errors import ConfigurationError, IncompleteError

CODES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_each_position_becomes_the_nearest_code_and_gradients_pass_through() -> None:
    bottleneck = QuantisedBottleneck(CODES)
    hidden = torch.tensor([[[2.0, 0.5], [0.1, 0.3]], [[-3.0, 1.0], [0.2, -0.1]]])
    found = bottleneck.eval()(hidden)
    assert found.tolist() == [[[1, 0], [0, 1]], [[-1, 0], [1, 0]]]
    assert bottleneck.usage(hidden).tolist() == [2, 1, 1, 0]
    leaf = hidden.clone().requires_grad_(True)
    weights = torch.arange(8.0).view(2, 2, 2)
    (bottleneck.train()(leaf) * weights).sum().backward()
    assert leaf.grad is not None and torch.equal(leaf.grad, weights)
    torch.testing.assert_close(bottleneck(hidden), found)


def test_the_loss_moves_codes_towards_what_they_stand_for() -> None:
    bottleneck = QuantisedBottleneck(CODES.double())
    hidden = torch.tensor([[2.0, 0.5]], dtype=torch.float64)
    loss = bottleneck.loss(hidden, 0.25)
    assert loss.item() == pytest.approx(1.25 * (1.0**2 + 0.5**2) / 2)
    loss.backward()
    assert bottleneck.codebook.grad is not None
    assert bottleneck.codebook.grad.tolist() == [[-1.0, -0.5], [0, 0], [0, 0], [0, 0]]


def test_codes_of_clusters_are_their_means() -> None:
    centres = torch.tensor([[9.0, 0.0], [0.0, 9.0], [-9.0, -9.0]])
    hidden = (centres[:, None] + torch.randn(3, 50, 2, generator=generator(1))).flatten(0, 1)
    found = codebook_of(hidden, 3, generator(2))
    means = hidden.view(3, 50, 2).mean(1)
    distance = torch.cdist(means, found)
    assert distance.min(1).values.max() < 1e-5 and len(set(distance.argmin(1).tolist())) == 3
    assert torch.equal(found, codebook_of(hidden, 3, generator(2)))
    with pytest.raises(ConfigurationError, match="2 positions cannot give 3"):
        codebook_of(hidden[:2], 3, generator())


def test_sparse_features_are_the_strongest_few_above_zero() -> None:
    bottleneck = SparseBottleneck(2, 4, strongest=2)
    with torch.no_grad():
        bottleneck.encoder.weight.copy_(CODES)
        bottleneck.encoder.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.5]))
        bottleneck.decoder.weight.copy_(CODES.T)
        bottleneck.decoder.bias.zero_()
    hidden = torch.tensor([[2.0, 1.0], [-1.0, 0.3]])
    # features (2, 1, 0, 0) and (0, .3, 1, .2), of which the last falls out
    torch.testing.assert_close(bottleneck(hidden), torch.tensor([[2.0, 1.0], [-1.0, 0.3]]))
    assert bottleneck.usage(hidden).tolist() == [1, 2, 1, 0]
    pin_threads(1)
    torch.manual_seed(0)
    fitted = SparseBottleneck(2, 8, strongest=2)
    data = torch.randn(256, 2, generator=generator())
    before = fitted.loss(data).item()
    for _ in range(100):
        found = torch.autograd.grad(fitted.loss(data), list(fitted.parameters()))
        with torch.no_grad():
            for p, gradient in zip(fitted.parameters(), found, strict=True):
                p -= 0.5 * gradient
    assert fitted.loss(data).item() < 0.2 * before


def test_codes_tied_to_a_topic_are_frequent_there_and_rare_elsewhere() -> None:
    topic = Usage(torch.tensor([50, 30, 1, 0, 19]), 100)
    control = Usage(torch.tensor([60, 2, 0, 20, 9]), 100)
    # rates (51, 31, 2, 1, 20) and (61, 3, 1, 21, 10) of 102
    assert topic.rate.tolist() == [v / 102 for v in (51, 31, 2, 1, 20)]
    assert tied(topic, control, ratio=2.0, least=2).tolist() == [1, 4]
    assert tied(topic, control, ratio=2.0, least=1).tolist() == [1, 2, 4]
    assert tied(topic, control, ratio=3.0).tolist() == [1]


def test_a_removed_quantised_code_is_zeroed_and_its_positions_take_the_next() -> None:
    bottleneck = QuantisedBottleneck(CODES)
    state = bottleneck.state_dict()
    found = ablate(state, torch.tensor([0]))
    assert state["kept"].all() and torch.equal(state["codebook"], CODES)
    assert found["codebook"].tolist() == [[0, 0], *CODES[1:].tolist()]
    assert found["kept"].tolist() == [False, True, True, True] and found["kept"].dtype == torch.bool
    bottleneck.load_state_dict(found)
    hidden = torch.tensor([[2.0, 0.5], [-3.0, 1.0], [0.01, 0.0]])
    assert bottleneck.eval()(hidden)[:2].tolist() == [[0, 1], [-1, 0]]
    assert bottleneck.usage(hidden)[0] == 0
    with pytest.raises(ConfigurationError, match="No code would be left"):
        ablate(found, torch.tensor([1, 2, 3]))


def test_a_removed_sparse_code_is_never_used_again() -> None:
    torch.manual_seed(0)
    holder = nn.ModuleDict({"narrow": SparseBottleneck(3, 6, strongest=2)})
    state = {**holder.state_dict(), "steps": torch.tensor(4)}
    hidden = torch.randn(200, 3)
    bottleneck = holder["narrow"]
    assert isinstance(bottleneck, SparseBottleneck)
    assert bottleneck.usage(hidden)[[1, 4]].min() > 0
    found = ablate(state, torch.tensor([1, 4]), "narrow.")
    assert found.pop("steps").item() == 4
    holder.load_state_dict(found)
    assert bottleneck.usage(hidden)[[1, 4]].tolist() == [0, 0]
    assert bottleneck.usage(hidden).sum() > 0
    for name, at in [("encoder.weight", 0), ("encoder.bias", 0), ("decoder.weight", 1)]:
        value = found[f"narrow.{name}"]
        assert value.index_select(at, torch.tensor([1, 4])).abs().max() == 0
        rest = torch.tensor([0, 2, 3, 5])
        old = state[f"narrow.{name}"].index_select(at, rest)
        assert torch.equal(value.index_select(at, rest), old)


def residual() -> ResidualBottleneck:
    """Four features along the axes, of which a position may use two."""
    bottleneck = ResidualBottleneck(2, 4, strongest=2).double()
    with torch.no_grad():
        bottleneck.encoder.weight.copy_(CODES)
        bottleneck.encoder.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.5]))
        bottleneck.decoder.weight.copy_(0.5 * CODES.T)
        bottleneck.decoder.bias.copy_(torch.tensor([0.0, 0.25]))
    return bottleneck


def test_a_residual_bottleneck_takes_away_what_removed_features_say_alone() -> None:
    bottleneck = residual()
    hidden = torch.tensor([[2.0, 1.0], [-1.0, 0.75]], dtype=torch.float64)
    assert torch.equal(bottleneck(hidden), hidden)
    # features of (2, .75) and (-1, .5): (2, .75, 0, 0) and (0, .5, 1, 0)
    assert bottleneck.usage(hidden).tolist() == [1, 2, 1, 0]
    told = torch.tensor([[1.0, 0.625], [-0.5, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(bottleneck.reconstructed(hidden), told, rtol=0, atol=0)
    assert bottleneck.loss(hidden).item() == pytest.approx((told - hidden).square().mean().item())
    state = bottleneck.state_dict()
    found = ablate(state, torch.tensor([1]))
    assert all(torch.equal(found[n], v) for n, v in state.items() if n != "kept")
    bottleneck.load_state_dict(found)
    # feature 1 said (0, .375) and (0, .25)
    assert bottleneck(hidden).tolist() == [[2.0, 0.625], [-1.0, 0.5]]
    assert bottleneck.usage(hidden).tolist() == [1, 0, 1, 0]
    with pytest.raises(ConfigurationError, match="No code would be left"):
        ablate(found, torch.tensor([0, 2, 3]))


def test_what_is_not_there_cannot_be_removed() -> None:
    state = QuantisedBottleneck(CODES).state_dict()
    with pytest.raises(ConfigurationError, match="no bottleneck"):
        ablate(state, torch.tensor([0]), "other.")
    for code in (-1, 4):
        with pytest.raises(ConfigurationError, match="There are 4 codes"):
            ablate(state, torch.tensor([code]))


class Tuple(nn.Module):
    """A layer that returns more than its hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return self.inner(x), "cache"


def test_a_bottleneck_goes_behind_a_layer_and_out_again_without_a_trace() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 2))
    names = set(module.state_dict())
    x = torch.randn(6, 2)
    before = module.eval()(x)
    bottleneck = QuantisedBottleneck(CODES).eval()
    with insert(module, "0", bottleneck):
        assert torch.equal(module(x), module[2](bottleneck(module[0](x).detach()).clone()))
        assert set(module.state_dict()) == names
    assert torch.equal(module(x), before)
    layer = Tuple()
    with insert(layer, "", bottleneck):
        hidden, rest = layer(x)
    assert rest == "cache" and torch.equal(hidden, bottleneck(layer.inner(x)))
    with pytest.raises(ConfigurationError, match="no layer 7"):
        insert(module, "7", bottleneck)


def test_counting_sees_every_position_with_dropout_off() -> None:
    module = nn.Sequential(nn.Identity(), nn.Dropout(0.9)).train()
    bottleneck = QuantisedBottleneck(CODES).train()
    x = torch.tensor([[[2.0, 0.5], [0.1, 0.3]], [[-3.0, 1.0], [0.2, -0.1]]])
    with pytest.raises(ConfigurationError, match="not in this model"):
        count(module, bottleneck, [x])
    with insert(module, "1", bottleneck):
        found = count(module, bottleneck, [x[:1], (x[1:], torch.zeros(1))])
        with pytest.raises(IncompleteError, match="is empty"):
            count(module, bottleneck, [])
    assert found.used.tolist() == [2, 1, 1, 0] and found.positions == 4
    assert module.training and bottleneck.training and not bottleneck._forward_pre_hooks


def test_ablation_forgets_a_topic_and_keeps_the_control() -> None:
    """Two topics far apart behind a linear classifier: one of them loses its codes."""
    place = torch.tensor([[6.0, 0.0], [0.0, 6.0], [-6.0, 0.0]])

    def drawn(topic: int, seed: int) -> Tensor:
        return place[topic] + torch.randn(60, 2, generator=generator(seed))

    module = nn.Sequential(nn.Identity(), nn.Linear(2, 3, bias=False))
    with torch.no_grad():
        module[1].weight.copy_(place)
    data = torch.cat([drawn(topic, topic) for topic in range(3)])
    bottleneck = QuantisedBottleneck(codebook_of(data, 12, generator())).eval()

    def right(topic: int) -> float:
        return (module(drawn(topic, 10 + topic)).argmax(1) == topic).double().mean().item()

    with insert(module, "0", bottleneck):
        assert [right(topic) for topic in range(3)] == [1.0, 1.0, 1.0]
        control = count(module, bottleneck, [drawn(1, 21), drawn(2, 22)])
        codes = tied(count(module, bottleneck, [drawn(0, 20)]), control)
        bottleneck.load_state_dict(ablate(bottleneck.state_dict(), codes))
        assert right(0) < 0.1 and right(1) == right(2) == 1.0
