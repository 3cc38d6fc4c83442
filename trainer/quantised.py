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
        values: fp32, finite, CPU.
        dtype: float8_e4m3fn or float8_e5m2.
        name, block: of the tensor and the part of it, for the draws.
    """
    largest, mantissa, lowest = _SHAPES[dtype]
    exponent = torch.frexp(values)[1].sub_(1).clamp_min_(lowest).sub_(mantissa)
    noise = torch.rand(values.shape, generator=generator(0, "fp8", zlib.crc32(name.encode()), block))
    rounded = torch.ldexp(torch.ldexp(values, -exponent).add_(noise).floor_(), exponent)
    return rounded.clamp_(-largest, largest).to(dtype)


def new_scale(largest: float, scale: float, dtype: torch.dtype) -> float:
    """The scale to divide by before rounding: the old one, so that the steps stay where they were, unless the largest
    value no longer fits."""
    return max(scale, largest / _SHAPES[dtype][0])
