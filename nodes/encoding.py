"""Nodes that make encoded datasets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io, ui

from ..trainer.dataset.buckets import BucketOptions, plan
from ..trainer.dataset.encode import encode_dataset
from ..trainer.dataset.encode_progress import EncodeProgress
from ..trainer.dataset.from_graph import encoded_from_latents
from ..trainer.dataset.items import Dataset
from ..trainer.dataset.pieces import CLIP_PARTS, ClipPart, cut_clips, describe_use
from ..trainer.dataset.quality import require_captions
from ..trainer.dataset.resolutions import at_resolutions, read_resolutions
from ..trainer.errors import KilnError
from . import types
from .host import paths
from .host.canvas.progress import NodeProgress
from .host.encoding.encoder import HostEncoder
from .host.encoding.image_conditioning import CONTROL_WAYS, FIRST_FRAMES, ControlWay, FirstFrame
from .inputs import max_frames_input, repeats_input, resolution_input
from .listing import listed


def _image_conditioning_inputs() -> list[Any]:
    """What the model is given of pixels beside the text."""
    return [
        io.Combo.Input(
            "first_frame",
            options=list(FIRST_FRAMES),
            default=FIRST_FRAMES[0],
            optional=True,
            tooltip="For image-to-video models: give the model each clip's own first frame (or its first and last "
            "one), as ComfyUI's node for this model does. The VAE tells which model it is; first frame in place is "
            "HunyuanVideo's v2 (replace).",
        ),
        io.Float.Input(
            "first_frame_dropout",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            optional=True,
            tooltip="Share 0-1 of the samples that are trained without the first frame or control picture; 0.1 keeps a "
            "model of both kinds able to do without.",
        ),
        io.Combo.Input(
            "controls",
            options=list(CONTROL_WAYS),
            default=CONTROL_WAYS[0],
            optional=True,
            tooltip="How the model is given control pictures (control_folders on Load Dataset). auto: Qwen-Image-Edit "
            "Plus with Qwen-Image's text encoder, else reference latents (Kontext, Flux 2, Omnigen2); for Wan choose.",
        ),
        io.ClipVision.Input(
            "clip_vision",
            optional=True,
            tooltip="For models that also look at the first frame through CLIP, as Wan 2.1 i2v and FLF2V do; for "
            "HunyuanVideo it goes into the text (llava_llama3_vision).",
        ),
    ]


class KilnEncodeDataset(io.ComfyNode):
    """Images, clips and captions into what the model is trained on, kept on disk."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnEncodeDataset",
            display_name="Encode Dataset (LoRA Kiln)",
            **listed("KilnEncodeDataset"),
            description="Encodes images and captions once and keeps them on disk; only what changed is encoded again.",
            inputs=[
                types.Dataset.Input("dataset", tooltip="Images and captions."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model you will train."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model you will train."),
                resolution_input(
                    "Training size in pixels: items go to the bucket nearest to their shape, at an area of at "
                    "most resolution x resolution. 512 minimum, 1024 good; memory grows with the area."
                ),
                max_frames_input(),
                io.Float.Input(
                    "fps",
                    default=16.0,
                    min=0.0,
                    max=120.0,
                    step=1.0,
                    optional=True,
                    tooltip="Frames per second that clips are trained at: faster ones are thinned out. Wan was trained "
                    "at 16. 0 takes every frame.",
                ),
                io.Float.Input(
                    "max_upscale",
                    default=1.0,
                    min=1.0,
                    max=4.0,
                    step=0.05,
                    optional=True,
                    tooltip="How far a small image may be enlarged to fill its bucket, 1-4; 1 never enlarges and gives "
                    "it a smaller bucket.",
                ),
                io.Combo.Input(
                    "clip_part",
                    options=list(CLIP_PARTS),
                    default=CLIP_PARTS[0],
                    optional=True,
                    tooltip="Which part of a clip longer than max_frames is trained on. several pieces and whole in "
                    "pieces make an item of each piece; the node's text says how much is not seen.",
                ),
                io.Int.Input(
                    "pieces",
                    default=4,
                    min=2,
                    max=64,
                    optional=True,
                    tooltip="Most pieces of a clip where clip_part is several pieces, 2-64; they do not overlap.",
                ),
                io.Boolean.Input(
                    "prompt_syntax",
                    default=False,
                    optional=True,
                    tooltip="Read (word:1.2) in captions as a weight and embedding:name as an embedding, as prompts "
                    "are. Off: captions are taken word for word, brackets too.",
                ),
                io.Boolean.Input(
                    "without_captions",
                    default=False,
                    optional=True,
                    tooltip="Train although most items have no caption. Off: the node stops and says how many have "
                    "none.",
                ),
                *_image_conditioning_inputs(),
                io.String.Input(
                    "more_resolutions",
                    default="",
                    optional=True,
                    tooltip="Further training sizes beside resolution, with commas between, such as 768, 1024: every "
                    "item is trained at each that it can fill without being enlarged. Empty: none.",
                ),
            ],
            outputs=[
                types.Encoded.Output(display_name="encoded", tooltip="Latents and conditioning, on disk.")
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> Any:
        return paths.encoded_cache()[1]  # encode again when the user has deleted the cache

    @classmethod
    def execute(
        cls,
        dataset: Dataset,
        vae: Any,
        clip: Any,
        resolution: int,
        max_frames: int = 33,
        fps: float = 16.0,
        max_upscale: float = 1.0,
        clip_part: ClipPart = "middle",
        pieces: int = 4,
        prompt_syntax: bool = False,
        without_captions: bool = False,
        first_frame: FirstFrame = "none",
        first_frame_dropout: float = 0.0,
        controls: ControlWay = "auto",
        clip_vision: Any = None,
        more_resolutions: str = "",
    ) -> io.NodeOutput:
        if not without_captions:
            require_captions(dataset)
        if controls != "auto" and not any(item.controls for item in dataset.items):
            raise KilnError(
                f"controls is {controls}, and no item has a control picture; fill control_folders on Load Dataset, or "
                "set it to auto."
            )
        progress = NodeProgress(cls.hidden.unique_id)

        def tell(state: EncodeProgress) -> None:
            progress.step(state.done, state.total, state.sentence())

        cache, _ = paths.encoded_cache()
        options = BucketOptions(
            resolution=resolution, max_frames=max_frames, fps=fps, max_upscale=max_upscale
        )
        sizes = at_resolutions(dataset, options, read_resolutions(more_resolutions))
        items = cut_clips(sizes, options, clip_part, pieces)
        encoder = HostEncoder(vae, clip, prompt_syntax, first_frame, controls, clip_vision)
        encoded = encode_dataset(items, encoder, cache, options, tell, first_frame_dropout)
        encoded = replace(encoded, text_encoder=encoder.text_fingerprint, prompt_syntax=prompt_syntax)
        shown = "\n".join(
            [encoded.describe(), plan(items, options).describe(), *describe_use(items, options)]
        )
        progress.say(shown)
        return io.NodeOutput(encoded, ui=ui.PreviewText(shown))


class KilnEncodedFromLatents(io.ComfyNode):
    """Latents and conditioning of the graph as an encoded dataset."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnEncodedFromLatents",
            display_name="Encoded From Latents (LoRA Kiln)",
            **listed("KilnEncodedFromLatents"),
            description="Takes latents and conditioning as the host's dataset and encoder nodes make them, so that a "
            "graph for the host's Train LoRA node can train here.",
            is_input_list=True,
            inputs=[
                io.Latent.Input(
                    "latents",
                    tooltip="One or a list; every sample of a batch becomes an item. A noise mask becomes its loss "
                    "mask.",
                ),
                io.Conditioning.Input(
                    "positive", tooltip="One conditioning for all items, or a list with one per item."
                ),
                repeats_input("How often each item is seen in one epoch, 1-1000.", optional=True),
            ],
            outputs=[types.Encoded.Output(display_name="encoded", tooltip="For the training node.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> Any:
        return paths.encoded_cache()[1]

    @classmethod
    def execute(
        cls, latents: list[Any], positive: list[Any], repeats: list[int] | None = None
    ) -> io.NodeOutput:
        encoded = encoded_from_latents(latents, positive, paths.encoded_cache()[0], (repeats or [1])[0])
        NodeProgress(cls.hidden.unique_id).say(encoded.describe())
        return io.NodeOutput(encoded, ui=ui.PreviewText(encoded.describe()))
