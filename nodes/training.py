"""The training node and the picture of its loss."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..trainer import config
from ..trainer.dataset.batches import steps_of
from ..trainer.dataset.encoded import EncodedDataset
from ..trainer.runs.resume import LATEST, NEW_RUN, resume_labels
from ..trainer.runs.run import Run
from . import types
from .host import paths
from .host.canvas.blocked import blocked
from .host.models.lora import apply_lora
from .host.models.source import text_source
from .host.models.text_encoder import HostTextEncoder
from .host.running.requests import TrainRequest, background_changes, train_in_background, train_on_host
from .inputs import seed_input
from .listing import listed
from .settings import Settings, widget

NO_LORA = "none"
WAIT, IN_BACKGROUND = "wait", "continue in background"

_TRAIN = config.field_info(config.TrainConfig)
_ADAPTER = config.field_info(config.AdapterConfig)
_OPTIMIZER = config.field_info(config.OptimizerConfig)


class KilnTrainLora(io.ComfyNode):
    """Trains a LoRA on the MODEL of the graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            # Long, and only a list of widgets
            node_id="KilnTrainLora",
            display_name="Train LoRA (LoRA Kiln)",
            **listed("KilnTrainLora"),
            description="Trains a LoRA on the connected model, in the background, while this node waits. The model "
            "itself stays as it is. Interrupting saves a checkpoint; resume with 'latest'.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to train on. Nodes before this one may have changed it."
                ),
                types.Encoded.Input("encoded", tooltip="The encoded dataset."),
                io.Combo.Input(
                    "preset",
                    options=["custom", *config.PRESETS],
                    default="custom",
                    tooltip="Choosing one fills the widgets below; what they show is what trains.",
                ),
                widget("steps", _TRAIN["steps"]),
                widget("learning_rate", _OPTIMIZER["learning_rate"]),
                widget("rank", _ADAPTER["rank"]),
                widget("alpha", _ADAPTER["alpha"]),
                widget("batch_size", _TRAIN["batch_size"]),
                seed_input(_TRAIN["seed"].metadata["doc"]),
                io.Combo.Input(
                    "resume",
                    options=[NEW_RUN, LATEST, *resume_labels(paths.runs_folder())],
                    default=NEW_RUN,
                    tooltip="latest: go on from the newest checkpoint of this dataset, model, rank, alpha and target "
                    "modules up to the steps above, or start a new run where there is none and say why. Or choose a "
                    "run and a step. From an older step, or with other settings, a new run goes on that names its "
                    "parent.",
                ),
                types.Settings.Input(
                    "settings", optional=True, tooltip="Further settings; defaults without it."
                ),
                io.Combo.Input(
                    "start_from",
                    options=[NO_LORA, *paths.lora_names()],
                    default=NO_LORA,
                    optional=True,
                    tooltip="A LoRA file to begin from instead of fresh values, in any key format that ComfyUI reads. "
                    "The run itself is new.",
                ),
                widget("checkpoint_every", _TRAIN["checkpoint_every"], optional=True),
                widget("keep_checkpoints", _TRAIN["keep_checkpoints"], optional=True),
                io.Boolean.Input(
                    "tensorboard",
                    default=False,
                    optional=True,
                    tooltip="Also write TensorBoard files under ComfyUI/user/__lora_kiln/tensorboard; needs "
                    "the package tensorboard.",
                ),
                io.Combo.Input(
                    "when_queued",
                    options=[WAIT, IN_BACKGROUND],
                    default=WAIT,
                    optional=True,
                    tooltip="wait: the nodes behind run with the LoRA when it is done. continue in background: the "
                    "prompt ends at once without them and further prompts run; while one needs the device, training "
                    "steps aside. Queue the same graph again when it is done: then the nodes behind get the LoRA.",
                ),
                widget("embed_metadata", _TRAIN["embed_metadata"], optional=True),
                io.Int.Input(
                    "epochs",
                    default=0,
                    min=0,
                    max=10_000,
                    optional=True,
                    tooltip="Length in epochs instead of steps: how often every item is seen, repeats counted. 0: as "
                    "many steps as the widget says. The panel shows both.",
                ),
                widget("text_encoder_learning_rate", _OPTIMIZER["text_encoder_learning_rate"], optional=True),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Train the text encoder too: captions are encoded in every step, and the LoRA holds its "
                    "layers. For SD 1.5 and SDXL, where a new word has to be learned. Not connected: only the model is "
                    "trained.",
                ),
            ],
            outputs=[
                types.LoraModel.Output(display_name="lora", tooltip="The trained LoRA: save it or apply it."),
                io.Model.Output(display_name="model", tooltip="The model with the LoRA on at 1.0."),
                types.LossMap.Output(
                    display_name="loss_map", tooltip="The loss of every step, for the host's Plot Loss Graph."
                ),
                types.Run.Output(display_name="run", tooltip="The whole run, for Loss Plot."),
                io.Clip.Output(
                    display_name="clip",
                    tooltip="The text encoder with the LoRA on at 1.0, where one is connected.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, resume: str) -> bool:
        """Naming `resume` switches off the host's check against the list, which was made when the page was loaded: a
        run that has been made since may be chosen, and one that is gone gets our sentence."""
        return True

    @classmethod
    def fingerprint_inputs(cls, when_queued: str = WAIT, **_: Any) -> int:
        """What the node gives in the background changes without a change of its inputs."""
        return background_changes() if when_queued == IN_BACKGROUND else 0

    @classmethod
    async def execute(
        cls,
        model: Any,
        encoded: EncodedDataset,
        preset: str,
        steps: int,
        learning_rate: float,
        rank: int,
        alpha: float,
        batch_size: int,
        seed: int,
        resume: str,
        settings: Settings | None = None,
        start_from: str = NO_LORA,
        checkpoint_every: int = config.TrainConfig.checkpoint_every,
        keep_checkpoints: int = config.TrainConfig.keep_checkpoints,
        tensorboard: bool = False,
        when_queued: str = WAIT,
        embed_metadata: bool = config.TrainConfig.embed_metadata,
        epochs: int = 0,
        text_encoder_learning_rate: float = config.OptimizerConfig.text_encoder_learning_rate,
        clip: Any = None,
    ) -> io.NodeOutput:
        extra = settings or {}
        chosen = config.TrainConfig(
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            checkpoint_every=checkpoint_every,
            keep_checkpoints=keep_checkpoints,
            embed_metadata=embed_metadata,
            adapter=config.AdapterConfig(**{**extra.get("adapter", {}), "rank": rank, "alpha": alpha}),
            optimizer=config.OptimizerConfig(
                **{
                    **extra.get("optimizer", {}),
                    "learning_rate": learning_rate,
                    "text_encoder_learning_rate": text_encoder_learning_rate,
                }
            ),
            objective=config.ObjectiveConfig(**extra.get("objective", {})),
            validation=config.ValidationConfig(**extra.get("validation", {})),
            guards=config.GuardConfig(**extra.get("guards", {})),
            sample=config.SampleConfig(**extra.get("sample", {})),
            memory=config.MemoryConfig(**extra.get("memory", {})),
        )
        if epochs:
            accumulation = chosen.optimizer.gradient_accumulation
            chosen = replace(chosen, steps=steps_of(epochs, encoded.items, batch_size, accumulation))
        graph = {"prompt": cls.hidden.prompt, "workflow": (cls.hidden.extra_pnginfo or {}).get("workflow")}
        request = TrainRequest(
            model=model,
            encoded=encoded,
            config=chosen,
            resume=resume,
            node_id=cls.hidden.unique_id,
            graph=graph,
            start_from="" if start_from == NO_LORA else start_from,
            tensorboard=tensorboard,
            tools=extra.get("sample_tools"),
            text_encoder=_text_encoder(clip, model, encoded, cls.hidden),
        )
        if when_queued == IN_BACKGROUND:
            run, sentence = train_in_background(request)
            if run is None:
                return io.NodeOutput(*(blocked() for _ in range(5)), ui={"text": (sentence,)})
        else:
            run = await train_on_host(request)
        trained, trained_clip = apply_lora(model, clip, run.lora, 1.0)
        shown = {"text": (run.sentence(), *run.advice), "summary": (run.summary(),)}
        losses = [x for x in run.losses if math.isfinite(x)]  # the host's plot knows no skipped steps
        return io.NodeOutput(run.lora, trained, {"loss": losses}, run, trained_clip, ui=shown)


def _text_encoder(clip: Any, model: Any, encoded: EncodedDataset, hidden: Any) -> HostTextEncoder | None:
    if clip is None:
        return None
    source = text_source(hidden.prompt or {}, hidden.unique_id)
    return HostTextEncoder(clip, torch.device(model.load_device), encoded.prompt_syntax, source)


class KilnLossPlot(io.ComfyNode):
    """The loss curve of a run as an image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnLossPlot",
            display_name="Loss Plot (LoRA Kiln)",
            **listed("KilnLossPlot"),
            description="Draws a run's loss, its smoothed mean and the validation loss over the steps.",
            inputs=[types.Run.Input("run", tooltip="A run of the training node.")],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="The chart, 960 x 540, and the advice below it.")
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, run: Run) -> io.NodeOutput:
        from ..trainer.report.curve import smooth
        from ..trainer.report.plot import loss_plot

        picture = loss_plot(
            run.losses,
            smooth(run.losses),
            f"run {run.run_id}",
            run.sentence(),
            validation=[(p.step, p.loss) for p in run.validation],
            notes=run.advice,
        )
        plot = torch.from_numpy(picture)[None]
        return io.NodeOutput(plot, ui=ui.PreviewImage(plot, cls=cls))
