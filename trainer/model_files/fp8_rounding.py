"""Converts fp8 weights to fp32 and back, rounding at random; ComfyUI's "scaled fp8" has one scale a layer beside it.

The update of a LoRA is mostly smaller than half a step of fp8 (3 bits of mantissa: steps of 6 to 12 %), so rounding to
the nearest value would lose it. Stochastic rounding goes up or down with the odds that keep the mean. The draws are a
function of the tensor's name. The host rounds the same way when it patches fp8 weights.

Both directions work on the bits, because torch's own conversion from fp8 takes fifty times as long as a plain
operation. e5m2 is the upper byte of fp16. e4m3 has the bits of an fp16 or fp32 number with fewer bits of mantissa and
another exponent bias: multiplied by a power of two, its normal numbers become normal ones of fp16 or fp32 and its
subnormal numbers subnormal ones, so small numbers need no case of their own.
"""

from __future__ import annotations

import functools
import math
import threading
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rng import derive_seed, generator

_POOL_SIZE = 1 << 21  # random integers drawn once and used again, 8 MB


@dataclass(frozen=True)
class _Format:
    """One fp8 type.

    Attributes:
        largest: the largest finite value.
        mantissa_bits: 3 or 2.
        min_exponent: of the smallest normal number.
        first_not_finite: the smallest code, without its sign bit, that is NaN or infinite.
    """

    largest: float
    mantissa_bits: int
    min_exponent: int
    first_not_finite: int


_FORMATS = {
    torch.float8_e4m3fn: _Format(448.0, 3, -6, 0x7F),
    torch.float8_e5m2: _Format(57344.0, 2, -14, 0x7C),
}
_scratch = threading.local()


def from_fp8(values: Tensor, out: Tensor, scale: float = 1.0) -> Tensor:
    """scale * values as fp32, written into `out`. NaN becomes an arbitrary large number: check with largest_by_row.

    Args:
        values: float8_e4m3fn or float8_e5m2, CPU, contiguous.
        out: fp32 of the same shape.
        scale: of the layer.
    """
    half = _scratch_memory("half", values.numel(), torch.int16)
    half.copy_(values.view(torch.int8).reshape(-1))  # the sign goes to the upper byte
    if values.dtype == torch.float8_e5m2:
        half.bitwise_left_shift_(8)
    else:
        half.bitwise_left_shift_(7).bitwise_and_(~0x4000)
        scale *= 2.0**8  # fp16's smallest normal number is 2^-14, e4m3's 2^-6
    out.view(-1).copy_(half.view(torch.float16))
    return out if scale == 1.0 else out.mul_(scale)


def largest_by_row(values: Tensor) -> Tensor:
    """The largest |value| of each row, fp32 (rows,); infinite for a row that holds NaN or an infinity.

    Args:
        values: float8_e4m3fn or float8_e5m2, (rows, ...), CPU, contiguous.
    """
    format = _FORMATS[values.dtype]
    rows = values.view(torch.uint8).reshape(len(values) if values.dim() else 1, -1)
    codes = rows.bitwise_and(0x7F).amax(1)  # magnitudes sort as their codes do
    largest = codes.view(values.dtype).float()
    return largest.masked_fill_(codes >= format.first_not_finite, torch.inf)


def to_fp8(values: Tensor, dtype: torch.dtype, name: str, block: int = 0) -> Tensor:
    """fp32 -> fp8 by stochastic rounding; values beyond the range become the largest finite one.

        2^(e - m) floor(v 2^(m - e) + u)        e: exponent of v, m: bits of mantissa, u uniform in 0..1

    The draws u within a block are independent, those of two blocks pairwise independent. The thread must not flush
    subnormal fp32 numbers to zero (torch.set_flush_denormal).

    Args:
        values: fp32, finite, CPU, contiguous; overwritten.
        dtype: float8_e4m3fn or float8_e5m2.
        name: of the tensor; seeds the draws.
        block: number of the block within the tensor; seeds the draws.
    """
    format, count = _FORMATS[dtype], values.numel()
    dropped_bits = 23 - format.mantissa_bits  # of fp32's mantissa
    # A random integer of that many bits is added, then these bits are cut off
    flat = values.view(-1).clamp_(-format.largest, format.largest).mul_(2.0 ** (-126 - format.min_exponent))
    bits = flat.view(torch.int32)
    for first in range(0, count, _POOL_SIZE):
        chunk = bits[first : first + _POOL_SIZE]
        chunk.add_(_draws(len(chunk), dropped_bits, zlib.crc32(name.encode()), block, first))
    # 12 bits are left (e5m2: 11): the sign, then 4 (e5m2: 3) bits of fp32's exponent that are 0, then the code without
    # its sign. The sign moves down beside the code.
    unused_bits = 4 if dtype == torch.float8_e4m3fn else 3
    code = _scratch_memory("code", count, torch.int16).copy_(bits.bitwise_right_shift_(dropped_bits))
    sign = torch.bitwise_right_shift(
        code, unused_bits, out=_scratch_memory("sign", count, torch.int16)
    ).bitwise_and_(0x80)
    return code.bitwise_or_(sign).to(torch.int8).view(dtype).view(values.shape)


def new_scale(largest: float, scale: float, dtype: torch.dtype) -> float:
    """The scale to divide by before rounding.

    The old one, so that unchanged values stay exactly what they were, unless the largest value exceeds its range.

    Args:
        largest: |value|, not yet divided.
        scale: the old scale.
        dtype: float8_e4m3fn or float8_e5m2.
    """
    return max(scale, largest / _FORMATS[dtype].largest)


def largest_value(dtype: torch.dtype) -> float:
    """The largest finite value of an fp8 type."""
    return _FORMATS[dtype].largest


def beyond(values: Tensor, dtype: torch.dtype) -> int:
    """How many fp32 values an fp8 type cannot hold: they would be clipped by more than rounding moves them."""
    format = _FORMATS[dtype]
    step = 2.0 ** (math.frexp(format.largest)[1] - 1 - format.mantissa_bits)
    limit = format.largest + step / 2
    smallest, largest = values.aminmax() if values.numel() else (torch.zeros(()), torch.zeros(()))
    if max(-float(smallest), float(largest)) <= limit:
        return 0
    return int((values.abs() > limit).sum())


def _draws(count: int, bits: int, *seeds: int) -> Tensor:
    """Integers of that many random bits, int32 (count,): a slice of the pool, XORed with one more draw.

    torch's generator takes ten times as long as all the rest of the rounding together.
    """
    seed = derive_seed(0, "fp8", *seeds)
    first, mask = seed % (_POOL_SIZE + 1 - count), seed >> 32 & ((1 << bits) - 1)
    out = _scratch_memory("draws", count, torch.int32)
    return torch.bitwise_xor(_pool(bits)[first : first + count], mask, out=out)


@functools.cache
def _pool(bits: int) -> Tensor:
    """int32 (_POOL_SIZE,), uniform in 0 .. 2^bits - 1."""
    return torch.randint(0, 1 << bits, (_POOL_SIZE,), dtype=torch.int32, generator=generator(0, "fp8 pool"))


def _scratch_memory(name: str, count: int, dtype: torch.dtype) -> Tensor:
    """(count,), memory of this thread that is used again: fresh memory for each block costs as much as the
    arithmetic. Its values are undefined."""
    buffer: Tensor | None = getattr(_scratch, name, None)
    if buffer is None or len(buffer) < count:
        buffer = torch.empty(count, dtype=dtype)
        setattr(_scratch, name, buffer)
    return buffer[:count]
