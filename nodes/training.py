"""The training node and the picture of its loss."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui

from ..trainer import config
from ..trainer.dataset.encoded import EncodedDataset
from ..trainer.run import Run
from . import types
from .host.lora import apply_lora
from .host.run import RESUME_CHOICES, train_on_host
from .settings import Settings, widget

_TRAIN = config.field_info(config.TrainConfig)
_ADAPTER = config.field_info(config.AdapterConfig)
_OPTIMIZER = config.field_info(config.OptimizerConfig)


class KilnTrainLora(io.ComfyNode):
    """Trains a LoRA on the MODEL of the graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnTrainLora",
            display_name="Train LoRA (LoRA Kiln)",
            category=types.CATEGORY,
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
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip=_TRAIN["seed"].metadata["doc"],
                ),
                io.Combo.Input(
                    "resume",
                    options=list(RESUME_CHOICES),
                    default=RESUME_CHOICES[0],
                    tooltip="latest: go on from the newest checkpoint of this dataset, model, rank, alpha and target "
                    "modules up to the steps above, or start a new run where there is none.",
                ),
                types.Settings.Input(
                    "settings", optional=True, tooltip="Further settings; defaults without it."
                ),
            ],
            outputs=[
                types.LoraModel.Output(display_name="lora", tooltip="The trained LoRA: save it or apply it."),
                io.Model.Output(display_name="model", tooltip="The model with the LoRA on at 1.0."),
                types.LossMap.Output(
                    display_name="loss_map", tooltip="The loss of every step, for the host's Plot Loss Graph."
                ),
                types.Run.Output(display_name="run", tooltip="The whole run, for Loss Plot."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

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
    ) -> io.NodeOutput:
        extra = settings or {}
        chosen = config.TrainConfig(
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            adapter=config.AdapterConfig(**{**extra.get("adapter", {}), "rank": rank, "alpha": alpha}),
            optimizer=config.OptimizerConfig(
                **{**extra.get("optimizer", {}), "learning_rate": learning_rate}
            ),
            objective=config.ObjectiveConfig(**extra.get("objective", {})),
        )
        graph = {"prompt": cls.hidden.prompt, "workflow": (cls.hidden.extra_pnginfo or {}).get("workflow")}
        run = await train_on_host(
            model, encoded, chosen, resume=resume, node_id=cls.hidden.unique_id, graph=graph
        )
        trained, _ = apply_lora(model, None, run.lora, 1.0)
        shown = {"text": (run.sentence(),), "summary": (run.summary(),)}
        return io.NodeOutput(run.lora, trained, {"loss": run.losses}, run, ui=shown)


class KilnLossPlot(io.ComfyNode):
    """The loss curve of a run as an image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnLossPlot",
            display_name="Loss Plot (LoRA Kiln)",
            category=types.CATEGORY,
            description="Draws a run's loss and its smoothed mean over the steps.",
            inputs=[types.Run.Input("run", tooltip="A run of the training node.")],
            outputs=[io.Image.Output(display_name="plot", tooltip="The chart, 960 x 540.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, run: Run) -> io.NodeOutput:
        from ..trainer.plot import loss_plot
        from ..trainer.smoothing import smooth

        plot = torch.from_numpy(
            loss_plot(run.losses, smooth(run.losses), f"run {run.run_id}", run.sentence())
        )[None]
        return io.NodeOutput(plot, ui=ui.PreviewImage(plot, cls=cls))
