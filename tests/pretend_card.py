"""A small card on the CPU: real values, and out of memory beyond its size.

    KILN_PRETEND_VRAM_GB=0.5    the size in 2^30 bytes, for tests only; or PretendCard(bytes)

Inside, every CPU tensor that is made counts for as long as its memory lives, as if it were made on the card. What was
there before, such as the model's weights, is none of it.
"""

from __future__ import annotations

import os
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

VARIABLE = "KILN_PRETEND_VRAM_GB"


class PretendCard(TorchDispatchMode):
    """The card, for the thread that enters it.

    Attributes:
        live, peak: bytes held now, and at most.
        refused: how many allocations ran out of memory.
    """

    def __init__(self, size: int | None = None) -> None:
        """size: bytes; without it as VARIABLE says, or endless."""
        super().__init__()
        gib = os.environ.get(VARIABLE)
        self.size = size if size is not None else int(float(gib) * 2**30) if gib else 1 << 60
        self.live = self.peak = self.refused = 0
        self._seen: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()

    @property
    def free(self) -> int:
        return self.size - self.live

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        known = {
            id(t.untyped_storage()): t.untyped_storage()
            for t in tree_leaves((args, kwargs))
            if isinstance(t, Tensor)
        }
        output = func(*args, **(kwargs or {}))
        for value in tree_leaves(output):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                if id(storage) not in known and storage not in self._seen:
                    self._take(storage)
        return output

    def _take(self, storage: Any) -> None:
        size = storage.nbytes()
        if size > self.free:
            self.refused += 1
            raise torch.OutOfMemoryError(
                f"pretend card out of memory. Tried to allocate {size / 2**20:.2f} MiB of {self.free / 2**20:.2f} free"
            )
        self._seen[storage] = True
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._give, size)

    def _give(self, size: int) -> None:
        self.live -= size
