"""What every benchmark process inside the host has in common: the model, one still to train on, memory, turns.

A contestant runs in a process of its own in the host's folder (see step_worker.py), because the host's modules are
called `nodes` and `server`, as ours, and because a resident set is only a contestant's own in a fresh process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

REPO = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Task:
    """What is trained: one still of height x width latent pixels (4 of them a token) over `text` text tokens."""

    model: str
    height: int = 32
    width: int = 32
    frames: int = 1  # of the latent
    text: int = 128
    rank: int = 16
    device: str = "cpu"

    @property
    def tokens(self) -> int:
        return self.frames * self.height * self.width // 4


def enter_host(device: str) -> ModuleType:
    """Make the host's library and the pack importable in this process; returns the pack as the package lora_kiln."""
    sys.path.insert(0, str(REPO / "tests" / "host"))
    import inprocess

    inprocess.start(cpu=device == "cpu")
    return sys.modules["lora_kiln"]


PROCESSOR_TIME = "KILN_BENCHMARK_PROCESSOR_TIME"
"""Environment variable: seconds of the processor, of all threads together, instead of the clock's."""


class Turns:
    """Runs a contestant some steps at a time, as the parent process says: `go N` on stdin, seconds on stdout."""

    def __init__(self) -> None:
        self._clock = time.process_time if os.environ.get(PROCESSOR_TIME) else time.perf_counter
        self._left = 0
        self._seconds: list[float] = []
        self._started = 0.0
        self._synchronize: Callable[[], None] = lambda: None

    def use_cuda(self) -> None:
        """Time finished work, not queued work."""
        import torch

        self._synchronize = torch.cuda.synchronize

    def wait_for_go(self) -> None:
        """Before the first step."""
        say({"ready": True})
        self._read()

    def tick(self) -> None:
        """After every step. Blocks when it is another one's turn; raises Over when the parent has seen enough."""
        self._synchronize()
        now = self._clock()
        self._seconds.append(now - self._started)
        self._left -= 1
        if self._left <= 0:
            say({"seconds": self._seconds})
            self._seconds = []
            self._read()
        self._started = self._clock()

    def _read(self) -> None:
        words = sys.stdin.readline().split()
        if not words or words[0] != "go":
            raise Over
        self._left = int(words[1])
        self._started = self._clock()


class Over(BaseException):
    """The parent has seen enough. Not an Exception: nobody's error handling should take it for a failure."""


def say(message: dict[str, Any]) -> None:
    """One line of JSON to the parent, on the true stdout."""
    print(json.dumps(message), file=sys.__stdout__, flush=True)


class Memory:
    """Peak memory above what is held when it is made: the resident set on a CPU, the allocator's peak on CUDA."""

    def __init__(self, device: str) -> None:
        self._device = device
        if device == "cpu":
            Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to the present size
            self._before = _status("VmRSS")
        else:
            import torch

            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()

    def peak(self) -> int:
        """Bytes."""
        if self._device == "cpu":
            return _status("VmHWM") - self._before
        import torch

        return torch.cuda.max_memory_allocated() - self._before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def load_model(task: Task) -> Any:
    """The MODEL, as the host's loader node makes it, with its pages in memory."""
    import comfy.model_management
    import comfy.sd
    import torch

    with torch.inference_mode():
        patcher = comfy.sd.load_diffusion_model(task.model)
        # As every contestant will ask for it; and read every page, where the host maps the file
        comfy.model_management.load_models_gpu([patcher], force_full_load=True)
        for tensor in patcher.model.state_dict().values():
            tensor.sum()
    return patcher


def make_latent(task: Task) -> Any:
    """(1, 16, F, H, W) fp32, the same every time."""
    import torch

    return torch.randn(
        1, 16, task.frames, task.height, task.width, generator=torch.Generator().manual_seed(1)
    )


def make_text(task: Task) -> Any:
    """(1, text, 4096) fp32."""
    import torch

    return torch.randn(1, task.text, 4096, generator=torch.Generator().manual_seed(2)) * 0.1
