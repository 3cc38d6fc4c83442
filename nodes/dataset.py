"""Nodes from a folder to encoded items."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..trainer.dataset import items
from ..trainer.dataset.encoded import encode_dataset
from . import types
from .host import paths
from .host.encoder import HostEncoder
from .host.progress import NodeProgress


class KilnLoadDataset(io.ComfyNode):
    """A folder of images with captions beside them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnLoadDataset",
            display_name="Load Dataset (LoRA Kiln)",
            category=types.CATEGORY,
            description="Reads a folder of images and the captions beside them (photo.png and photo.txt).",
            inputs=[
                io.String.Input(
                    "folder",
                    default="my_dataset",
                    tooltip="Folder under ComfyUI/input, for example my_dataset. An absolute path must lie in a folder "
                    "that is listed as kiln_datasets in extra_model_paths.yaml.",
                ),
                io.Int.Input(
                    "repeats",
                    default=1,
                    min=1,
                    max=1000,
                    tooltip="How often each image is seen in one epoch, 1-1000.",
                ),
                io.Boolean.Input("recursive", default=False, tooltip="Also read the folder's sub-folders."),
                io.Combo.Input(
                    "on_bad_file",
                    options=["stop", "skip"],
                    default="stop",
                    tooltip="An image that cannot be read or a caption that is not UTF-8: stop with its name, or leave "
                    "it out and say so.",
                ),
            ],
            outputs=[
                types.Dataset.Output(
                    display_name="dataset", tooltip="Images and captions, not yet read into memory."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str, recursive: bool, **_: Any) -> Any:
        return items.folder_state(paths.dataset_folder(folder), recursive)

    @classmethod
    def execute(cls, folder: str, repeats: int, recursive: bool, on_bad_file: str) -> io.NodeOutput:
        progress = NodeProgress(cls.hidden.unique_id)
        dataset = items.scan_folder(
            paths.dataset_folder(folder),
            repeats=repeats,
            recursive=recursive,
            on_bad_file="skip" if on_bad_file == "skip" else "stop",
            on_progress=progress.show,
        )
        progress.say(dataset.describe())
        return io.NodeOutput(dataset, ui=ui.PreviewText(dataset.describe()))


class KilnEncodeDataset(io.ComfyNode):
    """Images and captions into what the model is trained on, kept on disk."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnEncodeDataset",
            display_name="Encode Dataset (LoRA Kiln)",
            category=types.CATEGORY,
            description="Encodes images and captions once and keeps them on disk; only what changed is encoded again.",
            inputs=[
                types.Dataset.Input("dataset", tooltip="Images and captions."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model you will train."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model you will train."),
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=16,
                    max=4096,
                    step=16,
                    tooltip="Training size in pixels: images keep their shape at an area of at most resolution x "
                    "resolution and are never enlarged. 512 minimum, 1024 good; memory grows with the area.",
                ),
            ],
            outputs=[
                types.Encoded.Output(display_name="encoded", tooltip="Latents and conditioning, on disk.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> Any:
        return paths.encoded_cache()[1]  # encode again when the user has deleted the cache

    @classmethod
    def execute(cls, dataset: items.Dataset, vae: Any, clip: Any, resolution: int) -> io.NodeOutput:
        progress = NodeProgress(cls.hidden.unique_id)
        cache, _ = paths.encoded_cache()
        encoded = encode_dataset(dataset, HostEncoder(vae, clip), cache, resolution, progress.show)
        progress.say(encoded.describe())
        return io.NodeOutput(encoded, ui=ui.PreviewText(encoded.describe()))
