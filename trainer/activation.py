"""Activation checkpointing: a block's inner results are computed again in backward instead of being kept.

Memory falls to one input per block, time grows by about one more forward. Blocks are the members of the network's
ModuleLists. Random draws inside adapters come from seeds (see adapter/fused.py), so the second computation sees the
first one's dropout.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(module: nn.Module) -> int:
    """Wrap the forward of every block of a twin, once; returns how many blocks there are."""
    blocks = [child for m in module.modules() if isinstance(m, nn.ModuleList) for child in m]
    outer = [b for b in blocks if not any(b is not other and _holds(other, b) for other in blocks)]
    for block in outer:
        if "forward" not in block.__dict__:
            block.__dict__["forward"] = _Recomputed(block)
    return len(outer)


def _holds(outer: nn.Module, inner: nn.Module) -> bool:
    return any(m is inner for m in outer.modules())


class _Recomputed:
    def __init__(self, block: nn.Module) -> None:
        self._forward = type(block).forward
        self._block = block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        def forward(*inner: Any) -> Any:
            return self._forward(self._block, *inner, **kwargs)

        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False)
