"""The one node of the pack. Import it only inside a running ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from .text import load_clip


class TinyWanTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TinyWanTextEncoder",
            display_name="Tiny Wan Text Encoder",
            category="LoRA Kiln/demo",
            description=(
                "The text encoder of the tiny Wan demo model. It has no weights: every word is a fixed "
                "random vector, so a LoRA can teach it any new word. Use it in place of Load CLIP, and only "
                "with the tiny Wan."
            ),
            inputs=[],
            outputs=[io.Clip.Output(tooltip="For CLIP Text Encode, as any other CLIP.")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(load_clip())


class TinyWanExtension(ComfyExtension):
    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [TinyWanTextEncoder]
