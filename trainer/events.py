"""What a run reports and what it is told.

A run emits events; listeners (progress bar, console, history) only listen and can never break it. A run is told
things through one `Controls` object, read at step boundaries.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)


class Stopped(Exception):
    """Raised inside a step to abandon it: the run ends as of the last whole step."""


@dataclass(frozen=True, kw_only=True)
class StepEvent:
    """One optimizer step is done."""

    step: int  # steps done so far, 1..total
    total: int
    loss: float  # mean over the step's items
    smoothed_loss: float  # exponential mean, see report/curve.py
    learning_rate: float  # that this step used
    grad_norm: float  # before clipping
    seconds: float  # that this step took
    epoch: float  # passes over the dataset so far


@dataclass(frozen=True, kw_only=True)
class CheckpointEvent:
    """A whole checkpoint is on disk."""

    step: int
    path: Path


@dataclass(frozen=True, kw_only=True)
class MessageEvent:
    """A sentence for the user."""

    text: str


@dataclass(frozen=True, kw_only=True)
class StartEvent(MessageEvent):
    """How the run began, where that may surprise: what it goes on from, or why it begins anew."""

    offer: str = ""  # what `resume` may be set to instead; see trainer.runs.resume.choose_checkpoint


@dataclass(frozen=True, kw_only=True)
class MemoryPlanEvent(MessageEvent):
    """What the run will need of the device, decided before its first step; `text` says the same."""

    level: str  # of memory
    total: int  # bytes
    parts: dict[str, int]  # bytes by name


@dataclass(frozen=True)
class ValidationPoint:
    """One measurement of the held-out items."""

    step: int
    loss: float  # mean over items and noise levels
    bands: list[float]  # mean over items by noise level, from clean to noisy


def best_of(points: Sequence[ValidationPoint]) -> ValidationPoint | None:
    """The measurement with the lowest loss, the one before training left out."""
    trained = [p for p in points if p.step > 0 and math.isfinite(p.loss)]
    return min(trained, key=lambda p: p.loss) if trained else None


@dataclass(frozen=True, kw_only=True)
class ValidationEvent:
    """The held-out items were measured."""

    step: int
    loss: float  # mean over items and noise levels
    bands: tuple[float, ...]  # by noise level, from clean to noisy
    best_step: int  # of the lowest loss so far


@dataclass(frozen=True, kw_only=True)
class AdviceEvent:
    """What the curves say has changed; the whole present advice, one sentence or two each, maybe none."""

    step: int
    advice: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SampleEvent:
    """A picture was drawn with the adapter as it is at this step; 0 is the model without it."""

    step: int
    place: int  # among the pictures of one step, 0..: the same prompt and seed have the same place
    prompt: str
    path: Path  # a PNG; of a video the middle frame
    animated: bool = False  # a moving WEBP of the same name lies beside it


Event = StepEvent | CheckpointEvent | MessageEvent | ValidationEvent | AdviceEvent | SampleEvent
Listener = Callable[[Event], None]


def emitter(listeners: Sequence[Listener]) -> Listener:
    """One callable that hands an event to every listener; a listener that fails is logged and dropped."""
    active = list(listeners)

    def emit(event: Event) -> None:
        for listener in list(active):
            try:
                listener(event)
            except Exception:
                log.exception("A listener of the training run failed and is dropped: %r", listener)
                active.remove(listener)

    return emit


class Controls:
    """Requests to a run, safe to set from any thread.

    The run calls `acquire_device` before it loads its model, `yield_device` between steps and `release_device` when it
    is over. Other nodes that need the device call `request_device`, which returns once the run is not on it, and
    `end_device_request` afterwards.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._device_requested = False  # by another node
        self._waiting_requests = 0  # threads that are inside request_device
        self._on_device = False  # the run has its model loaded and may be inside a step
        self._paused = False
        self._save = threading.Event()
        self._sample = threading.Event()
        self.finish_requested = False  # stopped on purpose: what was learned goes on to the next node

    def stop(self) -> None:
        """Ask the run to end after the current step, keeping what it has learned."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()

    def finish(self) -> None:
        """Stop as if the current step were the last: the result is the run's result."""
        self.finish_requested = True
        self.stop()

    def pause(self) -> None:
        """Ask the run to leave the device after the current step, until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Let a paused run go on."""
        with self._changed:
            self._paused = False
            self._changed.notify_all()

    def request_save(self) -> None:
        """Ask for a checkpoint after the current step."""
        self._save.set()

    def take_save_request(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        asked = self._save.is_set()
        self._save.clear()
        return asked

    def request_sample(self) -> None:
        """Ask for samples after the current step."""
        self._sample.set()

    def take_sample_request(self) -> bool:
        """Whether samples were asked for since the last call."""
        asked = self._sample.is_set()
        self._sample.clear()
        return asked

    @property
    def stop_requested(self) -> bool:
        return self._stop.is_set()

    @property
    def paused(self) -> bool:
        """Whether the run is to leave the device until `resume`; the current step may still be running."""
        return self._paused

    @property
    def waits_for_device(self) -> bool:
        """Whether the run has left the device to another node."""
        return self._device_requested and not self._on_device

    def request_device(self) -> None:
        """Block until the run is off the device: at a step boundary, not started yet, or over."""
        with self._changed:
            self._device_requested = True
            self._waiting_requests += 1
            self._changed.wait_for(lambda: not self._on_device)
            self._waiting_requests -= 1

    def end_device_request(self) -> None:
        """The run may go on, unless another thread is inside request_device. Does nothing without a request."""
        with self._changed:
            self._device_requested = self._waiting_requests > 0
            self._changed.notify_all()

    def acquire_device(self) -> None:
        """Block while another node has the device or the run is paused, unless the run is told to stop."""
        with self._changed:
            self._changed.wait_for(
                lambda: not (self._device_requested or self._paused) or self.stop_requested
            )
            self._on_device = True

    def release_device(self) -> None:
        """The run's model is off the device."""
        with self._changed:
            self._on_device = False
            self._changed.notify_all()

    def yield_device(self, offload: Callable[[], None], reload: Callable[[], object]) -> None:
        """Called by the run between steps: leaves the device while another node requests it or the run is paused.

        Args:
            offload: takes the model off the device.
            reload: brings it back.

        Raises:
            Stopped: the run was told to stop.
        """
        if (self._device_requested or self._paused) and not self.stop_requested:
            offload()
            self.release_device()
            self.acquire_device()
            if not self.stop_requested:
                reload()
        if self.stop_requested:
            raise Stopped
