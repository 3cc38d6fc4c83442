"""Nodes that write captions."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..trainer.dataset.caption_variants import CaptionVariation, caption_variants
from ..trainer.dataset.class_words import read_class_words
from ..trainer.dataset.items import Dataset
from ..trainer.dataset.template import Missing, caption_dataset
from . import types
from .host.canvas.progress import NodeProgress
from .inputs import seed_input
from .listing import listed


class KilnCaptionTemplate(io.ComfyNode):
    """One template, one caption per image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnCaptionTemplate",
            display_name="Caption Template (LoRA Kiln)",
            **listed("KilnCaptionTemplate"),
            description="Builds every image's caption from a template with placeholders.",
            inputs=[
                types.Dataset.Input("dataset", tooltip="Images and their own captions."),
                io.String.Input(
                    "template",
                    default="{caption}",
                    multiline=True,
                    tooltip="Clauses between commas, with placeholders in square or curly brackets: [caption] is the "
                    "image's own caption, [name] its file name, [folder] its folder, [trigger] the trigger word, and "
                    "all fields of the sidecars and names in values. Example: [subject] [action], [art_style] style, "
                    "[lighting].",
                ),
                io.String.Input(
                    "values",
                    default="",
                    multiline=True,
                    tooltip="One name: value a line, used where an image's sidecar says nothing of that name. Several "
                    "values split by a vertical bar are drawn per image from the seed.",
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
                seed_input("Start of the draws among alternatives."),
                io.String.Input(
                    "class_word",
                    default="",
                    optional=True,
                    tooltip="What the trigger word is one of, such as woman, dog or style: the model then stays what "
                    "it was for that class (differential output preservation), for 2 to 2.5 times the time. "
                    "Several are split by a vertical bar. Empty: off.",
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
        cls,
        dataset: Dataset,
        template: str,
        values: str,
        trigger_word: str,
        missing: Missing,
        seed: int,
        class_word: str = "",
    ) -> io.NodeOutput:
        words = read_class_words(class_word, trigger_word)
        captions = caption_dataset(dataset, template, values, trigger_word, missing, seed)
        NodeProgress(cls.hidden.unique_id).say("\n".join(captions[:20]))
        return io.NodeOutput(
            dataset.with_captions(captions, trigger_word.strip()).with_class_words(words),
            captions,
            ui=ui.PreviewText("\n".join(captions)),
        )


class KilnCaptionAugment(io.ComfyNode):
    """Captions that change from sample to sample."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnCaptionAugment",
            display_name="Caption Augment (LoRA Kiln)",
            **listed("KilnCaptionAugment"),
            description="Drops captions at times and shuffles their tags, drawn at every step from the run's seed.",
            inputs=[
                types.Dataset.Input("dataset", tooltip="Items with finished captions."),
                io.Float.Input(
                    "dropout",
                    default=0.1,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Probability of showing an item with an empty caption, 0-1; 0.05-0.1 is usual and keeps "
                    "guidance working.",
                ),
                io.Boolean.Input(
                    "shuffle_tags",
                    default=False,
                    tooltip="Show the parts between commas in changing order. For tags, not for sentences.",
                ),
                io.Int.Input(
                    "keep_first",
                    default=1,
                    min=0,
                    max=100,
                    tooltip="Tags at the start that stay in place, the trigger word for example, 0-100.",
                ),
                io.Int.Input(
                    "orders",
                    default=8,
                    min=2,
                    max=64,
                    optional=True,
                    tooltip="Different orders encoded per caption, 2-64.",
                ),
            ],
            outputs=[
                types.Dataset.Output(
                    display_name="dataset", tooltip="The same items; every form of a caption is encoded once."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, dataset: Dataset, dropout: float, shuffle_tags: bool, keep_first: int, orders: int = 8
    ) -> io.NodeOutput:
        variation = CaptionVariation(
            dropout=dropout, shuffle_tags=shuffle_tags, keep_first=keep_first, variants=orders
        )
        forms = caption_variants(dataset.items[0].caption, variation)
        text = "\n".join([f"{dropout:.0%} of the samples without a caption; forms of the first one:", *forms])
        NodeProgress(cls.hidden.unique_id).say(text)
        return io.NodeOutput(dataset.with_caption_variation(variation), ui=ui.PreviewText(text))
