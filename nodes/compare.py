"""Nodes that show what a LoRA does: a sweep over strengths and a grid of what was sampled with it."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui

from ..trainer.errors import KilnError
from ..trainer.lora_files.lora_weights import LoraWeights
from ..trainer.lora_files.strengths import parse_sweep
from ..trainer.report.grid import MODES, comparison_grid
from ..trainer.runs.checkpoint import read_adapter
from ..trainer.runs.checkpoint_list import find_checkpoints, step_of
from ..trainer.runs.run import Run
from . import types
from .host.models.lora import apply_lora
from .listing import listed


class KilnWeightSweep(io.ComfyNode):
    """One model per strength."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnWeightSweep",
            display_name="Weight Sweep (LoRA Kiln)",
            **listed("KilnWeightSweep"),
            description="Puts a LoRA on a model at several strengths. Sampler nodes behind it run once per model; "
            "Comparison Grid gathers what they draw.",
            inputs=[
                io.Model.Input("model", tooltip="The model to change; the input itself stays as it is."),
                types.LoraModel.Input("lora", tooltip="From the training node or a loader."),
                io.String.Input(
                    "strengths",
                    default="0, 0.5..0.9:0.1",
                    tooltip="Numbers, and ranges as low..high:step, parted by commas; 64 at most. 0.5-0.9 is usual.",
                ),
                io.String.Input(
                    "name",
                    default="strength",
                    optional=True,
                    tooltip="Stands before the strength in the labels; name the LoRA here when you sweep two.",
                ),
                io.String.Input(
                    "label",
                    default="",
                    optional=True,
                    tooltip="Put before each label: connect the labels of an earlier sweep to sweep one LoRA "
                    "against another.",
                ),
                types.Run.Input(
                    "run",
                    optional=True,
                    tooltip="Sweeps over the saved checkpoints of this run too, oldest first.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="models", is_output_list=True, tooltip="One model per strength."
                ),
                io.String.Output(display_name="labels", is_output_list=True, tooltip="What each model is."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        lora: LoraWeights,
        strengths: str,
        name: str = "strength",
        label: str = "",
        run: Run | None = None,
    ) -> io.NodeOutput:
        stages = [("", lora)] if run is None else [*_stages(run), (f"step {len(run.losses)}", lora)]
        models, labels = [], []
        for stage, weights in stages:
            for strength in parse_sweep(strengths):
                models.append(apply_lora(model, None, weights, strength)[0])
                labels.append(", ".join(filter(None, (label, stage, f"{name} {strength:g}"))))
        return io.NodeOutput(models, labels)


def _stages(run: Run) -> list[tuple[str, LoraWeights]]:
    """The checkpoints of a run that are on disk, without the last step, which the LoRA itself holds."""
    found = find_checkpoints(run.folder)
    if not found:
        raise KilnError(
            f"The run {run.run_id} has no checkpoints on disk; disconnect run, or train with checkpoints."
        )
    from ..trainer.lora_files.export import export_adapter  # it imports peft, which takes seconds

    return [
        (f"step {step_of(path)}", LoraWeights(export_adapter(read_adapter(path), run.config.adapter)))
        for path in found
        if step_of(path) < len(run.losses)
    ]


class KilnComparisonGrid(io.ComfyNode):
    """Sampled images into one labelled picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnComparisonGrid",
            display_name="Comparison Grid (LoRA Kiln)",
            **listed("KilnComparisonGrid"),
            description="Puts lists of images under their labels in one picture, or videos in one video.",
            inputs=[
                io.Image.Input(
                    "images", tooltip="The decoded images of all samplers: a list, one batch per label."
                ),
                io.String.Input(
                    "labels", force_input=True, tooltip="One per batch, from Weight Sweep or written by hand."
                ),
                io.Int.Input(
                    "columns",
                    default=0,
                    min=0,
                    max=64,
                    tooltip="Batches per row; 0 puts all in one row. For two sweeps, the number of the second's "
                    "strengths.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=MODES[0],
                    optional=True,
                    tooltip="stills: the images of a batch stand below each other. video: they are frames, and "
                    "the grid moves.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="One picture, or the frames of one video.")
            ],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, images: list[Any], labels: list[str], columns: list[int], mode: list[str] | None = None
    ) -> io.NodeOutput:
        cells = [batch.flatten(0, -4)[..., :3].float().cpu().numpy() for batch in images]
        grid = torch.from_numpy(comparison_grid(cells, labels, columns[0], (mode or ["stills"])[0]))
        return io.NodeOutput(grid, ui=ui.PreviewImage(grid, cls=cls))
