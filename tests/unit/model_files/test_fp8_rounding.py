"""Stochastic rounding to fp8, against torch's own conversion."""

from __future__ import annotations

import pytest
import torch

from trainer.model_files.fp8_rounding import from_fp8, largest_by_row, to_fp8


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_both_ways_against_torch(dtype: torch.dtype) -> None:
    """Every code is read as torch reads it; every value goes to one of the two fp8 numbers round it, in proportion."""
    codes = torch.arange(256, dtype=torch.uint8).view(dtype)
    finite = codes[codes.float().isfinite()]
    assert torch.equal(from_fp8(finite, torch.empty(len(finite)), 3.0), finite.float() * 3.0)
    assert (
        largest_by_row(finite.reshape(-1, 2)).tolist() == finite.float().reshape(-1, 2).abs().amax(1).tolist()
    )
    assert largest_by_row(codes.view(2, 128)).tolist() == [float("inf")] * 2
    ends = finite.float().unique()
    low, high = ends[:-1].repeat_interleave(2), ends[1:].repeat_interleave(2)
    share = torch.tensor([0.25, 0.7]).repeat(len(ends) - 1)
    values = torch.lerp(low, high, share)
    found = torch.stack([to_fp8(values.clone(), dtype, "w", block).float() for block in range(2000)])
    assert bool(((found == low) | (found == high)).all())
    assert float(((found == high).float().mean(0) - share).abs().max()) < 0.06  # 5 sigma
    far = torch.tensor([1e30, -1e30, 0.0, -0.0])
    assert to_fp8(far, dtype, "w").float().tolist() == [
        torch.finfo(dtype).max,
        -torch.finfo(dtype).max,
        0.0,
        0.0,
    ]


def test_fp8_draws_differ_between_blocks_and_repeat() -> None:
    halves = torch.full((2**16,), 1.0625)
    one, again, other = (to_fp8(halves.clone(), torch.float8_e4m3fn, "w", b).float() for b in (0, 0, 1))
    assert torch.equal(one, again)
    both = torch.corrcoef(torch.stack([one, other]))[0, 1]
    assert abs(float(both)) < 0.03
    long = to_fp8(
        torch.full(((1 << 21) + 5,), 1.0625), torch.float8_e4m3fn, "w"
    ).float()  # longer than the pool
    assert float(long.mean()) == pytest.approx(1.0625, abs=1e-3)
