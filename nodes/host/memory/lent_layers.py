"""Frozen layers whose weight is only lent while they compute, in a network that is trained.

The host casts the weight of a layer that is offloaded, of another type or patched, and hands the memory of the cast
back after the layer has computed: the next layer's weight is written there. Autograd would save that memory for
backward and compute with another layer's weight. So every layer of the host that casts computes inside one autograd
function, which saves its input alone and requests the weight again in backward. Layers under an adapter do so by
themselves (trainer/adapter).

    Linear:  dx = dy W        any other layer (norms, convolutions):  forward again, and its own gradient
"""

from __future__ import annotations

import types
from typing import Any

import comfy.ops
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn
from torch.nn import functional as F

from ....trainer.adapter.targets import is_linear
from ....trainer.memory.shared_clone import ordinary
from .frozen_weights import host_weights, is_cast


def request_weights_in_backward(module: nn.Module) -> None:
    """Give every casting layer of a shared clone a forward that saves no weight. Layers that do not cast are called as
    always."""
    for layer in module.modules():
        if isinstance(layer, comfy.ops.CastWeightBiasOp) and "forward" not in layer.__dict__:
            layer.__dict__["forward"] = types.MethodType(_forward, layer)


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    casts = is_cast(self) or isinstance(self.weight, QuantizedTensor)
    if self.weight is None or not casts or torch.compiler.is_compiling():
        answer: Tensor = type(self).forward(self, x, *args, **kwargs)
        return answer
    comfy.ops.run_every_op()
    if x.requires_grad and torch.is_grad_enabled():
        output: Tensor = _Frozen.apply(x, self, args, kwargs)
        return output
    with host_weights(self, _like(self, x, kwargs)) as (weight, bias):
        return _compute(self, x, weight, bias, args, kwargs)


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any, args: Any, kwargs: Any) -> Tensor:
        ctx.layer, ctx.call = layer, (args, kwargs)
        ctx.save_for_backward(*(() if is_linear(layer) else (x,)))
        ctx.like = x.new_empty(0)
        with host_weights(layer, x) as (weight, bias):
            return _compute(layer, x, weight, bias, args, kwargs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        saved = ctx.saved_tensors  # before the weight: a recomputed block is brought in by it
        with host_weights(ctx.layer, ctx.like) as (weight, bias):
            if not saved:
                return grads[0] @ weight, None, None, None
            with torch.enable_grad():
                x = saved[0].detach().requires_grad_()
                output = _compute(ctx.layer, x, weight, bias, *ctx.call)
            return torch.autograd.grad(output, x, grads[0])[0], None, None, None


def _like(layer: Any, x: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Device and type in which the layer computes; an Embedding's input has its indices' type."""
    if x.is_floating_point():
        return x
    return torch.empty(0, dtype=kwargs.get("out_dtype") or layer.weight.dtype, device=x.device)


def _compute(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None, args: Any, kwargs: Any) -> Tensor:
    """The layer as its class computes it where nothing is cast, with these tensors for its own."""
    if is_linear(layer):
        return F.linear(x, weight, bias)
    tensors = {"weight": weight, **({} if bias is None else {"bias": bias})}
    before = {name: layer._parameters.get(name) for name in tensors}
    changed = {"comfy_cast_weights": False, "weight_function": [], "bias_function": []}
    attributes = {name: getattr(layer, name) for name in changed}
    layer.__dict__.update(changed)
    layer._parameters.update({n: nn.Parameter(ordinary(t), requires_grad=False) for n, t in tensors.items()})
    try:
        answer: Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return answer
    finally:
        layer.__dict__.update(attributes)
        layer._parameters.update(before)
