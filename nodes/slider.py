"""The node that makes a slider's targets of words."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..trainer.dataset.slider import SliderTargets, read_attributes, slider_dataset
from . import types
from .host import paths
from .host.canvas.progress import NodeProgress
from .host.encoding.encoder import encode_caption, word_for_word
from .listing import listed

GUIDANCE = SliderTargets.guidance


class KilnSliderTargets(io.ComfyNode):
    """Words for both ends of a slider, in place of a dataset."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnSliderTargets",
            display_name="Slider Targets (LoRA Kiln)",
            **listed("KilnSliderTargets"),
            description="A LoRA that moves one attribute with its strength, from -1 to 1, trained on words alone: say "
            "what is changed and what both ends are. Goes to the training node in place of an encoded dataset.",
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model you will train."),
                io.Latent.Input(
                    "latent",
                    tooltip="What a sampler draws of the target with the model you will train, about 16 pictures in "
                    "one batch; noised, they are where the slider learns.",
                ),
                io.String.Input(
                    "target",
                    default="",
                    tooltip="What the slider changes, as in a prompt: a face, for example.",
                ),
                io.String.Input(
                    "positive",
                    default="",
                    tooltip="What strength 1 makes of it, as a whole prompt: an old face, for example.",
                ),
                io.String.Input(
                    "negative",
                    default="",
                    tooltip="What strength -1 makes of it, as a whole prompt: a young face, for example.",
                ),
                io.String.Input(
                    "preserve",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="What shall stay as it is, one attribute a line, such as man and woman: each is put before "
                    "all three prompts, and one is drawn for each sample.",
                ),
                io.Float.Input(
                    "guidance",
                    default=GUIDANCE,
                    min=0.1,
                    max=20.0,
                    step=0.1,
                    optional=True,
                    tooltip="How far strength 1 goes: times the way between the two ends. 3 is ai-toolkit's, 4 that "
                    "of the paper's examples. Higher moves more and changes other things sooner.",
                ),
            ],
            outputs=[
                types.Encoded.Output(
                    display_name="encoded", tooltip="For the encoded input of the training node."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> Any:
        return paths.encoded_cache()[1]

    @classmethod
    def execute(
        cls,
        clip: Any,
        latent: dict[str, Any],
        target: str,
        positive: str,
        negative: str,
        preserve: str = "",
        guidance: float = GUIDANCE,
    ) -> io.NodeOutput:
        targets = SliderTargets(target, positive, negative, read_attributes(preserve), guidance)
        literal = word_for_word(clip)
        encoded = slider_dataset(
            targets, latent, lambda text: encode_caption(literal, text), paths.encoded_cache()[0]
        )
        NodeProgress(cls.hidden.unique_id).say(encoded.describe())
        return io.NodeOutput(encoded, ui=ui.PreviewText(encoded.describe()))
