"""A shallow copy of a module tree that shares its parameters: trained in place of the model, which is never changed.

Adapters replace modules, training freezes parameters, and autograd refuses inference tensors (which is what a
ComfyUI loader node leaves in a model). Doing any of that to the user's model would show up in every node that uses
it meanwhile: a LoRA loader reads its layer names, a sampler runs it. So the tree of modules (a few thousand
small Python objects) is copied and the copies point at the same memory. The weights exist once; the original keeps its
modules and its parameter objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_OWN = ("_modules", "_parameters", "_buffers")  # attributes that are not copied as they are


class SharedClone:
    """The copied tree. Its parameters exist only inside `weights()`: outside, the clone holds no memory."""

    def __init__(self, original: nn.Module) -> None:
        self._pairs: list[tuple[nn.Module, nn.Module]] = []
        self.module = self._copy(original, {})

    def _copy(self, original: nn.Module, done: dict[int, nn.Module]) -> nn.Module:
        if id(original) in done:  # one module used in two places stays one module
            return done[id(original)]
        clone = original.__class__.__new__(original.__class__)
        done[id(original)] = clone
        self._pairs.append((original, clone))
        clone.__dict__.update({k: v for k, v in original.__dict__.items() if k not in _OWN})
        children = {n: None if c is None else self._copy(c, done) for n, c in original._modules.items()}
        clone.__dict__.update(_modules=children, _parameters={}, _buffers={})
        return clone

    @contextmanager
    def weights(self) -> Iterator[nn.Module]:
        """The clone with the original's present weights, as ordinary (not inference) frozen tensors on the same memory.

        Plain attributes are copied anew too: the host changes some of them when it moves a model.
        """
        try:
            with torch.inference_mode(False):
                for original, clone in self._pairs:
                    fresh = {k: v for k, v in original.__dict__.items() if k not in _OWN}
                    # A table that a network made when it was loaded and keeps as a plain attribute
                    tables = {k: _alias(v) for k, v in fresh.items() if type(v) is Tensor}
                    clone.__dict__.update({**fresh, **tables})
                    clone._parameters.update({n: _frozen(p) for n, p in original._parameters.items()})
                    clone._buffers.update(
                        {n: b if b is None else _alias(b) for n, b in original._buffers.items()}
                    )
            yield self.module
        finally:
            for _, clone in self._pairs:
                clone._parameters.clear()
                clone._buffers.clear()


def _frozen(parameter: nn.Parameter | None) -> nn.Parameter | None:
    if parameter is None or type(parameter) is not nn.Parameter:
        return parameter  # a tensor subclass (quantised weight)
    return nn.Parameter(_alias(parameter), requires_grad=False)


def _alias(tensor: Tensor) -> Tensor:
    """An ordinary tensor on the same memory. dlpack drops the inference flag."""
    return torch.from_dlpack(tensor.detach()) if tensor.is_inference() else tensor.detach()
