"""A frozen linear layer under adapters that are not fused with it.

As in fused.py, the weight is requested in forward and again in backward and never saved: it may be resident, cast,
dequantised or streamed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .frozen_weights import FrozenWeights


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer, ctx.like = layer, x.new_empty(0)
        with layer.weights(layer.inner, x) as (weight, bias):
            return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        with ctx.layer.weights(ctx.layer.inner, ctx.like) as (weight, _):
            return grads[0] @ weight, None


class FrozenLinear(nn.Module):
    """The base layer of one of peft's layers, which read its `weight` and `bias`."""

    def __init__(self, inner: nn.Module, weights: FrozenWeights, device: torch.device | None) -> None:
        super().__init__()
        self.inner, self.weights = inner, weights
        self._like = torch.empty(0, device=device)

    @property
    def weight(self) -> Tensor:
        """(out, in), a copy where the layer's own is of another type or elsewhere."""
        with self.weights(self.inner, self._like) as (weight, _):
            return weight if weight is self.inner.weight else weight.clone()

    @property
    def bias(self) -> Tensor | None:
        """(out,) or None."""
        with self.weights(self.inner, self._like) as (_, bias):
            return bias if bias is None or bias is self.inner.bias else bias.clone()

    @property
    def is_loaded(self) -> bool:
        """Whether the shared clone holds weights at the moment."""
        return bool(self.inner._parameters)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x (..., in) -> (..., out)."""
        return _Frozen.apply(x, self)
