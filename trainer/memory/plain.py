"""Which tensors are ordinary ones: bytes in memory that may be copied and shared as they are. A subclass (a quantised
weight) knows itself how it is moved and read."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

KINDS: set[type] = {Tensor, nn.Parameter}


def is_plain(value: Any) -> bool:
    """Whether a value is an ordinary tensor."""
    return type(value) in KINDS
