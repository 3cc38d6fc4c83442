"""A second module tree over the same weights: what is trained, so that the model itself is never touched.

Adapters replace modules, training freezes parameters, and autograd refuses inference tensors (which is what a
ComfyUI loader node leaves in a model). Doing any of that to the user's model would show up in every node that uses
it meanwhile: a LoRA loader reads its layer names, a sampler runs it. So we copy the tree of modules (a few thousand
small Python objects) and let the copies point at the same memory. The weights exist once; the original keeps its
modules and its parameter objects, whatever happens to us.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_OWN = ("_modules", "_parameters", "_buffers")  # what a twin does not take over from its original as it is


class SharedClone:
    """The tree of copies. Its parameters exist only inside `weights()`: outside, the twin holds no memory."""

    def __init__(self, original: nn.Module) -> None:
        self._pairs: list[tuple[nn.Module, nn.Module]] = []
        self.module = self._copy(original, {})

    def _copy(self, original: nn.Module, done: dict[int, nn.Module]) -> nn.Module:
        if id(original) in done:  # one module used in two places stays one module
            return done[id(original)]
        twin = original.__class__.__new__(original.__class__)
        done[id(original)] = twin
        self._pairs.append((original, twin))
        twin.__dict__.update({k: v for k, v in original.__dict__.items() if k not in _OWN})
        children = {n: None if c is None else self._copy(c, done) for n, c in original._modules.items()}
        twin.__dict__.update(_modules=children, _parameters={}, _buffers={})
        return twin

    @contextmanager
    def weights(self) -> Iterator[nn.Module]:
        """The twin with the original's present weights, as ordinary frozen tensors on the same memory.

        Plain attributes are taken over anew too: the host changes some of them when it moves a model about.
        """
        try:
            with torch.inference_mode(False):
                for original, twin in self._pairs:
                    fresh = {k: v for k, v in original.__dict__.items() if k not in _OWN}
                    # A table that a network made when it was loaded and keeps as a plain attribute
                    tables = {k: _alias(v) for k, v in fresh.items() if type(v) is Tensor}
                    twin.__dict__.update({**fresh, **tables})
                    twin._parameters.update({n: _frozen(p) for n, p in original._parameters.items()})
                    twin._buffers.update(
                        {n: b if b is None else _alias(b) for n, b in original._buffers.items()}
                    )
            yield self.module
        finally:
            for _, twin in self._pairs:
                twin._parameters.clear()
                twin._buffers.clear()


def _frozen(parameter: nn.Parameter | None) -> nn.Parameter | None:
    if parameter is None or type(parameter) is not nn.Parameter:
        return parameter  # a tensor subclass (quantised weight) knows itself what may be done with it
    return nn.Parameter(_alias(parameter), requires_grad=False)


def _alias(tensor: Tensor) -> Tensor:
    """An ordinary tensor on the same memory. Going through dlpack is the way that sheds the inference flag."""
    return torch.from_dlpack(tensor.detach()) if tensor.is_inference() else tensor.detach()
