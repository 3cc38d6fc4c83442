"""What a training node asks for, trained while the node waits or in the background of further prompts."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....trainer.config import TrainConfig
from ....trainer.dataset.encoded import EncodedDataset
from ....trainer.errors import CannotResume, KilnError
from ....trainer.events import AdviceEvent, Controls, Event, Listener, MessageEvent, StepEvent
from ....trainer.lora_files.save import save_lora
from ....trainer.report.console import step_line
from ....trainer.runs.job import Job, NotStarted, another_run_is_active
from ....trainer.runs.run import Run, load_run
from .. import paths
from ..canvas.monitor import RunMonitor, send_offer
from ..canvas.progress import NodeProgress
from ..metadata import for_output
from ..models.source import model_source
from ..models.text_encoder import HostTextEncoder
from .background import raise_interrupted, run_detached, run_in_background
from .sampling import SampleTools
from .train_run import train_run, trained_fingerprint

log = logging.getLogger(__name__)

MAX_BACKGROUND_RUNS = 30


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What a training node asks for."""

    model: Any  # a MODEL; it is the same afterwards
    encoded: EncodedDataset
    config: TrainConfig
    resume: str  # see trainer.runs.resume.choose_checkpoint
    node_id: str
    graph: dict[str, Any]  # "workflow" and "prompt" for the metadata of LoRA and samples
    start_from: str = ""  # a LoRA file of the host's folders to begin from, or nothing
    tensorboard: bool = False
    tools: SampleTools | None = None  # what samples are drawn with
    text_encoder: HostTextEncoder | None = None  # where it is trained too

    def monitor(self, background: bool = False) -> RunMonitor:
        return RunMonitor(
            self.node_id,
            self.config.steps,
            workflow=self.workflow_id,
            draws=self.tools is not None,
            background=background,
        )

    @property
    def workflow_id(self) -> str:
        """Of the graph on the canvas; empty where a program sent the prompt."""
        return str((self.graph.get("workflow") or {}).get("id") or "")

    def train(self, controls: Controls, monitor: RunMonitor, listeners: list[Listener]) -> Run:
        """On the calling thread; raises what trainer.loop.train raises."""
        monitor.controls = controls
        run: Run = train_run(
            self.model,
            self.encoded,
            self.config,
            resume=self.resume,
            start_from=self.start_from,
            source=model_source(self.graph.get("prompt") or {}, self.node_id),
            place=(self.node_id, self.workflow_id),
            graph=self.graph,
            controls=controls,
            listeners=[*listeners, monitor.listen],
            on_chosen=monitor.begin,
            tensorboard=self.tensorboard,
            tools=self.tools,
            text_encoder=self.text_encoder,
        )
        return run

    def key(self) -> Hashable:
        """Equal for requests that give the same LoRA."""
        model = trained_fingerprint(self.model, self.text_encoder)
        return (model, self.encoded.fingerprint, repr(self.config), self.resume, self.start_from)


async def train_on_host(request: TrainRequest) -> Run:
    """Train in the background while the node waits; the bar and text on the node follow.

    Raises:
        KilnError: see trainer.loop.train.
        The host's InterruptProcessingException: the user interrupted; a checkpoint is saved.
    """
    progress, monitor = NodeProgress(request.node_id), request.monitor()
    progress.say("waiting for the run that trains now ..." if another_run_is_active() else "starting ...")
    try:
        run, interrupted = await run_in_background(
            lambda controls: request.train(controls, monitor, [_listener(progress)])
        )
    except NotStarted:
        raise_interrupted()
    except BaseException as error:
        monitor.end("failed", str(error))
        if isinstance(error, CannotResume):
            send_offer(request.node_id, request.workflow_id, str(error), error.offer)
        raise
    if interrupted or (run.stopped and not monitor.finish_requested):
        text = f"stopped at step {len(run.losses)} of {request.config.steps}; checkpoint and LoRA: {run.folder.name}"
        progress.say(text)
        monitor.end("stopped", text)
        raise_interrupted()
    text = "\n".join([run.sentence(), *run.advice])
    progress.say(text)
    monitor.end("stopped" if run.stopped else "done", text)
    return run


def train_in_background(request: TrainRequest) -> tuple[Run | None, str]:
    """Train while the prompt and others go on.

    A request whose run goes on already is not started again; one whose run has ended gives that run.

    Returns:
        the run when it has ended, and a sentence for the node.
    """
    key = request.key()
    if key in _background_runs:
        folder = _background_runs[key]
        if folder is None:
            return None, "This run trains in the background already; queue the graph again when it is done."
        try:
            run = load_run(folder)
        except KilnError as error:  # deleted since: train it again
            log.info("%s", error)
        else:
            return run, run.sentence()
    _begin(key)
    waits = "after the run that trains now, " if another_run_is_active() else ""
    monitor = request.monitor(background=True)

    def watch(job: Job[Run]) -> None:
        if not job.done:
            waiting = job.controls.waits_for_device
            if waiting and monitor.status == "running":
                monitor.say("aside")
            elif not waiting and monitor.status == "aside":
                monitor.say("running")
            return
        outcome = None
        try:
            run = job.result()
            ended = not run.stopped or monitor.finish_requested
            outcome = run.folder if ended and run.losses else None
            where = f"; the LoRA: {_publish(run)}" if outcome else f"; Resume it with latest: {run.run_id}"
            monitor.end(
                "stopped" if run.stopped else "done", "\n".join([run.sentence() + where, *run.advice])
            )
        except NotStarted:
            pass
        except BaseException as error:
            log.error("The training in the background ended: %s", error)
            monitor.end("failed", str(error))
            if not monitor.run_id:  # it has no panel yet
                NodeProgress(request.node_id).say(str(error))
                if isinstance(error, CannotResume):
                    send_offer(request.node_id, request.workflow_id, str(error), error.offer)
        finally:
            _end(key, outcome)

    run_detached(lambda controls: request.train(controls, monitor, []), watch)
    return None, (
        f"Trains in the background, {waits}while other prompts run; they have the device first. The nodes behind did "
        "not run: queue the graph again when it is done. The LoRA will also be in ComfyUI/output/loras."
    )


def background_changes() -> int:
    """How many runs have begun or ended in the background since the server started."""
    return _changes


_background_runs: OrderedDict[Hashable, Path | None] = (
    OrderedDict()
)  # of runs in the background; None while they go on
_changes = 0


def _begin(key: Hashable) -> None:
    global _changes
    _changes += 1
    _background_runs[key] = None
    while len(_background_runs) > MAX_BACKGROUND_RUNS:
        _background_runs.popitem(last=False)


def _end(key: Hashable, folder: Path | None) -> None:
    """folder: of the run whose LoRA was requested; without one the next request trains again."""
    global _changes
    _changes += 1
    _background_runs.pop(key, None)
    if folder is not None:
        _background_runs[key] = folder


def _publish(run: Run) -> str:
    """Save the LoRA where the host lists it for loading; returns where, for the user."""
    try:
        path = paths.background_lora_path(run.run_id)
        save_lora(path, for_output(run.lora))
        return f"output/loras/{path.name}"
    except KilnError as error:
        return f"in the run's folder only ({error})"


def _listener(progress: NodeProgress) -> Any:
    advice: tuple[str, ...] = ()

    def listen(event: Event) -> None:
        nonlocal advice
        if isinstance(event, StepEvent):
            lines = [step_line(event), *advice]
            progress.show(event.step, event.total, "\n".join(lines))
        elif isinstance(event, AdviceEvent):
            advice = event.advice
        elif isinstance(event, MessageEvent):
            progress.say(event.text)

    return listen
