"""Weights of eight bits: fp8 as it is and fp8 with a scale per layer (ComfyUI's "scaled fp8").

The update of a LoRA is mostly smaller than half a step of fp8 (3 bits of mantissa: steps of 6 to 12 %), and rounding to
the nearest value would lose it. So values are rounded up or down at random, with the odds that keep their mean; the
draws are a function of the layer's name. The host does the same when it patches fp8 weights.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from .rng import generator

# dtype -> largest value, mantissa bits, smallest exponent of a normal number
_SHAPES = {torch.float8_e4m3fn: (448.0, 3, -6), torch.float8_e5m2: (57344.0, 2, -14)}


def to_fp8(values: Tensor, dtype: torch.dtype, name: str, block: int = 0) -> Tensor:
    """fp32 -> fp8 by stochastic rounding; values beyond the range become its end.

        2^(e - m) floor(v 2^(m - e) + u)        e: exponent of v, m: bits of mantissa, u uniform in 0..1

    Args:
        values: fp32, finite, CPU, contiguous.
        dtype: float8_e4m3fn or float8_e5m2.
        name, block: of the tensor and the part of it, for the draws.
    """
    largest, mantissa, lowest = _SHAPES[dtype]
    draws = generator(0, "fp8", zlib.crc32(name.encode()), block)
    below = (
        23 - mantissa
    )  # bits of fp32's mantissa that fp8 does not have: random ones are added, then all are cut off
    noise = torch.empty(values.shape, dtype=torch.int32).random_(0, 1 << below, generator=draws)
    rounded = noise.add_(values.view(torch.int32)).bitwise_and_(-1 << below).view(torch.float32)
    small = values.abs() < 2.0**lowest  # below the normal numbers the steps no longer shrink
    if small.any():
        step = 2.0 ** (lowest - mantissa)
        few = values[small] / step
        rounded[small] = few.add_(torch.rand(few.shape, generator=draws)).floor_().mul_(step)
    return rounded.clamp_(-largest, largest).to(dtype)


def new_scale(largest: float, scale: float, dtype: torch.dtype) -> float:
    """The scale to divide by before rounding: the old one, so that the steps stay where they were, unless the largest
    value no longer fits."""
    return max(scale, largest / _SHAPES[dtype][0])
