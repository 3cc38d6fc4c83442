"""Copies between CPU memory and a device beside the device's own work: streams, events and pinned memory in one place.

    CUDA, ROCm    copies from and to pinned memory on streams of their own; torch calls both "cuda"
    Intel (xpu)   the same where the host says that the device supports it
    others        plain copies, which are done when they return

What must be waited for is the caller's to say. The waits are tested with a stand-in for `Streams` that runs every copy
as early and as late as they allow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Streams:
    """Asynchronous copies of one accelerator."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def make(self) -> torch.Stream:
        """A stream beside the one of the device's work."""
        return torch.Stream(self.device)

    def current(self) -> torch.Stream:
        """The stream of the device's work."""
        return torch.accelerator.current_stream(self.device)

    def copy(self, into: Tensor, source: Tensor, stream: torch.Stream) -> None:
        """Copy on `stream`; the tensor that is not on the device is pinned."""
        with _working_on(stream):
            into.copy_(source, non_blocking=True)

    def record(self, stream: torch.Stream) -> torch.Event:
        """An event that happens when everything on `stream` so far is done."""
        return stream.record_event()

    def wait(self, stream: torch.Stream, event: torch.Event) -> None:
        """What comes on `stream` from now on begins after the event. The CPU goes on."""
        stream.wait_event(event)

    def wait_on_cpu(self, event: torch.Event) -> None:
        """Return after the event."""
        event.synchronize()

    def pinned(self, like: Tensor) -> Tensor:
        """Memory of the shape and type of `like` that copies can be asynchronous with."""
        return torch.empty_like(like, device="cpu", pin_memory=True)

    def free_pinned(self) -> None:
        """Give pinned memory that nobody uses back to the system: torch keeps it for later, other programs lack it."""
        # torch 2.5 to 2.9 have the private name
        empty = getattr(torch.accelerator, "empty_host_cache", None) or getattr(
            torch._C, "_host_emptyCache", None
        )
        if empty is not None:
            empty()

    def is_direct(self, tensor: Tensor) -> bool:
        """Whether a copy from there to the device is asynchronous by itself."""
        return tensor.device.type != "cpu" or tensor.is_pinned()


KINDS: dict[str, type[Streams]] = {"cuda": Streams, "xpu": Streams}
"""By the type of a device."""

_made: dict[torch.device, Streams] = {}
_refused: set[str] = set()


def copy_in_turn(device_type: str) -> None:
    """From now on the copies of such devices are plain ones."""
    _refused.add(device_type)


def streams_of(device: torch.device) -> Streams | None:
    """None where copies are plain ones."""
    kind = KINDS.get(device.type)
    if kind is None or device.type in _refused or not hasattr(torch, "accelerator"):
        return None
    if type(_made.get(device)) is not kind:
        _made[device] = kind(device)
    return _made[device]


@contextmanager
def _working_on(stream: torch.Stream) -> Iterator[None]:
    before = torch.accelerator.current_stream(stream.device)
    torch.accelerator.set_stream(stream)
    try:
        yield
    finally:
        torch.accelerator.set_stream(before)
