"""Several processes that train one LoRA together, through Hugging Face Accelerate.

Every process holds the model and takes its share of each batch; gradients and losses are added up, so that N processes
at batch size B do what one process does at batch size N * B. Alone is the ordinary case and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")

TEXT_BYTES = 8192


class Alone:
    """One process: every share is the whole."""

    rank = 0
    size = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def share(self, things: Sequence[T]) -> Sequence[T]:
        """This process's part of a list; maybe nothing."""
        return things[self.rank :: self.size]

    def add_up(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        return values

    def any(self, flag: bool) -> bool:
        """Whether some process says yes."""
        return flag

    def wait(self) -> None:
        """Until all processes are here."""

    def from_main(self, make: Callable[[], str]) -> str:
        """What `make` returns in the main process, in all of them; short texts."""
        return make()


class Team(Alone):
    """The processes that `accelerate launch` started."""

    def __init__(self) -> None:
        from accelerate import Accelerator

        self._accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        self.rank = self._accelerator.process_index
        self.size = self._accelerator.num_processes
        self.device = self._accelerator.device

    def add_up(self, values: Tensor) -> Tensor:
        return self._accelerator.reduce(values.to(self.device), "sum").to(values.device)

    def any(self, flag: bool) -> bool:
        return bool(self.add_up(torch.tensor([float(flag)])).item())

    def wait(self) -> None:
        self._accelerator.wait_for_everyone()

    def from_main(self, make: Callable[[], str]) -> str:
        letters = torch.zeros(TEXT_BYTES, dtype=torch.long)
        if self.is_main:
            text = make().encode()
            letters[: len(text)] = torch.tensor(list(text))
        return bytes(self.add_up(letters).tolist()).rstrip(b"\0").decode()


def add_up_gradients(team: Alone, buffers: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
    """Put the sum over all processes into every gradient, in one message; returns the sum of the losses."""
    if team.size == 1:
        return loss
    gradients = [b.grad for b in buffers if b.grad is not None]
    total = team.add_up(torch.cat([*gradients, loss.to(gradients[0]).reshape(1)]))
    place = 0
    for gradient in gradients:
        gradient.copy_(total[place : place + gradient.numel()])
        place += gradient.numel()
    return total[-1]
