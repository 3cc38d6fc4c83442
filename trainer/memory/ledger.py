"""How many bytes of frozen weights are on the device, by what they are for, now and at most."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Ledger:
    """Written by whoever places weights on the device; read by tests, benchmarks and the plan."""

    held: dict[str, int] = field(default_factory=dict)
    peak: int = 0

    def hold(self, what: str, size: int) -> None:
        """`size` more bytes are there from now on."""
        self.held[what] = self.held.get(what, 0) + size
        self.peak = max(self.peak, self.total)

    def release(self, *what: str) -> None:
        """All bytes of these kinds are gone."""
        for each in what:
            self.held.pop(each, None)

    @property
    def total(self) -> int:
        return sum(self.held.values())


def size_of(tensor: Tensor) -> int:
    """Bytes that a tensor's values take; of a quantised tensor those that it is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(size_of(getattr(tensor, part)) for part in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()
