"""The runs of this server process as the canvas shows them: state and curves, sent to the page as they grow.

The training thread reports every step; the canvas gets at most a few messages a second, each with the points since
the last one. A page that was not there asks for the whole run over HTTP (nodes/routes.py).
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from typing import Any

import torch
from server import PromptServer

from ....trainer.events import (
    AdviceEvent,
    CheckpointEvent,
    Controls,
    Event,
    MemoryPlanEvent,
    MessageEvent,
    SampleEvent,
    StartEvent,
    StepEvent,
    ValidationEvent,
)
from ....trainer.report.curve import Curve
from .run_history import RunHistory, load_run_history, newest_step

EVENT, OFFER = "lora_kiln.run", "lora_kiln.offer"
INTERVAL_SECONDS = 0.2  # between two messages about one run
MAX_RUNS = 30


class RunMonitor:
    """One run as the canvas sees it: a listener of its events and a handle on its controls."""

    def __init__(
        self, node_id: str, total: int, *, workflow: str = "", draws: bool = False, background: bool = False
    ) -> None:
        """
        Args:
            node_id: of the training node.
            total: steps.
            workflow: id of the graph on the canvas that holds the node; empty where a program sent the prompt.
            draws: whether the run can be asked for samples.
            background: whether the prompt that started it goes on without it.
        """
        self.run_id, self.node_id, self.total, self.draws = "", node_id, total, draws
        self.workflow, self.background = workflow, background
        self.name = ""  # that the user gave it
        self.controls: Controls | None = None
        self._device = torch.device("cpu")
        self._curve = Curve()
        self._begun = 0  # the step at which it goes on
        self._validation: list[tuple[int, float]] = []  # step, loss
        self._samples: dict[tuple[int, int], dict[str, Any]] = {}  # by step and place
        self._new_samples = False  # some that were not sent yet
        self._lock = threading.Lock()
        self._status, self._text = "starting", ""
        self._plan: MemoryPlanEvent | None = None
        self._start: StartEvent | None = None
        self._checkpoint: int | None = None  # step to resume from, when it has ended
        self._seconds = self._epoch = 0.0
        self._sent = 0  # points already sent
        self._last = 0.0

    def begin(self, run_id: str, device: torch.device, step: int = 0, parent: str = "") -> None:
        """The run has a name: from here on the canvas can ask for it.

        Args:
            step: at which it goes on; the curves up to there come from the history.
            parent: the run that they are of, where a new run goes on from another's checkpoint.
        """
        self.run_id, self._device, self._begun = run_id, device, step
        if step:
            self._restore(load_run_history(parent or run_id, step))
        with _lock:
            _runs.pop(run_id, None)  # a resumed run becomes the newest again
            _runs[run_id] = self
            while len(_runs) > MAX_RUNS:
                _runs.popitem(last=False)
        self.say("starting")

    def _restore(self, history: RunHistory) -> None:
        with self._lock:
            self._curve, self._validation = history.curve, history.validation
            self.name = history.record.name if history.record and history.record.id == self.run_id else ""
            self._samples = {(s["step"], s["place"]): s for s in history.samples}
            self._sent = len(history.curve.points)  # a page that lacks them asks for the whole

    def listen(self, event: Event) -> None:
        """A Listener of the training loop."""
        with self._lock:
            if isinstance(event, StepEvent):
                if math.isfinite(event.loss):  # a skipped step has none, and JSON no nan
                    self._curve.add(event)
                self._status = "paused" if self.controls and self.controls.paused else "running"
                mean = self._seconds or event.seconds
                self._seconds, self._epoch = 0.95 * mean + 0.05 * event.seconds, event.epoch
            elif isinstance(event, CheckpointEvent):
                self._text = f"step {event.step}: a checkpoint is saved"
            elif isinstance(event, ValidationEvent):
                self._validation.append((event.step, event.loss))
            elif isinstance(event, AdviceEvent):
                self._text = "\n".join(event.advice)
            elif isinstance(event, SampleEvent):
                self._samples[event.step, event.place] = {
                    "step": event.step,
                    "place": event.place,
                    "prompt": event.prompt,
                    "animated": event.animated,
                }
                self._new_samples = True
                self._text = f"step {event.step}: a sample is drawn"
            elif isinstance(event, StartEvent):
                self._start = event
            elif isinstance(event, MemoryPlanEvent):
                self._plan = event
            elif isinstance(event, MessageEvent):
                self._text = event.text
        self._send()

    @property
    def status(self) -> str:
        return self._status

    def say(self, status: str, text: str = "") -> None:
        """Change of state: sent at once."""
        with self._lock:
            self._status, self._text = status, text or self._text
        self._send(now=True)

    @property
    def finish_requested(self) -> bool:
        """The run was stopped from the panel: what it has learned is its result."""
        return self.controls is not None and self.controls.finish_requested

    def rename(self, name: str) -> None:
        """The user has given it a name."""
        self.name = name
        self._send(now=True)

    def end(self, status: str, text: str) -> None:
        """The run is over: nothing can be told to it any more."""
        self.controls = None
        self._checkpoint = newest_step(self.run_id)
        self.say(status, text)

    def state(self, points: list[Any] | None = None, first: int = 0, samples: bool = False) -> dict[str, Any]:
        """What api.mjs calls a RunState."""
        return {
            "run": self.run_id,
            "node": self.node_id,
            "workflow": self.workflow,
            "name": self.name,
            "background": self.background,
            "status": self._status,
            # The history of a process that was killed may lack the last steps before its checkpoint
            "step": max(self._begun, self._curve.points[-1][0] if self._curve.points else 0),
            "total": self.total,
            "seconds": self._seconds,
            "epoch": self._epoch,
            "memory": torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else None,
            "plan": self._plan
            and {"level": self._plan.level, "total": self._plan.total, "parts": self._plan.parts},
            "start": self._start.text if self._start else "",
            "offer": self._start.offer if self._start else "",
            "checkpoint": self._checkpoint,
            "text": self._text,
            "points": points or [],
            "validation": list(self._validation),
            "first": first,
            "draws": self.draws,
            "samples": [self._samples[key] for key in sorted(self._samples)] if samples else None,
        }

    def whole(self) -> dict[str, Any]:
        """The state with the whole curve, thinned out."""
        with self._lock:
            return self.state(self._curve.thinned(), samples=True)

    def _send(self, now: bool = False) -> None:
        if not self.run_id:
            return
        if not now and time.monotonic() - self._last < INTERVAL_SECONDS:
            return
        self._last = time.monotonic()
        with self._lock:
            fresh, first = self._curve.points[self._sent :], self._sent
            self._sent = len(self._curve.points)
            news, self._new_samples = self._new_samples, False
            message = self.state(fresh, first, samples=news)
        PromptServer.instance.send_sync(EVENT, message)


_runs: OrderedDict[str, RunMonitor] = OrderedDict()
_lock = threading.Lock()


def all_runs() -> list[RunMonitor]:
    """Runs of this server process, newest last."""
    with _lock:
        return list(_runs.values())


def find_run(run_id: str) -> RunMonitor | None:
    """A run by its id."""
    with _lock:
        return _runs.get(run_id)


def send_offer(node_id: str, workflow: str, sentence: str, offer: str) -> None:
    """Tell the canvas what `resume` may be set to instead of what was refused."""
    body = {"node": node_id, "workflow": workflow, "text": sentence, "offer": offer}
    PromptServer.instance.send_sync(OFFER, body)


def run_from_history(run_id: str) -> RunMonitor | None:
    """A run of an earlier server process, which can be told nothing any more."""
    history = load_run_history(run_id)
    if history.record is None:
        return None
    record = history.record
    run = RunMonitor(record.node, int(record.config.get("steps", record.step)), workflow=record.workflow)
    run.run_id = run_id
    run._restore(history)
    # One that never said that it ended was lost with its server; its checkpoints can be resumed
    run._status = record.status if record.status in ("done", "failed") else "stopped"
    run._checkpoint = newest_step(run_id)
    run._text = record.message or "\n".join(record.advice)
    return run


def route_table() -> Any:
    """The host's routes, to which ours are added; its middleware (origin check) applies to them."""
    return PromptServer.instance.routes
