"""One run in a background thread."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from ..events import Controls, Stopped
from ..memory.cpu_tuning import prepare_thread, retained_heap

T = TypeVar("T")

POLL_SECONDS = 0.1
JOIN_SECONDS = 5.0  # for the thread's own end, when its work has ended

_device = threading.Lock()  # runs of one process take turns: two would fight for the device's memory


class NotStarted(Stopped):
    """The run was told to stop before its turn came."""


class Job(Generic[T]):
    """Runs `work(controls)` on a thread of its own, after the runs before it.

    A fresh thread matters: it starts outside the caller's inference mode, in which nothing can be trained.
    """

    def __init__(self, work: Callable[[Controls], T]) -> None:
        self.controls = Controls()
        self._work = work
        self._result: T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="lora-kiln-training", daemon=True)
        # Thread.join that a signal interrupts marks a thread that still runs as ended (Python 3.10 to 3.12, bpo-45274)
        self._ended = threading.Event()

    def start(self) -> None:
        prepare_thread()
        self._thread.start()

    @property
    def thread_id(self) -> int | None:
        return self._thread.ident

    @property
    def done(self) -> bool:
        return self._ended.is_set()

    def wait(self, seconds: float | None = None) -> None:
        """Block until the run has ended, however it ends, or for so long."""
        if self._ended.wait(seconds):
            self._thread.join(JOIN_SECONDS)

    def result(self) -> T:
        """What work returned; raises what it raised, or NotStarted. Only after it is done."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def _run(self) -> None:
        try:
            while not _device.acquire(timeout=POLL_SECONDS):
                if self.controls.stop_requested:
                    raise NotStarted
            try:
                with retained_heap():
                    try:
                        self._result = self._work(self.controls)
                    finally:
                        gc.collect()  # the shared clone and the adapter in it refer to each other
            finally:
                _device.release()
        except BaseException as error:  # handed to whoever asks for the result
            self._error = error
        finally:
            self.controls.release_device()
            self._ended.set()


def another_run_is_active() -> bool:
    """Whether a run is active now, so that another would wait for it."""
    return _device.locked()
