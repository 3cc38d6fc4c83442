"""A run on a terminal: one line that moves, or a line now and then where there is no terminal."""

from __future__ import annotations

import sys
import time
from typing import TextIO

import torch

from ..events import AdviceEvent, CheckpointEvent, Event, MessageEvent, StepEvent, ValidationEvent

QUIET_SECONDS = 10.0  # between lines where there is no terminal
LIVE_SECONDS = 0.1  # between moves where there is one


def step_line(event: StepEvent) -> str:
    """Where a run stands, in one line."""
    rate = f"{1 / event.seconds:.1f} steps/s" if event.seconds < 1 else f"{event.seconds:.1f} s/step"
    left = event.seconds * (event.total - event.step)
    return f"step {event.step}/{event.total}  loss {event.smoothed_loss:.4f}  {rate}  {clock(left)} left"


def clock(seconds: float) -> str:
    """h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def device_memory() -> str:
    """What this process holds of the accelerator's memory, and its peak; nothing on a CPU."""
    if not torch.cuda.is_available():
        return ""
    now, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    return f"  {now / 2**30:.1f} GiB (peak {peak / 2**30:.1f})"


class ConsoleListener:
    """Prints a run's progress."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._last = -QUIET_SECONDS

    def __call__(self, event: Event) -> None:
        match event:
            case StepEvent():
                pause = LIVE_SECONDS if self._live else QUIET_SECONDS
                if event.step < event.total and time.monotonic() - self._last < pause:
                    return
                self._last = time.monotonic()
                self._print(step_line(event) + device_memory(), moves=self._live)
            case ValidationEvent():
                self._print(
                    f"validation {event.loss:.4f} at step {event.step}, best at step {event.best_step}"
                )
            case AdviceEvent():
                for text in event.advice:
                    self._print(text)
            case CheckpointEvent():
                self._print(f"checkpoint {event.path}")
            case MessageEvent():
                self._print(event.text)

    def _print(self, text: str, moves: bool = False) -> None:
        start, end = ("\r\033[K", "" if moves else "\n") if self._live else ("", "\n")
        print(f"{start}{text}", end=end, file=self._stream, flush=True)
