"""Attention and MLP of a recomputed block, each computed again on its own in backward, the MLP in chunks of tokens.

A recomputed block keeps everything of itself while its backward runs; for a long clip that is more than all the rest
together. Here a part keeps its input alone, in the block's second computation too, and is computed once more when its
own backward comes: at a time there is what one part keeps. A part that takes each token by itself (linear layers and
activations one after the other) goes through that in chunks, forward and backward, so that its wide middle is never
there as a whole.

    memory   the largest part instead of the block
    time     the forward of every part once more: 5 units a block instead of 4 (forward, again, parts again, backward 2)

Gradients of the adapter are added up chunk by chunk: the same up to rounding. With dropout there are no chunks, as each
would draw the same mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import with_tensors, without_tensors
from .blocks import is_token_wise, parts_of
from .copy_on_write import CopyOnWrite

CHUNK = 4096  # tokens


def recompute_parts(block: nn.Module, in_chunks: bool) -> None:
    """Give the parts of a block of a shared clone a forward that keeps its input alone; once.

    Args:
        in_chunks: whether parts that take each token by itself may do so in chunks.
    """
    for part in parts_of(block):
        known = part.__dict__.get("forward")
        if not isinstance(known, PartForward):
            part.__dict__["forward"] = PartForward(part, known, in_chunks and is_token_wise(part))


class PartForward:
    """A part's forward. What it returns is a tensor or a tuple of tensors."""

    def __init__(self, part: nn.Module, forward: Callable[..., Any] | None, in_chunks: bool) -> None:
        self._part, self._in_chunks = part, in_chunks
        self._forward = forward or type(part).forward.__get__(part)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.compute((args, kwargs))
        tensors: list[Tensor] = []
        rest = without_tensors((args, kwargs), tensors, lambda tensor: True)
        # A tensor that needs a gradient, as the first block's input does not, and its adapters do
        anchor = torch.zeros((), requires_grad=True)
        return _Part.apply(anchor, self, rest, *tensors)

    def compute(self, arguments: Any) -> Any:
        """Without a graph."""
        args, kwargs = arguments
        chunks = self.chunks(args, kwargs)
        if len(chunks) < 2:
            return self._forward(*args, **kwargs)
        output: Tensor | None = None
        done = 0
        for chunk in chunks:
            part = self._forward(chunk)
            if output is None:
                output = part.new_empty((sum(map(len, chunks)), part.shape[-1]))
            output[done : done + len(chunk)] = part
            done += len(chunk)
        assert output is not None
        return output.view(*args[0].shape[:-1], output.shape[-1])

    def chunks(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
        """The only argument (..., in) as (up to CHUNK, in) each, or nothing."""
        if not self._in_chunks or kwargs or len(args) != 1:
            return ()
        x: Tensor = args[0]
        if math.prod(x.shape[:-1]) <= CHUNK or self._updates_in_backward():
            return ()
        return x.reshape(-1, x.shape[-1]).split(CHUNK)

    def _updates_in_backward(self) -> bool:
        """Whether each gradient is used up as soon as it is there; then it must be there only once."""
        return any(p._post_accumulate_grad_hooks for p in self._part.parameters())

    def backward(self, arguments: Any, inputs: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Compute the part again and add up the gradients of `inputs`, which are leaves, and of its adapters."""
        args, kwargs = arguments
        chunks = self.chunks(args, kwargs)
        if len(chunks) < 2:
            _backward(lambda: self._forward(*args, **kwargs), grads)
            return
        (x,) = inputs
        grad = grads[0]
        assert grad is not None
        x_grad = torch.empty_like(x).view(-1, x.shape[-1]) if x.requires_grad else None
        done = 0
        for chunk, own in zip(chunks, grad.reshape(-1, grad.shape[-1]).split(CHUNK), strict=True):
            leaf = chunk.detach().requires_grad_(x.requires_grad)
            _backward(lambda leaf=leaf: self._forward(leaf), [own])  # type: ignore[misc]
            if x_grad is not None and leaf.grad is not None:
                x_grad[done : done + len(leaf)] = leaf.grad
            done += len(leaf)
        x.grad = None if x_grad is None else x_grad.view(x.shape)


class _Part(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, part: PartForward, rest: Any, *tensors: Tensor) -> Any:
        ctx.part, ctx.rest = part, rest
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return part.compute(with_tensors(rest, tensors))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # first: a streamed block is brought in by it
        need = ctx.needs_input_grad[3:]
        with torch.enable_grad():
            inputs = [t.detach().requires_grad_(n) for t, n in zip(saved, need, strict=True)]
            ctx.part.backward(with_tensors(ctx.rest, inputs), inputs, grads)
        return (None, None, None, *(t.grad for t in inputs))


def _backward(forward: Callable[[], Any], grads: Sequence[Tensor | None]) -> None:
    with CopyOnWrite().forward():  # a network may write into what a layer saves
        output = forward()
    outputs = output if isinstance(output, tuple) else (output,)
    wanted = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
    if wanted:
        torch.autograd.backward([o for o, _ in wanted], [g for _, g in wanted])
