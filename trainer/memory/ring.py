"""Streaming of frozen blocks: two slots on the device, one for the block in use and one for the block after it.

    forward   0 1 2 ... n-1        when block i begins, the copy of block i+1 into the other slot starts
    backward  n-1 ... 2 1 0        when block i is recomputed, the copy of block i-1 starts

The last two blocks of forward are the first two of backward, and the other way round: they are not fetched again.
Copies run on a thread, and on a GPU on a stream of their own (streams.py): from pinned memory directly, from other
memory (or a mapped file) through a pinned buffer. On the CPU the same code runs with plain copies.

A block whose weights are not in a slot has its stored ones, which the layers bring to the device themselves: an
unforeseen order costs time and is never wrong. Nothing that autograd saves may point into a slot once another block is
in it, therefore streamed blocks are always recomputed (recompute.py): what they save lives only during their own
backward.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .ledger import Ledger
from .plain import is_plain
from .streams import Streams, streams_of

ALIGNMENT = 256  # bytes: what CUDA's allocator and vector instructions like


@dataclass(frozen=True)
class StoredWeight:
    """One frozen tensor of a block and the module that reads it under that name; of a quantised weight, one of the
    tensors that it is made of."""

    owner: nn.Module
    name: str
    stored: Tensor  # CPU memory, a mapped file (then maybe of another type), or the device itself
    dtype: torch.dtype
    part: str = ""  # the quantised weight's attribute

    @property
    def size(self) -> int:
        """Bytes in a slot."""
        return self.stored.numel() * self.dtype.itemsize


class BlockRing:
    """Holds the memory of two blocks, whatever their number."""

    def __init__(self, blocks: list[list[StoredWeight]], device: torch.device, ledger: Ledger) -> None:
        self._blocks = blocks
        self._stored = [
            [w.owner._parameters[w.name] for w in block] for block in blocks
        ]  # put back when a block's turn is over
        size = max(sum(map(_room, block)) for block in blocks)
        self._slots = [_Slot(size, device) for _ in range(min(2, len(blocks)))]
        self._ledger = ledger
        ledger.hold("slots", size * len(self._slots))
        self._bound: int | None = None
        self._thread = _CopyThread()

    def bind(self, index: int) -> None:
        """Bind the weights of block `index` in its slot, and start copying the block that is likely to be next."""
        if index == self._bound:
            return
        forward = self._bound is None or index > self._bound or index == 0
        slot = self._fetch(index)
        slot.wait()
        self._unbind()
        block = self._blocks[index]
        quantised: dict[tuple[nn.Module, str], dict[str, Tensor]] = {}
        for weight, value in zip(block, slot.views(block), strict=True):
            if weight.part:
                quantised.setdefault((weight.owner, weight.name), {})[weight.part] = value
            else:
                weight.owner._parameters[weight.name] = nn.Parameter(value, requires_grad=False)
        for (owner, name), parts in quantised.items():
            owner._parameters[name] = rebuilt(owner._parameters[name], parts)
        self._bound = index
        following = index + 1 if forward else index - 1
        if following == len(self._blocks) and not torch.is_grad_enabled():
            following = 0  # no backward comes: the next pass begins at the front
        if 0 <= following < len(self._blocks):
            self._fetch(following)

    def _fetch(self, index: int) -> _Slot:
        """The slot that holds the block, or into which its copy has started."""
        for slot in self._slots:
            if slot.holds == index:
                return slot
        in_use = self._bound
        slot = next(s for s in self._slots if in_use is None or s.holds != in_use)
        slot.begin(index, self._blocks[index], self._thread)
        return slot

    def _unbind(self) -> None:
        if self._bound is None:
            return
        for weight, stored in zip(self._blocks[self._bound], self._stored[self._bound], strict=True):
            weight.owner._parameters[weight.name] = stored
        self._bound = None

    def close(self) -> None:
        """Restore the stored weights and free the slots."""
        self._thread.close()
        self._unbind()
        for slot in self._slots:
            slot.finish()
        self._slots.clear()
        self._ledger.release("slots")


class _CopyThread:
    """Runs copies one after the other. A ThreadPoolExecutor takes nothing any more once the interpreter begins to end,
    which is before a run that is told to stop has finished its step."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[None], Callable[[], None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="lora-kiln-stream", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], None]) -> Future[None]:
        future: Future[None] = Future()
        self._jobs.put((future, work))
        return future

    def close(self) -> None:
        """Return when all copies are done."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, work = job
            try:
                future.set_result(work())
            except BaseException as error:  # raised where the block is needed
                future.set_exception(error)


class _Slot:
    """One block's worth of device memory."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.holds: int | None = None
        self._memory = torch.empty(size, dtype=torch.uint8, device=device)
        self._copying: Future[None] | None = None
        self._copied: torch.Event | None = None
        self._staging: Tensor | None = None  # pinned; only where a weight is stored in memory that is not
        self._streams = streams_of(device)
        if self._streams is not None:
            self._stream = self._streams.make()

    def views(self, block: list[StoredWeight]) -> list[Tensor]:
        """The slot's memory as this block's tensors."""
        return _views(self._memory, block)

    def begin(self, index: int, block: list[StoredWeight], thread: _CopyThread) -> None:
        """Start copying the block in. Work that reads the slot's present block is on the current stream already."""
        self.holds = index
        streams = self._streams
        if streams is None:
            self._copying = thread.submit(lambda: self._copy(block))
            return
        streams.wait(self._stream, streams.record(streams.current()))
        self._copying = thread.submit(lambda: self._copy_beside_work(block, streams))

    @torch.no_grad()
    def _copy(self, block: list[StoredWeight]) -> None:
        for weight, view in zip(block, self.views(block), strict=True):
            view.copy_(weight.stored)

    @torch.no_grad()
    def _copy_beside_work(self, block: list[StoredWeight], streams: Streams) -> None:
        staged = [w for w in block if not streams.is_direct(w.stored)]
        stages: Iterator[Tensor] = iter(())
        if staged:
            if self._copied is not None:  # the pinned buffer is still read by the copy before this one
                streams.wait_on_cpu(self._copied)
            size = sum(map(_room, staged))
            if self._staging is None or len(self._staging) < size:
                self._staging = streams.pinned(self._memory[:size])
            stages = iter(_views(self._staging, staged))
        for weight, view in zip(block, self.views(block), strict=True):
            source = weight.stored
            if not streams.is_direct(source):
                source = next(stages).copy_(weight.stored)
            streams.copy(view, source, self._stream)
        self._copied = streams.record(self._stream)

    def wait(self) -> None:
        """Make the current stream wait for the copy."""
        if self._copying is not None:
            self._copying.result()
            self._copying = None
        if self._streams is not None and self._copied is not None:
            self._streams.wait(self._streams.current(), self._copied)

    def finish(self) -> None:
        """Wait for the last copy, so that the memory can be freed."""
        if self._streams is not None and self._copied is not None:
            self._streams.wait_on_cpu(self._copied)
        self.holds = self._copying = None


def parts_of_weight(tensor: Tensor) -> dict[str, Tensor]:
    """The ordinary tensors that a quantised weight is made of, by attribute; none where it does not say."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return {}
    parts = {name: getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]}
    return parts if all(map(is_plain, parts.values())) else {}


def rebuilt(like: Any, parts: dict[str, Tensor]) -> nn.Parameter:
    """A quantised weight as `like` of other tensors."""
    context = like.__tensor_flatten__()[1]
    weight = type(like).__tensor_unflatten__(parts, context, like.size(), like.stride())
    return nn.Parameter(weight, requires_grad=False)


def _room(weight: StoredWeight) -> int:
    return -(-weight.size // ALIGNMENT) * ALIGNMENT


def _views(memory: Tensor, block: list[StoredWeight]) -> list[Tensor]:
    views, start = [], 0
    for weight in block:
        part = memory[start : start + weight.size]
        views.append(part.view(weight.dtype).view(weight.stored.shape))
        start += _room(weight)
    return views
