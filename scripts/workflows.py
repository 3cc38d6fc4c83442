"""Rebuild every workflow file, with the node definitions of a running server:

    python -m scripts.workflows URL

Building the files from code keeps them true to the nodes: an input that is renamed or missing fails here.
"""

from __future__ import annotations

import sys
from typing import Any

from scripts.host_client import HostClient
from scripts.host_files import REPO
from scripts.workflow_graph import WAN_FILES, Graph, Info, Link
from scripts.workshop import workshop


def sampled(
    graph: Graph, name: str, model: Link, y: int, x: int, width: int, settings: dict[str, Any]
) -> None:
    """Sampler, decoder and saved image of one model, in a row."""
    graph.add(
        f"{name} sampler", "KSampler", (x, y), (300, 270), title=f"sample: {name}", model=model, **settings
    )
    graph.add(
        f"{name} decode", "VAEDecode", (x + 330, y), (180, 60), samples=(f"{name} sampler", 0), vae=("vae", 0)
    )
    graph.add(
        f"{name} save",
        "SaveImage",
        (x + 540, y),
        (width, 270),
        title=name,
        images=(f"{name} decode", 0),
        filename_prefix=f"kiln/{name.replace(' ', '_').replace('.', '_')}",
    )


def tiny(info: Info) -> Graph:
    """The demo: learn the concept on the tiny Wan, then draw it at rising strengths."""
    graph = Graph(info)
    graph.add(
        "model", "UNETLoader", (0, 0), (320, 90), unet_name="tiny_wan.safetensors", weight_dtype="default"
    )
    graph.add("clip", "TinyWanTextEncoder", (0, 130), (320, 60))
    graph.add("vae", "VAELoader", (0, 230), (320, 70), vae_name="tiny_wan_vae.safetensors")
    graph.add("dataset", "KilnLoadDataset", (0, 350), (320, 270), folder="tiny_concept")
    graph.add("captions", "KilnCaptionTemplate", (0, 680), (320, 370), dataset=("dataset", 0))
    graph.add(
        "encoded",
        "KilnEncodeDataset",
        (380, 560),
        (320, 230),
        dataset=("captions", 0),
        vae=("vae", 0),
        clip=("clip", 0),
        resolution=64,
    )
    graph.add("objective", "KilnObjectiveSettings", (380, 0), (320, 150))
    graph.add("optimizer", "KilnOptimizerSettings", (380, 200), (320, 270), settings=("objective", 0))
    graph.add(
        "train",
        "KilnTrainLora",
        (760, 0),
        (360, 800),
        model=("model", 0),
        encoded=("encoded", 0),
        settings=("optimizer", 0),
        **TINY_TRAINING,
    )
    graph.add(
        "lora", "KilnSaveLora", (760, 850), (360, 150), lora=("train", 0), filename_prefix="kiln/tiny_concept"
    )
    graph.add("plot", "KilnLossPlot", (760, 1050), (360, 260), run=("train", 3))
    graph.add("positive", "CLIPTextEncode", (1180, 0), (320, 110), clip=("clip", 0), text=TINY_PROMPT)
    graph.add("negative", "CLIPTextEncode", (1180, 160), (320, 90), clip=("clip", 0), text="")
    graph.add(
        "empty",
        "EmptyHunyuanLatentVideo",
        (1180, 300),
        (320, 150),
        width=64,
        height=64,
        length=1,
        batch_size=20,
    )
    settings = {
        "positive": ("positive", 0),
        "negative": ("negative", 0),
        "latent_image": ("empty", 0),
        **TINY_SAMPLING,
    }
    sampled(graph, "without", ("model", 0), 0, 1560, 420, settings)
    for row, strength in enumerate((0.5, 0.8, 1.0), 1):
        name = f"strength {strength}"
        graph.add(
            f"apply {strength}",
            "KilnApplyLora",
            (1180, 330 * row + 200),
            (320, 110),
            model=("model", 0),
            lora=("train", 0),
            strength=strength,
        )
        sampled(graph, name, (f"apply {strength}", 0), 330 * row, 1560, 420, settings)
    graph.note((0, -230), (700, 190), TINY_NOTE)
    return graph


def wan(info: Info) -> Graph:
    """The real thing: Wan 2.1 T2V 1.3B on stills, with the guide's settings."""
    graph = Graph(info)
    graph.add("model", "UNETLoader", (0, 0), (360, 90), unet_name=WAN_FILES["model"], weight_dtype="default")
    graph.add(
        "clip", "CLIPLoader", (0, 130), (360, 110), clip_name=WAN_FILES["clip"], type="wan", device="default"
    )
    graph.add("vae", "VAELoader", (0, 280), (360, 70), vae_name=WAN_FILES["vae"])
    graph.add("dataset", "KilnLoadDataset", (0, 400), (360, 270), folder="my_dataset")
    graph.add(
        "captions",
        "KilnCaptionTemplate",
        (0, 730),
        (360, 370),
        dataset=("dataset", 0),
        template="{caption}, {art_style} style, {lighting}",
        values="art_style: futurist\nlighting: neon light and fog | soft daylight",
        trigger_word="k1ln",
    )
    graph.add(
        "encoded",
        "KilnEncodeDataset",
        (420, 600),
        (320, 230),
        dataset=("captions", 0),
        vae=("vae", 0),
        clip=("clip", 0),
        resolution=512,
    )
    graph.add("adapter", "KilnAdapterSettings", (420, 0), (320, 130))
    graph.add("optimizer", "KilnOptimizerSettings", (420, 180), (320, 270), settings=("adapter", 0))
    graph.add(
        "samples",
        "KilnSampleSettings",
        (420, 880),
        (320, 520),
        clip=("clip", 0),
        vae=("vae", 0),
        settings=("optimizer", 0),
        prompts=WAN_PROMPT,
        negative_prompt=WAN_NEGATIVE,
    )
    graph.add(
        "train",
        "KilnTrainLora",
        (800, 0),
        (380, 800),  # with a row of samples
        model=("model", 0),
        encoded=("encoded", 0),
        settings=("samples", 0),
        preset="standard",
    )
    graph.add(
        "lora", "KilnSaveLora", (800, 850), (380, 150), lora=("train", 0), filename_prefix="kiln/wan21_lora"
    )
    graph.add("plot", "KilnLossPlot", (800, 1050), (380, 290), run=("train", 3))
    graph.add(
        "positive",
        "CLIPTextEncode",
        (1240, 0),
        (360, 150),
        clip=("clip", 0),
        text=WAN_PROMPT,
    )
    graph.add("negative", "CLIPTextEncode", (1240, 200), (360, 110), clip=("clip", 0), text=WAN_NEGATIVE)
    graph.add(
        "empty",
        "EmptyHunyuanLatentVideo",
        (1240, 360),
        (360, 150),
        width=512,
        height=512,
        length=1,
        batch_size=1,
    )
    graph.add(
        "apply", "KilnApplyLora", (1240, 560), (360, 110), model=("model", 0), lora=("train", 0), strength=0.8
    )
    settings = {
        "positive": ("positive", 0),
        "negative": ("negative", 0),
        "latent_image": ("empty", 0),
        "seed": 1,
        "steps": 30,
        "cfg": 6.0,
        "sampler_name": "uni_pc",
        "scheduler": "simple",
    }
    sampled(graph, "without LoRA", ("model", 0), 0, 1660, 420, settings)
    sampled(graph, "with LoRA at 0.8", ("apply", 0), 330, 1660, 420, settings)
    graph.note((0, -300), (740, 260), WAN_NOTE)
    return graph


def compare(info: Info) -> Graph:
    """One LoRA at rising strengths, side by side: a sweep feeds one sampler, which runs once per strength."""
    graph = Graph(info)
    graph.add("model", "UNETLoader", (0, 0), (360, 90), unet_name=WAN_FILES["model"], weight_dtype="default")
    graph.add(
        "clip", "CLIPLoader", (0, 130), (360, 110), clip_name=WAN_FILES["clip"], type="wan", device="default"
    )
    graph.add("vae", "VAELoader", (0, 280), (360, 70), vae_name=WAN_FILES["vae"])
    graph.add(
        "lora",
        "KilnLoadLora",
        (0, 390),
        (360, 220),
        lora_name=WAN_LORA,
        model=("model", 0),
        strength=0.0,
    )
    graph.add(
        "sweep",
        "KilnWeightSweep",
        (420, 0),
        (360, 190),
        model=("model", 0),
        lora=("lora", 2),
        strengths="0, 0.5..0.9:0.1",
    )
    graph.add(
        "positive",
        "CLIPTextEncode",
        (420, 240),
        (360, 150),
        clip=("clip", 0),
        text="k1ln, cyberpunk girl standing in a neon street, futurist style, neon light and fog",
    )
    graph.add(
        "negative", "CLIPTextEncode", (420, 430), (360, 110), clip=("clip", 0), text="blurry, low quality"
    )
    graph.add(
        "empty",
        "EmptyHunyuanLatentVideo",
        (420, 580),
        (360, 150),
        width=512,
        height=512,
        length=1,
        batch_size=1,
    )
    graph.add(
        "sampler",
        "KSampler",
        (840, 0),
        (300, 270),
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
    graph.add("decode", "VAEDecode", (840, 320), (300, 60), samples=("sampler", 0), vae=("vae", 0))
    graph.add(
        "grid",
        "KilnComparisonGrid",
        (1200, 0),
        (620, 420),
        images=("decode", 0),
        labels=("sweep", 1),
        columns=3,
    )
    graph.add(
        "save",
        "SaveImage",
        (1200, 470),
        (620, 270),
        images=("grid", 0),
        filename_prefix="kiln/compare_strengths",
    )
    graph.note((0, -260), (740, 220), COMPARE_NOTE)
    return graph


WAN_LORA = "kiln/wan21_lora_00001_.safetensors"  # what the training workflow saves first
WAN_PROMPT = "k1ln, cyberpunk girl standing in a neon street, futurist style, neon light and fog"
WAN_NEGATIVE = "blurry, low quality"
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
WAN_NOTE = """## Train a Wan 2.1 LoRA on stills

1. Put 20-100 images with captions (photo.png and photo.txt) into **ComfyUI/input/my_dataset**.
2. Choose a trigger word that means nothing yet, and describe what all images share in the template's values.
3. Press **Run**. The node shows loss, samples and time left; interrupting saves a checkpoint, *resume: latest* goes on.

Start with the preset *quick trial* (500 steps). Use the LoRA at 0.5-0.9. Model files: wan2.1_t2v_1.3B_fp16,
umt5_xxl_fp8_e4m3fn_scaled and wan_2.1_vae, as ComfyUI's own Wan templates use them."""

COMPARE_NOTE = """## Compare strengths

Draws the same picture without your LoRA and at 0.5 to 0.9, and puts the six side by side.

1. Choose your LoRA in **Load LoRA**, and write your trigger word into the prompt.
2. Press **Run**. The sampler runs once for each strength, always with the same seed.

Take the smallest strength that shows what you trained. For videos, raise the length and set the grid's mode
to *video*."""


def main() -> None:
    info = HostClient(sys.argv[1]).object_info()
    tiny(info).save(REPO / "tests" / "tiny_wan" / "workflows" / "train_then_sample_tiny.json")
    wan(info).save(REPO / "workflows" / "wan21_t2v_lora.json")
    compare(info).save(REPO / "workflows" / "compare_strengths.json")
    workshop(info).save(REPO / "workflows" / "dataset_workshop.json")


if __name__ == "__main__":
    main()
