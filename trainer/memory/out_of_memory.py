"""Recognising that memory ran out, and giving back what is no longer referred to."""

from __future__ import annotations

import gc

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out.

    CUDA and XPU have a class for it. The CPU's allocator (where the system refuses, as Windows and limited processes
    do) and Apple's raise a plain RuntimeError, which only its words tell from others.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = (
        "DefaultCPUAllocator: can't allocate",
        "DefaultCPUAllocator: not enough",
        "MPS backend out of memory",
    )
    return isinstance(error, RuntimeError) and any(each in str(error) for each in words)


def free_memory() -> None:
    """Give back what nobody refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
