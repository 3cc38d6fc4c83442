"""One training run on the host, from the graph's objects to a Run, while the node waits."""

from __future__ import annotations

from typing import Any

from ...trainer.config import TrainConfig
from ...trainer.console import step_line
from ...trainer.dataset.encoded import EncodedDataset
from ...trainer.events import AdviceEvent, Controls, Event, MessageEvent, StepEvent
from .background import raise_interrupted, run_in_background
from .engine import model_source, train_run
from .monitor import RunMonitor
from .progress import NodeProgress


async def train_on_host(
    model: Any,
    encoded: EncodedDataset,
    config: TrainConfig,
    *,
    resume: str,
    node_id: str,
    graph: dict[str, Any],
    start_from: str = "",
    tensorboard: bool = False,
) -> Any:
    """Train in the background while the node waits; the bar and text on the node follow.

    Args:
        model: a MODEL; it is the same afterwards.
        encoded: what to train on.
        config: all settings.
        resume: see trainer.run.choose_checkpoint.
        node_id: the node that waits.
        graph: "workflow" and "prompt" for the LoRA's metadata.
        start_from: a LoRA file of the host's folders to begin from, or nothing.
        tensorboard: also write TensorBoard's event files.

    Raises:
        KilnError: see trainer.loop.train.
        The host's InterruptProcessingException: the user interrupted; a checkpoint is saved.
    """
    progress = NodeProgress(node_id)
    progress.say("starting ...")
    source = model_source(graph.get("prompt") or {}, node_id)
    monitor = RunMonitor(node_id, config.steps)

    def work(controls: Controls) -> Any:
        monitor.controls = controls
        return train_run(
            model,
            encoded,
            config,
            resume=resume,
            start_from=start_from,
            source=source,
            graph=graph,
            controls=controls,
            listeners=[_listener(progress), monitor.listen],
            on_chosen=monitor.begin,
            tensorboard=tensorboard,
        )

    try:
        run, interrupted = await run_in_background(work)
    except BaseException as error:
        monitor.end("failed", str(error))
        raise
    if interrupted or (run.stopped and not monitor.finish_requested):
        text = f"stopped at step {len(run.losses)} of {config.steps}; checkpoint and LoRA: {run.folder.name}"
        progress.say(text)
        monitor.end("stopped", text)
        raise_interrupted()
    text = "\n".join([run.sentence(), *run.advice])
    progress.say(text)
    monitor.end("stopped" if run.stopped else "done", text)
    return run


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
