"""Activation checkpointing: a block's inner results are computed again in backward instead of being kept.

Memory falls to one input per block, time grows by about one more forward. Random draws inside adapters come from seeds
(see adapter/fused.py), so the second computation sees the first one's dropout. The inputs themselves can wait in pinned
CPU memory: one copy out and one back per block, which costs little beside a block of a large model.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .blocks import find_blocks


def checkpoint_blocks(module: nn.Module, offload_inputs: bool = False) -> list[RecomputedForward]:
    """Wrap the forward of every block of a twin, once; returns the wrappers in model order."""
    return [_wrap(block, offload_inputs) for block in find_blocks(module)]


def _wrap(block: nn.Module, offload_inputs: bool) -> RecomputedForward:
    known = block.__dict__.get("forward")
    if isinstance(known, RecomputedForward):
        return known
    wrapper = RecomputedForward(block, known, offload_inputs)
    block.__dict__["forward"] = wrapper
    return wrapper


class RecomputedForward:
    """Takes the place of a block's forward.

    Attributes:
        before: called before the block computes, the first time and again in backward; brings its weights in.
    """

    before: Callable[[], None] | None = None

    def __init__(self, block: nn.Module, forward: Callable[..., Any] | None, offload_inputs: bool) -> None:
        self._block = block
        self._forward = forward or type(block).forward.__get__(block)
        self._offload = offload_inputs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # What a gradient flows back through is handed to checkpoint, which keeps it; the rest is shared by all blocks
        positional, names = len(args), list(kwargs)
        values = [*args, *kwargs.values()]
        kept = [i for i, v in enumerate(values) if isinstance(v, Tensor) and v.requires_grad]
        tensors = [values[i] for i in kept]
        for i in kept:
            values[i] = None

        def forward(*given: Tensor) -> Any:
            if self.before is not None:
                self.before()
            whole = list(values)
            for i, tensor in zip(kept, given, strict=True):
                whole[i] = tensor
            return self._forward(*whole[:positional], **dict(zip(names, whole[positional:], strict=True)))

        if not torch.is_grad_enabled():
            return forward(*tensors)
        hooks = torch.autograd.graph.saved_tensors_hooks(_to_cpu, _Waiting.back)
        with hooks if self._offload else nullcontext():
            return checkpoint(forward, *tensors, use_reentrant=False, preserve_rng_state=False)


class _Waiting:
    """A tensor in CPU memory, pinned where its device can copy from there by itself."""

    def __init__(self, tensor: Tensor) -> None:
        self._device = tensor.device
        on_cuda = tensor.is_cuda
        self._copy = torch.empty_like(tensor, device="cpu", pin_memory=on_cuda)
        self._arrived: torch.cuda.Event | None = None
        if not on_cuda:
            self._copy.copy_(tensor)
            return
        # On a stream of its own, so that the block need not wait for its input to leave
        stream = _leaving(tensor.device)
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(stream):
            self._copy.copy_(tensor, non_blocking=True)
            self._arrived = stream.record_event()
        tensor.record_stream(stream)  # its memory is not given to others before the copy is done

    def back(self) -> Tensor:
        """On its device again, usable by the current stream."""
        if self._arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(self._arrived)
        return self._copy.to(self._device, non_blocking=True, copy=True)


def _to_cpu(tensor: Tensor) -> _Waiting:
    return _Waiting(tensor)


_streams: dict[torch.device, torch.cuda.Stream] = {}


def _leaving(device: torch.device) -> torch.cuda.Stream:
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]
