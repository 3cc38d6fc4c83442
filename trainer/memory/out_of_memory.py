"""Recognising that memory ran out, and giving back what is no longer referred to."""

from __future__ import annotations

import gc
import re

import torch

from .streams import streams_of

# What allocators say that have no exception class of their own: CUDA's and HIP's drivers in a plain RuntimeError, the
# CPU's (where the system refuses, as Windows and limited processes do), Apple's, and ComfyUI's ("aimdo")
_WORDS = re.compile(
    r"out of memory|DefaultCPUAllocator: (can't allocate|not enough)|VRAM grow failed|Cannot allocate memory"
    r"|CUBLAS_STATUS_ALLOC_FAILED|cudaErrorMemoryAllocation|hipErrorOutOfMemory|UR_RESULT_ERROR_OUT_OF_\w*MEMORY",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, by its class or, of a RuntimeError or OSError, by its words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and _WORDS.search(str(error)) is not None


def free_memory() -> None:
    """Give back what nobody refers to any more: of the accelerator, whichever it is, and pinned CPU memory."""
    gc.collect()
    device = torch.accelerator.current_accelerator()
    if device is None or not torch.accelerator.is_available():
        return
    getattr(torch, device.type).empty_cache()
    streams = streams_of(device)
    if streams is not None:
        streams.free_pinned()
