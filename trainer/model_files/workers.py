"""Small pieces of tensor work side by side, one thread each.

torch splits every operation over all cores and waits for the slowest at each. On pieces that fit the processor's cache,
beside anything else that runs, the waiting is most of the time (of a 6 GB merge on two busy cores, nine tenths). So
each piece stays on one core, and the pieces run side by side.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")
MOST = 8


class Workers:
    """Use it in a `with` block: inside, new threads of this process run torch on one core each."""

    def __init__(self) -> None:
        self._count = min(MOST, os.cpu_count() or 1)

    def __enter__(self) -> Workers:
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._count, "lora-kiln-merge", _begin)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._threads)  # the workers' call also set what later threads start with

    def map(self, work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
        """work of each item, in order; at most two per worker are ahead, so that memory stays small."""
        ahead: deque[Future[T]] = deque()
        for item in items:
            ahead.append(self._pool.submit(work, item))
            if len(ahead) > 2 * self._count:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _begin() -> None:
    """What each thread does first."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(
        False
    )  # quantised.py computes with subnormal numbers; the setting is the thread's own
