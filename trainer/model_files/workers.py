"""A thread pool for tensor work, one core a thread.

By default torch splits every operation over all cores and waits for the slowest at each. On blocks that fit the
processor's cache, on a machine that runs other programs too, that waiting is most of the time (nine tenths of a 6 GB
merge on two busy cores). So each block is computed on one core, and several blocks at a time.
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
MAX_WORKERS = 8


class Workers:
    """The pool. Use it in a `with` block; inside, any new thread of this process runs torch on one core."""

    def __init__(self) -> None:
        self._count = min(MAX_WORKERS, os.cpu_count() or 1)

    def __enter__(self) -> Workers:
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._count, "lora-kiln-merge", _start_thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._threads)  # _start_thread changed the default of later threads

    def map(self, work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
        """The results of work(item), in order. At most two items a worker are ahead, so that memory stays small."""
        pending: deque[Future[T]] = deque()
        for item in items:
            pending.append(self._pool.submit(work, item))
            if len(pending) > 2 * self._count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _start_thread() -> None:
    """Settings of each thread of the pool."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(
        False
    )  # fp8_rounding.py computes with subnormal numbers; the setting is per thread
