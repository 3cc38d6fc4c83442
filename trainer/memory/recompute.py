"""Activation checkpointing: a block's activations are recomputed in backward instead of being saved.

Memory falls to one input per block, time grows by about one more forward. Random draws inside adapters come from seeds
(see adapter/fused.py), so the second computation sees the first one's dropout. The inputs can be offloaded to
pinned CPU memory: one copy out and one back per block, which costs little beside a block of a large model.
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
    """Wrap the forward of every block of a shared clone, once; returns the wrappers in model order."""
    return [_wrap(block, offload_inputs) for block in find_blocks(module)]


def _wrap(block: nn.Module, offload_inputs: bool) -> RecomputedForward:
    known = block.__dict__.get("forward")
    if isinstance(known, RecomputedForward):
        return known
    wrapper = RecomputedForward(block, known, offload_inputs)
    block.__dict__["forward"] = wrapper
    return wrapper


class RecomputedForward:
    """A block's forward under activation checkpointing.

    Attributes:
        before: called before the block computes, in forward and again in backward; brings its weights in.
        called: whether the network has ever called the block.
    """

    before: Callable[[], None] | None = None
    called = False

    def __init__(self, block: nn.Module, forward: Callable[..., Any] | None, offload_inputs: bool) -> None:
        self._block = block
        self._forward = forward or type(block).forward.__get__(block)
        self._offload = offload_inputs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Tensors that need a gradient are arguments of checkpoint, which saves them. Dicts and lists are copied now:
        # networks write the index of the block that they call next into one dict for all blocks.
        self.called = True
        first = [(args, kwargs)]
        tensors: list[Tensor] = []
        saved_args, saved_kwargs = (_without_tensors(values, tensors) for values in (args, kwargs))

        def forward(*given: Tensor) -> Any:
            if self.before is not None:
                self.before()
            if first:
                now_args, now_kwargs = first.pop()
            else:
                now_args, now_kwargs = (_with_tensors(values, given) for values in (saved_args, saved_kwargs))
            return self._forward(*now_args, **now_kwargs)

        if not torch.is_grad_enabled():
            return forward(*tensors)
        hooks = torch.autograd.graph.saved_tensors_hooks(_to_cpu, _OffloadedTensor.reload)
        with hooks if self._offload else nullcontext():
            return checkpoint(forward, *tensors, use_reentrant=False, preserve_rng_state=False)


@dataclass(frozen=True)
class _TensorArgument:
    """Stands for the tensor argument of that number."""

    number: int


def _without_tensors(value: Any, tensors: list[Tensor]) -> Any:
    """A copy of the containers in `value` with a _TensorArgument for each tensor that needs a gradient; those tensors
    are appended to `tensors`."""
    if isinstance(value, Tensor) and value.requires_grad:
        tensors.append(value)
        return _TensorArgument(len(tensors) - 1)
    if type(value) is dict:
        return {k: _without_tensors(v, tensors) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_without_tensors(v, tensors) for v in value)
    return value


def _with_tensors(value: Any, tensors: Sequence[Tensor]) -> Any:
    """The inverse, as a further copy."""
    if isinstance(value, _TensorArgument):
        return tensors[value.number]
    if type(value) is dict:
        return {k: _with_tensors(v, tensors) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_with_tensors(v, tensors) for v in value)
    return value


class _OffloadedTensor:
    """A copy in CPU memory, pinned where the device is a CUDA device."""

    def __init__(self, tensor: Tensor) -> None:
        self._device = tensor.device
        on_cuda = tensor.is_cuda
        self._copy = torch.empty_like(tensor, device="cpu", pin_memory=on_cuda)
        self._copied: torch.cuda.Event | None = None
        if not on_cuda:
            self._copy.copy_(tensor)
            return
        # On a stream of its own, so that the block does not wait for this copy
        stream = _offload_stream(tensor.device)
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(stream):
            self._copy.copy_(tensor, non_blocking=True)
            self._copied = stream.record_event()
        tensor.record_stream(stream)  # the allocator reuses its memory only after the copy

    def reload(self) -> Tensor:
        """On its device again, usable by the current stream."""
        if self._copied is not None:
            torch.cuda.current_stream(self._device).wait_event(self._copied)
        return self._copy.to(self._device, non_blocking=True, copy=True)


def _to_cpu(tensor: Tensor) -> _OffloadedTensor:
    return _OffloadedTensor(tensor)


_streams: dict[torch.device, torch.cuda.Stream] = {}


def _offload_stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]
