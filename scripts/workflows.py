"""Rebuild every workflow file, with the node definitions of a running server:

    python -m scripts.workflows URL

Building the files from code keeps them true to the nodes: an input that is renamed or missing fails here. Heights
come from node_sizes.json, thumbnails from thumbnails.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from scripts import model_downloads as files
from scripts.edit_template import EDITS, edit_template
from scripts.experts_template import TITLE as EXPERTS
from scripts.experts_template import experts_template
from scripts.first_frame_template import TITLE as FIRST_FRAME
from scripts.first_frame_template import first_frame_template
from scripts.host_client import HostClient
from scripts.host_files import REPO
from scripts.slider_template import TITLE as SLIDER
from scripts.slider_template import slider_template
from scripts.training_templates import NEGATIVE, PROMPT, STORIES, show, training_template, wan
from scripts.workflow_graph import BLUE, BROWN, GREEN, PURPLE, YOURS, Graph, Info, opened
from scripts.workshop import captioning, workshop

TEMPLATES = REPO / "workflows"
TINY = REPO / "tests" / "tiny_wan" / "workflows" / "train_then_sample_tiny.json"


def tiny(info: Info) -> Graph:
    """The demo: learn the concept on the tiny Wan, then draw it at rising strengths."""
    graph = opened(info, TINY_NOTE, 260, width=400)
    graph.step("1 Model", BLUE)
    graph.column(320)
    graph.add("model", "UNETLoader", unet_name="tiny_wan.safetensors", weight_dtype="default")
    graph.add("clip", "TinyWanTextEncoder")
    graph.add("vae", "VAELoader", vae_name="tiny_wan_vae.safetensors")
    graph.step("2 Pictures", GREEN)
    graph.column(340)
    graph.add("dataset", "KilnLoadDataset", folder="tiny_concept")
    graph.add("captions", "KilnCaptionTemplate", tall=360, dataset=("dataset", 0))
    graph.add(
        "encoded",
        "KilnEncodeDataset",
        dataset=("captions", 0),
        vae=("vae", 0),
        clip=("clip", 0),
        resolution=64,
    )
    graph.step("3 Train", BROWN)
    graph.column(340)
    graph.add("objective", "KilnObjectiveSettings")
    graph.add("optimizer", "KilnOptimizerSettings", settings=("objective", 0))
    graph.column(380)
    graph.add(
        "train",
        "KilnTrainLora",
        tall=830,
        model=("model", 0),
        encoded=("encoded", 0),
        settings=("optimizer", 0),
        **TINY_TRAINING,
    )
    graph.step("4 Use", PURPLE)
    graph.column(340)
    graph.add("lora", "KilnSaveLora", lora=("train", 0), filename_prefix="kiln/tiny_concept")
    graph.add("plot", "KilnLossPlot", tall=300, run=("train", 3))
    graph.add("positive", "CLIPTextEncode", tall=110, clip=("clip", 0), text=TINY_PROMPT)
    graph.add("negative", "CLIPTextEncode", tall=90, clip=("clip", 0), text="")
    graph.add("empty", "EmptyHunyuanLatentVideo", width=64, height=64, length=1, batch_size=20)
    graph.column(320)
    models = {"without": ("model", 0)}
    for strength in (0.5, 0.8, 1.0):
        name = f"strength {strength}"
        graph.add(
            f"apply {strength}", "KilnApplyLora", model=("model", 0), lora=("train", 0), strength=strength
        )
        models[name] = (f"apply {strength}", 0)
    for row in ("without", "strength 0.5"), ("strength 0.8", "strength 1.0"):
        graph.column(320)
        for name in row:
            graph.add(
                f"{name} sampler",
                "KSampler",
                title=f"sample: {name}",
                model=models[name],
                positive=("positive", 0),
                negative=("negative", 0),
                latent_image=("empty", 0),
                **TINY_SAMPLING,
            )
            graph.add(f"{name} decode", "VAEDecode", samples=(f"{name} sampler", 0), vae=("vae", 0))
        graph.column(420)
        for name in row:
            show(graph, name, video=False, fps=1)
    return graph


def compare(info: Info) -> Graph:
    """One LoRA at rising strengths, side by side: a sweep feeds one sampler, which runs once per strength."""
    graph = opened(info, COMPARE_NOTE, 380)
    graph.step("1 Model and LoRA", BLUE)
    graph.column(340)
    model, clip, vae = wan(files.WAN_1_3B)(graph)
    graph.add("lora", "KilnLoadLora", color=YOURS, lora_name=WAN_LORA, model=model, strength=0.0)
    graph.step("2 Strengths and prompt", GREEN)
    graph.column(360)
    graph.add("sweep", "KilnWeightSweep", model=model, lora=("lora", 2), strengths="0, 0.5..0.9:0.1")
    graph.add("positive", "CLIPTextEncode", tall=130, color=YOURS, title="prompt", clip=clip, text=PROMPT)
    graph.add("negative", "CLIPTextEncode", tall=100, title="negative prompt", clip=clip, text=NEGATIVE)
    graph.add("empty", "EmptyHunyuanLatentVideo", width=512, height=512, length=1, batch_size=1)
    graph.step("3 Compare", PURPLE)
    graph.column(340)
    graph.add(
        "sampler",
        "KSampler",
        model=("sweep", 0),
        positive=("positive", 0),
        negative=("negative", 0),
        latent_image=("empty", 0),
        seed=1,
        steps=30,
        cfg=6.0,
        sampler_name="uni_pc",
        scheduler="simple",
    )
    graph.add("decode", "VAEDecode", samples=("sampler", 0), vae=vae)
    graph.column(620)
    graph.add("grid", "KilnComparisonGrid", tall=480, images=("decode", 0), labels=("sweep", 1), columns=3)
    graph.add("save", "SaveImage", tall=480, images=("grid", 0), filename_prefix="kiln/compare_strengths")
    return graph


WAN_LORA = "kiln/wan21_first_00001_.safetensors"  # what the starter saves first
TINY_PROMPT = "a red zorb on a white background"
TINY_TRAINING: dict[str, Any] = {
    "steps": 500,
    "learning_rate": 2e-3,
    "rank": 16,
    "alpha": 16.0,
    "batch_size": 8,
    "seed": 0,
}
TINY_SAMPLING: dict[str, Any] = {
    "seed": 1,
    "steps": 16,
    "cfg": 3.0,
    "sampler_name": "euler",
    "scheduler": "simple",
}
TINY_NOTE = """## LoRA Kiln, the tiny demo

A Wan 2.1 of 5 million parameters that can draw circles, squares and triangles learns a shape it has never seen.
Press **Run**: it trains for about a minute on a CPU and then draws the new shape without the LoRA and at rising
strengths. Nothing is downloaded."""
COMPARE_NOTE = """## Compare strengths

Draws the same picture without your LoRA and at 0.5 to 0.9, and puts the six side by side.

1. Choose your LoRA in **Load LoRA**, and write your trigger word into the prompt.
2. Press **Run**. The sampler runs once for each strength, always with the same seed.

Take the smallest strength that shows what you trained. For videos, raise the length and set the grid's mode
to *video*."""


def all_graphs(info: Info) -> dict[Path, Graph]:
    """Every workflow file and what is in it."""
    return {
        TINY: tiny(info),
        **{TEMPLATES / f"{story.title}.json": training_template(info, story) for story in STORIES},
        **{TEMPLATES / f"{edit.title}.json": edit_template(info, edit) for edit in EDITS},
        TEMPLATES / f"{EXPERTS}.json": experts_template(info),
        TEMPLATES / f"{SLIDER}.json": slider_template(info),
        TEMPLATES / f"{FIRST_FRAME}.json": first_frame_template(info),
        TEMPLATES / "Compare strengths.json": compare(info),
        TEMPLATES / "Look at a dataset.json": workshop(info),
        TEMPLATES / "Caption a dataset.json": captioning(info),
    }


def main() -> None:
    for path, graph in all_graphs(HostClient(sys.argv[1]).object_info()).items():
        graph.save(path)


if __name__ == "__main__":
    main()
