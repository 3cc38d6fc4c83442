"""LoRA linears as one autograd function, under peft's own layer class.

    y = x W^T + b + s (x A^T) B^T            x (N, in), W (out, in), A (r, in), B (out, r), s = alpha / r

Plain peft runs five recorded operations here: it saves the input twice, keeps a full-size LoRA result and adds it.
One function adds the LoRA into y in place, saves x once, and never saves W: forward and backward each ask
`FrozenWeights` for it, so it may be resident, cast from another type, dequantised or brought in from elsewhere, and it
may be an inference tensor.

    dB = s dy^T (x A^T)      dA = s (dy B)^T x      dx = dy W + s (dy B) A

Layers that read the same x (q, k and v of an attention) are one function together (`SharedInput`): their A matrices
lie next to each other in memory (see flat.py) and are multiplied as one, and their three dx are added up by the
multiplications themselves.

Dropout zeroes inputs of the LoRA branch as peft does; layers that share an input share the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn
from torch.nn import functional as F

from ..families import FAMILIES
from ..rng import derive_seed, generator
from .dropout import dropout_mask
from .frozen_weights import FrozenWeights


class _LoraLinears(torch.autograd.Function):
    """x (..., in), then A and B of each layer -> y (..., out) of each layer."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shared: SharedInput, draws: _Draws, *matrices: Tensor
    ) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])
        hidden = draws.drop(flat) @ shared.stacked_a(matrices).to(x.dtype).t()  # (N, sum of r)
        hidden = draws.scale(hidden)
        answers = []
        for layer, b, part in zip(shared.layers, matrices[1::2], shared.split(hidden), strict=True):
            with layer.weights(layer.base_layer, x) as (weight, bias):
                y = F.linear(flat, weight, bias)
            y.addmm_(part, b.to(x.dtype).t())
            # As nn.Linear's answer it is no view: networks write into it, and autograd forbids that for views from here
            answers.append(torch.ops.aten._unsafe_view(y, (*x.shape[:-1], y.shape[-1])))
        ctx.save_for_backward(x, hidden, *matrices)
        ctx.shared, ctx.draws = shared, draws
        ctx.set_materialize_grads(False)
        return tuple(answers)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, hidden, *matrices = ctx.saved_tensors
        shared: SharedInput = ctx.shared
        draws: _Draws = ctx.draws
        flat = x.reshape(-1, x.shape[-1])
        hidden_grad = torch.empty_like(hidden)
        x_grad: Tensor | None = None
        b_grads: list[Tensor | None] = []
        layers = zip(
            shared.layers, matrices[1::2], grads, shared.split(hidden), shared.split(hidden_grad), strict=True
        )
        for layer, b, wide_grad, part, part_grad in layers:
            if wide_grad is None:  # nobody used this layer's answer
                part_grad.zero_()
                b_grads.append(None)
                continue
            grad = wide_grad.reshape(-1, wide_grad.shape[-1])
            torch.mm(grad, b.to(x.dtype), out=part_grad)
            b_grads.append((grad.t() @ part).to(b.dtype))
            if ctx.needs_input_grad[0]:
                with layer.weights(layer.base_layer, x) as (weight, _):
                    x_grad = grad @ weight if x_grad is None else x_grad.addmm_(grad, weight)
        hidden_grad = draws.scale(hidden_grad)
        a = shared.stacked_a(matrices)
        a_grad = (hidden_grad.t() @ draws.drop(flat)).to(a.dtype)  # (sum of r, in)
        if x_grad is not None:
            x_grad = draws.add_undropped(x_grad, hidden_grad, a.to(x.dtype)).view_as(x)
        both = zip(a_grad.split(shared.ranks), b_grads, strict=True)
        return (x_grad, None, None, *(g for pair in both for g in pair))


class _Draws:
    """The scale of one call, and what it draws at random; seeds are kept, not masks."""

    def __init__(self, scale: float | Tensor, rate: float = 0.0, seed: int = 0) -> None:
        self._scale = scale  # for all ranks, or (sum of r,)
        self._rate, self._seed = rate, seed

    def drop(self, flat: Tensor) -> Tensor:
        """x as the LoRA branch sees it."""
        return flat * dropout_mask(flat, self._rate, self._seed) if self._rate else flat

    def scale(self, hidden: Tensor) -> Tensor:
        """In place: times alpha / r, and ranks that are left out times 0."""
        if isinstance(self._scale, Tensor):
            return hidden.mul_(self._scale.to(hidden))
        return hidden if self._scale == 1 else hidden.mul_(self._scale)

    def add_undropped(self, x_grad: Tensor, hidden_grad: Tensor, a: Tensor) -> Tensor:
        """The LoRA branch's share of dx, added in place."""
        if not self._rate:
            return x_grad.addmm_(hidden_grad, a)
        return x_grad.addcmul_(hidden_grad @ a, dropout_mask(x_grad, self._rate, self._seed))


class FusedLoraLinear(PeftLinear):
    """peft's LoRA linear with the forward above. An existing peft layer becomes one through `fuse`."""

    weights: FrozenWeights
    scale: float
    index: int
    input_dropout: float
    rank_dropout: float
    draws_of: tuple[int, int] | None  # seed and micro-step while training
    frozen: (
        FrozenWeights  # of the layer without its LoRA; `weights` may be what remains beside the LoRA's start
    )
    is_off: bool  # answers as without the LoRA
    sign: float  # of the LoRA's update: 1, or -1 while it is reversed
    shared: SharedInput

    @staticmethod
    def fuse(
        layer: PeftLinear, weights: FrozenWeights, index: int, rank_dropout: float = 0.0
    ) -> FusedLoraLinear:
        """Turn a plain peft LoRA linear with one adapter into a fused one, in place: same parameters, same state
        dict, whatever peft version made it. `index` is the layer's place in the model, for its dropout draws."""
        name = layer.active_adapters[0]
        layer.__class__ = FusedLoraLinear
        fused: FusedLoraLinear = layer
        fused.weights = fused.frozen = weights
        fused.is_off, fused.sign = False, 1.0
        fused.scale = layer.scaling[name]
        fused.input_dropout = getattr(layer.lora_dropout[name], "p", 0.0)
        fused.index, fused.rank_dropout = index, rank_dropout
        fused.draws_of = None
        fused.__dict__["shared"] = SharedInput([fused])  # not a submodule
        return fused

    @property
    def matrices(self) -> tuple[nn.Parameter, nn.Parameter]:
        """A (r, in) and B (out, r)."""
        name = self.active_adapters[0]
        return self.lora_A[name].weight, self.lora_B[name].weight

    def set_step(self, seed: int, micro_step: int) -> None:
        """Choose this micro-step's dropout; called before each training forward."""
        self.draws_of = (seed, micro_step)

    def disable_dropout(self) -> None:
        """No dropout, for validation and sampling."""
        self.draws_of = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x (..., in) -> (..., out)."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if self.is_off:
            with self.frozen(self.base_layer, x) as (weight, bias):
                return F.linear(x, weight, bias)
        if torch.compiler.is_compiling():
            return self._as_arithmetic(x)
        return self.shared.answer(self, x)

    def _as_arithmetic(self, x: Tensor) -> Tensor:
        """The same for a compiler: no function of ours that it cannot look into. Without dropout."""
        a, b = self.matrices
        with self.weights(self.base_layer, x) as (weight, bias):
            y = F.linear(x, weight, bias)
        return y + self.sign * self.scale * (x @ a.to(x.dtype).t() @ b.to(x.dtype).t())


class SharedInput:
    """Layers that are called one after the other with the same tensor: the first call computes for all.

    A follower that gets another tensor after all, or one that was written into since, computes for itself, so a wrong
    guess about a model costs time and nothing else.
    """

    def __init__(self, layers: Sequence[FusedLoraLinear]) -> None:
        self.layers = tuple(layers)
        self._matrices = [m for layer in layers for m in layer.matrices]
        self.ranks = [len(a) for a in self._matrices[0::2]]
        self._stacked: Tensor | None = None
        scales = [layer.scale for layer in layers for _ in range(len(layer.matrices[0]))]
        self._scale = scales[0] if len(set(scales)) == 1 else torch.tensor(scales)
        self._at_rest = _Draws(self._scale)
        self._x: Tensor | None = None
        self._version: int | None = None  # of what is in x
        self._waiting: dict[FusedLoraLinear, Tensor] = {}

    def answer(self, layer: FusedLoraLinear, x: Tensor) -> Tensor:
        """What `layer` makes of x."""
        if layer is self.layers[0]:
            answers = self._compute(x)
            self._waiting = dict(zip(self.layers[1:], answers[1:], strict=True))
            self._x, self._version = (x if self._waiting else None), _version(x)
            return answers[0]
        if x is not self._x or _version(x) != self._version or layer not in self._waiting:
            return SharedInput([layer]).answer(layer, x)
        answer = self._waiting.pop(layer)
        if not self._waiting:
            self._x = None
        return answer

    def _compute(self, x: Tensor) -> tuple[Tensor, ...]:
        answers: tuple[Tensor, ...] = _LoraLinears.apply(x, self, self._draws(x), *self._matrices)
        return answers

    def _draws(self, x: Tensor) -> _Draws:
        first = self.layers[0]
        scale = self._scale if first.sign == 1 else first.sign * self._scale
        if first.draws_of is None or not (first.input_dropout or first.rank_dropout):
            return self._at_rest if first.sign == 1 else _Draws(scale)
        seed, micro_step = first.draws_of
        if first.rank_dropout:
            draws = [
                torch.rand(rank, generator=generator(seed, "rank dropout", micro_step, layer.index))
                for layer, rank in zip(self.layers, self.ranks, strict=True)
            ]
            scale = (torch.cat(draws) >= first.rank_dropout) * scale / (1 - first.rank_dropout)
        return _Draws(scale, first.input_dropout, derive_seed(seed, "dropout", micro_step, first.index))

    def split(self, hidden: Tensor) -> Sequence[Tensor]:
        """(N, sum of r) -> each layer's (N, r)."""
        return hidden.split(self.ranks, dim=1)

    def stacked_a(self, matrices: Sequence[Tensor]) -> Tensor:
        """The A matrices as one, (sum of r, in): a view where they lie next to each other."""
        first = matrices[0]
        if len(matrices) == 2:
            return first
        if self._stacked is None or self._stacked.data_ptr() != first.data_ptr():
            self._stacked = self._as_neighbours([m.detach() for m in matrices[0::2]])
        return torch.cat(list(matrices[0::2])) if self._stacked is None else self._stacked

    def _as_neighbours(self, parts: list[Tensor]) -> Tensor | None:
        """All parts as one view, or None."""
        first, end = parts[0], parts[0].data_ptr()
        for part in parts:
            if not part.is_contiguous() or part.data_ptr() != end:
                return None
            end += part.nbytes
        if end > first.untyped_storage().data_ptr() + first.untyped_storage().nbytes():
            return None  # neighbours by chance, in storages of their own
        return first.as_strided((sum(self.ranks), first.shape[1]), (first.shape[1], 1))


def _version(x: Tensor) -> int | None:
    """Changes when x is written into; inference tensors do not count."""
    return None if x.is_inference() else x._version


_SHARED_INPUTS = {
    module: groups for family in FAMILIES for module, groups in family.shared_inputs.items()
}  # by the last part of an attention module's name


def share_inputs(layers: dict[str, FusedLoraLinear]) -> None:
    """Tie together the layers of known attention modules that read the same tensor, where each has a LoRA.

    Args:
        layers: by full name, in model order.
    """
    for parent in {name.rpartition(".")[0] for name in layers}:
        for names in _SHARED_INPUTS.get(parent.rpartition(".")[2], ()):
            found = [layers.get(f"{parent}.{name}") for name in names]
            together = [layer for layer in found if layer is not None]
            if len(together) == len(names) and len({layer.in_features for layer in together}) == 1:
                shared = SharedInput(together)
                for layer in together:
                    layer.__dict__["shared"] = shared
