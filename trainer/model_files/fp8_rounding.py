"""Weights of eight bits: fp8 as it is and fp8 with a scale per layer (ComfyUI's "scaled fp8").

The update of a LoRA is mostly smaller than half a step of fp8 (3 bits of mantissa: steps of 6 to 12 %), and rounding to
the nearest value would lose it. So values are rounded up or down at random, with the odds that keep their mean; the
draws are a function of the layer's name. The host does the same when it patches fp8 weights.

Both directions work on the bits, because torch's own conversion from fp8 takes fifty times as long as a plain
operation. e5m2 is the upper byte of fp16. e4m3 has the bits of an fp16 or fp32 number with some missing, and an
exponent that begins elsewhere: times a power of two its normal numbers become fp16's or fp32's normal ones, and its
subnormal numbers their subnormal ones, so that small numbers need no case of their own.
"""

from __future__ import annotations

import functools
import threading
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rng import derive_seed, generator

_POOL = 1 << 21  # draws that are made once, 8 MB


@dataclass(frozen=True)
class _Shape:
    """One kind of fp8."""

    largest: float
    mantissa: int  # bits
    lowest: int  # exponent of the smallest normal number
    nan: int  # the first code, without its sign, that is no finite number


_SHAPES = {
    torch.float8_e4m3fn: _Shape(448.0, 3, -6, 0x7F),
    torch.float8_e5m2: _Shape(57344.0, 2, -14, 0x7C),
}
_scratch = threading.local()


def from_fp8(values: Tensor, out: Tensor, scale: float = 1.0) -> Tensor:
    """scale * fp8 -> fp32, into `out`; what is no number becomes something large (see largest_by_row).

    Args:
        values: float8_e4m3fn or float8_e5m2, CPU, contiguous.
        out: fp32 of the same shape.
    """
    half = _held("half", values.numel(), torch.int16)
    half.copy_(values.view(torch.int8).reshape(-1))  # the sign goes to the upper byte
    if values.dtype == torch.float8_e5m2:
        half.bitwise_left_shift_(8)
    else:
        half.bitwise_left_shift_(7).bitwise_and_(~0x4000)
        scale *= 2.0**8  # fp16's smallest normal number is 2^-14, e4m3's 2^-6
    out.view(-1).copy_(half.view(torch.float16))
    return out if scale == 1.0 else out.mul_(scale)


def largest_by_row(values: Tensor) -> Tensor:
    """The largest |value| of each row, fp32 (rows,); infinite for a row that holds something that is no number.

    Args:
        values: float8_e4m3fn or float8_e5m2, (rows, ...), CPU, contiguous.
    """
    shape = _SHAPES[values.dtype]
    rows = values.view(torch.uint8).reshape(len(values) if values.dim() else 1, -1)
    codes = rows.bitwise_and(0x7F).amax(1)  # magnitudes sort as their codes do
    found = codes.view(values.dtype).float()
    return found.masked_fill_(codes >= shape.nan, torch.inf)


def to_fp8(values: Tensor, dtype: torch.dtype, name: str, block: int = 0) -> Tensor:
    """fp32 -> fp8 by stochastic rounding; values beyond the range become its end.

        2^(e - m) floor(v 2^(m - e) + u)        e: exponent of v, m: bits of mantissa, u uniform in 0..1

    The draws u of one block are independent; those of two blocks are so pair by pair. Needs numbers that fp32 holds as
    subnormal ones, so not for threads that flush those to zero.

    Args:
        values: fp32, finite, CPU, contiguous; overwritten.
        dtype: float8_e4m3fn or float8_e5m2.
        name, block: of the tensor and the part of it, for the draws.
    """
    shape, count = _SHAPES[dtype], values.numel()
    below = 23 - shape.mantissa  # bits of fp32's mantissa that fp8 does not have
    # Random ones are added to these bits, then all are cut off
    flat = values.view(-1).clamp_(-shape.largest, shape.largest).mul_(2.0 ** (-126 - shape.lowest))
    bits = flat.view(torch.int32)
    for first in range(0, count, _POOL):
        part = bits[first : first + _POOL]
        part.add_(_draws(len(part), below, zlib.crc32(name.encode()), block, first))
    # Left are 12 bits: the sign, four bits of fp32's exponent that are 0, and the code without its sign (of e5m2 11
    # and three). The sign moves down beside the code.
    spare = 4 if dtype == torch.float8_e4m3fn else 3
    code = _held("code", count, torch.int16).copy_(bits.bitwise_right_shift_(below))
    sign = torch.bitwise_right_shift(code, spare, out=_held("sign", count, torch.int16)).bitwise_and_(0x80)
    return code.bitwise_or_(sign).to(torch.int8).view(dtype).view(values.shape)


def new_scale(largest: float, scale: float, dtype: torch.dtype) -> float:
    """The scale to divide by before rounding: the old one, so that the steps stay where they were, unless the largest
    value no longer fits."""
    return max(scale, largest / _SHAPES[dtype].largest)


def largest_value(dtype: torch.dtype) -> float:
    """The end of an fp8's range."""
    return _SHAPES[dtype].largest


def _draws(count: int, bits: int, *place: int) -> Tensor:
    """Integers of so many random bits, int32 (count,): a stretch of the pool, exclusive or one more draw.

    torch's generator takes ten times as long as all the rest of the rounding together.
    """
    seed = derive_seed(0, "fp8", *place)
    first, turn = seed % (_POOL + 1 - count), seed >> 32 & ((1 << bits) - 1)
    return torch.bitwise_xor(_pool(bits)[first : first + count], turn, out=_held("draws", count, torch.int32))


@functools.cache
def _pool(bits: int) -> Tensor:
    return torch.randint(0, 1 << bits, (_POOL,), dtype=torch.int32, generator=generator(0, "fp8 pool"))


def _held(name: str, count: int, dtype: torch.dtype) -> Tensor:
    """Memory of this thread's; asking the system for fresh memory for each block costs as much as the arithmetic."""
    held: Tensor | None = getattr(_scratch, name, None)
    if held is None or len(held) < count:
        held = torch.empty(count, dtype=dtype)
        setattr(_scratch, name, held)
    return held[:count]
