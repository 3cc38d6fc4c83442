"""LoRAs asked for inside the prompt."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer.errors import KilnError
from ..trainer.lora_files.lora_weights import LoraWeights
from ..trainer.lora_files.prompt_tags import PromptLora, find_lora_file, parse_prompt
from . import types
from .host import paths
from .host.canvas.progress import NodeProgress
from .host.models.lora import apply_lora, put_on, read_lora
from .listing import listed


class KilnPromptLora(io.ComfyNode):
    """<lora:name:0.8> and lora_weight=0.8 in a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnPromptLora",
            display_name="Prompt LoRA (LoRA Kiln)",
            **listed("KilnPromptLora"),
            description="Puts the LoRAs on a model that its prompt asks for, and takes the requests out of the prompt.",
            inputs=[
                io.Model.Input("model", tooltip="The model to change; the input itself stays as it is."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="May hold <lora:name:0.8>, <lora:name:0.8:0.6> (model and text encoder) and "
                    "lora_weight=0.8, "
                    "which sets the connected LoRA and tags without a strength.",
                ),
                io.Clip.Input(
                    "clip", optional=True, tooltip="Text encoder, for LoRAs that hold layers of it."
                ),
                types.LoraModel.Input(
                    "lora",
                    optional=True,
                    tooltip="Put on at lora_weight, or at 1 when the prompt names none.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the LoRAs on."),
                io.Clip.Output(display_name="clip", tooltip="The text encoder with the LoRAs on."),
                io.String.Output(display_name="prompt", tooltip="The prompt without the requests."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, prompt: str | None = None, **_: Any) -> Any:
        try:
            wanted = parse_prompt(prompt or "").loras
            found = [paths.lora_path(find_lora_file(each.name, paths.lora_names())).stat() for each in wanted]
        except KilnError:
            return prompt
        return [(status.st_size, status.st_mtime_ns) for status in found]

    @classmethod
    def execute(
        cls, model: Any, prompt: str, clip: Any | None = None, lora: LoraWeights | None = None
    ) -> io.NodeOutput:
        parsed = parse_prompt(prompt)
        if parsed.weight is not None and lora is None and not parsed.loras:
            raise KilnError(
                "The prompt says lora_weight and there is no LoRA; connect one, or name a file as <lora:name:0.8>."
            )
        names = [find_lora_file(each.name, paths.lora_names()) for each in parsed.loras]
        weight = 1.0 if parsed.weight is None else parsed.weight
        if lora is not None:
            model, clip = apply_lora(model, clip, lora, weight)
        for each, name in zip(parsed.loras, names, strict=True):
            done = put_on(model, clip, read_lora(paths.lora_path(name)), *_strengths(each, weight))
            model, clip = done.model, done.clip
        NodeProgress(cls.hidden.unique_id).say(", ".join(names) or "no LoRA named")
        return io.NodeOutput(model, clip, parsed.text)


def _strengths(each: PromptLora, weight: float) -> tuple[float, float]:
    strength = weight if each.strength is None else each.strength
    return strength, strength if each.strength_clip is None else each.strength_clip
