"""One run from start to end on the calling thread, with or without a server."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ....trainer.config import TrainConfig
from ....trainer.dataset.encoded import EncodedDataset
from ....trainer.errors import KilnError
from ....trainer.events import Controls, Listener, MemoryPlanEvent, MessageEvent, StartEvent, emitter
from ....trainer.loop.distributed import ProcessGroup
from ....trainer.lora_files.lora_weights import LoraWeights
from ....trainer.lora_files.metadata import Origin, figures_only, origin_metadata, shareable
from ....trainer.lora_files.save import save_lora
from ....trainer.memory.estimate import PARTS, Estimate
from ....trainer.report.tensorboard import missing_sentence
from .. import paths
from ..memory.plan import plan_memory, text_sizes
from ..metadata import metadata_is_written
from ..models.fingerprint import model_fingerprint
from ..models.source import model_file, model_name
from ..models.start_from import start_state
from ..models.text_encoder import HostTextEncoder
from .other_experts import ranges_sentence
from .record import end_record, run_record
from .sampling import HostSampler, SampleTools

if TYPE_CHECKING:
    from ....trainer.runs.resume import Continuation

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
    place: tuple[str, str] = ("", ""),
    graph: dict[str, Any] | None = None,
    tensorboard: bool = False,
    group: ProcessGroup | None = None,
    tools: SampleTools | None = None,
    text_encoder: HostTextEncoder | None = None,
    on_chosen: Callable[[str, torch.device, int, str], None] = lambda run_id, device, step, parent: None,
) -> Any:
    """One run from start to end on the calling thread: the node's worker and headless.py both come here.

    Leaves in the run's folder the LoRA, run.toml and the checkpoints, and in the history what happened.

    Args: as train_on_host, and
        source: how the model was loaded, for run.toml.
        place: ids of the training node and of the graph on the canvas that holds it.
        group: the processes that train together.
        tools: what samples are drawn with; none are drawn without.
        on_chosen: told the run's id, its device, the step at which it goes on and the run that it goes on from, where
            that is another one, as soon as they are known.

    Returns:
        the trainer.runs.run.Run.
    """
    # One function, longer than others: a run from start to end, in time order. peft and diffusers take seconds to
    # import: not at the host's start
    from ....trainer.loop.checks import untried_device
    from ....trainer.loop.train import train
    from ....trainer.runs.samples import latest_thumbnail
    from ..memory.frozen_weights import host_weights
    from ..models.denoiser import HostDenoiser

    if tensorboard and (missing := missing_sentence()):
        raise KilnError(missing)
    group, source, graph = group or ProcessGroup(), source or {}, graph or {}
    if not metadata_is_written():
        config = replace(config, embed_metadata=False)
    largest = max((i.shape for i in encoded.items), key=math.prod)
    beside = [] if text_encoder is None else [text_encoder.patcher]
    denoiser = HostDenoiser(model, (config.batch_size, *largest), beside)
    base_model = trained_fingerprint(model, text_encoder)
    begin = _begin(group, resume, encoded, base_model, config, denoiser)
    if begin.finished:
        if group.is_main:
            end_record(begin.finished)
        return begin.finished
    config, folder, tell = begin.config, begin.folder, emitter(listeners)
    on_chosen(folder.name, denoiser.device, begin.step, begin.parent)
    if begin.said:
        tell(begin.said)
    if untried := untried_device(denoiser.device):
        tell(StartEvent(text=untried))
    if not config.optimizer.learning_rate and text_encoder is None:
        tell(StartEvent(text="learning_rate is 0: nothing will be learned; 0.0001 is usual."))
    if misfit := ranges_sentence(graph.get("prompt") or {}, place[0], config.objective):
        log.warning("%s", misfit)
        tell(StartEvent(text=misfit))
    start = None
    if start_from and begin.checkpoint is None:
        clip = None if text_encoder is None else text_encoder.clip
        start, notice = start_state(model, clip, start_from, config.adapter)
        if notice:
            log.warning("%s", notice)
            tell(StartEvent(text=notice))
    file = model_file(model, source)
    text = None if text_encoder is None else text_sizes(text_encoder.clip.cond_stage_model, config)
    plan = plan_memory(model, denoiser, config, largest, file, text)
    _say_plan(plan, listeners)

    def warn(text: str) -> None:
        log.warning("%s", text)
        tell(MessageEvent(text=text))

    recording = run_record(
        folder,
        config,
        encoded,
        base_model,
        source,
        tensorboard=tensorboard,
        place=place,
        parent=begin.parent,
        step=begin.step,
        losses=begin.losses,
        text_source=None if text_encoder is None else text_encoder.source,
        warn=warn,
    )
    with recording if group.is_main else nullcontext() as record:
        result = train(
            denoiser,
            encoded,
            config,
            run_folder=folder,
            base_model=base_model,
            weights=host_weights,
            controls=controls,
            emit=emitter([*listeners, *(record.listeners if record else ())]),
            resume_from=begin.checkpoint,
            start_from=start,
            group=group,
            sampler=HostSampler(model, tools, config, folder, graph, text_encoder) if tools else None,
            memory=plan.memory,
            model_file=file,
            text_encoder=text_encoder,
        )
        origin = Origin(
            config=result.config,
            dataset=encoded,
            base_model=base_model,
            steps=result.adapter_step,
            prediction=denoiser.prediction,
            family=denoiser.family,
            model_name=model_name(source),
            with_text=text_encoder is not None,
            graph=graph,
            thumbnail=latest_thumbnail(folder),
        )
        networks = [model.model.diffusion_model]
        networks += [text_encoder.clip.cond_stage_model] if text_encoder else []
        run, files = _saved(_as_run(networks, result, folder, origin), group)
        if record:
            status = "stopped" if run.stopped else "done"
            record.end(status, advice=run.advice, seconds=run.seconds, files=files)
    return run


@dataclass(frozen=True)
class _Beginning:
    """Where a run begins, the same in all processes."""

    config: TrainConfig  # with every auto written out
    folder: Path
    checkpoint: Path | None = None  # that it goes on from
    parent: str = ""  # the run of that checkpoint, where it is another one
    step: int = 0
    losses: list[float] = field(default_factory=list)  # of the steps before
    said: StartEvent | None = None  # what may surprise
    finished: Any = None  # the Run, where nothing is left to train


def _begin(
    group: ProcessGroup,
    resume: str,
    encoded: EncodedDataset,
    base_model: str,
    config: TrainConfig,
    denoiser: Any,
) -> _Beginning:
    from ....trainer.runs.checkpoint import read_state

    resumed, said = _choose_checkpoint(group, resume, encoded, base_model, config)
    config = _resolve_auto(config, denoiser, resumed)
    if resumed is None:
        folder = Path(group.broadcast_from_main(lambda: str(paths.new_run_folder())))
        return _Beginning(config, folder, said=said)
    goes_on = _continue(group, resumed, config, encoded)
    if goes_on.finished:
        return _Beginning(config, goes_on.folder, finished=goes_on.finished)
    state = read_state(goes_on.checkpoint)
    return _Beginning(
        config,
        goes_on.folder,
        goes_on.checkpoint,
        goes_on.parent,
        state.step,
        state.losses,
        StartEvent(text=goes_on.notice) if goes_on.notice else None,
    )


def _choose_checkpoint(
    group: ProcessGroup, resume: str, encoded: EncodedDataset, base_model: str, config: TrainConfig
) -> tuple[Path | None, StartEvent | None]:
    """The checkpoint to resume from, the same in all processes; without one, why LATEST has found none."""
    from ....trainer.runs.resume import LATEST, choose_checkpoint, why_anew

    asked = (encoded.fingerprint, base_model, config.adapter, encoded.items)
    chosen = group.broadcast_from_main(
        lambda: str(choose_checkpoint(paths.runs_folder(), resume, *asked) or "")
    )
    if chosen or resume != LATEST:
        return (Path(chosen) if chosen else None), None
    sentence, offer = why_anew(paths.runs_folder(), *asked)
    return None, StartEvent(text=sentence, offer=offer) if sentence else None


def _continue(
    group: ProcessGroup, resumed: Path, config: TrainConfig, encoded: EncodedDataset
) -> Continuation:
    """How the run goes on, the same in all processes."""
    from ....trainer.runs.resume import Continuation, continue_run

    if group.size == 1:
        return continue_run(resumed, paths.new_run_folder(), config, encoded.fingerprint)
    found: Continuation | None = None

    def choose() -> str:
        nonlocal found
        found = continue_run(resumed, paths.new_run_folder(), config, encoded.fingerprint)
        return "" if found.finished else str(found.checkpoint)

    checkpoint = group.broadcast_from_main(choose)
    if found is None and checkpoint:
        path = Path(checkpoint)
        parent = "" if path == resumed else resumed.parent.name
        found = Continuation(folder=path.parent, checkpoint=path, parent=parent)
    return found or continue_run(resumed, resumed.parent, config, encoded.fingerprint)


def _resolve_auto(config: TrainConfig, denoiser: Any, resumed: Path | None) -> TrainConfig:
    """Every auto written out, for run.toml, the history and the checkpoints; the log says what was chosen."""
    from ....trainer.loop.checks import resolve_auto

    config = resolve_auto(config, denoiser, resumed)
    for name in filter(None, config.objective.automatic.split(", ")):
        log.info("%s: auto, here %s", name, getattr(config.objective, name) or config.objective.shift_by_size)
    return config


def _say_plan(plan: Estimate, listeners: Sequence[Listener]) -> None:
    parts = {name: getattr(plan, name) for name in PARTS}
    emitter(listeners)(
        MemoryPlanEvent(text=plan.sentence(), level=plan.memory.level, total=plan.total, parts=parts)
    )
    log.log(logging.WARNING if plan.advice else logging.INFO, "%s", plan.sentence())


def trained_fingerprint(model: Any, text_encoder: HostTextEncoder | None) -> str:
    """Of all that is trained: a run goes on only with the same."""
    own = model_fingerprint(model)
    return own if text_encoder is None else f"{own}+{text_encoder.fingerprint}"


def _as_run(networks: Sequence[torch.nn.Module], result: Any, folder: Path, origin: Origin) -> Any:
    """A TrainResult as the Run that nodes pass on."""
    from ....trainer.loop.advice import advise_on_size
    from ....trainer.lora_files.export import export_adapter, without_untouched
    from ....trainer.runs.run import Run

    config: TrainConfig = result.config
    trained = sum(t.numel() for t in result.adapter.values())
    whole = sum(p.numel() for network in networks for p in network.parameters())
    lora, untouched = without_untouched(export_adapter(result.adapter, config.adapter))
    if untouched:
        log.info("Not saved, for no gradient reached them: %s", ", ".join(untouched))
    weights = LoraWeights(lora, origin_metadata(origin))
    if not config.embed_metadata:
        weights = figures_only(weights)
    return Run(
        run_id=folder.name,
        folder=folder,
        config=config,
        lora=weights,
        losses=result.losses,
        seconds=result.seconds,
        stopped=result.stopped,
        trained_parameters=trained,
        model_parameters=whole,
        validation=result.validation,
        advice=[*filter(None, [advise_on_size(trained, whole, config)]), *result.advice],
        adapter_step=result.adapter_step,
    )


def _saved(run: Any, group: ProcessGroup) -> tuple[Any, list[Path]]:
    """The run with what was said while its files were written, and those files; the main process alone writes."""
    files, problem = _save(run) if group.is_main else ([], "")
    return (replace(run, advice=[*run.advice, problem]) if problem else run), files


def _save(run: Any) -> tuple[list[Path], str]:
    """Write the LoRA and the run's result; returns the LoRA's file, and what to tell the user where the disk is full:
    the LoRA goes on to the next node, which may save it elsewhere."""
    from ....trainer.runs.run import LORA, save_result

    path: Path = run.folder / LORA
    try:
        if run.losses:
            save_lora(path, shareable(run.lora), title=run.run_id)
            save_result(run)
    except KilnError as error:
        log.warning("%s", error)
        return [], f"The run's own copy of the LoRA is missing: {error} Save the LoRA with the nodes behind."
    return [path], ""
