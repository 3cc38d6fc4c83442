"""Nodes that load, apply and save LoRAs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..trainer.lora_files.keys import FORMATS
from ..trainer.lora_files.lora_weights import LoraWeights
from ..trainer.lora_files.save import DTYPES, save_lora
from ..trainer.lora_files.strengths import BlockWeights, parse_schedule
from . import types
from .host import paths
from .host.canvas.progress import NodeProgress
from .host.metadata import for_output
from .host.models.lora import put_on, read_lora
from .inputs import strength_input
from .listing import listed


def _strength() -> io.Input:
    return strength_input("strength", 0.8, "Weight of the LoRA: 0 is off, 1 as trained; 0.5-0.9 is usual.")


def _fine_control() -> list[io.Input]:
    """The optional inputs of the nodes that put a LoRA on a model."""
    return [
        io.Clip.Input("clip", optional=True, tooltip="Text encoder, for LoRAs that hold layers of it."),
        strength_input(
            "strength_clip",
            0.8,
            "Weight on the text encoder; without a text encoder it does nothing.",
            optional=True,
        ),
        io.String.Input(
            "block_weights",
            default="",
            optional=True,
            tooltip="Factors for parts of the model: 0-9:0.5, 10-29:1, self_attn:0 halves blocks 0 to 9 and "
            "leaves self "
            "attention out. Where several fit, they multiply; empty is 1 everywhere.",
        ),
        io.String.Input(
            "schedule",
            default="",
            optional=True,
            tooltip="Factors over the sampling, each from a share of its course on: 0:0, 0.3:1 leaves the LoRA off for "
            "the first 30 percent. Empty is 1 throughout.",
        ),
    ]


def _put_on(
    node_id: str,
    model: Any,
    clip: Any | None,
    lora: LoraWeights,
    strength: float,
    strength_clip: float | None,
    block_weights: str,
    schedule: str,
) -> tuple[Any, Any | None]:
    done = put_on(
        model,
        clip,
        lora,
        strength,
        strength if strength_clip is None else strength_clip,
        BlockWeights.parse(block_weights),
        parse_schedule(schedule),
    )
    NodeProgress(node_id).say(done.sentence())
    return done.model, done.clip


class KilnApplyLora(io.ComfyNode):
    """A LoRA of the graph onto a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnApplyLora",
            display_name="Apply LoRA (LoRA Kiln)",
            **listed("KilnApplyLora"),
            description="Puts a LoRA on a model (and text encoder) at a strength.",
            inputs=[
                io.Model.Input("model", tooltip="The model to change; the input itself stays as it is."),
                types.LoraModel.Input("lora", tooltip="From the training node or a loader."),
                _strength(),
                *_fine_control(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the LoRA on."),
                io.Clip.Output(display_name="clip", tooltip="The text encoder with the LoRA on."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        lora: LoraWeights,
        strength: float,
        clip: Any | None = None,
        strength_clip: float | None = None,
        block_weights: str = "",
        schedule: str = "",
    ) -> io.NodeOutput:
        node = cls.hidden.unique_id
        return io.NodeOutput(
            *_put_on(node, model, clip, lora, strength, strength_clip, block_weights, schedule)
        )


class KilnLoadLora(io.ComfyNode):
    """A LoRA file onto a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnLoadLora",
            display_name="Load LoRA (LoRA Kiln)",
            **listed("KilnLoadLora"),
            description="Loads a LoRA file and puts it on a model (and text encoder) at a strength.",
            inputs=[
                io.Combo.Input(
                    "lora_name", options=paths.lora_names(), tooltip="Files in the host's loras folders."
                ),
                io.Model.Input("model", tooltip="The model to change; the input itself stays as it is."),
                _strength(),
                *_fine_control(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the LoRA on."),
                io.Clip.Output(display_name="clip", tooltip="The text encoder with the LoRA on."),
                types.LoraModel.Output(display_name="lora", tooltip="The LoRA itself."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, **_: Any) -> Any:
        status = paths.lora_path(lora_name).stat()
        return status.st_size, status.st_mtime_ns

    @classmethod
    def execute(
        cls,
        lora_name: str,
        model: Any,
        strength: float,
        clip: Any | None = None,
        strength_clip: float | None = None,
        block_weights: str = "",
        schedule: str = "",
    ) -> io.NodeOutput:
        lora = read_lora(paths.lora_path(lora_name))
        node = cls.hidden.unique_id
        done = _put_on(node, model, clip, lora, strength, strength_clip, block_weights, schedule)
        return io.NodeOutput(*done, lora)


class KilnSaveLora(io.ComfyNode):
    """A LoRA into a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnSaveLora",
            display_name="Save LoRA (LoRA Kiln)",
            **listed("KilnSaveLora"),
            description="Writes a LoRA under ComfyUI/output/loras, where loaders find it. The file carries the graph "
            "that trained it: drop it on the canvas to get it back.",
            inputs=[
                types.LoraModel.Input("lora", tooltip="From the training node or a loader."),
                io.String.Input(
                    "filename_prefix",
                    default="kiln/lora",
                    tooltip="Name under ComfyUI/output/loras; a number is added, nothing is overwritten.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default=FORMATS[0],
                    tooltip="Key names: comfyui (ComfyUI, diffusers and most tools read it), kohya "
                    "(lora_unet_...), diffusers "
                    "(transformer....) or peft (a folder with adapter_config.json).",
                ),
                io.Combo.Input(
                    "dtype",
                    options=[*DTYPES, "keep"],
                    default="bf16",
                    tooltip="Precision of the file: bf16 and fp16 are half the size of fp32; keep leaves it as it is.",
                ),
                types.LoraModel.Input(
                    "lora_low_noise",
                    optional=True,
                    tooltip="Of a pair for Wan 2.2's two experts, the one for low noise; the other input is for high "
                    "noise then. Both files get the same name and number, with high_noise and low_noise behind the "
                    "name.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="path", tooltip="The file's full path."),
                io.String.Output(
                    display_name="path_low_noise",
                    tooltip="The second file's full path; empty without a pair.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        lora: LoraWeights,
        filename_prefix: str,
        format: str,
        dtype: str,
        lora_low_noise: LoraWeights | None = None,
    ) -> io.NodeOutput:
        if lora_low_noise is None:
            pair = {paths.new_output_path("loras", filename_prefix): lora}
        else:
            names = paths.new_output_paths("loras", filename_prefix, ("high_noise", "low_noise"))
            pair = dict(zip(names, (lora, lora_low_noise), strict=True))
        saved = [save_lora(p, for_output(each), format=format, dtype=dtype) for p, each in pair.items()]
        text = "\n".join(f"{path.name}, {_bytes_of(path) / 1e6:.2f} MB" for path in saved)
        NodeProgress(cls.hidden.unique_id).say(text)
        shown = [str(path) for path in saved]
        return io.NodeOutput(*shown, *[""] * (2 - len(shown)), ui={"text": (text,), "path": tuple(shown)})


def _bytes_of(path: Path) -> int:
    """Of a file, or of a folder of files."""
    return sum(f.stat().st_size for f in ([path] if path.is_file() else path.iterdir()))
