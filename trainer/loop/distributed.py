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

from ..errors import KilnError
from ..events import Stopped

T = TypeVar("T")


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
        """What `make` returns in the main process, in all of them; a KilnError it raises there is raised in all."""
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
        from accelerate.utils import broadcast_object_list

        failure: KilnError | None = None
        told = [
            "",
            "",
        ]  # the text, or the sentence of what went wrong: those who wait for it must not wait for ever
        if self.is_main:
            try:
                told[0] = make()
            except KilnError as error:
                failure, told[1] = error, str(error)
        text, sentence = broadcast_object_list(told, from_process=0)
        if failure or sentence:
            raise failure or KilnError(sentence)
        return str(text)


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
