"""Frozen linear weights in 8 bits: float8_e4m3fn with one scale per row, dequantised whenever a layer asks.

    q = round(w / s), s = max |w| of the row / 448          w' = q s

Rounded to nearest, so a run is the same every time. Only layers under an adapter are held so: they ask for their weight
through FrozenWeights and never read it themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..adapter.fused import FrozenWeights

DTYPE = torch.float8_e4m3fn
LARGEST = 448.0
SCALE = "kiln_fp8_scale"  # attribute of a layer whose weight is held so


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) -> float8_e4m3fn of the same shape, fp32 scale (out, 1). A row of zeros stays one."""
    scale = weight.abs().amax(dim=1, keepdim=True).float().div_(LARGEST).clamp_(min=1e-12)
    return (weight / scale).clamp_(-LARGEST, LARGEST).to(DTYPE), scale


def dequantise(weight: Tensor, scale: Tensor, like: Tensor) -> Tensor:
    """The inverse, on the device and in the type of `like`."""
    return weight.to(like.device).to(like.dtype).mul_(scale.to(like))


@torch.no_grad()
def hold_in_fp8(layer: nn.Module, weights: FrozenWeights, like: Tensor, device: torch.device) -> None:
    """Replace the weight of a layer of a twin by its 8-bit form on `device`. What `weights` does to the weight (patches
    of other nodes, dequantising) is in it from then on, and in the bias."""
    with weights(layer, like) as (weight, bias):
        held, scale = quantise(weight)
        bias = None if bias is None else bias.clone()
    layer._parameters["weight"] = nn.Parameter(held.to(device), requires_grad=False)
    if bias is not None:
        layer._parameters["bias"] = nn.Parameter(bias.to(device), requires_grad=False)
    layer.__dict__[SCALE] = scale


def release_fp8(layer: nn.Module) -> None:
    """The layer's weight is about to be its own again."""
    layer.__dict__.pop(SCALE, None)


def with_fp8(weights: FrozenWeights) -> FrozenWeights:
    """`weights` for layers held in fp8 too."""

    @contextmanager
    def ask(layer: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        scale = layer.__dict__.get(SCALE)
        if scale is None:
            with weights(layer, like) as pair:
                yield pair
            return
        held, bias = layer._parameters["weight"], layer._parameters.get("bias")
        assert held is not None
        yield dequantise(held, scale, like), None if bias is None else bias.to(like)

    return ask
