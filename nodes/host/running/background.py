"""Training in a background thread, while a prompt waits or further prompts run.

What needs care:

- An interrupt is one global flag, meant for the prompt that runs; host layers look at it in whatever thread they are
  and clear it. A run's own thread therefore looks at its Controls instead (see DeviceGate): it neither takes another
  prompt's interrupt nor is stopped by it. The node that waits polls the flag for its run.
- Other nodes run meanwhile, on the prompt's own thread, and load models. `DeviceGate` makes the run step aside first.
  A node that waits gets its device back with the first tick of its polling, since nodes block the prompt's event
  loop while they work. A run that no prompt waits for gets it back when no prompt runs any more: going to and fro
  between queued prompts would load the model anew for each.
- The prompt can be cancelled under us (another node failed): then the run it waits for is stopped and waited for.
- The host can be closed: see `save_on_exit`.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

import comfy.model_management
from server import PromptServer

from ....trainer.events import Controls
from ....trainer.runs.job import Job
from ..memory.gate import DeviceGate

T = TypeVar("T")

POLL_SECONDS = 0.1


async def run_in_background(work: Callable[[Controls], T]) -> tuple[T, bool]:
    """Run `work` on a thread and wait for it without blocking the host.

    Returns:
        Its result, and whether the host's interrupt asked it to stop.

    Raises:
        NotStarted: it was told to stop while other runs were before it.
    """
    job = Job(work)
    interrupted = False
    with DeviceGate.shared_with(job):
        job.start()
        try:
            while not job.done:
                if comfy.model_management.processing_interrupted():
                    interrupted = True
                    job.controls.stop()
                DeviceGate.end_requests()  # also to a run that this one waits for
                await asyncio.sleep(POLL_SECONDS)
        finally:
            job.controls.stop()
            job.wait()
    return job.result(), interrupted


def run_detached(work: Callable[[Controls], T], watch: Callable[[Job[T]], None]) -> None:
    """Run `work` on a thread that no prompt waits for.

    Args:
        watch: called every now and then while it runs, and once when job.done.
    """
    job = Job(work)

    def guard() -> None:
        with DeviceGate.shared_with(job):
            job.start()
            while not job.done:
                if PromptServer.instance.prompt_queue.get_tasks_remaining() == 0:
                    DeviceGate.end_requests()
                watch(job)
                job.wait(POLL_SECONDS)
        watch(job)

    thread = threading.Thread(target=guard, name="lora-kiln-guard", daemon=True)
    DeviceGate.guards = [t for t in DeviceGate.guards if t.is_alive()] + [thread]
    thread.start()


def raise_interrupted() -> None:
    """End the running node as interrupted, with the flag cleared for the next prompt."""
    comfy.model_management.interrupt_current_processing(False)
    raise comfy.model_management.InterruptProcessingException


def save_on_exit() -> None:
    """Make closing the host save a checkpoint of every active run first. Called on the main thread.

    Ctrl-C ends the host's main thread, and the interpreter calls us before it stops the others. The other ways to close
    it, which the host leaves at the default of ending the process at once, go the same way while a run is active; a
    second signal ends at once.
    """
    atexit.register(DeviceGate.stop_all)
    if threading.current_thread() is not threading.main_thread():
        return
    for name in (
        "SIGTERM",
        "SIGHUP",
        "SIGBREAK",
    ):  # kill, a closed terminal, a closed console window on Windows
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    if DeviceGate.is_up():
        raise KeyboardInterrupt
    os.kill(os.getpid(), number)
