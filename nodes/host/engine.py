"""One run from start to end on the calling thread, with or without a server."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch

from ...trainer import runfile
from ...trainer.adapter.files import LoraWeights, origin_metadata, save_lora
from ...trainer.config import TrainConfig
from ...trainer.dataset.encoded import EncodedDataset
from ...trainer.errors import KilnError
from ...trainer.estimate import Estimate, estimate
from ...trainer.events import Controls, Listener, MessageEvent, emitter
from ...trainer.history import History, Recorder
from ...trainer.parallel import Alone
from ...trainer.tensorboard import TensorBoardListener, missing_sentence
from . import paths
from .fingerprint import model_fingerprint
from .sampling import HostSampler, SampleTools
from .start import start_state

log = logging.getLogger(__name__)

# Nodes of the host that load a model from one file, with the name of the input that names it
LOADERS = {"UNETLoader": "unet_name", "CheckpointLoaderSimple": "ckpt_name"}


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
    team: Alone | None = None,
    tools: SampleTools | None = None,
    on_chosen: Callable[[str, torch.device, int], None] = lambda run_id, device, step: None,
) -> Any:
    """One run from start to end on the calling thread: the node's worker and headless.py both come here.

    Leaves in the run's folder the LoRA, run.toml and the checkpoints, and in the history what happened.

    Args: as train_on_host, and
        source: how the model was loaded, for run.toml.
        team: the processes that train together.
        tools: what samples are drawn with; none are drawn without.
        on_chosen: told the run's id, its device and the step at which it goes on as soon as they are known.
    """
    # peft and diffusers take seconds to import: not at the host's start
    from ...trainer.adapter.export import to_file
    from ...trainer.checkpoint import read_state
    from ...trainer.loop import train
    from ...trainer.run import LORA, Run, choose_checkpoint, run_folder_for, save_result
    from .denoiser import HostDenoiser, host_weights

    if tensorboard and (missing := missing_sentence()):
        raise KilnError(missing)
    largest = max((i.shape for i in encoded.items), key=math.prod)
    denoiser = HostDenoiser(model, (config.batch_size, *largest))
    base_model = model_fingerprint(model)
    runs = paths.runs_folder()
    team = team or Alone()

    def choose() -> str:
        """The folder, and in it the checkpoint to resume from."""
        found = choose_checkpoint(runs, resume, encoded.fingerprint, base_model, config.adapter)
        fresh = paths.new_run_folder()
        return str(fresh / "") if found is None else str(run_folder_for(found, fresh) / found.name)

    chosen = Path(team.from_main(choose))
    resumed = chosen if chosen.name.startswith("step-") else None
    folder = chosen if resumed is None else chosen.parent
    on_chosen(folder.name, denoiser.device, read_state(resumed).step if resumed else 0)
    start = start_state(model, start_from, config.adapter) if start_from and resumed is None else None

    file = model_file(model, source or {})
    plan = plan_memory(model, denoiser, config, largest, file)
    emitter(listeners)(MessageEvent(text=plan.sentence()))
    log.log(logging.WARNING if plan.advice else logging.INFO, "%s", plan.sentence())

    with ExitStack() as ending:
        history: History | None = None
        if team.is_main:
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
                team=team,
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
            lora=LoraWeights(to_file(result.adapter, config.adapter), metadata),
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
        if result.step and team.is_main:
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


def plan_memory(
    model: Any, denoiser: Any, config: TrainConfig, latent_shape: tuple[int, ...], file: Path | None = None
) -> Estimate:
    """What the run will need of the device, and at which memory level, against what it has free when the host makes
    room. file: see model_file."""
    from ...trainer.adapter.inject import choose_targets, layer_shape
    from .denoiser import bytes_in_ram

    module = model.model.diffusion_model
    targets = choose_targets(module, config.adapter.target_modules, config.adapter.exclude_modules)
    layers = dict(module.named_modules())
    trained = sum(
        layer_shape(t, config.adapter).rank * (layers[t].in_features + layers[t].out_features)
        for t in targets
    )
    cpu = torch.device("cpu")
    free = free_ram = comfy.model_management.get_free_memory(cpu) + bytes_in_ram(module)
    if denoiser.device != cpu:
        held = comfy.model_management.loaded_models()
        free = comfy.model_management.get_free_memory(denoiser.device)
        free += sum(m.loaded_size() for m in held if m.load_device == denoiser.device)
    return estimate(
        module,
        targets,
        config,
        latent_shape,
        bytes_per_value=denoiser.dtype.itemsize,
        trained=trained,
        free=free,
        streams=denoiser.device != cpu,
        from_file=file is not None,
        free_ram=free_ram,
    )


def model_file(model: Any, source: dict[str, str]) -> Path | None:
    """The safetensors file that the model's weights are read from, or None where nodes in between have changed them.

    Args:
        model: the MODEL.
        source: see model_source.
    """
    folder = {"UNETLoader": "diffusion_models", "CheckpointLoaderSimple": "checkpoints"}.get(
        source.get("loader", "")
    )
    if folder is None or model.patches:
        return None
    path = folder_paths.get_full_path(folder, source["file"])
    return Path(path) if path and path.endswith((".safetensors", ".sft")) else None


def model_source(prompt: dict[str, Any], node_id: str) -> dict[str, str]:
    """How the graph loads the model of a training node: the loader and its settings, or an empty loader when a node
    in between changes it (then a run file cannot make it again)."""
    link = prompt.get(node_id, {}).get("inputs", {}).get("model")
    loader = prompt.get(str(link[0]), {}) if isinstance(link, list) else {}
    kind, values = loader.get("class_type", ""), loader.get("inputs", {})
    if kind not in LOADERS or not isinstance(values.get(LOADERS[kind]), str):
        return {"loader": ""}
    rest = {k: v for k, v in values.items() if isinstance(v, str) and k != LOADERS[kind]}
    return {"loader": kind, "file": values[LOADERS[kind]], **rest}
