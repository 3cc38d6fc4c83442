"""The template that trains a slider from words, on Wan 2.1."""

from __future__ import annotations

from typing import Any

from scripts import model_downloads as files
from scripts.training_templates import NEGATIVE, wan
from scripts.workflow_graph import BLUE, BROWN, GREEN, PURPLE, YOURS, Graph, Info, opened
from trainer.config.presets import PRESETS

TITLE = "Wan 2.1 1.3B - a slider from words"
TARGET, POSITIVE, NEGATIVE_END = "person", "very old person, wrinkled", "very young person, smooth skin"
PRESERVE = "man\nwoman"
DRAWN = "a photo of a woman in a park"
SAMPLING = {"steps": 30, "cfg": 6.0, "sampler_name": "uni_pc", "scheduler": "simple"}
NOTE = """## A slider from words

A LoRA whose strength, from -1 to 1, makes a person younger or older. There are no pictures to collect: the model draws
16 of the target, and learns from its own answers to the words for both ends.

1. Choose the model files in **1 Model**; ComfyUI offers the download of those that are missing.
2. In **2 Words** write what is changed, both ends, and what is to stay, one attribute a line.
3. Press **Run**. The sampler draws, then the slider is trained; the loss says how well it follows the words.
4. At the end one prompt is drawn at five strengths, side by side.

Green nodes are yours to set. The preset *slider* is set: 1000 steps at rank 4. When the pictures break at strength 1,
lower *guidance* to 1; when too little moves, train longer or raise it."""


def slider_template(info: Info) -> Graph:
    """Words -> a LoRA, and one prompt at five strengths."""
    graph = opened(info, NOTE, 460)
    graph.step("1 Model", BLUE)
    graph.column(340)
    model, clip, vae = wan(files.WAN_1_3B)(graph)
    graph.step("2 Words", GREEN)
    graph.column(340)
    graph.add("target", "CLIPTextEncode", tall=100, color=YOURS, title="target", clip=clip, text=TARGET)
    graph.add("unwanted", "CLIPTextEncode", tall=100, title="negative prompt", clip=clip, text=NEGATIVE)
    graph.add("empty", "EmptyHunyuanLatentVideo", width=512, height=512, length=1, batch_size=16)
    graph.column(340)
    given: dict[str, Any] = {"negative": ("unwanted", 0), "seed": 1, **SAMPLING}
    graph.add(
        "drawn",
        "KSampler",
        title="sample: the target",
        model=model,
        positive=("target", 0),
        latent_image=("empty", 0),
        **given,
    )
    graph.add(
        "slider",
        "KilnSliderTargets",
        color=YOURS,
        clip=clip,
        latent=("drawn", 0),
        target=TARGET,
        positive=POSITIVE,
        negative=NEGATIVE_END,
        preserve=PRESERVE,
    )
    graph.step("3 Train", BROWN)
    graph.column(400)
    chosen: dict[str, Any] = {"preset": "slider", **PRESETS["slider"]}
    graph.add("train", "KilnTrainLora", tall=830, model=model, encoded=("slider", 0), **chosen)
    graph.step("4 Use", PURPLE)
    graph.column(360)
    graph.add("lora", "KilnSaveLora", lora=("train", 0), filename_prefix="kiln/wan21_slider")
    graph.add("sweep", "KilnWeightSweep", model=model, lora=("train", 0), strengths="-1..1:0.5")
    graph.add("positive", "CLIPTextEncode", tall=110, color=YOURS, title="prompt", clip=clip, text=DRAWN)
    graph.add("one", "EmptyHunyuanLatentVideo", width=512, height=512, length=1, batch_size=1)
    graph.column(340)
    graph.add(
        "sampler",
        "KSampler",
        title="sample: five strengths",
        model=("sweep", 0),
        positive=("positive", 0),
        latent_image=("one", 0),
        **given,
    )
    graph.add("decode", "VAEDecode", samples=("sampler", 0), vae=vae)
    graph.column(620)
    graph.add("grid", "KilnComparisonGrid", tall=480, images=("decode", 0), labels=("sweep", 1), columns=5)
    graph.add("save", "SaveImage", tall=420, images=("grid", 0), filename_prefix="kiln/slider")
    return graph
