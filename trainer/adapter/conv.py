"""LoRA of a convolution (LoCon).

    y = W * x + s B * (A * x)       A (r, in, k, k), with the frozen layer's stride, padding, dilation; B (out, r, 1, 1)

as LyCORIS and kohya's conv_dim have it. The frozen layer computes its own part, so its weight comes from wherever the
model has it. Layers are convolutions of one group, of one to three dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..rng import derive_seed, generator
from .dropout import dropout_mask

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_CONVOLVE = (F.conv1d, F.conv2d, F.conv3d)


class LoraConv(nn.Module):
    """A frozen convolution with a LoRA beside it; takes the layer's place in the network.

    Attributes:
        base_layer: the frozen layer.
        matrices: A and B, fp32.
    """

    def __init__(
        self,
        layer: Convolution,
        rank: int,
        scale: float,
        index: int,
        *,
        dropout: float = 0.0,
        rank_dropout: float = 0.0,
        device: torch.device | None = None,
    ) -> None:
        """index: the layer's place among the adapter's, for its dropout draws. Values are set by the adapter."""
        super().__init__()
        self.base_layer = layer
        dims = len(layer.kernel_size)
        down = torch.empty(rank, layer.in_channels, *layer.kernel_size, device=device)
        up = torch.empty(layer.out_channels, rank, *[1] * dims, device=device)
        self.lora_A, self.lora_B = nn.Parameter(down), nn.Parameter(up)
        self.scale, self.index = scale, index
        self._dropout, self._rank_dropout = dropout, rank_dropout
        self._convolve = _CONVOLVE[dims - 1]
        self._draws_of: tuple[int, int] | None = None  # seed and micro-step while training
        self.is_off = False  # answers as without the LoRA
        self.sign = 1.0  # of the LoRA's update: 1, or -1 while it is reversed

    @property
    def matrices(self) -> tuple[nn.Parameter, nn.Parameter]:
        return self.lora_A, self.lora_B

    def set_step(self, seed: int, micro_step: int) -> None:
        """Choose this micro-step's dropout; called before each training forward."""
        self._draws_of = (seed, micro_step)

    def disable_dropout(self) -> None:
        """No dropout, for validation and sampling."""
        self._draws_of = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x (N, in, ...) -> (N, out, ...)."""
        layer = self.base_layer
        scale: float | Tensor = self.sign * self.scale
        y: Tensor = layer(x, *args, **kwargs)
        if self.is_off:
            return y
        if self._draws_of is not None and self._dropout:
            seed, micro_step = self._draws_of
            x = x * dropout_mask(x, self._dropout, derive_seed(seed, "dropout", micro_step, self.index))
        if self._draws_of is not None and self._rank_dropout:
            seed, micro_step = self._draws_of
            draws = torch.rand(
                len(self.lora_A), generator=generator(seed, "rank dropout", micro_step, self.index)
            )
            kept = (draws >= self._rank_dropout) * (self.sign * self.scale / (1 - self._rank_dropout))
            scale = kept.to(y).view(-1, *[1] * len(layer.kernel_size))
        hidden = self._convolve(x, self.lora_A.to(y.dtype), None, layer.stride, layer.padding, layer.dilation)
        return y + self._convolve(hidden * scale, self.lora_B.to(y.dtype))
