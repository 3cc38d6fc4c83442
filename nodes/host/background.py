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
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import comfy.model_management
import comfy.utils
from server import PromptServer

from ...trainer.events import Controls
from ...trainer.job import Job

log = logging.getLogger(__name__)

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
    with DeviceGate.lent_by(job):
        job.start()
        try:
            while not job.done:
                if comfy.model_management.processing_interrupted():
                    interrupted = True
                    job.controls.stop()
                DeviceGate.return_to_all()  # also to a run that this one waits for
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
        with DeviceGate.lent_by(job):
            job.start()
            while not job.done:
                if PromptServer.instance.prompt_queue.get_tasks_remaining() == 0:
                    DeviceGate.return_to_all()
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


class DeviceGate:
    """While runs are active, some of the host's functions are ours; the last run puts them back.

    - Whoever loads models or makes room on the device first waits until every run has stepped aside, unless it is a
      run's own thread.
    - A run's own thread is interrupted by its Controls only, and moves no other node's progress bar.
    """

    guards: list[threading.Thread] = []  # of runs that no prompt waits for
    _jobs: list[Job[Any]] = []  # read through a copy: other threads come and go
    _lock = threading.Lock()
    _originals: list[tuple[Any, str, Any]] = []  # module, name, function

    @classmethod
    @contextmanager
    def lent_by(cls, job: Job[Any]) -> Iterator[None]:
        """The gate stands while at least one job is inside."""
        with cls._lock:
            if not cls._jobs:
                cls._put_up()
            cls._jobs.append(job)
        try:
            yield
        finally:
            with cls._lock:
                cls._jobs.remove(job)
                if not cls._jobs:
                    for module, name, function in cls._originals:
                        setattr(module, name, function)
                    cls._originals.clear()

    @classmethod
    def _put_up(cls) -> None:
        management = comfy.model_management
        for module, name, make in (
            (management, "load_models_gpu", cls._after_others),
            (management, "free_memory", cls._after_others),
            (management, "throw_exception_if_processing_interrupted", cls._own_interrupt),
            (comfy.utils, "PROGRESS_BAR_HOOK", cls._others_only),
        ):
            function = getattr(module, name)
            if function is not None:  # there is no hook without a server
                cls._originals.append((module, name, function))
                setattr(module, name, make(function))

    @classmethod
    def _after_others(cls, function: Callable[..., Any]) -> Callable[..., Any]:
        def wait_first(*args: Any, **kwargs: Any) -> Any:
            cls.wait_until_aside()
            return function(*args, **kwargs)

        return wait_first

    @classmethod
    def _own_interrupt(cls, function: Callable[[], None]) -> Callable[[], None]:
        def look() -> None:
            job = cls._of_this_thread()
            if job is None:
                function()
            elif job.controls.stop_requested:
                raise comfy.model_management.InterruptProcessingException

        return look

    @classmethod
    def _others_only(cls, function: Callable[..., Any]) -> Callable[..., Any]:
        def move(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs) if cls._of_this_thread() is None else None

        return move

    @classmethod
    def _of_this_thread(cls) -> Job[Any] | None:
        caller = threading.get_ident()
        return next((job for job in list(cls._jobs) if job.thread_id == caller), None)

    @classmethod
    def wait_until_aside(cls) -> None:
        """Return once no run holds the device, other than one whose own thread asks."""
        if cls._of_this_thread() is None:
            for job in list(cls._jobs):
                job.controls.borrow_device()

    @classmethod
    def return_to_all(cls) -> None:
        """Nobody else needs the device at the moment."""
        for job in list(cls._jobs):
            job.controls.return_device()

    @classmethod
    def stop_all(cls) -> None:
        """Stop every run and wait until its checkpoint is saved, and what is written after it. A thread that is still
        inside torch when the interpreter ends aborts the process."""
        jobs = list(cls._jobs)
        for job in jobs:
            job.controls.stop()
        if jobs:
            log.info("LoRA Kiln: saving a checkpoint of the training before ComfyUI closes ...")
        for job in jobs:
            job.wait()
        for guard in list(cls.guards):
            if guard.is_alive():
                guard.join()


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
    if DeviceGate._jobs:
        raise KeyboardInterrupt
    os.kill(os.getpid(), number)
