"""Training in a background thread, while a prompt waits and the host stays responsive.

Three things need care:

- An interrupt is one global flag. We poll it; a host layer inside our forward may also see it first and clear it
  (HostDenoiser turns that into Stopped). Either way the run ends at a step boundary and the prompt as interrupted.
- Other nodes of the same prompt run meanwhile, on the prompt's own thread, and load models: a sampler of a base
  model beside its trainer. `DeviceGate` makes the run step aside first. Such a node blocks the prompt's event loop
  until it is done, so the first tick of our polling after it is the sign to go on.
- The prompt can be cancelled under us (another node failed): then the run is stopped and waited for.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import comfy.model_management

from ...trainer.events import Controls
from ...trainer.job import Job

T = TypeVar("T")

POLL_SECONDS = 0.1


async def run_in_background(work: Callable[[Controls], T]) -> tuple[T, bool]:
    """Run `work` on a thread and wait for it without blocking the host.

    Returns:
        Its result, and whether the host's interrupt asked it to stop.
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
                job.controls.return_device()
                await asyncio.sleep(POLL_SECONDS)
        finally:
            job.controls.stop()
            job.wait()
    return job.result(), interrupted


def raise_interrupted() -> None:
    """End the running node as interrupted, with the flag cleared for the next prompt."""
    comfy.model_management.interrupt_current_processing(False)
    raise comfy.model_management.InterruptProcessingException


class DeviceGate:
    """While runs are active, every other thread that is about to load models first waits for them to step aside."""

    _jobs: list[Job[Any]] = []
    _lock = threading.Lock()
    _original: Callable[..., Any] | None = None

    @classmethod
    @contextmanager
    def lent_by(cls, job: Job[Any]) -> Iterator[None]:
        """The gate stands while at least one job is inside; the host's function is put back by the last one."""
        with cls._lock:
            if not cls._jobs:
                cls._original = comfy.model_management.load_models_gpu
                comfy.model_management.load_models_gpu = cls._load_models
            cls._jobs.append(job)
        try:
            yield
        finally:
            with cls._lock:
                cls._jobs.remove(job)
                if not cls._jobs and cls._original is not None:
                    comfy.model_management.load_models_gpu = cls._original

    @classmethod
    def _load_models(cls, *args: Any, **kwargs: Any) -> Any:
        cls.wait_until_aside()
        assert cls._original is not None
        return cls._original(*args, **kwargs)

    @classmethod
    def wait_until_aside(cls) -> None:
        """Return once no run holds the device, other than one whose own thread asks."""
        caller = threading.get_ident()
        if all(job.thread_id != caller for job in cls._jobs):
            for job in list(cls._jobs):
                job.controls.borrow_device()
