"""One run from start to end on the calling thread, with or without a server."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from ....trainer.config import TrainConfig
from ....trainer.dataset.encoded import EncodedDataset
from ....trainer.errors import KilnError
from ....trainer.events import Controls, Listener, MessageEvent, emitter
from ....trainer.loop.distributed import ProcessGroup
from ....trainer.lora_files.lora_weights import LoraWeights, origin_metadata
from ....trainer.lora_files.save import save_lora
from ....trainer.report.tensorboard import TensorBoardListener, missing_sentence
from ....trainer.runs import runfile
from ....trainer.runs.history import History, Recorder
from .. import paths
from ..memory.plan import plan_memory
from ..models.fingerprint import model_fingerprint
from ..models.source import model_file
from ..models.start_from import start_state
from .sampling import HostSampler, SampleTools

log = logging.getLogger(__name__)


def train_run(
    model: Any,
    encoded: EncodedDataset,
    config: TrainConfig,
    *,
    resume: str,
    controls: Controls,
    listeners: Sequence[Listener],
    start_from: str = "",
    source: dict[str, str] | None = None,
    graph: dict[str, Any] | None = None,
    tensorboard: bool = False,
    group: ProcessGroup | None = None,
    tools: SampleTools | None = None,
    on_chosen: Callable[[str, torch.device, int], None] = lambda run_id, device, step: None,
) -> Any:
    """One run from start to end on the calling thread: the node's worker and headless.py both come here.

    Leaves in the run's folder the LoRA, run.toml and the checkpoints, and in the history what happened.

    Args: as train_on_host, and
        source: how the model was loaded, for run.toml.
        group: the processes that train together.
        tools: what samples are drawn with; none are drawn without.
        on_chosen: told the run's id, its device and the step at which it goes on as soon as they are known.
    """
    # peft and diffusers take seconds to import: not at the host's start
    from ....trainer.loop.checks import resolve_auto
    from ....trainer.loop.train import train
    from ....trainer.lora_files.export import export_adapter
    from ....trainer.runs.checkpoint import read_state
    from ....trainer.runs.run import LORA, Run, choose_checkpoint, run_folder_for, save_result
    from ..memory.frozen_weights import host_weights
    from ..models.denoiser import HostDenoiser

    if tensorboard and (missing := missing_sentence()):
        raise KilnError(missing)
    largest = max((i.shape for i in encoded.items), key=math.prod)
    denoiser = HostDenoiser(model, (config.batch_size, *largest))
    base_model = model_fingerprint(model)
    runs = paths.runs_folder()
    group = group or ProcessGroup()

    def choose() -> str:
        """The folder, and in it the checkpoint to resume from."""
        found = choose_checkpoint(runs, resume, encoded.fingerprint, base_model, config.adapter)
        fresh = paths.new_run_folder()
        return str(fresh / "") if found is None else str(run_folder_for(found, fresh) / found.name)

    chosen = Path(group.broadcast_from_main(choose))
    resumed = chosen if chosen.name.startswith("step-") else None
    folder = chosen if resumed is None else chosen.parent
    on_chosen(folder.name, denoiser.device, read_state(resumed).step if resumed else 0)
    # Every auto written out before the record is: in run.toml, the history and the checkpoints
    config = resolve_auto(config, denoiser, resumed)
    for name in filter(None, config.objective.automatic.split(", ")):
        log.info("%s: auto, here %s", name, getattr(config.objective, name) or config.objective.shift_by_size)
    start = start_state(model, start_from, config.adapter) if start_from and resumed is None else None

    file = model_file(model, source or {})
    plan = plan_memory(model, denoiser, config, largest, file)
    emitter(listeners)(MessageEvent(text=plan.sentence()))
    log.log(logging.WARNING if plan.advice else logging.INFO, "%s", plan.sentence())

    with ExitStack() as ending:
        history: History | None = None
        if group.is_main:
            described = runfile.RunFile(
                model={**(source or {"loader": ""}), "fingerprint": base_model}, config=config
            )
            runfile.write_run_file(folder, described, encoded)
            history = History(paths.history_file())
            ending.callback(history.close)
            history.start(folder.name, folder, config.to_dict(), encoded, base_model)
            recorder = Recorder(history, folder.name)
            listeners = [*listeners, recorder]
            if tensorboard:
                board = TensorBoardListener(paths.tensorboard_folder(folder.name))
                ending.callback(board.close)
                listeners = [*listeners, board]
        try:
            result = train(
                denoiser,
                encoded,
                config,
                run_folder=folder,
                base_model=base_model,
                weights=host_weights,
                controls=controls,
                emit=emitter(listeners),
                resume_from=resumed,
                start_from=start,
                group=group,
                sampler=HostSampler(model, tools, config, folder, graph or {}) if tools else None,
                memory=plan.memory,
                model_file=file,
            )
        except BaseException as error:
            if history is not None:
                recorder.flush()
                history.end(folder.name, "failed", message=str(error))
            raise
        metadata = origin_metadata(
            config.to_dict(), encoded.fingerprint, base_model, result.adapter_step, graph or {}
        )
        run = Run(
            run_id=folder.name,
            folder=folder,
            config=config,
            lora=LoraWeights(export_adapter(result.adapter, config.adapter), metadata),
            losses=result.losses,
            seconds=result.seconds,
            stopped=result.stopped,
            trained_parameters=sum(t.numel() for t in result.adapter.values()),
            model_parameters=sum(p.numel() for p in model.model.diffusion_model.parameters()),
            validation=result.validation,
            advice=result.advice,
            adapter_step=result.adapter_step,
        )
        files = [folder / LORA]
        if result.step and group.is_main:
            try:
                save_lora(folder / LORA, run.lora)
                save_result(run)
            except (
                KilnError
            ) as error:  # the LoRA itself goes on to the next node, which may save it elsewhere
                log.warning("%s", error)
                files = []
        if history is not None:
            recorder.flush()
            history.set_advice(folder.name, run.advice)
            history.end(folder.name, "stopped" if run.stopped else "done", seconds=run.seconds, files=files)
    return run
