"""Training on a processor: two habits of the C library and of OpenMP that cost a tenth of every step each.

Memory: glibc gives freed memory back to the system as soon as the top of the heap is free, which it is after every
backward; the next forward pays for thousands of page faults. While a run lasts, freed memory is kept.

Threads: each thread that computes has its own pool of OpenMP workers, and GNU's OpenMP stops spinning between two
operations once all pools together have more threads than there are cores: every small operation then waits for a
wake-up (60 us each on two cores). The thread that waits for the run gives its pool up.

Elsewhere than on Linux with glibc, and with other OpenMP libraries, nothing is done.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

# Names and values of <malloc.h>
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGEST_MMAP_THRESHOLD = 32 << 20
_NEVER = 2**31 - 1

_HARD_PAUSE = 2  # omp_pause_hard of <omp.h>


def prepare_thread() -> None:
    """On the thread that is about to start another one for a run and to wait for it."""
    if _matters():
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)  # a thread's own arena shrinks whatever the threshold
        _release_workers()


@contextmanager
def retained_heap() -> Iterator[None]:
    """Inside, memory that is freed stays with the process; afterwards it is given back."""
    if not _matters():
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    try:
        yield
    finally:
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_MMAP_THRESHOLD)  # where glibc's own rule ends up
        libc.mallopt(_ARENA_MAX, 8 * (os.cpu_count() or 1))  # glibc's default
        libc.malloc_trim(0)


def trim_heap() -> None:
    """Give memory that was freed between blocks still in use back to the system, where the C library can."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _matters() -> bool:
    return not torch.accelerator.is_available() and platform.libc_ver()[0] == "glibc"


def _release_workers() -> None:
    """Give up the calling thread's OpenMP workers; it gets new ones when it next computes."""
    with suppress(OSError, AttributeError):
        maps = Path("/proc/self/maps").read_text()
        for path in set(re.findall(r"/\S*libgomp\S*\.so\S*", maps)):
            ctypes.CDLL(path).omp_pause_resource_all(_HARD_PAUSE)
