"""The host's operations as training wants them: with a backward, a lean one, and nothing large kept for it.

Nothing here changes a result. Each change is seen only by a forward that records a graph, or by our own call of the
network, so a sampler that runs meanwhile does not notice.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.ldm.modules.attention
import comfy.ldm.wan.model
import comfy.model_management
import comfy.rmsnorm
import torch
from torch import Tensor, nn

_lock = threading.Lock()
_users = 0
_original: Callable[[Tensor, Tensor], Tensor] | None = None


def attention(
    host_function: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **kwargs: Any
) -> Tensor:
    """For transformer_options["optimized_attention_override"]: torch's own attention, whatever the host has chosen.

    The host may use kernels without a backward (sage attention drops gradients in silence) or keep the whole matrix of
    weights for it (its sub-quadratic one, which is what a CPU gets). A mask of integers, as Lumina 2 (on 0.3.75) and
    Omnigen2 pass on, is added to the scores by the host's own ones; torch's takes no integers.
    """
    if mask is not None and not mask.is_floating_point() and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    answer: Tensor = comfy.ldm.modules.attention.attention_pytorch(q, k, v, heads, mask, **kwargs)
    return answer


class _Rotate(torch.autograd.Function):
    """Rotary embedding. Its gradient is the rotation back: the same function with each 2x2 matrix transposed, where
    autograd would write zeros and copies around every half."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, frequencies: Tensor) -> Tensor:
        assert _original is not None
        ctx.frequencies = frequencies  # (..., 2, 2), frozen
        return _original(x, frequencies)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        assert _original is not None
        return _original(grads[0], ctx.frequencies.transpose(-1, -2)), None


def _rotate(x: Tensor, frequencies: Tensor) -> Tensor:
    assert _original is not None
    if x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        answer: Tensor = _Rotate.apply(x, frequencies)
        return answer
    return _original(x, frequencies)


@contextmanager
def lean_rope() -> Iterator[None]:
    """Inside, a forward of the host's Wan that records a graph rotates through `_Rotate`; other forwards through the
    host's function, as always."""
    global _users, _original
    with _lock:
        _users += 1
        if _users == 1:
            _original = comfy.ldm.wan.model.apply_rope1
            comfy.ldm.wan.model.apply_rope1 = _rotate
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                comfy.ldm.wan.model.apply_rope1 = _original


class _Normalise(torch.autograd.Function):
    """RMSNorm with a frozen weight: y = x w / rms(x). With g = dy w: dx = (g - x mean(g x) / rms^2) / rms."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Any) -> Tensor:
        y, inverse = torch.ops.aten._fused_rms_norm(x, [x.shape[-1]], norm.weight, norm.eps)
        ctx.save_for_backward(x, inverse)
        # Not its weight: a streamed block's lies in memory that other blocks have meanwhile
        ctx.norm = norm
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        x, inverse = ctx.saved_tensors  # before the weight: a recomputed block is brought in by it
        grad = grads[0] * ctx.norm.weight
        share = (grad * x).mean(-1, keepdim=True).mul_(inverse.pow(3))
        return grad.mul_(inverse).addcmul_(x, share, value=-1), None


def lean_norms(module: nn.Module) -> None:
    """On a CPU, where torch makes RMSNorm's gradient from ten small operations: one function. module: the clone."""
    for norm in module.modules():
        if isinstance(norm, comfy.rmsnorm.RMSNorm) and not isinstance(norm, _LeanNorm):
            norm.__class__ = _lean_class(type(norm))  # type: ignore[arg-type]


@functools.cache
def _lean_class(kind: type) -> type:
    """One class for all norms of a kind: a compiler then takes the blocks for alike."""
    return type(f"Lean{kind.__name__}", (_LeanNorm, kind), {})


class _LeanNorm:
    weight: Tensor | None
    eps: float | None

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim)."""
        cast = self.comfy_cast_weights or self.weight_function or self.bias_function  # type: ignore[attr-defined]
        weight, eps = self.weight, self.eps
        plain = cast or weight is None or eps is None or weight.dtype != x.dtype or not x.requires_grad
        if plain or torch.compiler.is_compiling():
            answer: Tensor = super().forward(x)  # type: ignore[misc]
        else:
            answer = _Normalise.apply(x, self)
        return answer


@contextmanager
def training_mode() -> Iterator[None]:
    """Host 0.33 takes kernels without a backward (fused RoPE among them) unless this flag is set; 0.3.75 has none."""
    management = comfy.model_management
    if not hasattr(management, "in_training"):
        yield
        return
    management.in_training = True
    try:
        yield
    finally:
        management.in_training = False
