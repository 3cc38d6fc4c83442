"""Nodes that write captions."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..trainer.dataset.items import Dataset
from ..trainer.dataset.template import Missing, caption_dataset
from . import types
from .host.progress import NodeProgress


class KilnCaptionTemplate(io.ComfyNode):
    """One template, one caption per image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnCaptionTemplate",
            display_name="Caption Template (LoRA Kiln)",
            category=types.CATEGORY,
            description="Builds every image's caption from a template with placeholders.",
            inputs=[
                types.Dataset.Input("dataset", tooltip="Images and their own captions."),
                io.String.Input(
                    "template",
                    default="{caption}",
                    multiline=True,
                    tooltip="Clauses between commas, with placeholders in square or curly brackets: [caption] is the "
                    "image's own caption, [name] its file name, [folder] its folder, [trigger] the trigger word, and "
                    "all names in values. Example: [subject] [action], [art_style] style, [lighting].",
                ),
                io.String.Input(
                    "values",
                    default="",
                    multiline=True,
                    tooltip="One name: value a line. Several values split by a vertical bar are drawn per image from "
                    "the seed.",
                ),
                io.String.Input(
                    "trigger_word",
                    default="",
                    tooltip="Put first unless the caption already contains it. A rare word works best.",
                ),
                io.Combo.Input(
                    "missing",
                    options=["drop clause", "error", "keep"],
                    default="drop clause",
                    tooltip="When a placeholder is empty for an image: leave its clause out, stop, or keep the braces.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Start of the draws among alternatives.",
                ),
            ],
            outputs=[
                types.Dataset.Output(
                    display_name="dataset", tooltip="The same images with the new captions."
                ),
                io.String.Output(
                    display_name="captions",
                    is_output_list=True,
                    tooltip="The finished captions, one per image.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, dataset: Dataset, template: str, values: str, trigger_word: str, missing: Missing, seed: int
    ) -> io.NodeOutput:
        captions = caption_dataset(dataset, template, values, trigger_word, missing, seed)
        NodeProgress(cls.hidden.unique_id).say("\n".join(captions[:20]))
        return io.NodeOutput(
            dataset.with_captions(captions), captions, ui=ui.PreviewText("\n".join(captions))
        )
