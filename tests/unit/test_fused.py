"""The fused LoRA linear against plain peft, and the promise that the frozen weight is never saved."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import peft
import pytest
import torch
from torch import Tensor, nn

from trainer.adapter.fused import FusedLoraLinear, resident_weights


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


def test_gradients_are_exact_in_double_also_with_dropout() -> None:
    _, fused = make_pair(torch.float64)
    layer = fused.first
    layer.lora_A["default"].double(), layer.lora_B["default"].double()
    layer.drop_rate, layer.drop_seed = 0.4, 123
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight

    def f(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        from trainer.adapter.fused import _LoraLinear

        return _LoraLinear.apply(x, a, b, layer, 123)

    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(f, (x, a, b))


def test_dropout_has_its_rate_and_keeps_the_mean() -> None:
    _, fused = make_pair()
    layer = fused.first
    x = torch.ones(4000, 12)
    with torch.no_grad():
        without = layer(x)
        base = layer.base_layer(x)
        layer.drop_rate = 0.25
        layer.drop_seed = 1
        with_drop = layer(x)
        layer.drop_seed = 2
        other = layer(x)
    assert not torch.equal(with_drop, other)
    torch.testing.assert_close((with_drop - base).mean(0), (without - base).mean(0), rtol=0.1, atol=0.05)


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
