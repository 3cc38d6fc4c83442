"""Activation checkpointing: a block's activations are recomputed in backward instead of being saved.

Memory falls to one input per block, time grows by about one more forward. Random draws inside adapters come from seeds
(see adapter/fused.py), so the second computation sees the first one's dropout. The inputs can be offloaded to
pinned CPU memory: one copy out and one back per block, which costs little beside a block of a large model.

Networks that write in place into a block's input, or into what a block saves, are recomputed by `_Recomputation` while
copy_on_write.py watches them; others by torch's checkpoint.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .arguments import with_tensors, without_tensors
from .blocks import find_blocks
from .copy_on_write import RECOMPUTES, CopyOnWrite, SavedTensor, watching
from .offload import on_cpu, pack, unpack


def checkpoint_blocks(module: nn.Module, offload_inputs: bool = False) -> list[RecomputedForward]:
    """Wrap the forward of every block of a shared clone, once; returns the wrappers in model order."""
    module.__dict__[RECOMPUTES] = True
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
        self.called = True
        if not torch.is_grad_enabled():
            return self._compute(args, kwargs)
        watched = watching()
        if watched is not None:
            return _Recomputation(self._compute, watched, self._offload).forward((args, kwargs))
        # Tensors that need a gradient are arguments of checkpoint, which saves them. Dicts and lists are copied now:
        # networks write the index of the block that they call next into one dict for all blocks.
        first = [(args, kwargs)]
        tensors: list[Tensor] = []
        saved = without_tensors((args, kwargs), tensors, _needs_gradient)

        def forward(*given: Tensor) -> Any:
            return self._compute(*(first.pop() if first else with_tensors(saved, given)))

        with on_cpu() if self._offload else nullcontext():
            return checkpoint(forward, *tensors, use_reentrant=False, preserve_rng_state=False)

    def _compute(self, args: Any, kwargs: Any) -> Any:
        if self.before is not None:
            self.before()
        return self._forward(*args, **kwargs)


class _Recomputation:
    """One call of a block whose network writes in place: saves every tensor of its input and, when it is recomputed,
    what the block saves, so that they are copied before they are written into."""

    def __init__(self, compute: Callable[[Any, Any], Any], watched: CopyOnWrite, offload: bool) -> None:
        self._compute, self._watched, self._offload = compute, watched, offload
        self._places: list[weakref.ref[_RecomputedTensor]] = []

    def forward(self, arguments: tuple[Any, Any]) -> Any:
        """The block's output; nothing inside it is saved."""
        tensors: list[Tensor] = []
        self._arguments = without_tensors(arguments, tensors, lambda tensor: True)
        self._inputs = [self._save(t) for t in tensors]
        self._need_gradient = [t.requires_grad for t in tensors]
        with torch.autograd.graph.saved_tensors_hooks(self._save_nothing, _RecomputedTensor.value):
            output = self._compute(*arguments)
        self._watched.not_recomputed += bool(self._places)
        return output

    def _save(self, tensor: Tensor) -> SavedTensor | _OffloadedTensor:
        if self._offload and tensor.requires_grad:
            return _OffloadedTensor(pack(tensor))
        return self._watched.save(tensor)

    def _save_nothing(self, tensor: Tensor) -> _RecomputedTensor:
        place = _RecomputedTensor(self)
        self._places.append(weakref.ref(place))
        return place

    def recompute(self) -> None:
        """Run the block again: every tensor that backward still needs has its value then."""
        needed = [reference() for reference in self._places]
        last = max(i for i, place in enumerate(needed) if place is not None)
        watched = CopyOnWrite()
        count = 0

        def save(tensor: Tensor) -> None:
            nonlocal count
            place = needed[count]
            if place is not None:
                place.saved = watched.save(tensor)
            if count == last:
                raise _Recomputed
            count += 1

        with torch.enable_grad():
            inputs = [
                _not_a_leaf(t.tensor, needs_gradient)
                for t, needs_gradient in zip(self._inputs, self._need_gradient, strict=True)
            ]
        hooks = torch.autograd.graph.saved_tensors_hooks(save, _refuse)
        with torch.enable_grad(), watched.watch(), hooks, suppress(_Recomputed):
            self._compute(*with_tensors(self._arguments, inputs))
        self._watched.copies += watched.copies
        self._watched.not_recomputed -= 1


class _RecomputedTensor:
    """What autograd holds in place of a tensor that a block would save."""

    saved: SavedTensor | None = None

    def __init__(self, block: _Recomputation) -> None:
        self._block = block

    def value(self) -> Tensor:
        if self.saved is None:
            self._block.recompute()
        assert self.saved is not None, "a block that is recomputed saves what it saved the first time"
        return self.saved.tensor


class _Recomputed(Exception):
    """Ends a recomputation after the last tensor that backward needs."""


class _NotALeaf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, needs_gradient: Tensor) -> Tensor:
        # The same memory, and no view as far as autograd is concerned: a network may write into it
        return torch.ops.aten._unsafe_view(tensor, tensor.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        return None, None  # nothing is propagated through the graph of a recomputation


def _not_a_leaf(tensor: Tensor, needs_gradient: bool) -> Tensor:
    if not needs_gradient:
        return tensor
    output: Tensor = _NotALeaf.apply(tensor, torch.zeros((), requires_grad=True))
    return output


def _refuse(nothing: None) -> Tensor:
    raise AssertionError("nothing is propagated through the graph of a recomputation")


def _needs_gradient(tensor: Tensor) -> bool:
    return tensor.requires_grad


@dataclass(frozen=True)
class _OffloadedTensor:
    """What `pack` has made of a tensor."""

    packed: Any

    @property
    def tensor(self) -> Tensor:
        """On its device again."""
        value: Tensor = unpack(self.packed)
        return value
