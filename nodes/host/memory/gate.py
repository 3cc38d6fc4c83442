"""The host's device, shared between training runs and everything else that loads models.

The gate goes up with the first run and down with the last. While it is up, some of the host's functions are wrapped.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.utils

from ....trainer.runs.job import Job

log = logging.getLogger(__name__)


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
    def shared_with(cls, job: Job[Any]) -> Iterator[None]:
        """The gate stands while at least one job is inside."""
        with cls._lock:
            if not cls._jobs:
                cls._wrap_host_functions()
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
    def _wrap_host_functions(cls) -> None:
        management = comfy.model_management
        for module, name, make in (
            (management, "load_models_gpu", cls._wait_for_runs),
            (management, "free_memory", cls._wait_for_runs),
            # Host 0.33 calls the first after every node; it frees the buffers in which a step's weights lie
            (management, "reset_cast_buffers", cls._wait_for_runs),
            (management, "soft_empty_cache", cls._wait_for_runs),
            (management, "throw_exception_if_processing_interrupted", cls._interrupt_by_controls),
            (comfy.utils, "PROGRESS_BAR_HOOK", cls._ignore_runs),
        ):
            function = getattr(module, name, None)  # 0.3.75 has no reset_cast_buffers
            if function is not None:  # there is no hook without a server
                cls._originals.append((module, name, function))
                setattr(module, name, make(function))

    @classmethod
    def _wait_for_runs(cls, function: Callable[..., Any]) -> Callable[..., Any]:
        def wait_first(*args: Any, **kwargs: Any) -> Any:
            cls.wait_until_free()
            return function(*args, **kwargs)

        return wait_first

    @classmethod
    def _interrupt_by_controls(cls, function: Callable[[], None]) -> Callable[[], None]:
        def look() -> None:
            job = cls._of_this_thread()
            if job is None:
                function()
            elif job.controls.stop_requested:
                raise comfy.model_management.InterruptProcessingException

        return look

    @classmethod
    def _ignore_runs(cls, function: Callable[..., Any]) -> Callable[..., Any]:
        def move(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs) if cls._of_this_thread() is None else None

        return move

    @classmethod
    def _of_this_thread(cls) -> Job[Any] | None:
        caller = threading.get_ident()
        return next((job for job in list(cls._jobs) if job.thread_id == caller), None)

    @classmethod
    def wait_until_free(cls) -> None:
        """Return once no run holds the device, other than one whose own thread asks."""
        if cls._of_this_thread() is None:
            for job in list(cls._jobs):
                job.controls.request_device()

    @classmethod
    def is_up(cls) -> bool:
        """Whether a run is active."""
        return bool(cls._jobs)

    @classmethod
    def end_requests(cls) -> None:
        """Nobody else needs the device at the moment."""
        for job in list(cls._jobs):
            job.controls.end_device_request()

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
