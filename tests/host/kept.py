"""What autograd keeps of a forward pass, in bytes by storage; weights are none of it. Used by benchmarks too."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


def addresses_of_weights(placement: Any, module: torch.nn.Module) -> set[int]:
    """The storages of a network's weights inside a placement's session, and of the slots that they pass through."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    if placement.ring is not None:
        own |= {s._memory.untyped_storage().data_ptr() for s in placement.ring._slots}
    return own


def keeping(found: dict[int, int], own: set[int]) -> AbstractContextManager[Any]:
    """Inside, `found` gets the bytes of every storage that autograd keeps, by address, but of those in `own`."""

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    return torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t)
