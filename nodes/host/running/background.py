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
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

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
    atexit.register(_end_all)
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _signals(*CLOSING):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _terminate)


CLOSING = ("SIGTERM", "SIGHUP", "SIGBREAK")  # kill, a closed terminal, a closed console window on Windows
PATIENCE = 60.0  # seconds, for a prompt's node that does not look at the interrupt


def _signals(*names: str) -> list[signal.Signals]:
    """Those that this system has."""
    return [signal.Signals[name] for name in names if hasattr(signal, name)]


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    if DeviceGate.is_up():
        raise KeyboardInterrupt
    os.kill(os.getpid(), number)


def _end_all() -> None:
    """The interpreter is about to end. A thread that is inside torch then aborts the process, and the host's prompts
    have a thread of their own: one that runs our nodes, or runs beside our run, is interrupted and waited for."""
    queue = PromptServer.instance.prompt_queue
    if queue.currently_running and not (DeviceGate.is_up() or _runs_our_nodes(queue)):
        return
    if threading.current_thread() is threading.main_thread():
        for number in _signals("SIGINT", *CLOSING):
            signal.signal(number, signal.SIG_DFL)  # a second one ends at once, without a traceback
    at_rest = _park_prompts(queue)
    comfy.model_management.interrupt_current_processing(True)
    DeviceGate.stop_all()
    deadline = time.monotonic() + PATIENCE
    while (queue.currently_running or not at_rest.is_set()) and time.monotonic() < deadline:
        comfy.model_management.interrupt_current_processing(True)  # a prompt that begins takes the flag back
        at_rest.wait(POLL_SECONDS / 2)
    DeviceGate.stop_all()  # of what that prompt began meanwhile


def _park_prompts(queue: Any) -> threading.Event:
    """Let no further prompt begin, and say when the host's thread for prompts has come to rest. That is later than the
    end of a prompt: the thread collects garbage after it, which frees tensors."""
    at_rest = threading.Event()

    def park(timeout: float | None = None) -> None:
        at_rest.set()
        threading.Event().wait()

    if not any("prompt_worker" in thread.name for thread in threading.enumerate()):
        at_rest.set()  # headless.py runs its prompts on the main thread

    with queue.mutex:
        queue.queue.clear()
        queue.get = park
        queue.not_empty.notify_all()  # one that waits for a prompt finds none, and asks again
    return at_rest


def _runs_our_nodes(queue: Any) -> bool:
    kinds = [
        str(node.get("class_type", ""))
        for entry in list(queue.currently_running.values())
        for node in entry[2].values()
    ]
    return any(kind.startswith("Kiln") for kind in kinds)
