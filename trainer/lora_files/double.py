"""Double precision where a device has it; Apple's has none, and cards of Intel's may have none."""

from __future__ import annotations

from torch import Tensor

HAVE_DOUBLE = {"cpu", "cuda"}
"""Types of devices that compute in float64."""


def to_double(tensor: Tensor) -> Tensor:
    """The values in float64: on the same device, or on the CPU where that has none."""
    return tensor.double() if tensor.device.type in HAVE_DOUBLE else tensor.cpu().double()
