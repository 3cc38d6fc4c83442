"""Where the weight of a frozen linear layer comes from when its layer computes with it.

Imports no peft, which takes seconds: the memory plan is made where a server starts.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor, nn


class FrozenWeights(Protocol):
    """Where a frozen linear layer's weight comes from."""

    def __call__(
        self, layer: nn.Module, like: Tensor
    ) -> AbstractContextManager[tuple[Tensor, Tensor | None]]:
        """Weight (out, in) and bias (out,) or None, on the device and in the type of `like`, valid inside."""
        ...


def resident_weights(layer: nn.Module, like: Tensor) -> AbstractContextManager[tuple[Tensor, Tensor | None]]:
    """FrozenWeights of an ordinary nn.Linear: the layer's own tensors, cast where the type differs."""
    assert isinstance(layer, nn.Linear)
    return nullcontext((layer.weight.to(like), None if layer.bias is None else layer.bias.to(like)))
