"""Activation checkpointing: a block's inner results are computed again in backward instead of being kept.

Memory falls to one input per block, time grows by about one more forward. Random draws inside adapters come from seeds
(see adapter/fused.py), so the second computation sees the first one's dropout. The inputs themselves can wait in pinned
CPU memory: one copy out and one back per block, which costs little beside a block of a large model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
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
        called: whether the network has ever called the block.
    """

    before: Callable[[], None] | None = None
    called = False

    def __init__(self, block: nn.Module, forward: Callable[..., Any] | None, offload_inputs: bool) -> None:
        self._block = block
        self._forward = forward or type(block).forward.__get__(block)
        self._offload = offload_inputs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # What a gradient flows back through is handed to checkpoint, which keeps it; the rest is shared by all blocks.
        # Dicts and lists are kept as they are now: a network writes the place of the block that it calls next into one
        # dict for all, and the second computation must find its own.
        self.called = True
        first = [(args, kwargs)]
        tensors: list[Tensor] = []
        kept_args, kept_kwargs = (_take(values, tensors) for values in (args, kwargs))

        def forward(*given: Tensor) -> Any:
            if self.before is not None:
                self.before()
            if first:
                now_args, now_kwargs = first.pop()
            else:
                now_args, now_kwargs = (_put_back(values, given) for values in (kept_args, kept_kwargs))
            return self._forward(*now_args, **now_kwargs)

        if not torch.is_grad_enabled():
            return forward(*tensors)
        hooks = torch.autograd.graph.saved_tensors_hooks(_to_cpu, _Waiting.back)
        with hooks if self._offload else nullcontext():
            return checkpoint(forward, *tensors, use_reentrant=False, preserve_rng_state=False)


@dataclass(frozen=True)
class _Place:
    """Where a tensor was, by its number among those that were taken out."""

    number: int


def _take(value: Any, tensors: list[Tensor]) -> Any:
    """A copy of the containers in `value`, in which tensors that a gradient flows through are places; those tensors are
    added to `tensors`."""
    if isinstance(value, Tensor) and value.requires_grad:
        tensors.append(value)
        return _Place(len(tensors) - 1)
    if type(value) is dict:
        return {k: _take(v, tensors) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_take(v, tensors) for v in value)
    return value


def _put_back(value: Any, tensors: Sequence[Tensor]) -> Any:
    """The inverse, as further copies."""
    if isinstance(value, _Place):
        return tensors[value.number]
    if type(value) is dict:
        return {k: _put_back(v, tensors) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_put_back(v, tensors) for v in value)
    return value


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
