"""Nodes that look at a dataset: the report, and augmentation with its preview."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..trainer.dataset.augment import Augmentation
from ..trainer.dataset.buckets import BucketOptions
from ..trainer.dataset.flip import flip_warnings
from ..trainer.dataset.items import Dataset
from . import types
from .host.canvas.progress import NodeProgress
from .inputs import max_frames_input, resolution_input, seed_input
from .listing import listed


class KilnDatasetReport(io.ComfyNode):
    """What is good and bad about a dataset."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnDatasetReport",
            display_name="Dataset Report (LoRA Kiln)",
            **listed("KilnDatasetReport"),
            description="Says what is wrong with a dataset and what to do next, before time is spent on training.",
            inputs=[
                types.Dataset.Input(
                    "dataset", tooltip="The set to look at, best after its captions are finished."
                ),
                resolution_input(
                    "Training size in pixels for the bucket plan, as on Encode Dataset.", optional=True
                ),
                max_frames_input(),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="The report as Markdown."),
                io.Image.Output(
                    display_name="contact_sheet",
                    tooltip="Labelled thumbnails. Red frames: worth leaving out; orange: worth a look.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, dataset: Dataset, resolution: int = 512, max_frames: int = 33) -> io.NodeOutput:
        from ..trainer.dataset.contact_sheet import contact_sheet
        from ..trainer.dataset.report import DatasetReport

        NodeProgress(cls.hidden.unique_id).say("looking ...")
        report = DatasetReport(dataset, BucketOptions(resolution=resolution, max_frames=max_frames))
        text = report.markdown()
        sheet = _as_image(contact_sheet(dataset, report.problems, report.headline()))
        NodeProgress(cls.hidden.unique_id).say(report.headline())
        return io.NodeOutput(text, sheet, ui=_text_and_image(cls, text, sheet))


class KilnAugmentDataset(io.ComfyNode):
    """Random variants of every image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            # Long, and only a list of widgets
            node_id="KilnAugmentDataset",
            display_name="Augment Dataset (LoRA Kiln)",
            **listed("KilnAugmentDataset"),
            description="Encodes every item in several random variants: crop, flip, colours and noise. Validation "
            "items stay as they are.",
            inputs=[
                types.Dataset.Input("dataset", tooltip="Images and clips."),
                io.Float.Input(
                    "crop_min_scale",
                    default=0.8,
                    min=0.1,
                    max=1.0,
                    step=0.05,
                    tooltip="Smallest share of the area that a random crop keeps, 0.1-1; 1 switches cropping off.",
                ),
                io.Float.Input(
                    "horizontal_flip",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Probability of mirroring, 0-1. Use 0 where left and right or writing matter.",
                ),
                io.Float.Input(
                    "color_jitter",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Brightness, contrast and saturation change by up to this share, 0-1. Use 0 where colours "
                    "matter.",
                ),
                io.Float.Input(
                    "gaussian_noise",
                    default=50.0,
                    min=0.0,
                    max=1000.0,
                    step=1.0,
                    tooltip="Largest variance of the noise on the 0-255 scale; 0 switches noise off.",
                ),
                io.Int.Input(
                    "variants",
                    default=4,
                    min=1,
                    max=100,
                    tooltip="Variants encoded per item, 1-100; encoding time and disk space grow with it.",
                ),
                seed_input("Start of the random draws; another one gives other variants."),
                io.Float.Input(
                    "gaussian_noise_min",
                    default=10.0,
                    min=0.0,
                    max=1000.0,
                    step=1.0,
                    optional=True,
                    tooltip="Smallest variance of the noise on the 0-255 scale.",
                ),
            ],
            outputs=[
                types.Dataset.Output(
                    display_name="dataset", tooltip="The same items, to be encoded in variants."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        dataset: Dataset,
        crop_min_scale: float,
        horizontal_flip: float,
        color_jitter: float,
        gaussian_noise: float,
        variants: int,
        seed: int,
        gaussian_noise_min: float = 10.0,
    ) -> io.NodeOutput:
        from ..trainer.dataset.contact_sheet import variants_sheet

        augmentation = Augmentation(
            crop_min_scale=crop_min_scale,
            horizontal_flip=horizontal_flip,
            color_jitter=color_jitter,
            noise_min=min(gaussian_noise_min, gaussian_noise),
            noise_max=gaussian_noise,
            variants=variants,
            seed=seed,
        )
        changed = dataset.with_augmentation(augmentation)
        warnings = flip_warnings([i for i in changed.items if i.augmentation]) if horizontal_flip else []
        text = "\n".join([*warnings, f"{variants} variants of each item"])
        NodeProgress(cls.hidden.unique_id).say(text)
        preview = _as_image(variants_sheet(changed, BucketOptions(resolution=256, max_frames=5)))
        return io.NodeOutput(changed, ui=_text_and_image(cls, text, preview))


def _as_image(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels)[None]


def _text_and_image(cls: type[io.ComfyNode], text: str, image: torch.Tensor) -> dict[str, Any]:
    return {**ui.PreviewImage(image, cls=cls).as_dict(), "text": (text,)}
