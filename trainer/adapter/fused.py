"""The LoRA linear as one autograd function, under peft's own layer class.

    y = x W^T + b + s (x A^T) B^T            x (N, in), W (out, in), A (r, in), B (out, r), s = alpha / r

Plain peft runs five recorded operations here: it saves the input twice, keeps a full-size LoRA result and adds it.
One function adds the LoRA into y in place, saves x once (shared when q, k and v read the same x), and never saves
W: forward and backward each ask `FrozenWeights` for it, so it may be resident, cast from another type, dequantised
or brought in from elsewhere, and it may be an inference tensor.

    dB = s dy^T (x A^T)      dA = s (dy B)^T x      dx = dy W + s (dy B) A

Dropout zeroes inputs of the LoRA branch as peft does; its mask comes from a seed and is drawn again in backward
instead of being kept.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn
from torch.nn import functional as F

from ..rng import derive_seed


class FrozenWeights(Protocol):
    """Where a frozen linear layer's weight comes from."""

    def __call__(
        self, layer: nn.Module, like: Tensor
    ) -> AbstractContextManager[tuple[Tensor, Tensor | None]]:
        """Weight (out, in) and bias (out,) or None, on the device and in the type of `like`, valid inside."""
        ...


def resident_weights(layer: nn.Module, like: Tensor) -> AbstractContextManager[tuple[Tensor, Tensor | None]]:
    """FrozenWeights of an ordinary nn.Linear: the layer's own tensors, cast where the type differs."""
    assert isinstance(layer, nn.Linear)
    return nullcontext((layer.weight.to(like), None if layer.bias is None else layer.bias.to(like)))


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, layer: FusedLoraLinear, drop_seed: int) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        with layer.weights(layer.base_layer, x) as (weight, bias):
            y = F.linear(flat, weight, bias)
        dropped = _drop(flat, layer.drop_rate, drop_seed)
        hidden = dropped @ a.to(x.dtype).t()  # (N, r)
        y.addmm_(hidden, b.to(x.dtype).t(), alpha=layer.scale)
        ctx.save_for_backward(x, a, b, hidden)
        ctx.layer, ctx.drop_seed = layer, drop_seed
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        x, a, b, hidden = ctx.saved_tensors
        layer: FusedLoraLinear = ctx.layer
        flat = x.reshape(-1, x.shape[-1])
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        mask = _mask(flat, layer.drop_rate, ctx.drop_seed)
        dropped = flat if mask is None else flat * mask
        grad_hidden = (grad @ b.to(x.dtype)).mul_(layer.scale)  # (N, r)
        grad_a = grad_hidden.t() @ dropped
        grad_b = (grad.t() @ hidden).mul_(layer.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            with layer.weights(layer.base_layer, x) as (weight, _):
                grad_x = grad @ weight
            if mask is None:
                grad_x.addmm_(grad_hidden, a.to(x.dtype))
            else:
                grad_x.addcmul_(grad_hidden @ a.to(x.dtype), mask)
            grad_x = grad_x.view_as(x)
        return grad_x, grad_a.to(a.dtype), grad_b.to(b.dtype), None, None


def _mask(like: Tensor, rate: float, seed: int) -> Tensor | None:
    """Dropout mask scaled to keep the mean, a pure function of the seed; None without dropout."""
    if rate == 0.0:
        return None
    generator = torch.Generator(device=like.device).manual_seed(seed)
    keep = torch.empty_like(like).bernoulli_(1 - rate, generator=generator)
    return keep.div_(1 - rate)


def _drop(x: Tensor, rate: float, seed: int) -> Tensor:
    mask = _mask(x, rate, seed)
    return x if mask is None else x * mask


class FusedLoraLinear(PeftLinear):
    """peft's LoRA linear with the forward above. An existing peft layer becomes one through `fuse`."""

    weights: FrozenWeights
    scale: float
    drop_rate: float  # 0 when not training
    drop_seed: int  # changes at every step

    @staticmethod
    def fuse(layer: PeftLinear, weights: FrozenWeights, index: int) -> FusedLoraLinear:
        """Turn a plain peft LoRA linear with one adapter into a fused one, in place: same parameters, same state
        dict, whatever peft version made it. `index` is the layer's place in the model, for its dropout draws."""
        name = layer.active_adapters[0]
        layer.__class__ = FusedLoraLinear
        fused: FusedLoraLinear = layer
        fused.weights = weights
        fused.scale = layer.scaling[name]
        fused.peft_dropout = getattr(layer.lora_dropout[name], "p", 0.0)
        fused.index = index
        fused.drop_rate, fused.drop_seed = 0.0, 0
        return fused

    peft_dropout: float
    index: int

    def set_step(self, seed: int, micro_step: int) -> None:
        """Choose this micro-step's dropout mask; called before each training forward."""
        self.drop_rate = self.peft_dropout
        if self.drop_rate:
            self.drop_seed = derive_seed(seed, "dropout", micro_step, self.index)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x (..., in) -> (..., out)."""
        name = self.active_adapters[0]
        return _LoraLinear.apply(x, self.lora_A[name].weight, self.lora_B[name].weight, self, self.drop_seed)
