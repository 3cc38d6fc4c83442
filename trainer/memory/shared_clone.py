"""A shallow copy of a module tree that shares its parameters: trained in place of the model, which is never changed.

Adapters replace modules, training freezes parameters, and autograd refuses inference tensors (which is what a
ComfyUI loader node leaves in a model). Doing any of that to the user's model would show up in every node that uses
it meanwhile: a LoRA loader reads its layer names, a sampler runs it. So the tree of modules (a few thousand
small Python objects) is copied and the copies point at the same memory. The weights exist once; the original keeps its
modules and its parameter objects.
"""

from __future__ import annotations

import types
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .plain import is_plain

_TREE = ("_modules", "_parameters", "_buffers")  # attributes that are not copied as they are
_ORIGINAL = "kiln_original"  # attribute of a clone's module


class SharedClone:
    """The copied tree. Its parameters exist only inside `weights()`: outside, the clone holds no memory."""

    def __init__(self, original: nn.Module, without: Collection[str] = ()) -> None:
        """without: names of plain attributes that belong to the original alone, such as what its host notes on it."""
        self._without = {*_TREE, *without}
        self._pairs: list[tuple[nn.Module, nn.Module]] = []
        self._clones: dict[int, nn.Module] = {}
        self.module = self._copy(original)

    def _copy(self, original: nn.Module) -> nn.Module:
        if id(original) in self._clones:  # one module used in two places stays one module
            return self._clones[id(original)]
        clone = original.__class__.__new__(original.__class__)
        self._clones[id(original)] = clone
        self._pairs.append((original, clone))
        clone.__dict__.update(self._plain_attributes(original))
        children = {n: None if c is None else self._copy(c) for n, c in original._modules.items()}
        clone.__dict__.update(_modules=children, _parameters={}, _buffers={})
        clone.__dict__[_ORIGINAL] = original
        return clone

    def _plain_attributes(self, original: nn.Module) -> dict[str, Any]:
        return {k: v for k, v in original.__dict__.items() if k not in self._without}

    def _rebound(self, value: Any) -> Any:
        """A method of a module of the original (a forward that somebody has replaced) as a method of its clone."""
        if isinstance(value, types.MethodType) and id(value.__self__) in self._clones:
            return types.MethodType(value.__func__, self._clones[id(value.__self__)])
        return value

    @contextmanager
    def weights(self) -> Iterator[nn.Module]:
        """The clone with the original's present weights, as ordinary (not inference) frozen tensors on the same memory.

        Plain attributes are copied anew too: the host changes some of them when it moves a model.
        """
        try:
            with torch.inference_mode(False):
                for original, clone in self._pairs:
                    fresh = {k: self._rebound(v) for k, v in self._plain_attributes(original).items()}
                    # A table that a network made when it was loaded and keeps as a plain attribute
                    tables = {k: ordinary(v) for k, v in fresh.items() if is_plain(v)}
                    clone.__dict__.update({**fresh, **tables})
                    clone._parameters.update({n: _frozen(p) for n, p in original._parameters.items()})
                    clone._buffers.update(
                        {n: b if b is None else ordinary(b) for n, b in original._buffers.items()}
                    )
            yield self.module
        finally:
            for _, clone in self._pairs:
                clone._parameters.clear()
                clone._buffers.clear()


def original_of(module: nn.Module) -> nn.Module | None:
    """The module that a module of a shared clone was copied from; None for any other."""
    original: nn.Module | None = module.__dict__.get(_ORIGINAL)
    return original


def is_shared(tensor: Tensor | None, original: Tensor | None) -> bool:
    """Whether a clone's tensor still is its original's, and not one that was bound in its place."""
    if tensor is original:
        return True
    if tensor is None or original is None or type(tensor) is not type(original):
        return False
    if hasattr(tensor, "__tensor_flatten__") and not is_plain(
        tensor
    ):  # a quantised weight has no memory itself
        names = tensor.__tensor_flatten__()[0]
        return all(is_shared(getattr(tensor, n), getattr(original, n)) for n in names)
    return tensor.untyped_storage().data_ptr() == original.untyped_storage().data_ptr()


def _frozen(parameter: nn.Parameter | None) -> nn.Parameter | None:
    if parameter is None or not is_plain(parameter):
        return parameter  # a tensor subclass (quantised weight)
    return nn.Parameter(ordinary(parameter), requires_grad=False)


def ordinary(tensor: Tensor) -> Tensor:
    """A tensor on the same memory that autograd may save. dlpack drops the inference flag."""
    return torch.from_dlpack(tensor.detach()) if tensor.is_inference() else tensor.detach()
