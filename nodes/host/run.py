"""One training run on the host, from the graph's objects to a Run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ...trainer.adapter.files import LoraWeights, origin_metadata, save_lora, to_default_format
from ...trainer.config import TrainConfig
from ...trainer.dataset.encoded import EncodedDataset
from ...trainer.errors import KilnError
from ...trainer.events import Controls, Event, MessageEvent, StepEvent, emitter
from ...trainer.run import Run, find_latest
from . import paths
from .background import raise_interrupted, run_in_background
from .denoiser import HostDenoiser, host_weights
from .fingerprint import model_fingerprint
from .monitor import RunMonitor
from .progress import NodeProgress

log = logging.getLogger(__name__)

RESUME_CHOICES = ("new run", "latest")


async def train_on_host(
    model: Any,
    encoded: EncodedDataset,
    config: TrainConfig,
    *,
    resume: str,
    node_id: str,
    graph: dict[str, Any],
) -> Run:
    """Train in the background while the node waits; the bar and text on the node follow.

    Args:
        model: a MODEL; it is the same afterwards.
        encoded: what to train on.
        config: all settings.
        resume: one of RESUME_CHOICES.
        node_id: the node that waits.
        graph: "workflow" and "prompt" for the LoRA's metadata.

    Raises:
        KilnError: see trainer.loop.train.
        The host's InterruptProcessingException: the user interrupted; a checkpoint is saved.
    """
    largest = max((i.shape for i in encoded.items), key=lambda s: s[-1] * s[-2])
    denoiser = HostDenoiser(model, (config.batch_size, *largest))
    base_model = model_fingerprint(model)
    resume_from = None
    if resume == "latest":
        resume_from = find_latest(
            paths.kiln_directory() / "runs", encoded.fingerprint, base_model, config.adapter
        )
    folder = resume_from.parent if resume_from is not None else paths.new_run_folder()
    progress = NodeProgress(node_id)
    progress.say("starting ...")
    monitor = RunMonitor(folder.name, node_id, config.steps, denoiser.device)
    monitor.say("starting")

    def work(controls: Controls) -> Run:
        # peft and diffusers take seconds to import: not at the host's start
        from ...trainer.loop import train

        monitor.controls = controls
        result = train(
            denoiser,
            encoded,
            config,
            run_folder=folder,
            base_model=base_model,
            weights=host_weights,
            controls=controls,
            emit=emitter([_listener(progress), monitor.listen]),
            resume_from=resume_from,
        )
        metadata = origin_metadata(config.to_dict(), encoded.fingerprint, base_model, result.step, graph)
        lora = LoraWeights(to_default_format(result.adapter, config.adapter), metadata)
        if result.step:
            try:
                save_lora(folder / "lora.safetensors", lora)
            except (
                KilnError
            ) as error:  # the LoRA itself goes on to the next node, which may save it elsewhere
                log.warning("%s", error)
        return Run(
            run_id=folder.name,
            folder=Path(folder),
            config=config,
            lora=lora,
            losses=result.losses,
            seconds=result.seconds,
            stopped=result.stopped,
            trained_parameters=sum(t.numel() for t in result.adapter.values()),
            model_parameters=sum(p.numel() for p in model.model.diffusion_model.parameters()),
        )

    try:
        run, interrupted = await run_in_background(work)
    except BaseException as error:
        monitor.end("failed", str(error))
        raise
    if interrupted or (run.stopped and not monitor.finish_requested):
        text = f"stopped at step {len(run.losses)} of {config.steps}; checkpoint and LoRA: {folder.name}"
        progress.say(text)
        monitor.end("stopped", text)
        raise_interrupted()
    progress.say(run.sentence())
    monitor.end("stopped" if run.stopped else "done", run.sentence())
    return run


def _listener(progress: NodeProgress) -> Any:
    def listen(event: Event) -> None:
        if isinstance(event, StepEvent):
            rate = f"{1 / event.seconds:.1f} steps/s" if event.seconds < 1 else f"{event.seconds:.1f} s/step"
            left = event.seconds * (event.total - event.step)
            text = f"step {event.step}/{event.total}  loss {event.smoothed_loss:.4f}  {rate}  {_clock(left)} left"
            progress.show(event.step, event.total, text)
        elif isinstance(event, MessageEvent):
            progress.say(event.text)

    return listen


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
