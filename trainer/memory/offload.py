"""Block inputs that wait in CPU memory for backward: saved-tensor hooks that copy them out and back.

torch takes pinned memory in powers of two, which wastes up to half of a large tensor's. So it is copied in pieces of
PIECE bytes, and only the last of them is rounded. Both copies are on the stream of the device's own work, which keeps
them in order; the CPU waits for neither. torch's save_on_cpu does the same with one piece and waits for each copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from .streams import streams_of

PIECE = 32 << 20  # bytes


@dataclass(frozen=True)
class _Packed:
    shape: torch.Size
    device: torch.device
    pieces: list[Tensor]  # of the tensor as one row


def on_cpu() -> saved_tensors_hooks:
    """Inside, tensors that are saved for backward wait in CPU memory, pinned where copies can be asynchronous. A real
    copy on a CPU too: networks write into their inputs."""
    return saved_tensors_hooks(pack, unpack)


def pack(tensor: Tensor) -> _Packed:
    """The tensor's values in CPU memory."""
    streams = streams_of(tensor.device)
    pieces = []
    for part in tensor.detach().reshape(-1).split(max(1, PIECE // tensor.element_size())):
        piece = torch.empty_like(part, device="cpu") if streams is None else streams.pinned(part)
        pieces.append(piece.copy_(part, non_blocking=streams is not None))
    return _Packed(tensor.shape, tensor.device, pieces)


def unpack(packed: _Packed) -> Tensor:
    """The tensor on its device again."""
    streams = streams_of(packed.device)
    if len(packed.pieces) == 1:
        return packed.pieces[0].to(packed.device, copy=True).view(packed.shape)
    flat = torch.empty(packed.shape.numel(), dtype=packed.pieces[0].dtype, device=packed.device)
    start = 0
    for piece in packed.pieces:
        flat[start : start + len(piece)].copy_(piece, non_blocking=streams is not None)
        start += len(piece)
    return flat.view(packed.shape)


def pinned_bytes(size: int) -> int:
    """What torch takes for a tensor of that many bytes."""
    whole, rest = divmod(size, PIECE)
    return whole * PIECE + power_of_two(rest)


def power_of_two(size: int) -> int:
    """At least `size`: what torch's allocator of pinned memory takes for one piece."""
    return 1 << max(0, size - 1).bit_length() if size else 0
