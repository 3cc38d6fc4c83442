"""The fused LoRA linear against plain peft, and the promise that the frozen weight is never saved."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import peft
import pytest
import torch
from torch import Tensor, nn

from trainer.adapter.dropout import dropout_mask
from trainer.adapter.flat_parameter import flatten_parameters
from trainer.adapter.frozen_weights import resident_weights
from trainer.adapter.fused import FusedLoraLinear, SharedInput, _LoraLinears, share_inputs


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 20)
        self.second = nn.Linear(20, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def make_pair(dtype: torch.dtype = torch.float32, alpha: float = 6.0) -> tuple[nn.Module, nn.Module]:
    """The same LoRA twice: peft's own, and fused."""
    torch.manual_seed(0)
    plain = Net().to(dtype)
    config = peft.LoraConfig(
        r=4, lora_alpha=alpha, target_modules=["first", "second"], init_lora_weights=False
    )
    peft.inject_adapter_in_model(config, plain)
    fused = copy.deepcopy(plain)
    for index, layer in enumerate((fused.first, fused.second)):
        FusedLoraLinear.fuse(layer, resident_weights, index)
    return plain, fused


def grads(net: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.detach().clone().requires_grad_()
    net(x).square().mean().backward()
    trained = [p.grad for p in net.parameters() if p.requires_grad]
    assert x.grad is not None
    return [x.grad, *(g for g in trained if g is not None)]


@pytest.mark.parametrize("shape", [(5, 12), (2, 7, 12), (2, 3, 5, 12)])
def test_equals_peft(shape: tuple[int, ...]) -> None:
    plain, fused = make_pair()
    x = torch.randn(shape)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-6, atol=1e-6)
    expected, got = grads(plain, x), grads(fused, x)
    assert len(got) == len(expected) == 5
    for e, g in zip(expected, got, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-5, atol=1e-7)


def test_half_precision_activations_with_fp32_adapters() -> None:
    plain, fused = make_pair()
    for net in (plain, fused):
        for layer in (net.first, net.second):
            layer.base_layer.bfloat16()
    x = torch.randn(64, 12, dtype=torch.bfloat16)
    assert fused(x).dtype == torch.bfloat16
    got = grads(fused, x)
    assert {g.dtype for g in got[1:]} == {torch.float32}
    exact = grads(make_pair()[1], x.float())
    for e, g in zip(exact, got, strict=True):
        assert torch.nn.functional.cosine_similarity(g.float().flatten(), e.flatten(), dim=0) > 0.999


@pytest.mark.parametrize(("dropout", "rank_dropout"), [(0.0, 0.0), (0.4, 0.0), (0.0, 0.5), (0.4, 0.5)])
def test_gradients_are_exact_in_double_also_with_dropout(dropout: float, rank_dropout: float) -> None:
    _, fused = make_pair(torch.float64)
    layer = fused.first
    layer.lora_A["default"].double(), layer.lora_B["default"].double()
    layer.input_dropout, layer.rank_dropout, layer.draws_of = dropout, rank_dropout, (123, 0)

    def f(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        draws = layer.shared._draws(x)
        return _LoraLinears.apply(x, layer.shared, draws, a, b)[0]

    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    a, b = (m.detach().clone().requires_grad_() for m in layer.matrices)
    assert torch.autograd.gradcheck(f, (x, a, b))


def test_dropout_has_its_rate_and_keeps_the_mean() -> None:
    _, fused = make_pair()
    layer = fused.first
    x = torch.ones(4000, 12)
    with torch.no_grad():
        without = layer(x)
        base = layer.base_layer(x)
        layer.input_dropout = 0.25
        layer.set_step(0, 1)
        with_drop = layer(x)
        layer.set_step(0, 2)
        other = layer(x)
        layer.set_step(0, 1)
        torch.testing.assert_close(layer(x), with_drop, rtol=0, atol=0)
        layer.disable_dropout()
        torch.testing.assert_close(layer(x), without, rtol=0, atol=0)
    assert not torch.equal(with_drop, other)
    torch.testing.assert_close((with_drop - base).mean(0), (without - base).mean(0), rtol=0.1, atol=0.05)


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_masks(rate: float) -> None:
    like = torch.empty(999, 101)
    mask = dropout_mask(like, rate, 7)
    assert mask.shape == like.shape and mask.dtype == like.dtype
    assert float((mask == 0).float().mean()) == pytest.approx(rate, abs=0.005)
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)], rel=1e-4)
    assert torch.equal(mask, dropout_mask(like, rate, 7))
    assert not torch.equal(mask, dropout_mask(like, rate, 8))


class Attention(nn.Module):
    """q, k and v of one tensor, or k and v of another, as Wan's attentions."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        weights = (self.q(x) @ self.k(context).transpose(1, 2)).softmax(-1)
        return weights @ self.v(context)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.cross_attn = Attention(), Attention()

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        return self.self_attn(x, x) + self.cross_attn(x, text)


@pytest.mark.parametrize("flat", [False, True])
def test_layers_that_share_an_input_equal_peft(flat: bool) -> None:
    torch.manual_seed(0)
    plain = Block()
    names = [f"{a}.{part}" for a in ("self_attn", "cross_attn") for part in "qkv"]
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=names, init_lora_weights=False, rank_pattern={"self_attn.k": 2}
    )
    peft.inject_adapter_in_model(config, plain)
    fused = copy.deepcopy(plain)
    layers = {
        n: FusedLoraLinear.fuse(fused.get_submodule(n), resident_weights, i) for i, n in enumerate(names)
    }
    share_inputs(layers)
    assert [len(layers[n].shared.layers) for n in names] == [3, 3, 3, 1, 2, 2]
    if flat:
        for side in (0, 1):
            flatten_parameters([layer.matrices[side] for layer in layers.values()])
        group = layers["self_attn.q"].shared
        stacked = group.stacked_a([m for layer in group.layers for m in layer.matrices])
        assert stacked.data_ptr() == layers["self_attn.q"].matrices[0].data_ptr(), "a view, no copy"

    def results(net: nn.Module) -> list[Tensor]:
        x, text = torch.ones(1, 5, 8).cumsum(1).requires_grad_(), torch.linspace(-1, 1, 24).view(1, 3, 8)
        y = net(x, text)
        y.square().sum().backward()
        assert x.grad is not None
        return [
            y,
            x.grad,
            *(p.grad.clone() for p in net.parameters() if p.requires_grad and p.grad is not None),
        ]

    expected, got = results(plain), results(fused)
    assert len(expected) == len(got) == 14
    for e, g in zip(expected, got, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-5, atol=1e-5)


def test_a_wrong_guess_about_sharing_changes_nothing() -> None:
    torch.manual_seed(0)
    plain = Attention()
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=4, target_modules=["q", "k", "v"], init_lora_weights=False), plain
    )
    fused = copy.deepcopy(plain)
    share_inputs(
        {
            f"self_attn.{n}": FusedLoraLinear.fuse(getattr(fused, n), resident_weights, i)
            for i, n in enumerate("qkv")
        }
    )
    x, context = torch.randn(1, 5, 8), torch.randn(1, 3, 8)  # k and v read another tensor than q
    for net in (plain, fused):
        net(x, context).square().sum().backward()
    for e, g in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(g.grad, e.grad, rtol=1e-5, atol=1e-6)


def test_autocast_decides_the_type() -> None:
    _, fused = make_pair()
    x = torch.randn(4, 12)
    with torch.autocast("cpu", torch.bfloat16):
        y = fused.first(x)
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    exact = make_pair()[1].first(x)
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.05)
    assert fused.first.matrices[0].grad is not None and fused.first.matrices[0].grad.dtype == torch.float32


def test_frozen_weight_is_never_saved_and_input_once() -> None:
    _, fused = make_pair()
    layers = (fused.first, fused.second)
    frozen = {layer.base_layer.weight.untyped_storage().data_ptr() for layer in layers}
    saved: list[Tensor] = []
    x = torch.randn(9, 12, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        first, again = fused.first(x), fused.first(x)
    assert saved and not frozen & {t.untyped_storage().data_ptr() for t in saved}
    inputs = [t for t in saved if t.shape == x.shape]
    assert len({t.data_ptr() for t in inputs}) == 1, "the input is kept once, however many layers read it"
    assert (first + again).shape == (9, 20)


def test_weight_may_come_and_go() -> None:
    """The weight is asked for once in forward and once in backward, and held by nobody in between."""
    _, fused = make_pair()
    visits: list[str] = []

    @contextmanager
    def brought_in(layer: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        weight = layer.weight.detach().clone()
        visits.append("in")
        yield weight, layer.bias
        weight.fill_(float("nan"))  # what a reused staging buffer would do
        visits.append("out")

    fused.first.weights = fused.second.weights = brought_in
    expected = grads(make_pair()[1], torch.ones(2, 12))
    for e, g in zip(expected, grads(fused, torch.ones(2, 12)), strict=True):
        torch.testing.assert_close(g, e)
    assert visits == ["in", "out"] * 4


def test_no_input_gradient_where_nobody_needs_it() -> None:
    _, fused = make_pair()
    asked: list[nn.Module] = []

    @contextmanager
    def counting(layer: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        asked.append(layer)
        yield layer.weight, layer.bias

    fused.first.weights = fused.second.weights = counting
    fused(torch.randn(3, 12)).sum().backward()
    assert [id(m) for m in asked] == [id(m.base_layer) for m in (fused.first, fused.second, fused.second)]


def test_inference_weights_can_be_trained_on() -> None:
    with torch.inference_mode():
        layer = nn.Linear(6, 6)
    net = nn.Sequential(nn.Linear(6, 6))
    net[0].weight = nn.Parameter(layer.weight, requires_grad=False)
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["0"]), net)
    fused = FusedLoraLinear.fuse(net[0], resident_weights, 0)
    x = torch.randn(2, 6, requires_grad=True)
    fused(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("shape", [(0, 12), (2, 0, 12)])
def test_no_rows(shape: tuple[int, ...]) -> None:
    """An expert that no token is sent to."""
    plain, fused = make_pair()
    x = torch.randn(shape)
    assert fused(x).shape == plain(x).shape == (*shape[:-1], 8)
    fused(x.requires_grad_()).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in fused.parameters() if p.requires_grad)


@pytest.mark.parametrize("together", [1, 3])
def test_its_answer_may_be_written_into(together: int) -> None:
    """By silu(inplace=True), say; also the answers of layers that share an input."""

    def forward(layers: list[nn.Module], x: Tensor) -> Tensor:
        answers = [layer(x) for layer in layers]
        answers[0] = nn.functional.silu(answers[0], inplace=True)
        answers[-1][..., 1:] *= 2
        return torch.stack(answers).sum(0)

    torch.manual_seed(0)
    net = nn.ModuleList([nn.Linear(12, 8) for _ in range(together)])
    config = peft.LoraConfig(r=4, target_modules=r"\d", init_lora_weights=False)
    peft.inject_adapter_in_model(config, net)
    fused = copy.deepcopy(net)
    layers = [FusedLoraLinear.fuse(layer, resident_weights, i) for i, layer in enumerate(fused)]
    shared = SharedInput(layers)
    for layer in layers:
        layer.__dict__["shared"] = shared
    found = []
    for each in (net, fused):
        x = torch.linspace(-1, 1, 60).reshape(5, 12).requires_grad_()
        forward(list(each), x).square().sum().backward()
        found.append([x.grad, *(p.grad for p in each.parameters() if p.requires_grad)])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_an_input_that_is_not_contiguous() -> None:
    plain, fused = make_pair()
    x = torch.randn(7, 12, 3).transpose(1, 2)[::2]
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-6, atol=1e-6)
    for e, g in zip(grads(plain, x), grads(fused, x), strict=True):
        torch.testing.assert_close(g, e, rtol=1e-5, atol=1e-7)


def test_a_shared_input_that_was_written_into_is_read_again() -> None:
    torch.manual_seed(0)
    net = nn.ModuleList([nn.Linear(12, 8), nn.Linear(12, 8)])
    peft.inject_adapter_in_model(peft.LoraConfig(r=4, target_modules=r"\d", init_lora_weights=False), net)
    plain = copy.deepcopy(net)
    layers = [FusedLoraLinear.fuse(layer, resident_weights, i) for i, layer in enumerate(net)]
    shared = SharedInput(layers)
    for layer in layers:
        layer.__dict__["shared"] = shared
    x = torch.randn(5, 12)
    with torch.no_grad():
        net[0](x)
        x.mul_(2)
        torch.testing.assert_close(net[1](x), plain[1](x))
