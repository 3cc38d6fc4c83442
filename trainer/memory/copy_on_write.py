"""Tensors saved for backward keep their values when the network writes into them.

Some networks add to their residual stream in place (Flux, HunyuanVideo, LTX-Video), although a norm or a linear layer
has saved it for backward; autograd then refuses the whole step. Here each saved tensor that is about to be written
into is copied first, once, as `torch.autograd.graph.allow_mutation_on_saved_tensors` does it. Unlike that, it also
works inside blocks that are recomputed (see recompute.py), and it lets a network alone that never does such a thing:
whether it does is found out in the first step.

    memory   as much as the same network takes that does not write in place
    time     the copies, and some microseconds for each operation, which pass through Python
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from .plain import is_plain


class SavedTensor:
    """A tensor as it was when it was saved."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # without its graph, which would hold this object in a cycle


class CopyOnWrite:
    """Saves the tensors of one forward, or of one recomputed block.

    Attributes:
        copies: how many saved tensors have been written into.
        not_recomputed: blocks that have not been recomputed yet: whether they write into what they save is not known.
    """

    def __init__(self) -> None:
        self.copies = self.not_recomputed = 0
        self._by_storage: dict[int, list[weakref.ref[SavedTensor]]] = defaultdict(list)

    def save(self, tensor: Tensor) -> SavedTensor:
        """The tensor's present values, for as long as the result lives."""
        saved = SavedTensor(tensor)
        if _has_memory(tensor):
            self._by_storage[_storage(tensor)].append(weakref.ref(saved))
        return saved

    def before_write(self, tensor: Tensor) -> None:
        """Called before an operation writes into `tensor`."""
        for reference in self._by_storage.pop(_storage(tensor), ()):
            saved = reference()
            if saved is not None:
                saved.tensor = saved.tensor.clone()
                self.copies += 1

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Inside, on this thread, saved tensors are copied before they are written into."""
        before = getattr(_thread, "watching", None)
        _thread.watching = self
        try:
            with _BeforeWrites(self):
                yield
        finally:
            _thread.watching = before

    @contextmanager
    def forward(self) -> Iterator[None]:
        """The same, for all that autograd saves."""
        with self.watch(), saved_tensors_hooks(self.save, _value):
            yield


def watching() -> CopyOnWrite | None:
    """The one that is watching this thread."""
    found: CopyOnWrite | None = getattr(_thread, "watching", None)
    return found


class WriteCheck:
    """Watches a network's forwards until it is known whether it writes into saved tensors, and ever after if it does.

    What is known holds for one way of computing: with recomputed blocks their inputs are saved too.
    """

    def __init__(self) -> None:
        self._needed: dict[bool, bool] = {}
        self._last: dict[bool, CopyOnWrite] = {}

    @contextmanager
    def forward(self, module: nn.Module) -> Iterator[None]:
        """For one forward that records a graph; nothing for others."""
        recomputes = bool(module.__dict__.get(RECOMPUTES, False))
        if not torch.is_grad_enabled() or module.__dict__.get(COMPILED) or not self.needed(recomputes):
            yield
            return
        watched = CopyOnWrite()
        with watched.forward():
            yield
        self._last[recomputes] = watched

    def needed(self, recomputes: bool) -> bool:
        """Whether the next forward is to be watched."""
        last = self._last.get(recomputes)
        if recomputes not in self._needed and last is not None and (last.copies or not last.not_recomputed):
            self._needed[recomputes] = bool(last.copies)
            self._last.clear()
        return self._needed.get(recomputes, True)


# Attributes of a network that say what was done to its blocks
RECOMPUTES = "_kiln_recomputes"
COMPILED = "_kiln_compiled"
_thread = threading.local()


class _BeforeWrites(TorchDispatchMode):
    def __init__(self, watched: CopyOnWrite) -> None:
        super().__init__()
        self._watched = watched

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        positions, names = _written(func)
        for position in positions:
            if position < len(args):
                self._before_write(args[position])
        for name in names:
            self._before_write(kwargs.get(name))
        return func(*args, **kwargs)

    def _before_write(self, value: Any) -> None:
        if isinstance(value, Tensor):
            if _has_memory(value):
                self._watched.before_write(value)
        elif isinstance(value, list | tuple):
            for each in value:
                self._before_write(each)


@functools.cache
def _written(func: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Places and names of the arguments that an operator writes into."""
    if not func._schema.is_mutable:
        return (), ()
    written = [
        (i, a.name)
        for i, a in enumerate(func._schema.arguments)
        if a.alias_info is not None and a.alias_info.is_write
    ]
    return tuple(i for i, _ in written), tuple(name for _, name in written)


def _value(saved: SavedTensor) -> Tensor:
    return saved.tensor


def _has_memory(tensor: Tensor) -> bool:
    """Other kinds of tensors (quantised weights) are never written into."""
    return is_plain(tensor) and tensor.numel() > 0 and not tensor.is_meta


def _storage(tensor: Tensor) -> int:
    """The same for all views of one memory; a saved tensor holds it, so no other has that address meanwhile."""
    return tensor.untyped_storage().data_ptr()
