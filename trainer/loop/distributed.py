"""Several processes that train one LoRA together, through Hugging Face Accelerate.

Every process holds the model and takes its shard of each batch; gradients and losses are summed, so that N processes at
batch size B do what one process does at batch size N * B. A `ProcessGroup` of one is the ordinary case and costs
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..events import Stopped

T = TypeVar("T")

TEXT_BYTES = 8192


class ProcessGroup:
    """One process. Every shard is the whole."""

    rank = 0
    size = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of a list; maybe nothing."""
        return items[self.rank :: self.size]

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        return values

    def stop_together(self, requested: bool) -> None:
        """Raise Stopped in all processes when one of them was told to stop."""
        if requested:
            raise Stopped

    def barrier(self) -> None:
        """Wait until all processes are here."""

    def broadcast_from_main(self, make: Callable[[], str]) -> str:
        """What `make` returns in the main process, in all of them; at most TEXT_BYTES bytes."""
        return make()


class AccelerateGroup(ProcessGroup):
    """The processes that `accelerate launch` started."""

    def __init__(self) -> None:
        from accelerate import Accelerator

        self._accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        self.rank = self._accelerator.process_index
        self.size = self._accelerator.num_processes
        self.device = self._accelerator.device

    def all_reduce(self, values: Tensor) -> Tensor:
        return self._accelerator.reduce(values.to(self.device), "sum").to(values.device)

    def stop_together(self, requested: bool) -> None:
        super().stop_together(bool(self.all_reduce(torch.tensor([float(requested)])).item()))

    def barrier(self) -> None:
        self._accelerator.wait_for_everyone()

    def broadcast_from_main(self, make: Callable[[], str]) -> str:
        letters = torch.zeros(TEXT_BYTES, dtype=torch.long)
        if self.is_main:
            text = make().encode()
            letters[: len(text)] = torch.tensor(list(text))
        return bytes(self.all_reduce(letters).tolist()).rstrip(b"\0").decode()


def all_reduce_gradients(group: ProcessGroup, buffers: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
    """Sum every gradient over all processes, in one message; returns the sum of the losses."""
    if group.size == 1:
        return loss
    gradients = [b.grad for b in buffers if b.grad is not None]
    total = group.all_reduce(torch.cat([*gradients, loss.to(gradients[0]).reshape(1)]))
    place = 0
    for gradient in gradients:
        gradient.copy_(total[place : place + gradient.numel()])
        place += gradient.numel()
    return total[-1]
