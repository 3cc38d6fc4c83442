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
    stride: tuple[int, ...]  # kept: another one would make a recomputed block save tensors of other shapes
    device: torch.device
    pieces: list[Tensor]  # of the memory as one row


def on_cpu() -> saved_tensors_hooks:
    """Inside, tensors that are saved for backward wait in CPU memory, pinned where copies can be asynchronous. A real
    copy on a CPU too: networks write into their inputs."""
    return saved_tensors_hooks(pack, unpack)


@torch.no_grad()
def pack(tensor: Tensor) -> _Packed:
    """The tensor's values in CPU memory."""
    streams = streams_of(tensor.device)
    stride = torch.empty_like(tensor, device="meta").stride()
    if tensor.stride() != stride:  # memory that is used twice, as an expanded tensor's
        tensor = torch.empty_like(tensor).copy_(tensor)
    pieces = []
    for part in _row(tensor).split(max(1, PIECE // tensor.element_size())):
        piece = torch.empty_like(part, device="cpu") if streams is None else streams.pinned(part)
        pieces.append(piece.copy_(part, non_blocking=streams is not None))
    return _Packed(tensor.shape, stride, tensor.device, pieces)


@torch.no_grad()
def unpack(packed: _Packed) -> Tensor:
    """The tensor on its device again."""
    streams = streams_of(packed.device)
    kind = packed.pieces[0].dtype
    tensor = torch.empty_strided(packed.shape, packed.stride, dtype=kind, device=packed.device)
    row, start = _row(tensor), 0
    for piece in packed.pieces:
        row[start : start + len(piece)].copy_(piece, non_blocking=streams is not None)
        start += len(piece)
    return tensor


def _row(tensor: Tensor) -> Tensor:
    """All memory of a dense tensor, in its order there."""
    return tensor.as_strided((tensor.numel(),), (1,))


def pinned_bytes(size: int) -> int:
    """What torch takes for a tensor of that many bytes."""
    whole, rest = divmod(size, PIECE)
    return whole * PIECE + power_of_two(rest)


def power_of_two(size: int) -> int:
    """At least `size`: what torch's allocator of pinned memory takes for one piece."""
    return 1 << max(0, size - 1).bit_length() if size else 0
